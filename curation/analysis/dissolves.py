"""Dissolves: stretches that go from one picture to another, unlike one, through mixtures of the two."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from curation.analysis.settings import ShotSettings

__all__ = ["DissolveDetector"]

_TINY = (18, 32)


class DissolveDetector:
    """Finds the middle of a stretch that goes from one picture to another, unlike one, through mixtures of the two.

    A frame at share q of the span is compared with the mixture a x end + (1 - a) x start that is nearest to it: in a dissolve a is near q
    and little is left over; in a pan something else is in between; after a cut a is 0 or 1.
    """

    _SHARES = ((0.25, 0.08, 0.55), (0.5, 0.3, 0.7), (0.75, 0.45, 0.95))

    def __init__(self, span_ticks: int, settings: ShotSettings) -> None:
        self.found: dict[int, float] = {}
        self._span = span_ticks
        self._change = settings.dissolve_change
        self._residual = settings.dissolve_residual
        self._window: deque[tuple[int, int, NDArray[np.float32]]] = deque()

    def add(self, index: int, first_tick: int, grey: NDArray[np.uint8]) -> None:
        import cv2

        tiny = cv2.resize(grey, (_TINY[1], _TINY[0]), interpolation=cv2.INTER_AREA).astype(np.float32)
        window = self._window
        window.append((index, first_tick, tiny))
        while len(window) > 2 and window[1][1] <= first_tick - self._span:
            window.popleft()
        start_tick, start = window[0][1], window[0][2]
        difference = tiny - start
        change = float(np.abs(difference).mean())
        if first_tick - start_tick < self._span or change < self._change:
            return
        middle = index
        for share, least, most in self._SHARES:
            at = start_tick + share * (first_tick - start_tick)
            place, _, between = min(window, key=lambda item: abs(item[1] - at))
            mixture = float(((between - start) * difference).sum() / (difference * difference).sum())
            residual = float(np.abs(between - start - mixture * difference).mean())
            if not least <= mixture <= most or residual > self._residual * change:
                return
            middle = place if share == 0.5 else middle
        self.found[middle] = max(change, self.found.get(middle, 0.0))
