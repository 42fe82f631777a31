"""Ranges of shards onto lanes: what is cut, where greedy puts it, and a repair that is exact for any targets."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.schedule.annealing import anneal
from planner.schedule.placement import PlacementProblem, Ranges, cut_ranges, lacking_clips, place_greedily, repair

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def clips_of(sizes: list[int], lines: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(shard, line) of each clip, shards with gaps in their numbers and each with a mix of its own."""
    shard = np.repeat(np.cumsum(rng.integers(1, 4, len(sizes))), sizes)
    mixes = rng.dirichlet(np.full(lines, 0.5), len(sizes))
    line = np.concatenate([rng.choice(lines, size, p=mix) for size, mix in zip(sizes, mixes, strict=True)])
    return shard, line


def uneven_targets(line: np.ndarray, lines: int, lanes: int, rng: np.random.Generator) -> np.ndarray:
    """Any split of each line's clips, (lanes, lines); lanes may get nothing."""
    shares = rng.dirichlet(np.full(lanes, 0.7), lines)
    counts = np.bincount(line, minlength=lines)
    return np.stack([rng.multinomial(n, share) for n, share in zip(counts, shares, strict=True)], axis=1)


def visits(lane: np.ndarray, shard: np.ndarray) -> int:
    return len(set(zip(lane.tolist(), shard.tolist(), strict=True)))


