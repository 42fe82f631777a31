"""What a launcher starts again after a failure: what may go well the next time, from the last checkpoint.

    exit code 0     done, or stopped by a signal and resumable: never
    exit code 2     the command or the configuration is wrong: never
    exit code 3     what a rank was given is wrong (plan, sets, checkpoint, weights): never; the launcher ends with 1
    a dump          a loss or gradient was not finite: never, because a run that continues computes the same again
    anything else   a killed process, a lost machine, a hang, a shard that cannot be read, an error of the moment: yes

Ranks use exit code 3 towards our launchers only. torchrun restarts after every failure, so the ranks that it restarts refuse to repeat a step
that left a dump (`refuse_repeated_step`), and the other mistakes are found again within seconds, each time. Price: a shard that is gone for good
is tried again.

Where the number of processes changes, it must divide the plan's lanes: `ranks_for`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas.command import say
from schemas.errors import (
    DataError,
    ModelMissingError,
    PlanError,
    PreflightError,
    ReelyardError,
    ShardError,
    UsageError,
)

__all__ = [
    "DUMPS",
    "GIVES_UP",
    "is_met_again",
    "may_restart",
    "ranks_for",
    "refuse_repeated_step",
    "world_sizes",
]

DUMPS = "dumps"
"""Folder of a run's dumps of steps that were not finite."""
GIVES_UP = 3
"""Exit code of a rank that met an error which another try would meet again."""
_DONE, _USAGE = 0, 2


def is_met_again(error: ReelyardError) -> bool:
    """Whether another try would meet the same error: what the run was given is wrong, rather than a machine or a moment."""
    given = isinstance(error, (UsageError, DataError, ModelMissingError, PreflightError))
    return given and not isinstance(error, ShardError)  # a file system may come back


def refuse_repeated_step(output: Path, config: dict[str, Any], plan_hash: str, start_step: int) -> None:
    """For a run that a launcher has restarted: ReelyardError if it would meet a step again that left a dump under the same plan and settings."""
    for path in sorted((output / DUMPS).glob("step-*/dump.json")):
        try:
            dump = json.loads(path.read_text(encoding="utf-8"))
            same = dump["step"] >= start_step and (dump["config"], dump["plan_hash"]) == (config, plan_hash)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not one that this version wrote
        if same:
            raise ReelyardError(
                f"restarted at step {start_step}, but step {dump['step']} would meet the same numbers as in {path.parent}; "
                f"look at them (reelyard-train dump {path.parent}), then start the run anew with another optimizer.lr or clip_norm "
                "(--allow-change names it), or with on_nonfinite=skip"
            )


def may_restart(code: int, output: Path, started: float) -> bool:
    """Whether a run that ended with `code` is worth another try; `started` is the attempt's begin, `time.time()`."""
    if code in (_DONE, _USAGE):
        return False
    if code == GIVES_UP:
        say("not started again: another try would meet the same error")
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
