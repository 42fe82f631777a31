"""Is a clip used twice in one step? Only the uses of clips that may be are kept: those used several times in an epoch, and steps over two epochs.

A plan whose clips come once per epoch, with steps that end where epochs end, needs no memory for this.
"""

from __future__ import annotations

import numpy as np

__all__ = ["StepUses"]


class StepUses:
    """Uses of watched clips by step, and all uses of steps that hold rows of several epochs."""

    def __init__(self, step: np.ndarray, epoch: np.ndarray, watched: np.ndarray) -> None:
        self._step = step.astype(np.int64)
        self._watched = watched
        self._mixed = _rows_of_mixed_steps(step, epoch)
        self._second_time = False
        self._num_clips = max(1, len(watched))
        self._uses: list[np.ndarray] = []

    def note(self, row: np.ndarray, clip: np.ndarray) -> None:
        """Uses of one lane: row and clip of each (-1: unknown)."""
        known = clip >= 0
        kept = np.zeros(len(clip), dtype=bool)
        if self._watched.any():
            kept[known] = self._watched[clip[known]]
        if self._mixed.any():
            kept = kept & ~self._mixed[row] if self._second_time else kept | (known & self._mixed[row])
        self._uses.append(self._step[row[kept]] * self._num_clips + clip[kept])

    def watch_too(self, clips: np.ndarray) -> bool:
        """Watch these clips as well, if there are any new ones; then True, and all lanes are to be noted once more."""
        fresh = clips & ~self._watched
        if not fresh.any():
            return False
        self._watched, self._second_time = fresh, True
        return True

    def twice(self) -> list[tuple[int, int, int]]:
        """(step, clip, uses) where a step uses a clip more than once."""
        keys, times = np.unique(np.concatenate([np.empty(0, np.int64), *self._uses]), return_counts=True)
        again = times > 1
        return [
            (key // self._num_clips, key % self._num_clips, count)
            for key, count in zip(keys[again].tolist(), times[again].tolist(), strict=True)
        ]


def _rows_of_mixed_steps(step: np.ndarray, epoch: np.ndarray) -> np.ndarray:
    """True for the rows of steps that hold rows of several epochs."""
    if not len(step):
        return np.zeros(0, dtype=bool)
    _, number = np.unique(step, return_inverse=True)
    low = np.full(number.max() + 1, np.iinfo(np.int64).max)
    high = np.full(number.max() + 1, np.iinfo(np.int64).min)
    np.minimum.at(low, number, epoch)
    np.maximum.at(high, number, epoch)
    return np.asarray((low < high)[number])
