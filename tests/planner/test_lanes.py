"""Ranges, the exact repair, and the selection that rotates."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.batches import batch_table
from planner.costs import cost_model
from planner.lanes import cut_ranges, place_greedily, repair
from planner.reading import lane_visits, order_greedily, peak_estimate, sequence_of
from planner.samples import Corpus
from planner.selection import LEFT_OVER, Selection
from planner.settings import PlanConfig
from schemas.buckets import Bucket


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    buckets=st.integers(1, 4),
    lanes=st.integers(1, 6),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_ranges_cover_all_clips_and_the_repair_is_exact(sizes: list[int], buckets: int, lanes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shard = np.repeat(np.arange(len(sizes)), sizes)
    bucket = rng.integers(0, buckets, len(shard))
    kept = np.concatenate(
        [np.flatnonzero(bucket == index)[: int((bucket == index).sum()) // lanes * lanes] for index in range(buckets)]
    )
    kept.sort()
    shard, bucket = shard[kept], bucket[kept]
    if not len(shard):
        return
    ranges = cut_ranges(shard, bucket, buckets, lanes)
    covered = [position for start, end in zip(ranges.start, ranges.end, strict=True) for position in range(start, end)]
    assert covered == list(range(len(shard)))
    assert all(len(set(shard[start:end].tolist())) == 1 for start, end in zip(ranges.start, ranges.end, strict=True))
    targets = np.bincount(bucket, minlength=buckets) // lanes
    placed = ranges.clip_lanes(place_greedily(ranges, targets, lanes, rng))
    result, handed = repair(placed, shard, bucket, targets, lanes)
    for lane in range(lanes):
        assert (np.bincount(bucket[result == lane], minlength=buckets) == targets).all()
    lacking = sum(
        max(0, targets[b] - int(((placed == lane) & (bucket == b)).sum()))
        for lane in range(lanes)
        for b in range(buckets)
    )
    assert handed == lacking == int((placed != result).sum())


def test_the_greedy_order_needs_less_buffer_than_reading_like_shards_together() -> None:
    shard = np.repeat(np.arange(20), 10)
    bucket = np.repeat([0] * 10 + [1] * 10, 10)
    visits = lane_visits(np.arange(200), shard, bucket, 2)
    order = order_greedily(visits, np.random.default_rng(0))
    assert sorted(order) == list(range(20))
    assert sorted(sequence_of(visits, order).tolist()) == list(range(200))
    size = np.array([1.0, 1.0])
    assert peak_estimate(visits.counts, size) == 100
    assert peak_estimate(visits.counts[order], size) <= 20


def corpus_of(counts: dict[str, int]) -> Corpus:
    buckets = tuple(sorted(Bucket.parse(name) for name in counts))
    bucket = np.concatenate([np.full(counts[str(item)], index, dtype=np.int32) for index, item in enumerate(buckets)])
    places = np.arange(len(bucket))
    return Corpus(
        sets=(),
        clip_id=[str(index) for index in places],
        shard=np.zeros(len(bucket), dtype=np.int32),
        ordinal=places.astype(np.int32),
        offset=places * 10,
        length=np.full(len(bucket), 10),
        source=places,
        bucket=bucket,
        buckets=buckets,
        clips_in_tables=len(bucket),
    )


@given(
    counts=st.dictionaries(
        st.sampled_from(["1x64x112", "33x64x112", "65x64x112", "121x64x112"]), st.integers(1, 12), min_size=1
    ),
    lanes=st.integers(1, 3),
    most=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_selection_is_exact_and_left_overs_rotate(counts: dict[str, int], lanes: int, most: int) -> None:
    names = ["1x64x112", "33x64x112", "65x64x112", "121x64x112"]
    if sum(counts.values()) < lanes:
        return
    corpus = corpus_of(counts)
    config = PlanConfig(lanes=lanes, max_tokens_per_micro_batch=28 * 31 * most)
    table = batch_table({item: counts[str(item)] for item in corpus.buckets}, config, cost_model(config, None))
    selection = Selection(corpus, table, lanes, 0, shorten=True)
    frames = np.array([item.frames for item in corpus.buckets])[corpus.bucket]
    for epoch in range(12):
        chosen = selection.choose(epoch)
        for index, line in enumerate(table):
            clips = np.flatnonzero(chosen == index)
            assert len(clips) == lanes * line.clips_per_lane * line.rows_per_epoch
            assert (frames[clips] >= line.bucket.frames).all()
        selection.record(np.flatnonzero(chosen != LEFT_OVER), chosen)
    reachable = [line.bucket.frames for line in table if line.rows_per_epoch]
    assert set(map(str, (line.bucket for line in table))) <= set(names)
    for clip in np.flatnonzero(frames >= min(reachable)).tolist():
        assert selection.uses[clip] > 0, "over twelve epochs every clip that fits a row is used"
