"""How far ahead of the trainer steps are made ready: by their planned bytes and by their planned time, the tighter of the two.

The plan predicts the seconds of each row in the units of its cost model; how long steps really take, as the trainer asks for them, scales that. The
next step is always made, whatever its size, so that the step in use and the next one are the least that is ever held.
"""

from __future__ import annotations

from collections import deque

import numpy as np

__all__ = ["ReadAhead"]

_WEIGHT = 0.2
"""Of the latest step in the running mean of measured over predicted seconds."""


class ReadAhead:
    """Steps between being begun and being given back. For the thread that makes them; arrays are by step, from `first_step` on."""

    def __init__(
        self, first_step: int, bytes_S: np.ndarray, seconds_S: np.ndarray, most_bytes: int, most_seconds: float
    ) -> None:
        self._first_step = first_step
        self._bytes_S, self._seconds_S = bytes_S, seconds_S
        self._most_bytes, self._most_seconds = most_bytes, most_seconds
        self._steps: deque[int] = deque()
        self._held_bytes, self._held_seconds = 0, 0.0
        """Of these steps."""
        self._scale: float | None = None

    @property
    def bound_bytes(self) -> int:
        """Most bytes of steps that are being made, ready or in use."""
        pairs = self._bytes_S[1:] + self._bytes_S[:-1]
        return max(self._most_bytes, int(pairs.max(initial=0)), int(self._bytes_S.max(initial=0)))

    def bytes_of(self, step: int) -> int:
        """Of one step."""
        return int(self._bytes_S[step - self._first_step])

    def _seconds_of(self, step: int) -> float:
        return float(self._seconds_S[step - self._first_step])

    def may_begin(self, step: int) -> bool:
        """Whether there is room for one more."""
        if len(self._steps) < 2:
            return True
        if self._held_bytes + self.bytes_of(step) > self._most_bytes:
            return False
        ahead = self._held_seconds - self._seconds_of(self._steps[0])
        return ahead * (self._scale or 1.0) < self._most_seconds

    def begin(self, step: int) -> None:
        """A step is being made."""
        self._steps.append(step)
        self._held_bytes += self.bytes_of(step)
        self._held_seconds += self._seconds_of(step)

    def give_back(self, seconds: float) -> int:
        """The oldest step is done with, after so many seconds of the trainer; which one it was."""
        step = self._steps.popleft()
        predicted = self._seconds_of(step)
        self._held_bytes -= self.bytes_of(step)
        self._held_seconds -= predicted
        if predicted > 0.0:
            latest = seconds / predicted
            self._scale = latest if self._scale is None else (1 - _WEIGHT) * self._scale + _WEIGHT * latest
        return step
