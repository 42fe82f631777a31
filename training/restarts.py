"""What a launcher starts again after a failure: what may go well the next time, from the last checkpoint.

    exit code 0     done, or stopped by a signal and resumable: never
    exit code 2     the command or the configuration is wrong: never
    a dump          a loss or gradient was not finite: never, because a run that continues computes the same again
    anything else   a killed process, a lost machine, a hang, an error of the moment: yes

Where the number of processes changes, it must divide the plan's lanes: `ranks_for`.
"""

from __future__ import annotations

from pathlib import Path

from schemas.command import say
from schemas.errors import PlanError

__all__ = ["DUMPS", "may_restart", "ranks_for", "world_sizes"]

DUMPS = "dumps"
"""Folder of a run's dumps of steps that were not finite."""
_DONE, _USAGE = 0, 2


def may_restart(code: int, output: Path, started: float) -> bool:
    """Whether a run that ended with `code` is worth another try; `started` is the attempt's begin, `time.time()`."""
    if code in (_DONE, _USAGE):
        return False
    dumps = [path for path in (output / DUMPS).glob("step-*/dump.json") if path.stat().st_mtime >= started - 1.0]
    if dumps:
        say("not started again: a run that continues would meet the same numbers; look at the dump first")
    return not dumps


def ranks_for(lanes: int, most: int) -> int:
    """The largest number of ranks up to `most` that divides the lanes: `ranks_for(64, 56) == 32`."""
    return max(count for count in range(1, max(1, min(lanes, most)) + 1) if lanes % count == 0)


def world_sizes(lanes: int, least: int, most: int) -> list[int]:
    """Numbers of ranks from `most` down to `least` that divide the lanes: `world_sizes(12, 2, 8) == [6, 4, 3, 2]`.

    Raises:
        PlanError: if there is none.
    """
    found = [count for count in range(most, least - 1, -1) if lanes % count == 0]
    if not found:
        divisors = ", ".join(str(count) for count in range(1, lanes + 1) if lanes % count == 0)
        wanted = f"{most}" if least == most else f"{least} to {most}"
        raise PlanError(
            f"{wanted} processes cannot share a plan of {lanes} lanes equally; give a number that divides the lanes ({divisors}), "
            "or build the plan for other lanes"
        )
    return found
