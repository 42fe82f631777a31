"""simanneal behind the journal: never worse, and nothing of the process is left changed."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.schedule.annealing import Problem, anneal
from planner.schedule.placement import PlacementProblem, cut_ranges, place_greedily
from planner.schedule.reading import OrderProblem, lane_parts, order_greedily

Make = Callable[[int, int, int, int, int], Problem]


def placement(seed: int, size: int, lines: int, lanes: int, domains: int) -> PlacementProblem:
    """Up to 12 clips in each of `size` shards, placed greedily; targets as even as they come."""
    rng = np.random.default_rng(seed)
    shard = np.repeat(np.arange(size), rng.integers(1, 12, size))
    line = rng.integers(0, lines, len(shard))
    cut = cut_ranges(shard, line, lines, lanes)
    counts = np.bincount(line, minlength=lines)
    targets = (counts + (np.arange(lanes)[:, None] + np.arange(lines)) % lanes) // lanes
    by_domain = rng.integers(0, 5, (len(cut.start), domains)) if domains > 1 else None
    return PlacementProblem(cut, place_greedily(cut, targets, rng), targets, by_domain)


def ordering(seed: int, size: int, lines: int, lanes: int, domains: int) -> OrderProblem:
    """Lanes with up to `size` parts each, of few sources, so that these meet."""
    rng = np.random.default_rng(seed)
    clips = rng.integers(1, 9, size * lanes)
    shard = np.repeat(np.arange(size * lanes), clips)
    lane = np.repeat(rng.integers(0, lanes, size * lanes), clips)
    parts = lane_parts(
        lane,
        shard,
        rng.integers(0, lines, len(shard)),
        rng.integers(0, 4, len(shard)),
        rng.integers(0, domains, len(shard)),
        lanes,
        lines,
        domains,
    )
    orders = [order_greedily(parts, lane, rng) for lane in range(lanes)]
    return OrderProblem(parts, orders, rng.integers(1, 1000, lines).astype(np.float64))


@pytest.mark.parametrize("make", [placement, ordering])
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 12),
    lines=st.integers(1, 5),
    lanes=st.integers(1, 5),
    domains=st.integers(1, 3),
)
@settings(max_examples=30)
def test_moves_change_the_energy_by_what_they_say_and_can_be_taken_back(
    make: Make, seed: int, size: int, lines: int, lanes: int, domains: int
) -> None:
    problem = make(seed, size, lines, lanes, domains)
    start = problem.energy()
    moves = []
    summed = start
    for _ in range(20):
        move = problem.propose()
        if move is not None:
            summed += problem.apply(move)
            moves.append(move)
            assert problem.energy() == pytest.approx(summed, abs=1e-6)
    for move in reversed(moves):
        problem.undo(move)
    assert problem.energy() == pytest.approx(start, abs=1e-9)


@pytest.mark.parametrize("make", [placement, ordering])
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 12),
    lanes=st.integers(1, 5),
    domains=st.integers(1, 3),
    steps=st.integers(0, 200),
)
@settings(max_examples=30)
def test_annealing_is_never_worse_and_reports_the_true_energy(
    make: Make, seed: int, size: int, lanes: int, domains: int, steps: int
) -> None:
    problem = make(seed, size, 3, lanes, domains)
    before = problem.energy()
    result = anneal(problem, steps=steps, seed=seed)
    assert result.energy_before == before
    assert result.energy_after == pytest.approx(problem.energy(), abs=1e-9)
    assert result.energy_after <= before


def test_annealing_finds_the_even_split_that_greedy_misses() -> None:
    shard = np.repeat(np.arange(8), [7, 6, 5, 4, 4, 3, 2, 1])
    bucket = np.zeros(len(shard), dtype=np.int64)
    cut = cut_ranges(shard, bucket, 1, 2)
    problem = PlacementProblem(cut, np.zeros(len(cut.start), dtype=np.int64), np.array([[16], [16]]), None)
    assert problem.energy() == 16
    assert anneal(problem, steps=500, seed=1).energy_after == 0


def test_sigint_and_the_global_random_are_left_alone() -> None:
    def handler(number: int, frame: object) -> None:
        raise AssertionError("not called here")

    before = signal.signal(signal.SIGINT, handler)
    try:
        random.seed(7)
        expected = random.Random(7).random()
        anneal(placement(1, 12, 3, 4, 2), steps=300, seed=5)
        assert signal.getsignal(signal.SIGINT) is handler
        assert random.random() == expected
    finally:
        signal.signal(signal.SIGINT, before)


def test_random_is_given_back_when_a_run_is_interrupted() -> None:
    class Interrupted(PlacementProblem):
        calls = 0

        def apply(self, move: list[tuple[int, int, int]]) -> float:
            self.calls += 1
            if self.calls > 100:
                raise KeyboardInterrupt
            return super().apply(move)

    cut = cut_ranges(np.repeat(np.arange(9), 3), np.zeros(27, dtype=np.int64), 1, 3)
    problem = Interrupted(cut, np.arange(len(cut.start)) % 2, np.full((3, 1), 9), None)
    random.seed(3)
    expected = random.Random(3).random()
    with pytest.raises(KeyboardInterrupt):
        anneal(problem, steps=1000, seed=1)
    assert random.random() == expected


def test_it_runs_off_the_main_thread_and_gives_the_same() -> None:
    results = []

    def run() -> None:
        problem = placement(4, 12, 3, 4, 2)
        anneal(problem, steps=300, seed=9)
        results.append(problem.range_lanes)

    run()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(results) == 2 and results[0] == results[1]
