"""When a run was started, saved and ended: `<run>/history.jsonl`, a line for each, never rewound.

The metrics say what led to the weights that there are; the history says what happened on the way: each start with the step, machine and
versions, each save with how long the ranks stood still, each end with its reason. A start without an end was killed, or is still going on.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from training.metrics import LineFile, read_lines

__all__ = ["RunHistory", "read_history"]

_HISTORY = "history.jsonl"


class RunHistory:
    """Rank 0's."""

    def __init__(self, run: Path) -> None:
        self._file = LineFile(run / _HISTORY)

    def note(self, event: str, step: int, **facts: Any) -> None:
        """One line; `step` is the number of steps done."""
        self._file.append([{"event": event, "steps_done": step, "unix_s": round(time.time(), 3), **facts}])


def read_history(run: Path) -> list[dict[str, Any]]:
    """All lines, oldest first."""
    return read_lines(run / _HISTORY)
