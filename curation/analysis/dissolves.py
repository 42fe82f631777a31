"""Dissolves: stretches that go evenly from one picture to another, unlike one, through mixtures of the two.

A stretch is tried around every frame at four lengths, from a third of a second to 1.7 s. In a dissolve, the pictures at a quarter, a half and
three quarters are a x end + (1 - a) x start with a near 0.25, 0.5 and 0.75, little is left over, and the middle one has less contrast than both ends.
In a pan something else is in between; after a cut a is 0 or 1; light that is turned up keeps its contrast. Most frames fail the first test, the
change over the stretch: it is no more than the changes from frame to frame together, whose sum is at hand. Price: a dissolve between pictures of
like brightness, or over fast motion, is missed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Dissolve", "DissolveDetector", "DissolveLimits", "mean_difference", "strongest"]

_HALF_SECONDS = (1 / 6, 7 / 24, 0.5, 5 / 6)
_SHARES = (0.25, 0.5, 0.75)
_LONGER_COUNTS = 0.12
"""Per second of half a stretch, how much worse a longer fit may be and still win: it covers more of the same dissolve."""
_PADDING = 0.15
"""Share of the length by which both ends are moved out: the even part of a dissolve is found, not its first and last frames."""
_APART_TICKS = 4
_ROUNDING = 0.01
"""More than what a film's worth of sums can be off by."""
_LARGEST_STEP = 0.5
"""Most of the whole change that may lie between two neighbouring frames: else there is a hard cut in the stretch."""
_BLANK = 6.0
"""A picture of less contrast, standard deviation from 0 to 255, is blank: what leads to it is a fade."""
_FADE = 0.3
"""So is a stretch whose middle has less than this share of the contrast of its ends."""


@dataclass(frozen=True)
class DissolveLimits:
    """What counts as a dissolve."""

    change: float
    """Least mean difference of the pictures at both ends, 0 to 255."""
    residual: float = 0.4
    """Most that may be left of the pictures between, as a share of that difference, when the mixture is taken away."""
    uneven: float = 0.2
    """Most by which a may differ from 0.25, 0.5 and 0.75."""
    contrast: float = 0.88
    """Most contrast of the picture in the middle, as a share of the mean of both ends."""


@dataclass(frozen=True)
class Dissolve:
    """Ticks [first, end), and how well it fits: 0 is perfect."""

    first: int
    end: int
    misfit: float

    @property
    def padded(self) -> Dissolve:
        """With the first and last frames that the fit leaves out."""
        more = round(_PADDING * (self.end - self.first))
        return Dissolve(max(0, self.first - more), self.end + more, self.misfit)


@dataclass(frozen=True)
class _Tiny:
    tick: int
    picture: NDArray[np.float32]
    step: float
    path: float
    """Sum of the steps of all frames up to this one."""

    @cached_property
    def contrast(self) -> float:
        return float(self.picture.std())


class DissolveDetector:
    """`add` every frame in order; what fits is collected in `found`, overlapping."""

    def __init__(self, limits: DissolveLimits, fps: float) -> None:
        self.found: list[Dissolve] = []
        self._limits = limits
        self._halves = [max(2, round(seconds * fps)) for seconds in _HALF_SECONDS]
        self._fps = fps
        self._window: deque[_Tiny] = deque()

    def add(self, first_tick: int, tiny: NDArray[np.float32], change: float) -> None:
        """`tiny`: the frame at a few hundred pixels; `change`: its mean difference to the one before."""
        window = self._window
        path = change + (window[-1].path if window else 0.0)
        window.append(_Tiny(first_tick, tiny, change, path))
        while len(window) > 2 and window[1].tick <= first_tick - 2 * self._halves[-1]:
            window.popleft()
        if path - window[0].path < self._limits.change - _ROUNDING:
            return
        for half in self._halves:
            if first_tick - 2 * half < window[0].tick:
                return
            found = self._fit(first_tick, half)
            if found is not None:
                self.found.append(found)

    def _fit(self, end_tick: int, half: int) -> Dissolve | None:
        window, limits = self._window, self._limits
        end, start = window[-1], _nearest(window, end_tick - 2 * half)
        if start.tick == end.tick:
            return None
        if end.path - start.path < limits.change - _ROUNDING:
            return None
        change = mean_difference(end.picture, start.picture)
        if change < limits.change:
            return None
        difference = end.picture - start.picture
        middle = _nearest(window, end_tick - half)
        mean_contrast = (start.contrast + end.contrast) / 2
        if min(start.contrast, end.contrast) < _BLANK or middle.contrast < _FADE * mean_contrast:
            return None
        if middle.contrast > limits.contrast * mean_contrast:
            return None
        if max(item.step for item in window if item.tick > start.tick) > _LARGEST_STEP * change:
            return None
        energy, left, uneven = float((difference * difference).sum()), 0.0, 0.0
        for share in _SHARES:
            between = _nearest(window, end_tick - round(2 * half * (1 - share)))
            moved = between.picture - start.picture
            mixture = float((moved * difference).sum()) / energy
            expected = (between.tick - start.tick) / (end.tick - start.tick)
            uneven = max(uneven, abs(mixture - expected))
            left += float(np.abs(moved - mixture * difference).mean()) / change / len(_SHARES)
            if uneven > limits.uneven:
                return None
        if left > limits.residual:
            return None
        return Dissolve(start.tick, end.tick, left + uneven - _LONGER_COUNTS * half / self._fps)


def _nearest(window: Sequence[_Tiny], tick: int) -> _Tiny:
    """Of two that are as near, the earlier one."""
    place = bisect_left(window, tick, key=lambda item: item.tick)
    if place == len(window):
        return window[-1]
    after, before = window[place], window[max(0, place - 1)]
    return before if abs(before.tick - tick) <= abs(after.tick - tick) else after


def mean_difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Mean absolute difference, in one pass of OpenCV: NumPy takes five times as long for pictures this small."""
    import cv2

    return float(cv2.norm(one, other, cv2.NORM_L1)) / one.size


def strongest(found: Sequence[Dissolve]) -> list[Dissolve]:
    """Of fits that overlap or nearly touch, the best one; padded, in order of time."""
    kept: list[Dissolve] = []
    for one in sorted(found, key=lambda item: (item.misfit, item.first)):
        if all(one.end < other.first - _APART_TICKS or one.first > other.end + _APART_TICKS for other in kept):
            kept.append(one)
    return [one.padded for one in sorted(kept, key=lambda item: item.first)]
