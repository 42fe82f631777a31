"""The ways to find shot ends, behind one interface: measured (PySceneDetect's detectors, the dissolve detector), by the network, by both.

`hybrid` lets the measuring detectors propose, with limits eased so that little is missed. A cut that stands out by far is believed; every other
proposal and every dissolve is judged by the network, on the frames around it only. Price: what no detector proposes, the network never sees.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from curation.analysis.cuts import CutDetector
from curation.analysis.dissolves import Dissolve, DissolveDetector, DissolveLimits, strongest
from curation.analysis.network_shots import DoubtfulPlaces, EveryFrame, SceneNetwork, network_cuts, network_runs
from curation.analysis.settings import ShotSettings

__all__ = ["STILL_DIFFERENCE", "ShotFinder", "ShownFrame", "Transitions", "shot_finder"]

_NETWORK_SIZE = (48, 27)
_EASE = 0.8
"""What the limits of the cut detector are multiplied by when the network has the last word."""
_SURE_CHANGE = 20.0
_SURE_RATIO = 4.0
"""A proposed cut is believed when the mean difference of the pictures is at least this, and this many times that of the frames around it."""
_NEAR = 2
"""Frames by which the network may place a cut elsewhere than the detector did."""
STILL_DIFFERENCE = 0.3
"""Frames whose mean luma difference is below this repeat the one before (animation on twos, padded rates) and are not shown to the cut detector,
whose ratio to the neighbours would be huge at every new drawing."""


@dataclass(frozen=True)
class ShownFrame:
    """One distinct frame, as small as each detector wants it."""

    index: int
    first_tick: int
    rgb: NDArray[np.uint8]
    tiny: NDArray[np.float32]
    """(18, 32, 3)."""
    change: float
    """Mean difference of `tiny` to that of the frame before."""
    repeats: bool
    """It is the frame before, coded again."""


@dataclass(frozen=True)
class Transitions:
    """Frames that start a shot after a hard cut, and dissolves that do not overlap."""

    cuts: set[int]
    dissolves: list[Dissolve]


class ShotFinder(Protocol):
    """Shown every distinct frame in order, then asked once."""

    def add(self, frame: ShownFrame) -> None: ...

    def finish(self, ticks: Sequence[int]) -> Transitions:
        """`ticks`: the first tick of every frame."""


def shot_finder(settings: ShotSettings, fps: float, network: SceneNetwork | None) -> ShotFinder:
    """The one that the settings name; `transnetv2` and `hybrid` need the network."""
    if settings.detector in ("adaptive", "content"):
        return _Measured(settings, fps)
    assert network is not None, "load_models loads the network that the settings need"
    return _Network(settings, network) if settings.detector == "transnetv2" else _Hybrid(settings, fps, network)


class _Measured:
    def __init__(self, settings: ShotSettings, fps: float) -> None:
        method: Literal["adaptive", "content"] = "content" if settings.detector == "content" else "adaptive"
        self._cuts = CutDetector(method, settings)
        limits = DissolveLimits(settings.dissolve_change, settings.dissolve_residual)
        self._dissolves = DissolveDetector(limits, fps)

    def add(self, frame: ShownFrame) -> None:
        if not frame.repeats:
            self._cuts.add(frame.index, frame.rgb)
        self._dissolves.add(frame.first_tick, frame.tiny, frame.change)

    def finish(self, ticks: Sequence[int]) -> Transitions:
        return Transitions(self._cuts.found, strongest(self._dissolves.found))


class _Network:
    def __init__(self, settings: ShotSettings, network: SceneNetwork) -> None:
        self._least = settings.network_probability
        self._frames = EveryFrame(network)

    def add(self, frame: ShownFrame) -> None:
        self._frames.add(_for_network(frame.rgb))

    def finish(self, ticks: Sequence[int]) -> Transitions:
        answers = self._frames.finish()
        runs = [_of_run(run, ticks) for run in network_runs(answers)]
        return Transitions({cut for cut in network_cuts(answers, self._least) if cut < len(ticks)}, runs)


class _Hybrid:
    def __init__(self, settings: ShotSettings, fps: float, network: SceneNetwork) -> None:
        self._least = settings.network_probability
        self._cuts = CutDetector("adaptive", settings, ease=_EASE)
        self._dissolves = DissolveDetector(_eased(settings), fps)
        self._places = DoubtfulPlaces(network)
        self._changes: deque[tuple[int, float]] = deque(maxlen=7)
        self._ticks: deque[int] = deque(maxlen=64)
        self._sure: set[int] = set()
        self._num_dissolves = 0

    def add(self, frame: ShownFrame) -> None:
        self._places.add(_for_network(frame.rgb))
        self._changes.append((frame.index, frame.change))
        self._ticks.append(frame.first_tick)
        for cut in () if frame.repeats else self._cuts.add(frame.index, frame.rgb):
            if self._is_sure(cut):
                self._sure.add(cut)
            else:
                self._places.doubt(cut - 1, cut)
        self._dissolves.add(frame.first_tick, frame.tiny, frame.change)
        for found in self._dissolves.found[self._num_dissolves :]:
            back = len(self._ticks) - bisect_left(self._ticks, found.first)
            self._places.doubt(max(0, frame.index - back), frame.index)
        self._num_dissolves = len(self._dissolves.found)

    def _is_sure(self, cut: int) -> bool:
        changes = dict(self._changes)
        others = [change for index, change in changes.items() if index != cut and abs(index - cut) <= 2]
        least = max(_SURE_CHANGE, _SURE_RATIO * sum(others) / max(1, len(others)))
        return changes.get(cut, 0.0) >= least

    def finish(self, ticks: Sequence[int]) -> Transitions:
        answers = self._places.finish()
        runs = [_of_run(run, ticks) for run in network_runs(answers)]
        judged = network_cuts(answers, self._least)
        proposed = self._cuts.found - self._sure
        near = {cut for cut in judged if any(abs(cut - other) <= _NEAR for other in proposed)}
        sure = {cut for cut in self._sure if all(abs(cut - other) > _NEAR for other in near)}
        return Transitions(sure | near, runs)


def _eased(settings: ShotSettings) -> DissolveLimits:
    """Limits that let more dissolves through, and some of what is none."""
    return DissolveLimits(settings.dissolve_change * 0.85, min(0.95, settings.dissolve_residual * 1.15), 0.24, 0.92)


def _for_network(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2

    return np.asarray(cv2.resize(rgb, _NETWORK_SIZE, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _of_run(run: tuple[int, int], ticks: Sequence[int]) -> Dissolve:
    first, last = run
    return Dissolve(ticks[first], ticks[last + 1] if last + 1 < len(ticks) else ticks[last] + 1, 0.0)
