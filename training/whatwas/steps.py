"""Puts a step together: the plan's places, the ledger over them, each clip's row and words, what chance decided, the step's line of metrics.

    plan -> places -> ledger -> clip that was there -> samples row, .json member -> draws -> ClipRecord
    the digest over all of them against the one that the run wrote

Nothing is guessed: what cannot be read is a note on its clip. Price: one small read per clip for its captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from schemas.command import progress
from schemas.errors import DataError, ShardError
from training.clips_digest import clips_digest
from training.config import TrainConfig
from training.draws import ClipDraws, clip_draws
from training.loading.lane_batch import Substitution
from training.whatwas.dumps import read_dump, skipped_words, with_dumped_losses
from training.whatwas.records import ClipRecord, PlannedOther, StepRecord, TextKind
from training.whatwas.replaced import read_replaced, replaced_at
from training.whatwas.run_folder import OpenPlan, RunFolder
from training.whatwas.set_rows import SampleRow, SetRows
from training.whatwas.step_lines import step_lines
from training.whatwas.uses import Place, places_of_step

__all__ = ["step_records"]


def step_records(run: RunFolder, steps: Sequence[int], *, with_captions: bool = True) -> list[StepRecord]:
    """The records of some steps, in the order asked for.

    Raises:
        UsageError: when a step is not in the plan.
        PlanError, DataError: when plan, sets or ledger are not the run's.
    """
    plans = {step: run.plan(step) for step in steps}
    places: dict[int, list[Place]] = {}
    for plan in {id(plan): plan for plan in plans.values()}.values():
        places |= places_of_step(plan.folder, plan.meta, {step for step in steps if plans[step] is plan})
    lines = {step: next(step_lines(run.run, step, step + 1), None) for step in plans}
    replaced = read_replaced(run.run, set(plans))
    found = {
        step: _step(run, step, plans[step], places[step], lines[step], replaced.get(step, []), with_captions)
        for step in progress(list(plans), what="steps", is_part=True)
    }
    return [found[step] for step in steps]


def _step(
    run: RunFolder,
    step: int,
    plan: OpenPlan,
    places: Sequence[Place],
    line: dict[str, Any] | None,
    replaced: Sequence[Substitution],
    with_captions: bool,
) -> StepRecord:
    config = run.config(step)
    dump, skipped = read_dump(run.run, step), skipped_words(run.run, step)
    trained = line is not None or (run.steps_done() > step and skipped is None)
    stand_ins = replaced_at(places, replaced, run=run.run)
    clips: list[ClipRecord] = []
    for _, group in groupby(places, key=lambda place: (place.micro, place.lane)):
        clips += _micro_batch(config, plan.sets, list(group), stand_ins, with_captions)
    notes = []
    if line is None and trained:
        notes.append("a checkpoint holds this step, but metrics.jsonl has no line of it")
    if skipped is not None:
        notes.append(skipped)
    elif dump is not None:
        notes.append(f"{'an earlier attempt' if trained else 'the run'} stopped at this step: {dump.words}")
    elif not trained:
        notes.append("not trained yet: told as planned")
    if dump is not None and not trained:
        clips = with_dumped_losses(clips, dump)
    if with_captions and not any(clip.captions for clip in clips):
        notes.append("captions are not known: the .json members of the set hold none, or cannot be read")
    verdict, matches = _digest(line, clips)
    return StepRecord(
        step=step,
        trained=trained,
        plan_hash=plan.meta.plan_hash,
        clips=tuple(clips),
        metrics=line,
        digest=verdict,
        digest_matches=matches,
        dump=None if dump is None else dump.folder,
        notes=tuple(notes),
    )


def _micro_batch(
    config: TrainConfig,
    sets: SetRows,
    places: Sequence[Place],
    stand_ins: Mapping[Place, Substitution],
    with_captions: bool,
) -> list[ClipRecord]:
    rows, planned = [], []
    for place in places:
        row, other = sets.row(place.shard, place.ordinal), None
        line = stand_ins.get(place)
        if line is not None:
            row, other = _stand_in(sets, place, row, line)
        rows.append(row)
        planned.append(other)
    bucket = places[0].bucket
    draws = clip_draws(config, places[0].step, bucket, [row.clip_id for row in rows])
    return [
        _clip(config, place, row, drawn, other, with_captions)
        for place, row, drawn, other in zip(places, rows, draws, planned, strict=True)
    ]


def _stand_in(sets: SetRows, place: Place, row: SampleRow, line: Substitution) -> tuple[SampleRow, PlannedOther]:
    """The sample that took a place, and what was planned there."""
    fitting = [found for found in sets.rows_of_clip(line.replaced_by) if found.fits(place.bucket)]
    if line.clip_id != row.clip_id or not fitting:
        raise DataError(
            f"the ledger of lane {line.lane} says that in step {line.step} clip {line.replaced_by} stood in for {line.clip_id}; "
            f"the plan has clip {row.clip_id} there, and its sets have {len(fitting)} samples of {line.replaced_by} for bucket {place.bucket}: "
            "the ledger is of another plan; give the plan and the sets of the run with --plan and --samples"
        )
    other = PlannedOther(
        clip_id=line.clip_id,
        shard=place.shard,
        ordinal=place.ordinal,
        reason=line.reason,
        replacement=line.replacement,
    )
    return fitting[0], other


def _clip(
    config: TrainConfig,
    place: Place,
    row: SampleRow,
    draws: ClipDraws,
    planned: PlannedOther | None,
    with_captions: bool,
) -> ClipRecord:
    text: TextKind = draws.text or "dropped"
    values, record, notes = row.values, {}, []
    if with_captions:
        try:
            record = row.record()
        except ShardError as error:
            notes.append(f"captions are not known: {error}")
    captions = {kind: record[f"caption_{kind}"] for kind in ("long", "short", "first") if f"caption_{kind}" in record}
    return ClipRecord(
        step=place.step,
        micro=place.micro,
        lane=place.lane,
        index=place.index,
        bucket=str(place.bucket),
        clip_id=row.clip_id,
        set_name=row.set_name,
        shard_name=row.shard_name,
        shard=row.shard,
        ordinal=row.ordinal,
        stored_frames=values["frames"],
        branch=values["branch"],
        domain=values["domain"],
        subject=values["subject"],
        style=values["style"],
        source=values["source"],
        start_us=values["start_us"],
        end_us=record.get("end_us"),
        text=text,
        text_tokens=None if draws.text is None else values[f"text_tokens_{draws.text}"],
        captions=captions or None,
        draws=draws,
        image_tokens_given=config.i2v.image_tokens and draws.first_frame_given and _has_member(row, "image.npy"),
        teacher=_teacher(config, place.step, row),
        planned=planned,
        notes=tuple(notes),
    )


def _has_member(row: SampleRow, name: str) -> bool:
    return any(member["name"] == name for member in row.values["members"])


def _teacher(config: TrainConfig, step: int, row: SampleRow) -> str | None:
    """The teacher that a clip is aligned to in a step, as `training.teachers` finds it."""
    repa = config.repa
    if repa is None or repa.weight_at(step) == 0.0:
        return None
    branch = row.values["branch"]
    by_set = row.info.teacher_by_branch.get(branch)
    wanted = by_set if repa.teacher_by_branch is None else repa.teacher_by_branch.get(branch)
    if repa.source == "online":
        return wanted
    return by_set if wanted is not None and row.values["has_teacher"] else None


def _digest(line: dict[str, Any] | None, clips: Sequence[ClipRecord]) -> tuple[str, bool | None]:
    """Whether these are the clips that the step's digest was made of."""
    written = None if line is None else line.get("clips_digest")
    if line is None:
        return "not known: metrics.jsonl has no line of this step", None
    if written is None:
        return "not known: the run wrote no clips_digest", None
    found = clips_digest(clip.clip_id for clip in clips)
    if found == written:
        return "these are the clips that were trained (clips_digest matches)", True
    counts = (
        "" if line.get("clips") == len(clips) else f", {line.get('clips')} clips were trained and {len(clips)} are told"
    )
    return (
        f"these are NOT the clips that were trained: clips_digest is {written} in metrics.jsonl, {found} of plan and ledger{counts}; "
        "was a ledger line lost, or a file of the run taken from another one?"
    ), False
