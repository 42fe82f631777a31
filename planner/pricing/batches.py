"""The batch table: clips per micro-batch, rows per epoch, predicted seconds and cost tier of each bucket.

B_b is bounded by the token limit, by the memory limit (of a measured cost table) and by the target of seconds; then it is lowered, not below half,
where that leaves fewer clips over. Under `uniform` a row takes B_b clips on each of V lanes, so a bucket of n clips fills floor(n / (V B_b)) rows;
under `tiers` a row takes any V micro-batches of a tier, so n clips make floor(n / B_b) of them. What is left of a long bucket goes
down to the next shorter bucket of the same size and is counted there, so that a lone 121-frame clip and a lone 65-frame clip make one row of two
65-frame clips on two lanes. B_b and tiers are the same in each epoch; which clips they fall on rotates (planner.schedule.selection).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.pricing.costs import CostModel
from planner.pricing.tiers import TierCut, choose_tiers, tier_curve
from planner.settings import PlanConfig
from schemas.buckets import FRAME_COUNTS, Bucket
from schemas.errors import ConfigError, PlanError

__all__ = ["BatchLine", "batch_table", "fit_batch", "most_clips", "rows_by_counts", "table_curve"]

SAME_COST_RATIO = 1.25
"""Under `uniform` tiers only name which rows cost alike: a tier ends where a bucket costs more than this times its cheapest."""
TOLERATED_LOSS = 1000
"""Under `tiers` B_b is not lowered for less than one of this many clips: the cost of its micro-batches matters more."""
_MOST_CLIPS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class BatchLine:
    """One bucket of the plan."""

    bucket: Bucket
    clips_per_lane: int
    """B_b."""
    rows_per_epoch: int
    """By the counts that the table was made for: whole rows under `uniform`, micro-batches over V under `tiers`, rounded down."""
    seconds: float
    """Predicted, of one micro-batch."""
    tier: int
    """In order of cost."""
    clips_in_set: int
    """Admitted clips whose longest bucket this is."""
    memory_bytes: int | None = None
    """Predicted peak of one micro-batch, where the cost model has it."""


def fit_batch(clips: int, lanes: int, most: int, *, tolerance: int = 0) -> int:
    """Largest B that leaves fewest clips over (but for `tolerance`), among those from half of `most` up to it (fewer where the clips do not
    reach); 0 if no row fills.

    `fit_batch(50, 2, 8) == 5` (all 50 clips; 8 would leave 2 over), `fit_batch(50, 2, 8, tolerance=2) == 8`, `fit_batch(7, 2, 16) == 3`,
    `fit_batch(1, 2, 8) == 0`.
    """
    reach = clips // lanes
    if reach == 0:
        return 0
    upper = min(most, reach)
    lower = min(max(1, (most + 1) // 2), upper)
    over = {batch: clips % (lanes * batch) for batch in range(lower, upper + 1)}
    least = min(over.values())
    return max(batch for batch, left in over.items() if left <= least + tolerance)


def most_clips(bucket: Bucket, config: PlanConfig, costs: CostModel) -> int:
    """Most clips of a micro-batch by tokens and memory, and by the seconds where they are given; 0 if one clip is too many.

    Raises:
        ConfigError: if nothing in the settings bounds it, or `max_memory_gb` is given and the cost model knows no memory.
    """
    limits = []
    if config.max_tokens_per_micro_batch is not None:
        limits.append(config.max_tokens_per_micro_batch // bucket.video_tokens)
    most_bytes = config.max_memory_bytes
    if most_bytes is not None:

        def fits(clips: int) -> bool:
            used = costs.memory_bytes(bucket, clips)
            if used is None:
                raise ConfigError(
                    f"max_memory_gb is {config.max_memory_gb:g}, but the cost model knows no memory ({costs.words.split(':')[0]}); give a cost table "
                    "that was measured on a GPU, or max_tokens_per_micro_batch instead"
                )
            return used <= most_bytes

        limits.append(_largest(fits))
    if not limits:
        raise ConfigError(
            f"bucket {bucket} has clips but no batch size; add it to batch_clips ({bucket}: 1), or give max_tokens_per_micro_batch"
        )
    most = min(limits)
    target = config.target_seconds
    if target is None or most <= 1:
        return most
    below = min(most, max(1, _largest(lambda clips: costs.seconds(bucket, clips) <= target)))
    near = [clips for clips in (below, below + 1) if clips <= most]
    return min(near, key=lambda clips: abs(costs.seconds(bucket, clips) - target))


def batch_table(counts: Mapping[Bucket, int], config: PlanConfig, costs: CostModel) -> tuple[BatchLine, ...]:
    """Lines of all buckets that have clips of their own or take shortened ones, sorted by bucket.

    Raises:
        ConfigError: a bucket that has no batch rule, or whose single clip exceeds the limits.
        PlanError: nothing fills a row on all lanes.
    """
    chains: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    for bucket, count in counts.items():
        chains[bucket.height, bucket.width][bucket.frames] = count
    filled: dict[Bucket, tuple[int, int]] = {}
    for size, by_frames in chains.items():
        filled |= _fill_chain(size, by_frames, config, costs)
    if sum(micro for _, micro in filled.values()) < config.lanes:
        raise PlanError(
            f"no bucket fills a row of {config.lanes} lanes: the largest of {len(counts)} buckets has {max(counts.values())} clips, "
            f"{sum(counts.values())} in all; use fewer lanes (config: lanes), smaller batches (batch_clips) or more data"
        )
    lines = tuple(
        BatchLine(
            bucket=bucket,
            clips_per_lane=max(1, batch),
            rows_per_epoch=micro // config.lanes,
            seconds=costs.seconds(bucket, max(1, batch)),
            tier=0,
            clips_in_set=counts.get(bucket, 0),
            memory_bytes=costs.memory_bytes(bucket, max(1, batch)),
        )
        for bucket, (batch, micro) in sorted(filled.items())
    )
    if config.policy == "tiers":
        tiers: Sequence[int] = table_curve(lines, config)[1].tier_of
    else:
        tiers = _alike([line.seconds for line in lines])
    return tuple(replace(line, tier=tier) for line, tier in zip(lines, tiers, strict=True))


def table_curve(lines: Sequence[BatchLine], config: PlanConfig) -> tuple[tuple[TierCut, ...], TierCut]:
    """(least waste for each number of tiers, the cut that the plan takes), for the clips that the table was made for."""
    unit = 1 if config.policy == "tiers" else config.lanes
    counts = {line.bucket: line.clips_in_set for line in lines}
    micro = rows_by_counts(counts, lines, unit, shorten=config.shorten_left_over)
    weights = np.array([unit * micro[line.bucket] for line in lines], dtype=np.float64)
    seconds = np.array([line.seconds for line in lines])
    apart = any(phase.images_per_video is not None for phase in config.mix)
    group = np.array([apart and line.bucket.frames == 1 for line in lines], dtype=np.int64)
    curve = tier_curve(seconds, weights, config.lanes, config.micro_per_step, group)
    return curve, choose_tiers(curve, seconds, weights, config, group)


def rows_by_counts(
    counts: Mapping[Bucket, int], lines: Sequence[BatchLine], lanes: int, *, shorten: bool
) -> dict[Bucket, int]:
    """Rows of whole buckets that these clips fill at the table's batches, left-overs going down to shorter buckets if `shorten`.

    With `lanes` 1 these are micro-batches.
    """
    rows: dict[Bucket, int] = {}
    passed: dict[tuple[int, int], int] = defaultdict(int)
    for line in sorted(lines, key=lambda item: -item.bucket.frames):
        size = (line.bucket.height, line.bucket.width)
        pool = counts.get(line.bucket, 0) + passed[size]
        rows[line.bucket] = pool // (lanes * line.clips_per_lane)
        passed[size] = pool - rows[line.bucket] * lanes * line.clips_per_lane if shorten else 0
    return rows


def _fill_chain(
    size: tuple[int, int], by_frames: Mapping[int, int], config: PlanConfig, costs: CostModel
) -> dict[Bucket, tuple[int, int]]:
    """(B_b, micro-batches over all lanes) of the buckets of one size, longest first, left-overs going down."""
    result: dict[Bucket, tuple[int, int]] = {}
    passed = 0
    unit = 1 if config.policy == "tiers" else config.lanes
    for frames in reversed(FRAME_COUNTS):
        bucket = Bucket(frames, *size)
        own = by_frames.get(frames, 0)
        pool = own + passed
        if not own and (pool < config.lanes or not _has_rule(bucket, config, costs)):
            continue
        # Under tiers what comes down from longer buckets depends on rows of tiers: a batch that needs it might fill no row at all.
        sure = own if config.policy == "tiers" and own >= config.lanes else pool
        batch = _batch(bucket, sure, unit, config, costs)
        rows = pool // (unit * batch) if batch else 0
        if own or rows:
            result[bucket] = (batch, rows * unit)
        passed = pool - rows * unit * batch if config.shorten_left_over else 0
    return result


def _has_rule(bucket: Bucket, config: PlanConfig, costs: CostModel) -> bool:
    if str(bucket) in config.batch_clips:
        return True
    bounded = config.max_tokens_per_micro_batch is not None or config.max_memory_bytes is not None
    return bounded and most_clips(bucket, config, costs) > 0


def _batch(bucket: Bucket, pool: int, unit: int, config: PlanConfig, costs: CostModel) -> int:
    if str(bucket) in config.batch_clips:
        return config.batch_clips[str(bucket)]
    most = most_clips(bucket, config, costs)
    if most == 0:
        raise ConfigError(_too_large(bucket, config, costs))
    # Rows of a tier take any of its micro-batches, but a bucket may be alone in its tier: the lanes count under `tiers` as well.
    tolerance = pool // TOLERATED_LOSS if config.policy == "tiers" else 0
    return fit_batch(pool, config.lanes, most, tolerance=tolerance) or fit_batch(pool, unit, most)


def _too_large(bucket: Bucket, config: PlanConfig, costs: CostModel) -> str:
    limit, used = config.max_tokens_per_micro_batch, costs.memory_bytes(bucket, 1)
    if limit is not None and limit < bucket.video_tokens:
        return (
            f"max_tokens_per_micro_batch {limit} is below the {bucket.video_tokens} video tokens of one clip of bucket {bucket}; "
            f"raise it, or add the bucket to batch_clips ({bucket}: 1)"
        )
    return (
        f"max_memory_gb {config.max_memory_gb:g} is below the {(used or 0) / 1e9:.3g} GB that one clip of bucket {bucket} takes by the cost table; "
        f"raise it, leave the bucket out, or add it to batch_clips ({bucket}: 1)"
    )


def _largest(fits: Callable[[int], bool]) -> int:
    """Largest count that fits, where every smaller one does too; 0 if none, at most 2^20."""
    low, high = 0, 1
    while high <= _MOST_CLIPS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _alike(seconds: Sequence[float]) -> tuple[int, ...]:
    """Cost-sorted buckets cut where one exceeds the ratio to the cheapest of its tier."""
    tiers = [0] * len(seconds)
    tier, cheapest = -1, 0.0
    for index in sorted(range(len(seconds)), key=lambda item: (seconds[item], item)):
        if tier < 0 or seconds[index] > SAME_COST_RATIO * cheapest:
            tier, cheapest = tier + 1, seconds[index]
        tiers[index] = tier
    return tuple(tiers)
