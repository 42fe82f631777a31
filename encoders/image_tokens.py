"""Image tokens for image-to-video: what a SigLIP vision tower sees in the first frame of a clip, one state per patch.

The frame is resized to the tower's own square, as it was trained; the pooling head is left out. The tower inside a T5Gemma2 folder is taken
too, for that is the one the paper's model reads. Price: a square 896 picture gives 4,096 tokens of 1,152 numbers, 9 MB a clip.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.devices import pick_device, pick_dtype
from encoders.registry import Registry
from encoders.weights import hash_folder, load_network, resolve_folder, revision_of
from schemas.ids import fingerprint

__all__ = ["IMAGE_ENCODERS", "SiglipTokens"]

_CODE_VERSION = 1

IMAGE_ENCODERS = ("siglip",)


class SiglipTokens:
    """A frozen `SiglipVisionModel`; `path` is a folder or hub id of a SigLIP or a T5Gemma2 model, None the registry's `image.siglip`."""

    name = "siglip"

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        device: str = "cpu",
        precision: str = "float32",
        registry: Registry | None = None,
    ) -> None:
        folder = resolve_folder(path, default="image.siglip", registry=registry)
        self._device = pick_device(device, purpose="image encoder siglip")
        self._dtype = pick_dtype(precision)
        self._model = _tower(folder).to(self._device, self._dtype).eval().requires_grad_(False)
        config = self._model.config
        self._side = int(config.image_size)
        self.width = int(config.hidden_size)
        self.num_tokens = (self._side // int(config.patch_size)) ** 2
        self.revision = revision_of(folder)
        self.fingerprint = fingerprint([self.name, _CODE_VERSION, hash_folder(folder), precision])

    @torch.inference_mode()
    def tokens(self, frame_HWC: NDArray[np.uint8]) -> NDArray[np.float16]:
        """(tokens, width) float16 of one RGB frame, patches in reading order."""
        import cv2

        shrinks = frame_HWC.shape[0] * frame_HWC.shape[1] > self._side**2
        method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        square = np.array(cv2.resize(frame_HWC, (self._side, self._side), interpolation=method), order="C")
        pixels = torch.from_numpy(square).to(self._device).permute(2, 0, 1)[None].float() / 127.5 - 1.0
        hidden_BID = self._model(pixel_values=pixels.to(self._dtype)).last_hidden_state
        result: NDArray[np.float16] = hidden_BID[0].to("cpu", torch.float16).contiguous().numpy()
        return result


def _tower(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModel, SiglipVisionModel

    if AutoConfig.from_pretrained(folder, local_files_only=True).model_type == "t5gemma2":
        whole = load_network(AutoModel, folder, unused=("decoder.", "lm_head."))
        return whole.get_encoder().vision_tower
    return load_network(SiglipVisionModel, folder, unused=("head.", "vision_model.head."))
