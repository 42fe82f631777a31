"""A perceptual hash in the place of a copy descriptor: no network, no weights, no licence to accept.

256 bits in the manner of PDQ: luma at 64x64, its cosine transform, the 16x16 lowest frequencies without the constant ones, each above or below
their median. A bit is one entry of +-1/16 and the rest of the descriptor is zero, so the cosine of two frames is 1 - 2 x (bits that differ) / 256,
and all that works on descriptors works on it. Own arithmetic, because the `pdqhash` package has to be compiled on every machine and `imagehash`
brings scipy; the bits are not those of PDQ. Price: finds what was encoded again, scaled or brightened; what was cropped or overlaid, mostly not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.ids import fingerprint

__all__ = ["PerceptualHash"]

_CODE_VERSION = 1
_SIDE = 64
_FREQUENCIES = 16
_FLAT_LUMA = 2.0
"""A picture whose luma spreads less than this, of 255, would be hashed by its noise."""


class PerceptualHash:
    """`describe` RGB frames; the same interface as `CopyDescriptor`."""

    width = 512
    num_bits: Final = _FREQUENCIES * _FREQUENCIES

    def __init__(self) -> None:
        self.name = "phash"
        self.fingerprint = fingerprint([self.name, _CODE_VERSION])

    def describe(self, frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.float16]:
        """(N, 512) float16 with rows of length 1, for N frames (H, W, 3) uint8; a row of zeros, which is like nothing, for a flat picture."""
        rows = np.zeros((len(frames), self.width), dtype=np.float16)
        for row, frame in zip(rows, frames, strict=True):
            row[: self.num_bits] = _signs(frame) / np.sqrt(self.num_bits)
        return rows


def _signs(frame_HWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """+1 and -1 (256), zeros for a flat picture."""
    import cv2

    square = cv2.resize(frame_HWC, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
    luma = square @ np.array([0.2126, 0.7152, 0.0722])
    if luma.std() < _FLAT_LUMA:
        return np.zeros(_FREQUENCIES * _FREQUENCIES)
    lowest = cv2.dct(luma)[1 : _FREQUENCIES + 1, 1 : _FREQUENCIES + 1].reshape(-1)
    return np.where(lowest > np.median(lowest), 1.0, -1.0)
