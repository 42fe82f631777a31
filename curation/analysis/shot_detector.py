"""What the scan remembers of each frame so that shots can be found: one object that is shown every distinct frame once, in order.

The scan knows nothing of how cuts are found: it calls `add` with the small picture that it has anyway, and `finish` after the last frame.
Facts are per frame and hold no index, so the facts of pieces of one film, each begun some frames early, can be put together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from curation.analysis.cuts import CutDetector
from curation.analysis.dissolves import DissolveDetector
from curation.analysis.settings import AnalyzeSettings

__all__ = ["FrameFacts", "ShotDetector"]

_DISSOLVE_SECONDS = 1.0
_BLACK = 12
_PICTURE_RATIO = 0.25
_STILL_DIFFERENCE = 0.3
"""Frames whose mean luma difference is below this repeat the one before (animation on twos, padded rates) and are not shown to the cut detector,
whose ratio to the neighbours would be huge at every new drawing."""


@dataclass(frozen=True)
class FrameFacts:
    """What is remembered of one distinct frame."""

    first_tick: int
    end_tick: int
    luma_range: float
    """98th minus 2nd percentile of luma, 0 to 255; black bars left out."""
    cut_before: bool = False
    dissolve_change: float = 0.0
    """If the frames half a second before and after differ, and this frame is their mixture: by how much they differ, else 0."""


class ShotDetector:
    """`add` every distinct frame of a source in order, then `finish` once."""

    def __init__(self, settings: AnalyzeSettings) -> None:
        self._frames: list[FrameFacts] = []
        self._cuts = CutDetector(settings.shots)
        self._dissolves = DissolveDetector(round(_DISSOLVE_SECONDS * settings.clip_fps), settings.shots)
        self._previous: NDArray[np.uint8] | None = None

    def add(self, first_tick: int, end_tick: int, rgb: NDArray[np.uint8], grey: NDArray[np.uint8]) -> None:
        """`rgb` (H, W, 3) and its `grey` (H, W), uint8, at the proxy size, shown for ticks [first_tick, end_tick)."""
        import cv2

        index = len(self._frames)
        difference = 255.0 if self._previous is None else float(cv2.absdiff(grey, self._previous).mean())
        if difference >= _STILL_DIFFERENCE:
            self._cuts.add(index, rgb)
        self._dissolves.add(index, first_tick, grey)
        self._frames.append(FrameFacts(first_tick, end_tick, _luma_range(grey)))
        self._previous = grey

    def finish(self) -> list[FrameFacts]:
        """Facts of all frames, in order."""
        cuts, dissolves = self._cuts.found, self._dissolves.found
        return [
            replace(fact, cut_before=index in cuts, dissolve_change=dissolves.get(index, 0.0))
            for index, fact in enumerate(self._frames)
        ]


def _luma_range(grey: NDArray[np.uint8]) -> float:
    """98th minus 2nd percentile; without the black where enough is left, so that bars do not hide a fade to white or grey."""
    counts = np.bincount(grey[::2, ::2].ravel(), minlength=256)
    whole = _reach(counts)
    if counts[_BLACK:].sum() < _PICTURE_RATIO * counts.sum():
        return whole
    return min(whole, _reach(np.where(np.arange(256) < _BLACK, 0, counts)))


def _reach(counts: NDArray[np.int64]) -> float:
    total = counts.cumsum()
    low = int(np.searchsorted(total, total[-1] * 0.02, side="right"))
    high = int(np.searchsorted(total, total[-1] * 0.98, side="left"))
    return float(max(0, high - low))
