"""Why clips are left over: which bucket sets the floor, and what other lanes, batches, steps or policies would leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pyarrow.compute as pc

from planner.explain.facts import PlanFacts
from planner.explain.fills import Fill, FillRules, fill_epoch, rules_of
from planner.wording import share_words, table_lines
from schemas.buckets import Bucket

__all__ = ["share_lines"]

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
    yield from _change_lines(facts, total / epochs)


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


def _change_lines(facts: PlanFacts, actual: float) -> Iterator[str]:
    meta = facts.meta
    counts = {bucket: entry.clips_in_set for bucket, entry in zip(facts.buckets, meta.batches, strict=True)}
    rules = rules_of(meta)
    now = fill_epoch(counts, rules)
    floor = sorted(now.no_row.items(), key=lambda item: -item[1])[:_FLOOR_BUCKETS]
    if floor:
        bucket, rest = floor[0]
        per_row = 1 if rules.tiers else rules.lanes
        yield (
            f"  the floor is set by {bucket}: {rest:,} clips{' (longer ones shortened included)' if rules.shorten else ''} fill no row there"
            + (f" (a row takes {per_row * rules.batch[bucket]:,})" if not rules.tiers else "")
            + f"; {now.no_step:,} more are in rows that fill no step"
        )
    else:
        yield f"  every row is full; {now.no_step:,} clips are in rows that fill no step of {rules.micro_per_step}"
    yield (
        f"  by the arithmetic of full rows and steps these settings leave {now.left_over:,} clips of an epoch that is gone through to its end"
        f" (this plan: {actual:,.1f}); other settings would leave:"
    )
    changes = list(_changes(counts, rules, now, facts))
    width = max((len(words) for words, _ in changes), default=0)
    for words, result in changes:
        yield f"    {words:<{width}}  {result}"
    if not changes:
        yield "    none of those tried leaves fewer: fewer lanes, smaller batches, fewer rows a step, tiers, shortening"


def _changes(counts: Mapping[Bucket, int], rules: FillRules, now: Fill, facts: PlanFacts) -> Iterator[tuple[str, str]]:
    """(the change, what it would leave), only those that leave fewer."""
    best = now.left_over
    for lanes in range(rules.lanes - 1, 0, -1):
        if rules.lanes % lanes == 0 and best > 0:
            left = fill_epoch(counts, replace(rules, lanes=lanes)).left_over
            if left < best:
                best = left
                yield f"lanes {lanes}", f"{left:,}"
                if left * 2 <= now.left_over:
                    break
    for bucket in sorted(now.no_row, key=lambda item: -now.no_row[item])[:_FLOOR_BUCKETS]:
        yield from _batch_changes(counts, rules, now, bucket)
    fewer = [
        (fill_epoch(counts, replace(rules, micro_per_step=micro)).left_over, -micro)
        for micro in range(1, rules.micro_per_step)
    ]
    if fewer and min(fewer)[0] < now.left_over:
        left, micro = min(fewer)
        yield f"micro_per_step {-micro}", f"{left:,}"
    if not rules.tiers:
        left = fill_epoch(counts, replace(rules, tiers=True)).left_over
        if left < now.left_over:
            yield "policy tiers", f"{left:,}, with the tiers as they are numbered now"
    if not rules.shorten:
        left = fill_epoch(counts, replace(rules, shorten=True)).left_over
        if left < now.left_over:
            yield "shorten_left_over true", f"{left:,}"
    if facts.meta.max_uses_per_epoch == 1 and not rules.tiers and now.no_row:
        again = sum(rules.lanes * rules.batch[bucket] - rest for bucket, rest in now.no_row.items())
        yield (
            "left_over repeat",
            f"{now.no_step:,}, with {again:,} clips used once more to fill the last row of each bucket",
        )


def _batch_changes(
    counts: Mapping[Bucket, int], rules: FillRules, now: Fill, bucket: Bucket
) -> Iterator[tuple[str, str]]:
    """The batch size from B - 1 down to B / 2 that leaves fewest clips."""
    size = rules.batch[bucket]
    tried = [
        (fill_epoch(counts, rules.with_batch(bucket, clips)), clips) for clips in range(size - 1, (size - 1) // 2, -1)
    ]
    if not tried:
        return
    fill, clips = min(tried, key=lambda item: (item[0].left_over, -item[1]))
    if fill.left_over < now.left_over:
        rows = fill.rows - now.rows
        yield f"{bucket}: {clips} clips in place of {size}", f"{fill.left_over:,}, with {rows:+,} rows an epoch"
