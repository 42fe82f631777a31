"""How much of the data may be replaced before a run ends: one bad clip in a million is nothing, a lost shard or a dying disk is another matter.

Counted over the last 100 steps of one rank, against the clips that 100 steps have: so the first damaged clip of a run does not end it, and a disk
that gives nothing any more does, within a tenth of 100 steps at a limit of 0.1. Price: counts start anew where a run is continued.
"""

from __future__ import annotations

from collections import deque

from schemas.errors import DataError

__all__ = ["ReplacedShare"]

_WINDOW_STEPS = 100


class ReplacedShare:
    """Of the last 100 steps; `most` of it is allowed."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._counts: deque[tuple[int, int, int]] = deque(maxlen=_WINDOW_STEPS)
        """Step, clips, replaced ones."""

    def add(self, step: int, clips: int, replaced: int, last_reason: str = "") -> None:
        """Take note of a step.

        Raises:
            DataError: too many of the last steps' clips had to be replaced.
        """
        self._counts.append((step, clips, replaced))
        if not replaced:
            return
        steps = len(self._counts)
        all_clips, all_replaced = sum(item[1] for item in self._counts), sum(item[2] for item in self._counts)
        if all_replaced * steps > self._most * all_clips * _WINDOW_STEPS:
            raise DataError(
                f"steps {self._counts[0][0]} to {step}: {all_replaced} of this rank's {all_clips} clips were damaged and had to be replaced, more "
                f"than {self._most:g} of what {_WINDOW_STEPS} steps have (loader.max_replaced_share); the last one: {last_reason}; "
                "copy the shards again (`reelyard-train doctor --deep` finds the damaged ones), or allow a larger share"
            )
