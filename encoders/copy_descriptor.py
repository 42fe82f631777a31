"""Copy-detection descriptors (SSCD): one unit vector per frame, whose cosine says whether two frames are copies.

The input is a square, as SSCD's own evaluation feeds batches, so every frame costs the same and every call has one shape. Two weights with one
interface: `copies.sscd` (int8 ResNet-50, about 60 ms a frame on one core) and `copies.sscd_distilled` (a student, about 12 ms). Their
descriptors are not comparable with each other; the fingerprint tells them apart. Price: letterboxed copies score lower, so crop bars first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from encoders.onnx_session import open_session
from encoders.registry import Registry
from schemas.ids import fingerprint

__all__ = ["CopyDescriptor"]

_CODE_VERSION = 1


class CopyDescriptor:
    """`describe` RGB frames; a dot product of two rows is their cosine."""

    width = 512

    def __init__(
        self,
        weights: Literal["sscd", "sscd_distilled"] = "sscd",
        *,
        side: int = 320,
        intra_op_num_threads: int = 1,
        registry: Registry | None = None,
    ) -> None:
        registry = registry or Registry()
        entry = f"copies.{weights}"
        self.name: str = weights
        self.side = side
        self._session = open_session(registry.local_path(entry), intra_op_num_threads=intra_op_num_threads)
        self._input = self._session.get_inputs()[0].name
        self.fingerprint = fingerprint([self.name, _CODE_VERSION, registry.weights_hash(entry), side])

    def describe(self, frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.float16]:
        """(N, 512) float16 with rows of length 1, for N frames (H, W, 3) uint8; N may be 0."""
        rows = [self._describe_one(frame) for frame in frames]
        return np.stack(rows).astype(np.float16) if rows else np.zeros((0, self.width), dtype=np.float16)

    def _describe_one(self, frame_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        import cv2

        shrinks = self.side * self.side < frame_HWC.shape[0] * frame_HWC.shape[1]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        square = cv2.resize(frame_HWC, (self.side, self.side), interpolation=method)
        vector = np.asarray(self._session.run(None, {self._input: square[None]})[0][0], dtype=np.float32)
        return vector / np.maximum(np.linalg.norm(vector), np.float32(1e-12))
