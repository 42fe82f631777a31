"""The batch table: clips per micro-batch, rows per epoch, predicted seconds and cost tier of each bucket.

Under `uniform` a row takes B_b clips on each of V lanes, so a bucket of n clips fills floor(n / (V B_b)) rows. What is left of a long bucket goes
down to the next shorter bucket of the same size and is counted there, so that a lone 121-frame clip and a lone 65-frame clip make one row of two
65-frame clips on two lanes. The counts are the same in each epoch; which clips they fall on rotates (planner.selection).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from planner.settings import CostConfig, PlanConfig
from schemas.buckets import FRAME_COUNTS, Bucket
from schemas.errors import ConfigError, PlanError

__all__ = ["BatchLine", "batch_table", "fit_batch", "micro_batch_seconds"]

TRAIN_OVER_FORWARD = 3
"""FLOPs of forward and backward over forward alone."""


@dataclass(frozen=True, kw_only=True)
class BatchLine:
    """One bucket of the plan."""

    bucket: Bucket
    clips_per_lane: int
    """B_b."""
    rows_per_epoch: int
    seconds: float
    """Predicted, of one micro-batch."""
    tier: int
    clips_in_set: int
    """Admitted clips whose longest bucket this is."""


def micro_batch_seconds(bucket: Bucket, clips: int, cost: CostConfig) -> float:
    """Analytic FLOPs of a training micro-batch over the nominal rate."""
    route = None if cost.route is None else (cost.route.first_block, cost.route.last_block, cost.route.drop_ratio)
    forward = cost.model_shape.forward_flops(bucket.video_tokens, cost.text_tokens, route=route).total
    return TRAIN_OVER_FORWARD * forward * clips / (cost.teraflops_per_second * 1e12)


def fit_batch(clips: int, lanes: int, most: int) -> int:
    """Largest B that uses most clips, among those from half of `most` up to it (fewer where the clips do not reach); 0 if no row fills.

    `fit_batch(50, 2, 8) == 5` (all 50 clips; 8 would leave 2 over), `fit_batch(7, 2, 16) == 3`, `fit_batch(1, 2, 8) == 0`.
    """
    reach = clips // lanes
    if reach == 0:
        return 0
    upper = min(most, reach)
    lower = min(max(1, (most + 1) // 2), upper)
    return max(range(lower, upper + 1), key=lambda batch: (clips // (lanes * batch) * batch, batch))


def batch_table(counts: Mapping[Bucket, int], config: PlanConfig) -> tuple[BatchLine, ...]:
    """Lines of all buckets that have clips of their own or take shortened ones, sorted by bucket.

    Raises:
        ConfigError: a bucket that has no batch rule, or whose single clip exceeds the token limit.
        PlanError: nothing fills a row on all lanes.
    """
    chains: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    for bucket, count in counts.items():
        chains[bucket.height, bucket.width][bucket.frames] = count
    filled: dict[Bucket, tuple[int, int]] = {}
    for size, by_frames in chains.items():
        filled |= _fill_chain(size, by_frames, config)
    if not any(rows for _, rows in filled.values()):
        raise PlanError(
            f"no bucket fills a row of {config.lanes} lanes: the largest of {len(counts)} buckets has {max(counts.values())} clips, "
            f"{sum(counts.values())} in all; use fewer lanes (config: lanes), smaller batches (batch_clips) or more data"
        )
    seconds = {bucket: micro_batch_seconds(bucket, max(1, batch), config.cost) for bucket, (batch, _) in filled.items()}
    tiers = _tiers(seconds, 1.25)
    return tuple(
        BatchLine(
            bucket=bucket,
            clips_per_lane=max(1, filled[bucket][0]),
            rows_per_epoch=filled[bucket][1],
            seconds=seconds[bucket],
            tier=tiers[bucket],
            clips_in_set=counts.get(bucket, 0),
        )
        for bucket in sorted(filled)
    )


def _fill_chain(
    size: tuple[int, int], by_frames: Mapping[int, int], config: PlanConfig
) -> dict[Bucket, tuple[int, int]]:
    """(B_b, rows) of the buckets of one size, longest first, left-overs going down."""
    result: dict[Bucket, tuple[int, int]] = {}
    passed = 0
    for frames in reversed(FRAME_COUNTS):
        bucket = Bucket(frames, *size)
        own = by_frames.get(frames, 0)
        pool = own + passed
        if not own and (pool < config.lanes or not _has_rule(bucket, config)):
            continue
        batch = _batch(bucket, pool, config)
        rows = pool // (config.lanes * batch) if batch else 0
        if own or rows:
            result[bucket] = (batch, rows)
        passed = pool - rows * config.lanes * batch if config.shorten_left_over else 0
    return result


def _has_rule(bucket: Bucket, config: PlanConfig) -> bool:
    limit = config.max_tokens_per_micro_batch
    return str(bucket) in config.batch_clips or (limit is not None and limit >= bucket.video_tokens)


def _batch(bucket: Bucket, pool: int, config: PlanConfig) -> int:
    if str(bucket) in config.batch_clips:
        return config.batch_clips[str(bucket)]
    limit = config.max_tokens_per_micro_batch
    if limit is None:
        raise ConfigError(
            f"bucket {bucket} has clips but no batch size; add it to batch_clips ({bucket}: 1), or give max_tokens_per_micro_batch"
        )
    if limit < bucket.video_tokens:
        raise ConfigError(
            f"max_tokens_per_micro_batch {limit} is below the {bucket.video_tokens} video tokens of one clip of bucket {bucket}; "
            f"raise it, or add the bucket to batch_clips ({bucket}: 1)"
        )
    return fit_batch(pool, config.lanes, limit // bucket.video_tokens)


def _tiers(seconds: Mapping[Bucket, float], ratio: float) -> dict[Bucket, int]:
    """Cost-sorted buckets cut where a bucket exceeds `ratio` times the cheapest of its tier."""
    tiers: dict[Bucket, int] = {}
    tier, cheapest = -1, 0.0
    for bucket in sorted(seconds, key=lambda item: (seconds[item], item)):
        if tier < 0 or seconds[bucket] > ratio * cheapest:
            tier, cheapest = tier + 1, seconds[bucket]
        tiers[bucket] = tier
    return tiers
