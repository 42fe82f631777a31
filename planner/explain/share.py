"""Why clips are left over: which bucket sets the floor, and what other lanes, batches, steps or policies would leave.

What-ifs run the arithmetic of a build (planner.schedule.demand) on the plan's counts and batch table; nothing is placed or scheduled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from planner.explain.facts import PlanFacts
from planner.looking.wording import share_words, table_lines
from planner.pricing.batches import BatchLine
from planner.schedule.demand import DemandMaker
from planner.settings import PlanConfig
from schemas.config import build_config
from schemas.errors import PlanError

__all__ = ["LeftOver", "Trial", "share_lines", "trial_of"]

_FLOOR_BUCKETS = 3
_REASONS = 4


def share_lines(facts: PlanFacts) -> Iterator[str]:
    """The chapter on the used share."""
    meta = facts.meta
    epochs = meta.num_epochs
    unused = facts.ledger.filter(pc.not_equal(facts.ledger.column("event"), "repeated"))
    left = dict.fromkeys((entry.bucket for entry in meta.batches), 0)
    for row in unused.to_pylist():
        left[row["bucket"]] = left.get(row["bucket"], 0) + row["count_all"]
    total = sum(left.values())
    yield (
        f"used share {meta.used_share:.2%}: {total / epochs:,.1f} of {meta.admitted_clips:,} admitted clips are not used, "
        f"mean of {epochs} epochs"
    )
    yield from _table(facts, left, total)
    reasons: dict[str, int] = {}
    for row in unused.to_pylist():
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + row["count_all"]
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:_REASONS]:
        yield f"  {count / epochs:,.1f} an epoch: {reason}"
    if not total:
        yield "  nothing to gain: every admitted clip is used in every epoch"
        return
    if meta.config.get("mix"):
        yield "  the mix of the configuration leaves clips out on purpose; the numbers below are of epochs without it"
    yield from _change_lines(facts, left, total / epochs)


def _table(facts: PlanFacts, left: Mapping[str, int], total: int) -> list[str]:
    meta = facts.meta
    rows = []
    for entry, micro in zip(meta.batches, facts.micro_batches.tolist(), strict=True):
        rest = left[entry.bucket]
        rows.append(
            [
                entry.bucket,
                f"{entry.clips_in_set:,}",
                str(entry.clips_per_lane),
                str(entry.tier),
                f"{micro / meta.num_epochs:,.1f}",
                f"{rest / meta.num_epochs:,.1f}",
                share_words(rest, meta.num_epochs * entry.clips_in_set),
                share_words(rest, total),
            ]
        )
    head = ["bucket", "clips", "B", "tier", "micro-batches", "left over", "of its clips", "of all left"]
    return table_lines(head, rows)


def _change_lines(facts: PlanFacts, left: Mapping[str, int], actual: float) -> Iterator[str]:
    meta = facts.meta
    trial = trial_of(facts)
    now = trial.left_over()
    worst = max(left, key=lambda name: left[name])
    batch = {entry.bucket: entry.clips_per_lane for entry in meta.batches}
    row = f"a row takes {meta.num_lanes} x {batch[worst]} clips" if worst in batch else "it has no row"
    yield f"  the floor is set by {worst}, with {share_words(left[worst], sum(left.values()))} of what is left over ({row})"
    yield (
        f"  by the arithmetic of full rows and steps, an epoch under these settings leaves {now.clips:,} clips (this plan: {actual:,.1f}), "
        f"{now.in_rows_outside_steps:,} of them in rows that fill no step; with the batches as they are it would leave:"
    )
    changes = list(_changes(trial, now, left))
    width = max((len(words) for words, _ in changes), default=0)
    for words, result in changes:
        yield f"    {words:<{width}}  {result}"
    if not changes:
        yield "    no less by fewer lanes, smaller batches, fewer rows a step, tiers, shortening or repeating"


@dataclass(frozen=True)
class LeftOver:
    """Of one epoch."""

    clips: int
    in_rows_outside_steps: int
    repeated: int
    rows: int


@dataclass(frozen=True)
class Trial:
    """The plan's counts and settings, to be tried with others: planner.schedule.demand does the arithmetic, as in a build."""

    lines: tuple[BatchLine, ...]
    config: PlanConfig

    def with_batch(self, bucket: str, clips: int) -> Trial:
        """Another batch size of one bucket."""
        lines = tuple(
            replace(line, clips_per_lane=clips) if str(line.bucket) == bucket else line for line in self.lines
        )
        return Trial(lines, self.config)

    def left_over(self, **settings: Any) -> LeftOver:
        """What an epoch leaves over under changed settings, its mix as the data have it.

        Raises:
            PlanError: if the clips fill no step.
        """
        own = np.array([line.clips_in_set for line in self.lines], dtype=np.int64)
        demand = DemandMaker(self.lines, self.config.model_copy(update=settings)).make(own, None, 0)
        return LeftOver(
            clips=int(own.sum() - demand.distinct.sum()),
            in_rows_outside_steps=int(sum(clips.sum() for _, clips in demand.cut)),
            repeated=int(demand.repeated.sum()),
            rows=demand.num_rows,
        )


