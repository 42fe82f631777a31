"""NSFW probability of a frame by Yahoo's open_nsfw, with the reference preprocessing to the last step.

That preprocessing includes a JPEG round trip, because the network was trained behind one; without it scores shift by a few hundredths.
Price: the network knows photographs of one kind; drawn content and violence are outside it. About 15 ms a frame on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from encoders.onnx_session import open_session
from encoders.registry import Registry
from schemas.ids import fingerprint

__all__ = ["NsfwScorer", "preprocess"]

_CODE_VERSION = 1
_RESIZE = 256
_CROP = 224
_MEAN_BGR = (104.0, 117.0, 123.0)
_NSFW = 1


class NsfwScorer:
    """`scores` of RGB frames; 0 is safe, 1 is not."""

    name = "opennsfw"

    def __init__(self, *, intra_op_num_threads: int = 1, registry: Registry | None = None) -> None:
        registry = registry or Registry()
        entry = "nsfw.opennsfw"
        self._session = open_session(registry.local_path(entry), intra_op_num_threads=intra_op_num_threads)
        self._input = self._session.get_inputs()[0].name
        self.fingerprint = fingerprint([self.name, _CODE_VERSION, registry.weights_hash(entry)])

    def scores(self, frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """One probability per (H, W, 3) uint8 frame."""
        runs = [self._session.run(None, {self._input: preprocess(frame)[None]})[0] for frame in frames]
        return np.array([run[0, _NSFW] for run in runs], dtype=np.float32)


def preprocess(frame_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(224, 224, 3) float32 BGR minus the mean: bilinear to 256x256, middle 224x224, JPEG at Pillow's default quality and back."""
    from PIL import Image

    offset = (_RESIZE - _CROP) // 2
    image = Image.fromarray(frame_HWC).resize((_RESIZE, _RESIZE), resample=Image.Resampling.BILINEAR)
    image = image.crop((offset, offset, offset + _CROP, offset + _CROP))
    with BytesIO() as buffer:
        image.save(buffer, format="JPEG")
        buffer.seek(0)
        with Image.open(buffer) as decoded:
            pixels_RGB = np.asarray(decoded, dtype=np.float32)
    return np.ascontiguousarray(pixels_RGB[:, :, ::-1] - np.array(_MEAN_BGR, dtype=np.float32))
