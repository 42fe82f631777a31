"""What only the pixels of the source itself tell: the edges of compression blocks, and how far up the frequencies real detail goes.

Both are lost when a frame is made smaller, so they are measured during the pass, on the luma of the middle of about one frame a second, and kept
as a few numbers. Detail: short rows and columns with the strongest edges; their power times the squared frequency is level for sharp edges, and
an enlarged picture falls off where the small one ended. Price: a picture that was out of focus reads like one that was enlarged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PIXELS_MODEL", "PixelFacts", "blockiness", "effective_resolution", "measure_pixels"]

PIXELS_MODEL = "native-luma-1"
_BLOCK = 8
_MIDDLE = 0.74
"""Share of each side that is looked at: inside the bars of a 2.39:1 film in 16:9."""
_MOST_SIDE = 512
_LARGEST_STEP = 24
"""Levels; larger steps are edges of things."""
_LEAST_STEP = 0.05
"""Levels; where neighbours differ by less on average there is nothing to compare with."""
_PIECE = 64
_EVERY_ROW = 4
_STRONGEST = 0.1
_LEAST_PIECES = 16
_LEVEL_BAND = (0.06, 0.15)
"""Cycles per pixel between which the level of the edges is taken: below the end of a picture that was enlarged threefold."""
_NOISE_BAND = 0.45
"""From here on what is left is taken for noise."""
_FALL = 10 ** (-8 / 10)
"""8 dB below that level the detail ends. At 6 an unenlarged film reads 0.1 lower, at 10 noise of a codec hides the end."""
_LEAST_LEVEL = 3.0
"""Power times frequency squared; below it the picture has no edge sharp enough to judge by."""


@dataclass(frozen=True)
class PixelFacts:
    """Of one frame."""

    tick: int
    steps: NDArray[np.float32]
    """(2, 8): mean step between neighbouring columns (rows) by place on the 8-pixel grid, steps above 24 levels counted as 24."""
    detail: float | None
    """Where detail ends, as a share of what the size could hold; None without a sharp edge, or for a tiny picture."""


def measure_pixels(tick: int, luma: NDArray[np.uint8]) -> PixelFacts:
    """About 3 ms for a large picture."""
    rows, columns = (min(_MOST_SIDE, int(size * _MIDDLE)) for size in luma.shape)
    # The cut starts on the block grid of the file, so that the place on the grid is the same whatever the size.
    top, left = ((size - part) // 2 // _BLOCK * _BLOCK for size, part in zip(luma.shape, (rows, columns), strict=True))
    middle = luma[top : top + rows, left : left + columns]
    steps = np.stack([_steps(middle), _steps(middle.T)])
    return PixelFacts(tick, steps, _detail(middle.astype(np.float32)))


def blockiness(facts: Sequence[PixelFacts]) -> float | None:
    """Steps at the place of the grid where they are largest over those elsewhere, mean of both directions; None where nothing has steps."""
    if not facts:
        return None
    ratios = []
    for by_place in np.stack([fact.steps for fact in facts]).mean(axis=0, dtype=np.float64):
        elsewhere = np.delete(by_place, by_place.argmax()).mean()
        if not elsewhere >= _LEAST_STEP:
            return None
        ratios.append(by_place.max() / elsewhere)
    return float(np.mean(ratios))


def effective_resolution(facts: Sequence[PixelFacts]) -> float | None:
    """The upper quintile over the frames: a frame blurred by motion says nothing about the rest."""
    found = [fact.detail for fact in facts if fact.detail is not None]
    return float(np.quantile(found, 0.8)) if found else None


def _steps(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean step to the column before, by the column's place on the grid; 0 for places that are not there."""
    import cv2

    if not pixels.size:
        return np.zeros(_BLOCK, dtype=np.float32)
    before, after = np.ascontiguousarray(pixels[:, :-1]), np.ascontiguousarray(pixels[:, 1:])
    by_column = np.minimum(cv2.absdiff(before, after), _LARGEST_STEP).mean(axis=0, dtype=np.float64)
    places = (np.arange(len(by_column)) + 1) % _BLOCK
    counts = np.bincount(places, minlength=_BLOCK)
    return (np.bincount(places, by_column, _BLOCK) / np.maximum(counts, 1)).astype(np.float32)


def _detail(middle: NDArray[np.float32]) -> float | None:
    pieces = _sharpest_pieces(middle)
    if pieces is None:
        return None
    pieces = (pieces - pieces.mean(axis=1, keepdims=True)) * np.hanning(_PIECE).astype(np.float32)
    power = (np.abs(np.fft.rfft(pieces, axis=1)) ** 2).mean(axis=0, dtype=np.float64)
    power = np.convolve(np.pad(power, 1, mode="edge"), [0.25, 0.5, 0.25], "valid")
    frequency = np.arange(len(power)) / _PIECE
    edges = np.maximum(power - power[frequency >= _NOISE_BAND].mean(), 0.0) * frequency**2
    level = edges[(frequency >= _LEVEL_BAND[0]) & (frequency <= _LEVEL_BAND[1])].mean()
    if level < _LEAST_LEVEL:
        return None
    low = np.flatnonzero((edges < _FALL * level) & (frequency > _LEVEL_BAND[1] - 0.03))
    if not low.size:
        return 1.0
    end = int(low[0])
    above, below = np.log(edges[end - 1]), np.log(max(edges[end], 1e-9))
    part = (above - np.log(_FALL * level)) / (above - below) if above > below else 0.0
    return float(min(1.0, 2 * (frequency[end - 1] + np.clip(part, 0, 1) / _PIECE)))


def _sharpest_pieces(middle: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Of pieces of rows and of columns, half overlapping: the tenth with the largest sum of squared steps."""
    pieces = []
    for lines in (middle[::_EVERY_ROW], middle.T[::_EVERY_ROW]):
        starts = range(0, lines.shape[1] - _PIECE + 1, _PIECE // 2)
        pieces += [lines[:, start : start + _PIECE] for start in starts]
    if not pieces:
        return None
    every = np.concatenate(pieces)
    steps = np.diff(every, axis=1)
    energy = np.einsum("ij,ij->i", steps, steps)
    count = max(_LEAST_PIECES, int(len(every) * _STRONGEST))
    if len(every) <= count:
        return every
    return np.asarray(every[np.argpartition(-energy, count)[:count]])
