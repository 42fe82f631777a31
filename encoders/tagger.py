"""What is in the picture: ImageNet classes by EfficientNet-Lite0, the eyes of the default captioner.

Probabilities are averaged over the frames given, so that one odd frame does not name a clip. Price: a thousand object classes and no verbs;
scenes and people are named badly, which is why the record says which captioner wrote a caption.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.efficientnet import load_efficientnet_lite0, normalised
from encoders.registry import Registry
from schemas.ids import fingerprint

__all__ = ["ImageTagger"]

_CODE_VERSION = 1
_SHORT_SIDE = 256
_CROP = 224


class ImageTagger:
    """EfficientNet-Lite0 with its classifier over the middle 224x224 of each frame (short side 256)."""

    name = "efficientnet_lite0"

    def __init__(self, *, device: str = "cpu", registry: Registry | None = None) -> None:
        from torchvision.models import EfficientNet_B0_Weights

        registry = registry or Registry()
        entry = "teacher.efficientnet_lite0"
        self.labels: tuple[str, ...] = tuple(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"])
        self._network = load_efficientnet_lite0(registry.local_path(entry), device=device)
        self._device = device
        self.fingerprint = fingerprint([self.name, "tags", _CODE_VERSION, registry.weights_hash(entry), self.labels])

    def tags(self, frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], *, top: int = 5) -> list[tuple[str, float]]:
        """The `top` (label, mean probability), most probable first, of one or more (H, W, 3) uint8 frames."""
        mean = np.mean([self._probabilities(frame) for frame in frames], axis=0)
        order = np.argsort(-mean, kind="stable")[:top]
        return [(self.labels[index], float(mean[index])) for index in order]

    @torch.inference_mode()
    def _probabilities(self, frame_HWC: NDArray[np.uint8]) -> NDArray[np.float64]:
        logits = self._network(normalised(_middle(frame_HWC), self._device))
        result: NDArray[np.float64] = logits[0].double().softmax(dim=0).cpu().numpy()
        return result


def _middle(frame_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = frame_HWC.shape[:2]
    scale = _SHORT_SIDE / min(height, width)
    size = (max(_CROP, round(width * scale)), max(_CROP, round(height * scale)))
    left, top = (size[0] - _CROP) // 2, (size[1] - _CROP) // 2
    image = Image.fromarray(frame_HWC).resize(size, resample=Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + _CROP, top + _CROP)))