def trial_of(facts: PlanFacts) -> Trial:
    """The plan as it is.

    Raises:
        ConfigError: if the plan's configuration is not one of this version.
    """
    meta = facts.meta
    lines = tuple(
        BatchLine(
            bucket=bucket,
            clips_per_lane=entry.clips_per_lane,
            rows_per_epoch=0,
            seconds=entry.predicted_seconds,
            tier=entry.tier,
            clips_in_set=entry.clips_in_set,
        )
        for bucket, entry in zip(facts.buckets, meta.batches, strict=True)
    )
    return Trial(
        lines, build_config(PlanConfig, meta.config, source="the plan's own configuration (plan.json: config)")
    )


def _changes(trial: Trial, now: LeftOver, left: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """(the change, what it would leave), only those that leave fewer clips."""
    config = trial.config
    best = now.clips
    for lanes in range(config.lanes - 1, 0, -1):
        if config.lanes % lanes == 0 and best:
            found = _try(trial, lanes=lanes)
            if found and found.clips < best:
                best = found.clips
                yield f"lanes {lanes}", f"{best:,}"
                if best * 2 <= now.clips:
                    break
    for bucket in sorted(left, key=lambda name: -left[name])[:_FLOOR_BUCKETS]:
        yield from _batch_changes(trial, now, bucket)
    steps = [
        (found.clips, -micro)
        for micro in range(1, config.micro_per_step)
        if (found := _try(trial, micro_per_step=micro))
    ]
    if steps and min(steps)[0] < now.clips:
        yield f"micro_per_step {-min(steps)[1]}", f"{min(steps)[0]:,}"
    others: list[tuple[str, dict[str, Any]]] = [
        ("policy uniform", {"policy": "uniform"}),
        ("policy tiers, numbered as they are", {"policy": "tiers"}),
        ("shorten_left_over true", {"shorten_left_over": True}),
        ("left_over repeat", {"left_over": "repeat"}),
    ]
    for words, settings in others:
        found = _try(trial, **settings)
        if found and found.clips < now.clips:
            again = f", with {found.repeated:,} clips used once more" if found.repeated else ""
            yield words, f"{found.clips:,}{again}"


def _try(trial: Trial, **settings: Any) -> LeftOver | None:
    """Null where the clips would fill no step."""
    try:
        return trial.left_over(**settings)
    except PlanError:
        return None


def _batch_changes(trial: Trial, now: LeftOver, bucket: str) -> Iterator[tuple[str, str]]:
    """The batch size from B - 1 down to B / 2 that leaves fewest clips."""
    size = next((line.clips_per_lane for line in trial.lines if str(line.bucket) == bucket), 0)
    sizes = range(size - 1, (size - 1) // 2, -1)
    tried = [(found, clips) for clips in sizes if (found := _try(trial.with_batch(bucket, clips)))]
    if not tried:
        return
    found, clips = min(tried, key=lambda item: (item[0].clips, -item[1]))
    if found.clips < now.clips:
        yield (
            f"{bucket}: {clips} clips in place of {size}",
            f"{found.clips:,}, with {found.rows - now.rows:+,} rows an epoch",
        )
