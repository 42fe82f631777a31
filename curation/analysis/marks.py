"""Marks that are not text: a channel logo or a frame, found because its edges stay while the scene changes.

Over samples of all shots of a source the gradient of luma is averaged as a unit vector where it is strong. Scene edges come and go, so
their mean is short; the edges of a burnt-in mark keep place and direction, so theirs is long. Where the whole picture stays (one shot from a
tripod) nothing can be told apart, and nothing is said. Price: half-transparent and moving marks are missed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from curation.analysis.crops import Box
from curation.analysis.samples import SampleStore
from curation.analysis.shots import Span

__all__ = ["MARKS_MODEL", "EdgeMean", "find_marks"]

MARKS_MODEL = "temporal-edges-1"
_LONG_SIDE = 320
_FRAMES_PER_SHOT = 4
_MOST_SHOTS = 24
_FEWEST_SHOTS = 3
_STRONG_GRADIENT = 40.0
"""Sobel length, luma levels, from which a gradient has a direction."""
_STEADY = 0.75
"""Length of the mean unit vector from which an edge stays."""
_MOST_STEADY_RATIO = 0.05
"""If more of the picture than this stays, it is the scene that stays."""
_LEAST_PIXELS = 24
_LEAST_SIDE = 5
_JOIN_PIXELS = 9
_LINE_RATIO = 0.25
_BAND = 0.25
"""Marks are looked for in this share of the height or width at each side."""


class EdgeMean:
    """Mean unit gradient over frames of one size."""

    def __init__(self) -> None:
        self._sum: NDArray[np.float64] | None = None
        self._count = 0

    def add(self, grey: NDArray[np.uint8]) -> None:
        import cv2

        soft = cv2.GaussianBlur(grey, (3, 3), 0).astype(np.float32)
        gradient = np.stack([cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)])
        length = np.hypot(gradient[0], gradient[1])
        unit = np.where(length >= _STRONG_GRADIENT, gradient / np.maximum(length, 1e-6), 0.0)
        self._sum = unit.astype(np.float64) if self._sum is None else self._sum + unit
        self._count += 1

    def steady(self) -> NDArray[np.bool_]:
        """Pixels whose edge stayed."""
        assert self._sum is not None, "add frames first"
        return np.asarray(np.hypot(self._sum[0], self._sum[1]) >= _STEADY * self._count)


def find_marks(store: SampleStore, shots: Sequence[Span], picture: Box, sample_size: tuple[int, int]) -> list[Box]:
    """Boxes of steady marks in sample pixels.

    `picture` (sample pixels): the source inside its borders; edges near its rim belong to the border. At least three shots are needed.
    """
    import cv2

    chosen = [
        shots[i] for i in sorted({round(p) for p in np.linspace(0, len(shots) - 1, min(len(shots), _MOST_SHOTS))})
    ]
    scale = min(1.0, _LONG_SIDE / max(sample_size))
    mean, shown = EdgeMean(), 0
    for shot in chosen:
        ticks = store.between(shot.first, shot.end)
        shown += bool(ticks)
        for tick in ticks[:: max(1, len(ticks) // _FRAMES_PER_SHOT)][:_FRAMES_PER_SHOT]:
            grey = cv2.cvtColor(store.frame(tick), cv2.COLOR_RGB2GRAY)
            mean.add(
                np.asarray(cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), dtype=np.uint8)
            )
    if shown < _FEWEST_SHOTS:
        return []
    steady = _inside(mean.steady(), picture, scale)
    if steady.mean() > _MOST_STEADY_RATIO:
        return []
    return [
        Box(int(b.top / scale), int(b.left / scale), int(np.ceil(b.bottom / scale)), int(np.ceil(b.right / scale)))
        for b in _components(steady)
    ]


def _inside(steady: NDArray[np.bool_], picture: Box, scale: float) -> NDArray[np.bool_]:
    """Without the rim of the picture, and without its middle."""
    height, width = steady.shape
    top, left = round(picture.top * scale), round(picture.left * scale)
    bottom, right = round(picture.bottom * scale), round(picture.right * scale)
    rim = 4
    kept = np.zeros_like(steady)
    kept[max(0, top + rim) : min(height, bottom - rim), max(0, left + rim) : min(width, right - rim)] = True
    band_y, band_x = round(_BAND * (bottom - top)), round(_BAND * (right - left))
    kept[top + band_y : bottom - band_y, left + band_x : right - band_x] = False
    return steady & kept & ~_long_lines(steady)


def _long_lines(steady: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Straight upright or level edges over a good part of the picture: rims of bars, of a split screen, not of a mark."""
    import cv2

    height, width = steady.shape
    pixels = steady.astype(np.uint8)
    found = np.zeros_like(pixels)
    for size in ((1, max(3, round(_LINE_RATIO * height))), (max(3, round(_LINE_RATIO * width)), 1)):
        kernel = cv2.getStructuringElement(cv2.MORPH_RECT, size)
        found |= np.asarray(cv2.morphologyEx(pixels, cv2.MORPH_OPEN, kernel), dtype=np.uint8)
    return np.asarray(cv2.dilate(found, np.ones((3, 3), dtype=np.uint8)), dtype=bool)


def _components(steady: NDArray[np.bool_]) -> list[Box]:
    """Boxes of groups of steady pixels that lie near each other."""
    import cv2

    kernel = np.ones((_JOIN_PIXELS, _JOIN_PIXELS), dtype=np.uint8)
    joined = cv2.dilate(steady.astype(np.uint8), kernel)
    count, labels = cv2.connectedComponents(joined)
    boxes = []
    for label in range(1, count):
        rows, columns = np.nonzero(steady & (labels == label))
        if len(rows) < _LEAST_PIXELS:
            continue
        box = Box(int(rows.min()) - 1, int(columns.min()) - 1, int(rows.max()) + 2, int(columns.max()) + 2)
        if min(box.bottom - box.top, box.right - box.left) >= _LEAST_SIDE:
            boxes.append(box.meet(Box(0, 0, *steady.shape)))
    return sorted(boxes)
