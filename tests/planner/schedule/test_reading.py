"""In which order a lane reads its parts: grouping, the greedy order, and what annealing keeps apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.schedule.annealing import anneal
from planner.schedule.reading import OrderProblem, Parts, lane_parts, order_greedily, peak_estimate

BYTES = np.array([1.0, 1.0])


def parts_of(counts: list[list[int]], lane: list[int] | None = None, source: list[int] | None = None) -> Parts:
    """One part for each row of counts by line; on lane 0 and each of a source of its own unless said otherwise."""
    sizes = [sum(row) for row in counts]
    shard = np.repeat(np.arange(len(counts)), sizes)
    line = np.concatenate([np.repeat(np.arange(len(row)), row) for row in counts])
    lanes = np.repeat(lane or [0] * len(counts), sizes)
    sources = np.repeat(source or list(range(len(counts))), sizes)
    domain = np.zeros(len(shard), dtype=np.int64)
    return lane_parts(lanes, shard, line, sources, domain, int(lanes.max()) + 1, len(counts[0]), 1)


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    lanes=st.integers(1, 4),
    lines=st.integers(1, 3),
    seed=st.integers(0, 999),
)
@settings(max_examples=100)
def test_parts_group_the_clips_of_each_lane_by_shard(sizes: list[int], lanes: int, lines: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shard = np.repeat(np.arange(len(sizes)), sizes)
    count = len(shard)
    lane, line = rng.integers(0, lanes, count), rng.integers(0, lines, count)
    source, domain = rng.integers(0, 5, count), rng.integers(0, 3, count)
    parts = lane_parts(lane, shard, line, source, domain, lanes, lines, 3)
    seen = []
    for own in range(lanes):
        for part in parts.of_lane(own):
            clips = parts.clip_order[parts.part_start[part] : parts.part_start[part + 1]]
            assert (np.diff(clips) > 0).all() and len(clips)
            assert set(lane[clips].tolist()) == {own} and len(set(shard[clips].tolist())) == 1
            assert parts.counts[part].tolist() == np.bincount(line[clips], minlength=lines).tolist()
            assert parts.domains[part] == pytest.approx(np.bincount(domain[clips], minlength=3) / len(clips))
            most = Counter(source[clips].tolist()).most_common(1)[0][1]
            assert (source[clips] == parts.source[part]).sum() == most
            assert parts.source_share[part] == pytest.approx(most / len(clips))
            seen += clips.tolist()
    assert sorted(seen) == list(range(count))
    shards = [len({int(shard[clip]) for clip in np.flatnonzero(lane == own)}) for own in range(lanes)]
    assert np.diff(parts.lane_start).tolist() == shards


@given(
    counts=st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=1, max_size=20),
    seed=st.integers(0, 99),
)
def test_the_greedy_order_is_an_order_and_hangs_on_the_seed_alone(counts: list[list[int]], seed: int) -> None:
    counts = [row if sum(row) else [1, 0] for row in counts]
    parts = parts_of(counts)
    order = order_greedily(parts, 0, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(counts)))
    assert order.tolist() == order_greedily(parts, 0, np.random.default_rng(seed)).tolist()


def test_the_greedy_order_needs_less_buffer_than_reading_like_shards_together() -> None:
    parts = parts_of([[10, 0]] * 10 + [[0, 10]] * 10)
    order = order_greedily(parts, 0, np.random.default_rng(0))
    assert peak_estimate(parts.counts, np.arange(20), BYTES) == pytest.approx(100)
    assert peak_estimate(parts.counts, order, BYTES) == pytest.approx(10)
    assert peak_estimate(parts.counts, order, np.array([1.0, 7.0])) <= 70


def test_an_empty_lane_has_no_parts() -> None:
    parts = parts_of([[1, 1]], lane=[1])
    assert list(parts.of_lane(0)) == [] and list(parts.of_lane(1)) == [0]
    assert order_greedily(parts, 0, np.random.default_rng(0)).tolist() == []


@given(seed=st.integers(0, 999), per_lane=st.integers(1, 8), lanes=st.integers(1, 3))
@settings(max_examples=30)
def test_annealing_keeps_the_parts_of_each_lane(seed: int, per_lane: int, lanes: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, (per_lane * lanes, 2)) + 1
    lane = np.repeat(np.arange(lanes), per_lane).tolist()
    parts = parts_of(counts.tolist(), lane, rng.integers(0, 3, per_lane * lanes).tolist())
    orders = [order_greedily(parts, own, rng) for own in range(lanes)]
    kept = [order.copy() for order in orders]
    problem = OrderProblem(parts, orders, BYTES)
    anneal(problem, steps=100, seed=seed)
    assert [sorted(order.tolist()) for order in problem.orders] == [list(parts.of_lane(own)) for own in range(lanes)]
    assert all((one == other).all() for one, other in zip(orders, kept, strict=True)), "the start is left alone"


def test_annealing_reads_parts_of_a_source_at_different_times() -> None:
    """Four lanes with the same four sources in the same order: all four lanes read each source at once."""
    parts = parts_of([[5, 5]] * 16, np.repeat(np.arange(4), 4).tolist(), [0, 1, 2, 3] * 4)
    problem = OrderProblem(parts, [np.array(parts.of_lane(lane)) for lane in range(4)], BYTES)
    result = anneal(problem, steps=3000, seed=1)
    assert result.energy_after < result.energy_before
    for place in range(4):
        assert len({int(parts.source[order[place]]) for order in problem.orders}) == 4


def test_annealing_spreads_domains_over_time() -> None:
    parts = parts_of([[5, 5]] * 12, np.repeat(np.arange(2), 6).tolist())
    domains = np.zeros((12, 2))
    domains[np.arange(12), np.tile([0, 0, 0, 1, 1, 1], 2)] = 1.0
    parts = replace(parts, domains=domains)
    problem = OrderProblem(parts, [np.array(parts.of_lane(lane)) for lane in range(2)], BYTES)
    anneal(problem, steps=3000, seed=1)
    first = [domains[order[place]].argmax() for order in problem.orders for place in range(3)]
    assert sorted(int(one) for one in first) == [0, 0, 0, 1, 1, 1]


def test_peaks_weigh_little_where_they_are_well_below_the_cap() -> None:
    """The greedy order alternates two buckets but reads one source on both lanes at once."""
    counts = [[10, 0], [0, 10]] * 2
    parts = parts_of(counts, [0, 0, 1, 1], [0, 1, 0, 1])
    orders = [np.array([0, 1]), np.array([2, 3])]
    tight, wide = (OrderProblem(parts, orders, BYTES, comfort) for comfort in (0.0, 1000.0))
    assert tight.energy() == pytest.approx(1 + 0.2 * 2)
    assert wide.energy() == pytest.approx((10 / 1000) ** 4 + 0.2 * 2)
