"""What a network says about shot ends: over every frame of a film, or only near the places that cheaper detectors are in doubt about.

Both hold a bounded number of pictures. The answer per frame is two probabilities: that a shot ends after it, and that it is in a transition. A run of
frames in a transition is a dissolve or a fade with its extent; a lone peak is a cut.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["DoubtfulPlaces", "EveryFrame", "SceneNetwork", "network_cuts", "network_runs"]

_IN_TRANSITION = 0.4
_SHORTEST_RUN = 3
"""Frames in a transition from which it is no hard cut."""
_AROUND = 16
"""Frames shown before and after a doubtful place; with fewer, the network has too little of both shots."""
_MOST_FRAMES = 160
"""Pictures held, and so the longest stretch that is shown at once."""


class SceneNetwork(Protocol):
    """`encoders.transnet.TransNet`, or what answers like it."""

    name: str

    def probabilities(self, frames_TYXC: NDArray[np.uint8]) -> NDArray[np.float32]: ...


class EveryFrame:
    """Windows of 100 frames, of which the middle 50 are judged; both ends of the film are padded with its end frames."""

    _WINDOW, _CONTEXT = 100, 25

    def __init__(self, network: SceneNetwork) -> None:
        self._network = network
        self._frames: list[NDArray[np.uint8]] = []
        self._added = 0
        self._answers: list[NDArray[np.float32]] = []

    def add(self, picture: NDArray[np.uint8]) -> None:
        """`picture`: uint8 (27, 48, 3), RGB."""
        if not self._frames:
            self._frames = [picture] * self._CONTEXT
        self._frames.append(picture)
        self._added += 1
        if len(self._frames) == self._WINDOW:
            self._judge()

    def finish(self) -> NDArray[np.float32]:
        """(N, 2) answers for the N frames added."""
        judged = self._WINDOW - 2 * self._CONTEXT
        while len(self._answers) * judged < self._added:
            self._frames += [self._frames[-1]] * (self._WINDOW - len(self._frames))
            self._judge()
        return np.concatenate([np.zeros((0, 2), dtype=np.float32), *self._answers])[: self._added]

    def _judge(self) -> None:
        found = self._network.probabilities(np.stack(self._frames))
        self._answers.append(found[self._CONTEXT : self._WINDOW - self._CONTEXT])
        self._frames = self._frames[self._WINDOW - 2 * self._CONTEXT :]


class DoubtfulPlaces:
    """Frames near a `doubt` are judged, with some before and after; doubts that lie close together are judged at once."""

    def __init__(self, network: SceneNetwork) -> None:
        self.num_judged = 0
        """Frames shown to the network, context and all."""
        self._network = network
        self._frames: deque[NDArray[np.uint8]] = deque(maxlen=_MOST_FRAMES)
        self._added = 0
        self._open: tuple[int, int] | None = None
        self._answers: list[tuple[int, NDArray[np.float32]]] = []

    def add(self, picture: NDArray[np.uint8]) -> None:
        """`picture`: uint8 (27, 48, 3), RGB."""
        self._frames.append(picture)
        self._added += 1
        if self._open is not None and self._added > self._open[1] + _AROUND:
            self._judge()

    def doubt(self, first: int, last: int) -> None:
        """Frames `first` to `last`, both added not long ago, need a verdict."""
        if self._open is not None and max(last, self._open[1]) - min(first, self._open[0]) > _MOST_FRAMES - 3 * _AROUND:
            self._judge()
        if self._open is not None:
            first, last = min(first, self._open[0]), max(last, self._open[1])
        self._open = first, last

    def finish(self) -> NDArray[np.float32]:
        """(N, 2) answers for the N frames added, zeros where nothing was in doubt."""
        if self._open is not None:
            self._judge()
        answers = np.zeros((self._added, 2), dtype=np.float32)
        for first, found in self._answers:
            part = answers[first : first + len(found)]
            np.maximum(part, found, out=part)
        return answers

    def _judge(self) -> None:
        assert self._open is not None
        oldest = self._added - len(self._frames)
        first = max(oldest, self._open[0] - _AROUND)
        end = min(self._added, self._open[1] + _AROUND + 1)
        shown = np.stack([self._frames[index - oldest] for index in range(first, end)])
        self._answers.append((first, self._network.probabilities(shown)))
        self.num_judged += len(shown)
        self._open = None


def network_runs(answers: NDArray[np.float32]) -> list[tuple[int, int]]:
    """First and last frame of every run of frames that are in a transition which is no hard cut."""
    inside = np.concatenate([[False], answers[:, 1] >= _IN_TRANSITION, [False]])
    starts = np.flatnonzero(inside[1:] & ~inside[:-1])
    ends = np.flatnonzero(inside[:-1] & ~inside[1:])
    return [(int(a), int(b) - 1) for a, b in zip(starts, ends, strict=True) if b - a >= _SHORTEST_RUN]


def network_cuts(answers: NDArray[np.float32], least: float) -> set[int]:
    """The frames that start a shot: after the highest of each run of answers of at least `least`, runs of a transition left out."""
    middles = answers[:, 0].copy()
    for first, last in network_runs(answers):
        middles[max(0, first - 1) : last + 2] = 0
    found: set[int] = set()
    index = 0
    while index < len(middles):
        end = index
        while end < len(middles) and middles[end] >= least:
            end += 1
        if end > index:
            found.add(index + int(middles[index:end].argmax()) + 1)
        index = end + 1
    return found
