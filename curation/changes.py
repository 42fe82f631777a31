"""How much each decoded frame differs from the one before it, from a few rows of its first plane: enough to tell a repeated picture from a new one.

Measured on every decoded frame, also on those that get no tick, because a 60 fps file may repeat a 24 fps film. Sixty-four rows are compared, and
the places that change most count, so that a mouth that moves in a still picture is seen. Price: about 0.1 ms a frame; what happens between
the rows alone is missed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Change", "ChangeMeter"]

_ROWS = 64
_CELLS = 16
_MOST_CHANGED = 8
"""One cell in this many counts."""


class Change(NamedTuple):
    """One decoded frame."""

    tick: float
    """Its time in ticks, not rounded."""
    levels: float
    """Mean absolute difference to the frame before in the eighth of the picture that changed most, 0 to 255."""


class ChangeMeter:
    """Feed it frames of PyAV in display order."""

    def __init__(self) -> None:
        self._previous: NDArray[Any] | None = None

    def levels(self, frame: Any) -> float | None:
        """Difference to the frame before; None for the first frame and after a change of size."""
        import cv2

        rows, levels_per_unit = _rows(frame)
        previous, self._previous = self._previous, rows
        if previous is None or previous.shape != rows.shape or previous.dtype != rows.dtype:
            return None
        cells = _cells(np.asarray(cv2.absdiff(rows, previous))).ravel()
        most = max(1, cells.size // _MOST_CHANGED)
        return float(np.partition(cells, -most)[-most:].mean()) * levels_per_unit


def _cells(values: NDArray[Any]) -> NDArray[np.float64]:
    """Means over at most 16 x 16 equal cells; the last few rows and columns may be left out. Far faster than OpenCV's averaging by such a factor."""
    rows, columns = (min(_CELLS, size) for size in values.shape)
    height, width = values.shape[0] // rows, values.shape[1] // columns
    cut = values[: rows * height, : columns * width]
    if values.dtype == np.uint8:
        import cv2

        by_row = cv2.reduce(cut.reshape(-1, width), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
        sums = by_row.reshape(rows, height, columns).sum(axis=1)
    else:
        sums = cut.reshape(rows, height, columns, width).sum(axis=(1, 3), dtype=np.uint32)
    return np.asarray(sums / (height * width))


def _rows(frame: Any) -> tuple[NDArray[Any], float]:
    """Some rows of the first plane (luma, or interleaved colours where there are no planes), and what one unit is in levels of 8 bits."""
    bits = max(8, frame.format.components[0].bits)
    plane = frame.planes[0]
    pixels: NDArray[Any] = np.frombuffer(plane, dtype=np.uint8).reshape(plane.height, plane.line_size)
    if bits > 8:
        pixels = pixels[:, : plane.line_size // 2 * 2].view(np.uint16)
    step = max(1, plane.height // _ROWS)
    return np.ascontiguousarray(pixels[step // 2 :: step, : plane.width]), 1.0 / (1 << (bits - 8))
