"""Flashes: a few frames that differ from those before, after which the picture of before is back.

A photo flash, a strobe, lightning, one dropped black frame: two strong changes each, and no cut. A frame belongs to a flash when some picture at most
a third of a second before it is like some picture after it, and everything between them is far from both. Comparing is done only where
something changed, so a quiet film costs one difference a frame. Price: a shot of five frames between two parts of one take is taken for a flash.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

__all__ = ["FlashDetector"]

_LONGEST_FRAMES = 5
_LONGEST_SECONDS = 1 / 3
_CHANGE = 8.0
"""Mean difference of two neighbouring pictures, 0 to 255, from which a flash is looked for."""
_AWAY = 2.5
"""Pictures of a flash are at least this many times as far from those around it as these are from each other."""
_AWAY_LEAST = 10.0
_CALM = 0.5
"""The picture before a flash changed by at most this share of the flash; in a fade through white, the one before the white did not come suddenly."""


class FlashDetector:
    """`add` every frame in order; the indices of frames that belong to a flash are collected in `found`."""

    def __init__(self, fps: float) -> None:
        self.found: set[int] = set()
        self._longest_ticks = round(_LONGEST_SECONDS * fps) + 1
        self._window: deque[tuple[int, int, NDArray[np.float32], float]] = deque(maxlen=_LONGEST_FRAMES + 2)

    def add(self, index: int, first_tick: int, tiny: NDArray[np.float32], change: float) -> None:
        """`tiny`: the frame at a few hundred pixels; `change`: its mean difference to the one before."""
        window = self._window
        window.append((index, first_tick, tiny, change))
        if max(item[3] for item in window) < _CHANGE:
            return
        items = list(window)
        for back in range(3, len(items) + 1):
            before, between = items[-back], items[1 - back : -1]
            if before[3] > _CALM * between[0][3] and before[0] - 1 not in self.found:
                continue
            if first_tick - before[1] > self._longest_ticks and back > 3:
                return
            apart = _distance(tiny, before[2])
            least = max(_AWAY_LEAST, _AWAY * apart)
            if all(min(_distance(item[2], before[2]), _distance(item[2], tiny)) >= least for item in between):
                self.found.update(item[0] for item in between)


def _distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).mean())
