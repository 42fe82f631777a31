"""What the scan remembers of each frame so that shots can be found: one object that is shown every distinct frame once, in order.

The scan knows nothing of how cuts are found: it calls `add` with the small picture that it has anyway, and `finish` after the last frame.
Facts are per frame and hold no index, so the facts of pieces of one film, each begun some seconds early, can be put together.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from curation.analysis.dissolves import mean_difference
from curation.analysis.flashes import FlashDetector
from curation.analysis.network_shots import SceneNetwork
from curation.analysis.settings import AnalyzeSettings
from curation.analysis.shot_finders import STILL_DIFFERENCE, ShownFrame, shot_finder

__all__ = ["FrameFacts", "ShotDetector"]

_TINY_SIZE = (32, 18)
_BLACK = 12
_PICTURE_RATIO = 0.25


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """What is remembered of one distinct frame."""

    first_tick: int
    end_tick: int
    luma_range: float
    """98th minus 2nd percentile of luma, 0 to 255; black bars left out. Of a flash: that of the frame before it."""
    cut_before: bool = False
    in_dissolve: bool = False


class ShotDetector:
    """`add` every distinct frame of a source in order, then `finish` once."""

    def __init__(self, settings: AnalyzeSettings, network: SceneNetwork | None = None) -> None:
        """`network`: needed by the detectors `transnetv2` and `hybrid`."""
        self._frames: list[FrameFacts] = []
        self._flashes = FlashDetector(settings.clip_fps)
        self._finder = shot_finder(settings.shots, settings.clip_fps, network)
        self._previous: tuple[NDArray[np.uint8], NDArray[np.float32]] | None = None

    def add(self, first_tick: int, end_tick: int, rgb: NDArray[np.uint8], grey: NDArray[np.uint8]) -> None:
        """`rgb` (H, W, 3) and its `grey` (H, W), uint8, at the proxy size, shown for ticks [first_tick, end_tick)."""
        import cv2

        index = len(self._frames)
        tiny = cv2.resize(rgb, _TINY_SIZE, interpolation=cv2.INTER_AREA).astype(np.float32)
        change, repeats = 0.0, False
        if self._previous is not None:
            repeats = mean_difference(grey, self._previous[0]) < STILL_DIFFERENCE
            change = mean_difference(tiny, self._previous[1])
        self._flashes.add(index, first_tick, tiny, change)
        self._finder.add(ShownFrame(index, first_tick, rgb, tiny, change, repeats))
        self._frames.append(FrameFacts(first_tick, end_tick, _luma_range(grey)))
        self._previous = grey, tiny

    def finish(self) -> list[FrameFacts]:
        """Facts of all frames, in order."""
        frames, flashes = self._frames, self._flashes.found
        ticks = [frame.first_tick for frame in frames]
        transitions = self._finder.finish(ticks)
        for index in sorted(flashes):
            frames[index] = replace(frames[index], luma_range=frames[index - 1].luma_range)
        for index in transitions.cuts:
            if index not in flashes and index - 1 not in flashes:
                frames[index] = replace(frames[index], cut_before=True)
        for dissolve in transitions.dissolves:
            for index in range(bisect_left(ticks, dissolve.first), bisect_left(ticks, dissolve.end)):
                frames[index] = replace(frames[index], in_dissolve=True)
        return frames


def _luma_range(grey: NDArray[np.uint8]) -> float:
    """98th minus 2nd percentile; without the black where enough is left, so that bars do not hide a fade to white or grey."""
    import cv2

    every_other = np.ascontiguousarray(grey[::2, ::2])
    counts = cv2.calcHist([every_other], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    whole = _reach(counts)
    if not counts[:_BLACK].any():
        return whole
    if counts[_BLACK:].sum() < _PICTURE_RATIO * counts.sum():
        return whole
    return min(whole, _reach(np.where(np.arange(256) < _BLACK, 0, counts)))


def _reach(counts: NDArray[np.int64]) -> float:
    total = counts.cumsum()
    low = int(total.searchsorted(total[-1] * 0.02, side="right"))
    high = int(total.searchsorted(total[-1] * 0.98, side="left"))
    return float(max(0, high - low))
