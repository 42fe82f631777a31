"""How many clips of an epoch fill no row, from counts alone: the arithmetic behind what `explain` says of other settings.

uniform  n clips of a bucket fill floor(n / (V B)) rows; the rest may go down to the next shorter bucket of its size
tiers    n clips make floor(n / B) micro-batches, the rest goes down; the m micro-batches of a tier fill floor(m / V) rows, and the m mod V
         that fill none are taken from the smallest
steps    rows mod K fill no step; the smallest are taken
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from schemas.buckets import Bucket
from schemas.plan import PlanMeta

__all__ = ["Fill", "FillRules", "fill_epoch", "rules_of"]


@dataclass(frozen=True, kw_only=True)
class FillRules:
    """What decides the rows of an epoch."""

    lanes: int
    micro_per_step: int
    tiers: bool
    """Rows of one cost tier (else of one bucket)."""
    shorten: bool
    batch: Mapping[Bucket, int]
    tier: Mapping[Bucket, int]

    def with_batch(self, bucket: Bucket, clips: int) -> FillRules:
        """The same with another batch size of one bucket."""
        return replace(self, batch={**self.batch, bucket: clips})


@dataclass(frozen=True)
class Fill:
    """An epoch that uses all it can."""

    rows: int
    """Before rows that fill no step are taken out."""
    no_row: dict[Bucket, int]
    """Clips that fill no row, at the bucket where they end up."""
    no_step: int
    """Clips of the rows that fill no step."""

    @property
    def left_over(self) -> int:
        """All of them."""
        return sum(self.no_row.values()) + self.no_step


def rules_of(meta: PlanMeta) -> FillRules:
    """The plan's own."""
    buckets = {Bucket.parse(entry.bucket): entry for entry in meta.batches}
    return FillRules(
        lanes=meta.num_lanes,
        micro_per_step=meta.micro_per_step,
        tiers=meta.policy == "tiers",
        shorten=bool(meta.config.get("shorten_left_over", False)),
        batch={bucket: entry.clips_per_lane for bucket, entry in buckets.items()},
        tier={bucket: entry.tier for bucket, entry in buckets.items()},
    )


def fill_epoch(counts: Mapping[Bucket, int], rules: FillRules) -> Fill:
    """Rows and rest of an epoch of `counts` clips by longest bucket."""
    unit = 1 if rules.tiers else rules.lanes
    whole: dict[Bucket, int] = {}
    no_row: dict[Bucket, int] = {}
    for bucket in sorted(rules.batch, key=lambda item: (item.height, item.width, -item.frames)):
        pool = counts.get(bucket, 0) + no_row.get(bucket, 0)
        whole[bucket], rest = divmod(pool, unit * rules.batch[bucket])
        shorter = _next_shorter(bucket, rules) if rules.shorten else None
        no_row[bucket] = 0 if shorter else rest
        if shorter:
            no_row[shorter] = no_row.get(shorter, 0) + rest
    if rules.tiers:
        rows, row_clips = _tier_rows(whole, no_row, rules)
    else:
        rows, row_clips = sum(whole.values()), []
        for bucket, count in whole.items():
            row_clips += [rules.lanes * rules.batch[bucket]] * min(count, rules.micro_per_step)
    no_step = sum(sorted(row_clips)[: rows % rules.micro_per_step])
    return Fill(rows=rows, no_row={bucket: count for bucket, count in no_row.items() if count}, no_step=no_step)


def _next_shorter(bucket: Bucket, rules: FillRules) -> Bucket | None:
    fits = [
        item
        for item in rules.batch
        if (item.height, item.width) == (bucket.height, bucket.width) and item.frames < bucket.frames
    ]
    return max(fits, default=None)


def _tier_rows(whole: Mapping[Bucket, int], no_row: dict[Bucket, int], rules: FillRules) -> tuple[int, list[int]]:
    """(rows, clips of a few smallest rows of each tier); what fills no row of its tier is added to `no_row`."""
    rows, row_clips = 0, []
    for tier in sorted(set(rules.tier.values())):
        members = sorted((bucket for bucket in whole if rules.tier[bucket] == tier), key=lambda item: rules.batch[item])
        full, surplus = divmod(sum(whole[bucket] for bucket in members), rules.lanes)
        rows += full
        left = {bucket: whole[bucket] for bucket in members}
        for bucket in members:
            taken = min(surplus, left[bucket])
            no_row[bucket] = no_row.get(bucket, 0) + taken * rules.batch[bucket]
            left[bucket] -= taken
            surplus -= taken
        for _ in range(min(full, rules.micro_per_step)):
            row_clips.append(_smallest_row(left, rules))
    return rows, row_clips


def _smallest_row(left: dict[Bucket, int], rules: FillRules) -> int:
    """Take the smallest micro-batches of a row out of `left`; their clips."""
    open_lanes, clips = rules.lanes, 0
    for bucket in left:
        taken = min(open_lanes, left[bucket])
        left[bucket] -= taken
        open_lanes -= taken
        clips += taken * rules.batch[bucket]
    return clips
