"""Tiles with overlap, for pictures that do not fit a network whole: where they lie, and how much each counts where two meet.

All tiles of a side have one size, so a network is compiled and measured for one shape; they are spread evenly, at multiples of the stride. In an
overlap the weights fall linearly, and they add up to one. Price: near a seam a tile misses the context beyond it, which the overlap hides
but does not remove.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["tile_spans", "tile_weights"]


def tile_spans(length: int, tile: int, overlap: int, stride: int = 1) -> list[tuple[int, int]]:
    """(start, end) of the tiles over `length`; one when it fits. All arguments but `overlap` are multiples of `stride`.

    >>> tile_spans(20, 8, 2, 1)
    [(0, 8), (6, 14), (12, 20)]
    """
    if tile <= 0 or length <= tile:
        return [(0, length)]
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap {overlap} must be at least 0 and smaller than the tile, {tile}")
    step = max(stride, (tile - overlap) // stride * stride)
    count = -(-(length - tile) // step) + 1
    starts = [(length - tile) * index // (count - 1) // stride * stride for index in range(count)]
    return [(start, start + tile) for start in starts]


def tile_weights(spans: list[tuple[int, int]]) -> list[NDArray[np.float32]]:
    """One float32 weight per position of each span; over all spans they add up to one at every position."""
    raw = []
    for index, (start, end) in enumerate(spans):
        centre = np.arange(start, end) + 0.5
        weight = np.ones(end - start)
        if index > 0 and spans[index - 1][1] > start:
            weight = np.minimum(weight, (centre - start) / (spans[index - 1][1] - start))
        if index + 1 < len(spans) and spans[index + 1][0] < end:
            weight = np.minimum(weight, (end - centre) / (end - spans[index + 1][0]))
        raw.append(weight)
    total = np.zeros(spans[-1][1])
    for (start, end), weight in zip(spans, raw, strict=True):
        total[start:end] += weight
    return [(weight / total[start:end]).astype(np.float32) for (start, end), weight in zip(spans, raw, strict=True)]
