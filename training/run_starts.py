"""What each stretch of a run's steps was trained with: plan, sets and configuration, one line for each start that still counts.

    <run>/starts.jsonl    RunStart, first steps rising

A run may go on under another plan (`reelyard-plan replan`) or with settings that were allowed to change, so that one record for the whole run would
be wrong for some of its steps. When a run continues from step n, the lines of starts at n and later go, as those of the metrics do. Nothing of it
is read when a run continues. Price: one small file; the folders are those of that day, and may have moved since.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.config import StrictConfig, build_config
from schemas.errors import DataError
from schemas.files import write_bytes
from training.checkpoints.checkpoint import checkpoint_steps, find_checkpoint, read_record

if TYPE_CHECKING:
    from training.run_setup import PreparedRun
from training.loading.set_folders import absolute_place

__all__ = ["RunStart", "note_start", "read_starts", "start_of_step"]

_STARTS = "starts.jsonl"


class RunStart(StrictConfig):
    """One line: the steps from `first_step` up to the next line's."""

    first_step: int
    plan_hash: str
    plan: str | None
    """Absolute folder; null where it was never written down."""
    samples: tuple[str, ...]
    """Absolute folders of the plan's sets, in the plan's order."""
    config: dict[str, Any]
    """The TrainConfig."""


def note_start(prepared: PreparedRun) -> None:
    """Write down that the run's steps from `prepared.start_step` on are of this plan and configuration."""
    path = prepared.output / _STARTS
    start = RunStart(
        first_step=prepared.start_step,
        plan_hash=prepared.meta.plan_hash,
        plan=absolute_place(prepared.plan),
        samples=tuple(absolute_place(folder) for folder in prepared.sets.folders),
        config=prepared.config.model_dump(mode="json"),
    )
    starts = [*(earlier for earlier in _written(path) if earlier.first_step < start.first_step), start]
    lines = [json.dumps(line.model_dump(mode="json"), allow_nan=False, ensure_ascii=False) for line in starts]
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def read_starts(run: Path) -> list[RunStart]:
    """The starts of a run, first steps rising; of a run that wrote none, what its checkpoints' records say.

    Raises:
        DataError: when there is neither.
    """
    starts = _written(run / _STARTS) or _from_checkpoints(run)
    if not starts:
        raise DataError(
            f"{run} says nothing of its plan and configuration: expected {_STARTS} or a checkpoint in it; "
            "give the folder of `reelyard-train run --output` that took a step"
        )
    return starts


def start_of_step(starts: Sequence[RunStart], step: int) -> RunStart:
    """The start under which a step was trained, or will be; the first one for steps before all."""
    return next((start for start in reversed(starts) if start.first_step <= step), starts[0])


def _written(path: Path) -> list[RunStart]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        values = [json.loads(line) for line in lines]
    except ValueError as error:
        raise DataError(
            f"{path} is not JSON lines ({error}); remove it: checkpoints hold the configuration too"
        ) from error
    return [build_config(RunStart, value, source=f"{path}: line {number}") for number, value in enumerate(values, 1)]


def _from_checkpoints(run: Path) -> list[RunStart]:
    """Each record holds for the steps since the record before it."""
    starts, first = [], 0
    for step in checkpoint_steps(run):
        record = read_record(find_checkpoint(run, step))
        starts.append(
            RunStart(
                first_step=first,
                plan_hash=record.plan_hash,
                plan=record.plan,
                samples=record.samples,
                config=record.config,
            )
        )
        first = record.next_step
    return starts
