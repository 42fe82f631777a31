"""Optical flow between two neighbouring frames, kept as a coarse grid: lengths, mean vectors, and where there was anything to see moving.

The grid is kept rather than numbers of the whole picture, because the crop of a clip is known only after the pass: borders are left out
later. Half precision, because a long film has tens of thousands of grids: 5 kB each. Price: what moves within a cell in opposite directions
cancels in the vectors (not in the lengths).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLOW_GRID", "FlowMeter", "FlowSample"]

FLOW_GRID = (18, 32)
"""Rows and columns of the flow grid."""
_LEAST_SIDE = 32
"""DIS flow refuses pictures with a side below 12, and at this preset it dies in native code with one below 32."""


@dataclass(frozen=True)
class FlowSample:
    """Displacement between two neighbouring distinct frames per grid cell, proxy pixels per tick."""

    first_tick: int
    second_tick: int
    lengths: NDArray[np.float16]
    """(rows, columns): mean absolute displacement."""
    vectors: NDArray[np.float16]
    """(rows, columns, 2): mean displacement to the right and downwards."""
    contrast: NDArray[np.float16]
    """(rows, columns): standard deviation of luma; where it is near 0 (sky, borders) no displacement can be seen."""

    @classmethod
    def still(cls, tick: int) -> FlowSample:
        """A frame that is shown on at `tick`: nothing moves, anywhere."""
        nothing = np.zeros((*FLOW_GRID, 2), np.float16)
        return cls(tick - 1, tick, nothing[..., 0], nothing, np.full(FLOW_GRID, 255, np.float16))


class FlowMeter:
    """OpenCV's DIS flow at its fastest preset; about 2 ms a pair at a long side of 256."""

    def __init__(self) -> None:
        import cv2

        self._flow: Any = cv2.DISOpticalFlow.create(cv2.DISOpticalFlow_PRESET_ULTRAFAST)

    def between(self, before: int, first: NDArray[np.uint8], tick: int, second: NDArray[np.uint8]) -> FlowSample:
        """Flow from the grey frame `first`, at tick `before`, to `second`, at `tick`."""
        rows, columns = second.shape
        padded = _padded(first), _padded(second)
        flow = np.asarray(self._flow.calc(*padded, np.zeros((*padded[0].shape, 2), dtype=np.float32)))[:rows, :columns]
        flow = np.asarray(flow / np.float32(tick - before), dtype=np.float32)
        lengths = _cells(np.hypot(flow[..., 0], flow[..., 1]))
        levels = second.astype(np.float32)
        variance = _cells(levels * levels) - _cells(levels) ** 2
        contrast = np.sqrt(np.maximum(variance, 0.0))
        half = np.float16
        return FlowSample(before, tick, lengths.astype(half), _cells(flow).astype(half), contrast.astype(half))


def _padded(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """At least as large as the method needs, the rim repeated: ribbons of a few rows exist."""
    import cv2

    below, beside = (max(0, _LEAST_SIDE - side) for side in grey.shape)
    if not below and not beside:
        return grey
    return np.asarray(cv2.copyMakeBorder(grey, 0, below, 0, beside, cv2.BORDER_REPLICATE), dtype=np.uint8)


def _cells(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean per grid cell."""
    import cv2

    return np.asarray(cv2.resize(values, FLOW_GRID[::-1], interpolation=cv2.INTER_AREA), dtype=np.float32)