@given(sizes=SIZES, lines=st.integers(1, 4), lanes=st.integers(1, 6), seed=st.integers(0, 999))
def test_ranges_are_whole_shards_or_equal_parts_of_them(sizes: list[int], lines: int, lanes: int, seed: int) -> None:
    shard, line = clips_of(sizes, lines, np.random.default_rng(seed))
    ranges = cut_ranges(shard, line, lines, lanes)
    assert ranges.start.tolist() == [0, *ranges.end[:-1].tolist()] and ranges.end[-1] == len(shard)
    for start, end, of, counts in zip(ranges.start, ranges.end, ranges.shard, ranges.counts, strict=True):
        assert set(shard[start:end].tolist()) == {int(of)}
        assert counts.tolist() == np.bincount(line[start:end], minlength=lines).tolist()
    for size, of in zip(sizes, np.unique(shard), strict=True):
        parts = ranges.sizes[ranges.shard == of]
        assert parts.max() - parts.min() <= 1
        assert len(parts) == (1 if len(sizes) >= 4 * lanes else min(size, -(-4 * lanes // len(sizes))))


@given(sizes=SIZES, lines=st.integers(1, 4), lanes=st.integers(1, 6), even=st.booleans(), seed=st.integers(0, 9999))
@settings(max_examples=150)
def test_the_repair_is_exact_for_any_targets(sizes: list[int], lines: int, lanes: int, even: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shard, line = clips_of(sizes, lines, rng)
    targets = uneven_targets(line, lines, lanes, rng)
    if even:
        counts = np.bincount(line, minlength=lines)
        targets = (counts + np.arange(lanes)[:, None]) // lanes
    ranges = cut_ranges(shard, line, lines, lanes)
    start = place_greedily(ranges, targets, rng)
    placed = np.repeat(start, ranges.sizes)
    result, handed = repair(ranges, start, line, targets)
    for lane in range(lanes):
        assert np.bincount(line[result == lane], minlength=lines).tolist() == targets[lane].tolist()
    assert handed == int((result != placed).sum()) == lacking_clips(ranges.counts, start, targets)
    # Each piece that is handed over empties a lack, a surplus or a stock of some line, so there are no more pieces than these.
    before, after = visits(placed, shard), visits(result, shard)
    assert after - before <= min(handed, (lanes + before) * lines)
    for of in np.unique(shard):
        for giver in range(lanes):
            for kind in range(lines):
                owners = result[(shard == of) & (placed == giver) & (line == kind)].tolist()
                blocks = [lane for lane, _ in groupby(owners)]
                assert len(blocks) == len(set(blocks)), "what a lane gets of a range and bucket lies together"
                assert giver not in blocks[1:], "the giver keeps the first ones"


def test_opens_stay_below_the_pieces_of_a_transport_problem() -> None:
    """The paper's situation at a quarter of its size: 150 tars whose mixes are drawn from a Dirichlet of total 1, 16 lanes, 4 buckets."""
    rng = np.random.default_rng(1)
    mixes = rng.dirichlet([0.4, 0.3, 0.2, 0.1], 150)
    line = np.concatenate([rng.choice(4, 200, p=mix) for mix in mixes])
    shard = np.repeat(np.arange(150), 200)
    kept = np.sort(
        np.concatenate([np.flatnonzero(line == kind)[: (line == kind).sum() // 16 * 16] for kind in range(4)])
    )
    shard, line = shard[kept], line[kept]
    targets = np.tile(np.bincount(line, minlength=4) // 16, (16, 1))
    ranges = cut_ranges(shard, line, 4, 16)
    result, _ = repair(ranges, place_greedily(ranges, targets, rng), line, targets)
    assert len(ranges.start) == 150
    assert visits(result, shard) <= 150 + 16 * 4


def test_greedy_pairs_what_completes_each_other_and_is_the_same_for_a_seed() -> None:
    line = np.array([0] * 10 + [0] * 10 + [1] * 10 + [1] * 10)
    ranges = Ranges(
        start=np.array([0, 10, 20, 30]),
        end=np.array([10, 20, 30, 40]),
        shard=np.arange(4),
        counts=np.array([[10, 0], [10, 0], [0, 10], [0, 10]]),
    )
    targets = np.full((2, 2), 10)
    placed = place_greedily(ranges, targets, np.random.default_rng(3))
    assert sorted(placed[:2].tolist()) == sorted(placed[2:].tolist()) == [0, 1]
    assert repair(ranges, placed, line, targets)[1] == 0
    again = [place_greedily(ranges, targets, np.random.default_rng(3)) for _ in range(3)]
    assert all((one == placed).all() for one in again)
    others = {tuple(place_greedily(ranges, targets, np.random.default_rng(seed)).tolist()) for seed in range(20)}
    assert len(others) > 1, "ties go by the seed"


def test_greedy_follows_uneven_targets() -> None:
    """A lane that wants three times as much gets three times as much of equal ranges."""
    shard = np.repeat(np.arange(16), 10)
    line = np.zeros(160, dtype=np.int64)
    ranges = cut_ranges(shard, line, 1, 2)
    placed = place_greedily(ranges, np.array([[120], [40]]), np.random.default_rng(0))
    assert np.bincount(placed, ranges.sizes).tolist() == [120, 40]


def test_annealing_brings_domains_to_lanes_evenly_without_giving_up_counts() -> None:
    """Eight equal tars, four of each of two domains; greedy looks at buckets alone."""
    shard = np.repeat(np.arange(8), 10)
    line = np.zeros(80, dtype=np.int64)
    ranges = cut_ranges(shard, line, 1, 2)
    domains = np.repeat([[10, 0], [0, 10]], 4, axis=0)
    targets = np.full((2, 1), 40)
    problem = PlacementProblem(ranges, np.array([0, 0, 0, 0, 1, 1, 1, 1]), targets, domains)
    assert problem.energy() == pytest.approx(0.1 * 40)
    anneal(problem, steps=2000, seed=2)
    assert problem.energy() == pytest.approx(0.0)
    lanes = np.array(problem.range_lanes)
    assert [int((lanes[:4] == lane).sum()) for lane in range(2)] == [2, 2]


def test_lacking_counts_every_lane_and_line_for_itself() -> None:
    counts = np.array([[5, 0], [1, 4]])
    targets = np.array([[3, 2], [3, 2]])
    assert lacking_clips(counts, np.array([0, 1]), targets) == 2 + 2
    assert lacking_clips(counts, np.array([0, 0]), targets) == 3 + 2
