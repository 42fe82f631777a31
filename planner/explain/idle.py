"""Why ranks wait: whose micro-batches the others wait for, in seconds, and what other tiers or batches would give.

The seconds are exact sums over the plan's rows; what changes would give comes from the model that chooses tiers (planner.pricing.tiers).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.explain.facts import PlanFacts
from planner.looking.step_times import idle_share, step_times
from planner.looking.wording import share_words, span_words, table_lines
from planner.pricing.tiers import TierCut, cut_of

__all__ = ["IdleByBucket", "idle_by_bucket", "idle_lines"]

_SUGGESTIONS = 6
_ROUNDING = 1e-12
"""Waits below this share of the longest one are sums that do not quite cancel."""


@dataclass(frozen=True)
class IdleByBucket:
    """Seconds, by bucket, per rank and summed over the plan."""

    busy: np.ndarray
    """Of the mean rank."""
    waited: np.ndarray
    """That the mean rank waits because the slowest one has more of this bucket than the mean."""


def idle_by_bucket(facts: PlanFacts, ranks: int, sync: str) -> IdleByBucket:
    """Lay each wait (of a row under sync micro, of a step under sync step) at the bucket of which the slowest rank has most more than the mean."""
    lanes, rows = facts.bucket_VN.shape
    micro = facts.meta.micro_per_step if sync == "step" else 1

    def by_rank(values_VN: np.ndarray) -> np.ndarray:
        return values_VN.reshape(ranks, lanes // ranks, rows // micro, micro).sum(axis=(1, 3))

    total_RU = by_rank(facts.lane_seconds)
    slowest_U = total_RU.argmax(axis=0)
    wait_U = total_RU.max(axis=0) - total_RU.mean(axis=0)
    most_U, culprit_U = np.full(total_RU.shape[1], -np.inf), np.zeros(total_RU.shape[1], dtype=np.int64)
    busy = np.zeros(len(facts.buckets))
    for bucket, seconds in enumerate(facts.seconds.tolist()):
        own_RU = by_rank((facts.bucket_VN == bucket) * seconds)
        busy[bucket] = own_RU.sum() / ranks
        more_U = own_RU[slowest_U, np.arange(len(slowest_U))] - own_RU.mean(axis=0)
        culprit_U = np.where(more_U > most_U, bucket, culprit_U)
        most_U = np.maximum(most_U, more_U)
    wait_U[wait_U < _ROUNDING * total_RU.max()] = 0.0
    return IdleByBucket(busy=busy, waited=np.bincount(culprit_U, wait_U, minlength=len(busy)))


def idle_lines(facts: PlanFacts, ranks: int) -> Iterator[str]:
    """The chapter on time."""
    meta = facts.meta
    times = step_times(facts.lane_seconds, ranks, meta.micro_per_step)
    own = times.under(meta.sync)
    micro, step = (share_words(idle_share(times.busy, waited), 1.0) for waited in (times.micro, times.step))
    yield (
        f"idle share {micro} under sync micro, {step} under sync step (the plan's is {meta.sync}), on {ranks} ranks; "
        f"{span_words(own.sum() - times.busy.sum())} of {span_words(own.sum())}"
    )
    found = idle_by_bucket(facts, ranks, meta.sync)
    yield from _table(facts, found)
    if found.waited.sum() < 1e-9 * max(1e-9, found.busy.sum()):
        yield "  nothing to gain: no rank waits for another; what that costs is in the chapter on mixing"
        return
    worst = int(found.waited.argmax())
    yield f"  the floor is set by {meta.batches[worst].bucket}: {share_words(found.waited[worst], found.waited.sum())} of the waiting is for it"
    if meta.policy == "tiers":
        yield from _change_lines(facts, worst)


def _table(facts: PlanFacts, found: IdleByBucket) -> list[str]:
    rows = [
        [
            entry.bucket,
            str(entry.clips_per_lane),
            str(entry.tier),
            span_words(entry.predicted_seconds),
            f"{micro:,}",
            share_words(busy, found.busy.sum()),
            span_words(waited),
            share_words(waited, found.busy.sum() + found.waited.sum()),
        ]
        for entry, micro, busy, waited in zip(
            facts.meta.batches, facts.micro_batches.tolist(), found.busy.tolist(), found.waited.tolist(), strict=True
        )
    ]
    head = ["bucket", "B", "tier", "one batch", "micro-batches", "of busy time", "waited for", "of all time"]
    return table_lines(head, rows)


def _change_lines(facts: PlanFacts, worst: int) -> Iterator[str]:
    """Other tiers and batches, by the model of planner.pricing.tiers, one rank per lane."""
    now = _cut(facts, np.array([entry.tier for entry in facts.meta.batches]), facts.seconds, facts.micro_batches)
    changes = [item for item in _changes(facts, worst) if item[1].waste < now.waste]
    changes.sort(key=lambda item: item[1].waste)
    yield "  by the model that chooses tiers (sync micro, one rank per lane), changes that it rates better:"
    rows = [
        [words, f"{cut.waste:.2%}", f"{cut.mix_index_1:.3f}", f"{cut.mix_index_8:.3f}"]
        for words, cut in [("the tiers as they are", now), *changes[:_SUGGESTIONS]]
    ]
    yield from table_lines(["change", "idle", "mix_1", "mix_8"], rows, text_columns=[0])
    if not changes:
        yield "  no better: another tier for a bucket, one tier more, a smaller or split batch, a smaller share"


def _cut(facts: PlanFacts, tiers: np.ndarray, seconds: np.ndarray, micro_batches: np.ndarray) -> TierCut:
    meta = facts.meta
    return cut_of(tiers.tolist(), seconds, micro_batches.astype(np.float64), meta.num_lanes, meta.micro_per_step)


def _changes(facts: PlanFacts, worst: int) -> Iterator[tuple[str, TierCut]]:
    """(words, what the model gives) of every change that is tried."""
    tiers = np.array([entry.tier for entry in facts.meta.batches])
    seconds, weights = facts.seconds, facts.micro_batches
    order = np.argsort(seconds, kind="stable")
    used = order[weights[order] > 0]
    for below, above in zip(used[:-1].tolist(), used[1:].tolist(), strict=True):
        names = facts.meta.batches[below].bucket, facts.meta.batches[above].bucket
        if tiers[below] == tiers[above]:
            split = tiers * 2 + ((tiers == tiers[above]) & (seconds >= seconds[above]))
            yield f"one tier more, cut between {names[0]} and {names[1]}", _cut(facts, split, seconds, weights)
        else:
            for moved, target, name in ((above, tiers[below], names[1]), (below, tiers[above], names[0])):
                changed = tiers.copy()
                changed[moved] = target
                yield f"{name} in tier {target} in place of {tiers[moved]}", _cut(facts, changed, seconds, weights)
    yield from _smaller(facts, worst, tiers)


def _smaller(facts: PlanFacts, worst: int, tiers: np.ndarray) -> Iterator[tuple[str, TierCut]]:
    """Less of the worst bucket: a smaller batch (seconds in proportion), a batch split over two ranks, half its clips."""
    entry, seconds, weights = facts.meta.batches[worst], facts.seconds, facts.micro_batches.astype(np.float64)

    def with_worst(time: float, weight: float) -> TierCut:
        changed, counts = seconds.copy(), weights.copy()
        changed[worst] *= time
        counts[worst] *= weight
        return _cut(facts, tiers, changed, counts)

    size = entry.clips_per_lane
    tried = [(with_worst(clips / size, size / clips), clips) for clips in range(size - 1, (size - 1) // 2, -1)]
    if tried:
        cut, clips = min(tried, key=lambda item: (item[0].waste, -item[1]))
        yield f"{entry.bucket}: {clips} clips in place of {size}", cut
    else:
        yield f"{entry.bucket} split over two ranks (a trainer with sequence parallelism)", with_worst(0.5, 2.0)
    yield f"{entry.bucket}: half as many of its clips", with_worst(1.0, 0.5)
