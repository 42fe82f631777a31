"""The three questions to one answer: what was in these steps, what was in the steps that stand out, in which steps was this clip.

steps_answer, spikes_answer, clip_answer -> Answer -> terminal (listing), JSON file (as_json), page (page)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.errors import DataError, UsageError
from training.whatwas.clip_uses import ClipUse, uses_of_clips
from training.whatwas.records import StepRecord
from training.whatwas.recurring import Recurring, recurring
from training.whatwas.run_folder import RunFolder
from training.whatwas.spikes import Measure, StepScore, excess_by_times, score_steps, step_values, top_spikes
from training.whatwas.step_lines import step_lines
from training.whatwas.steps import step_records

__all__ = ["Answer", "clip_answer", "priced", "spikes_answer", "steps_answer"]

_NEIGHBOURS = 100


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was found."""

    run: Path
    title: str
    records: tuple[StepRecord, ...] = ()
    lines: Mapping[int, dict[str, Any]]
    """Lines of metrics.jsonl by step: around the steps asked about, or all."""
    measure: Measure = "loss"
    spikes: tuple[StepScore, ...] | None = None
    """None when they were not asked for."""
    by_times: Mapping[int, float] = field(default_factory=dict)
    """Of each spike of the loss, what the times of its clips make of it."""
    recurring: tuple[Recurring, ...] = ()
    clip_id: str | None = None
    uses: tuple[ClipUse, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything but the neighbours' lines."""
        found: dict[str, Any] = {"run": str(self.run), "steps": [dataclasses.asdict(record) for record in self.records]}
        if self.spikes is not None:
            found["spikes"] = [
                dataclasses.asdict(spike) | {"excess_by_times": self.by_times.get(spike.step)} for spike in self.spikes
            ]
            found["recurring"] = [dataclasses.asdict(one) for one in self.recurring]
        if self.clip_id is not None:
            uses = [dataclasses.asdict(use) | {"metrics": self.lines.get(use.step)} for use in self.uses]
            found["clip"] = {"clip_id": self.clip_id, "uses": uses}
        return found


def steps_answer(run: RunFolder, steps: Sequence[int]) -> Answer:
    """What was in some steps; each once, in the order asked for.

    Raises:
        UsageError: when a step is not in the plan.
    """
    records = step_records(run, list(dict.fromkeys(steps)))
    lines: dict[int, dict[str, Any]] = {}
    for step in steps:
        lines |= {line["step"]: line for line in step_lines(run.run, step - _NEIGHBOURS, step + _NEIGHBOURS + 1)}
    return Answer(
        run=run.run,
        title="step " + ", ".join(str(record.step) for record in records),
        records=tuple(records),
        lines=lines,
    )


def spikes_answer(run: RunFolder, count: int, measure: Measure) -> Answer:
    """What was in the `count` steps that stand out most.

    Raises:
        DataError: when the run has no line of metrics.
    """
    lines = _all_lines(run.run)
    values = step_values(lines.values())
    spikes = top_spikes(score_steps(values, measure), count)
    records = step_records(run, [spike.step for spike in spikes])
    by_times = {
        record.step: excess_by_times(values, record.step, [clip.draws.sigma for clip in record.clips])
        for record in records
        if measure == "loss"
    }
    return Answer(
        run=run.run,
        title=f"{len(spikes)} steps whose {measure} stands out",
        records=tuple(records),
        lines=lines,
        measure=measure,
        spikes=tuple(spikes),
        by_times=by_times,
        recurring=tuple(recurring(run, records, lines)),
    )


def clip_answer(run: RunFolder, clip_id: str) -> Answer:
    """In which steps a clip was.

    Raises:
        UsageError: when no set of the run has it.
    """
    sets = [plan.sets for _, plan in run.stretches()]
    if not any(one.rows_of_clip(clip_id) for one in sets):
        folders = ", ".join(sorted({str(folder) for one in sets for folder in one.folders}))
        raise UsageError(
            f"--clip {clip_id!r} is in none of the sets of the run ({folders}); expected the 24 hex digits of a clip id"
        )
    uses = uses_of_clips(run, [clip_id])[clip_id]
    return Answer(
        run=run.run, title=f"clip {clip_id}", lines=_all_lines(run.run, needed=False), clip_id=clip_id, uses=tuple(uses)
    )


def priced(run: RunFolder, answer: Answer, checkpoint: int | None = None) -> Answer:
    """The answer with a loss for each clip, by the weights of a checkpoint (None: the one before each step).

    Raises:
        UsageError, DataError: see `clip_losses.with_losses`.
    """
    from training.whatwas.clip_losses import with_losses

    return dataclasses.replace(answer, records=tuple(with_losses(run, answer.records, answer.lines, checkpoint)))


def _all_lines(run: Path, *, needed: bool = True) -> dict[int, dict[str, Any]]:
    lines = {line["step"]: line for line in step_lines(run)}
    if needed and not lines:
        raise DataError(f"{run / 'metrics.jsonl'} has no line: the run has taken no step yet, so none can stand out")
    return lines
