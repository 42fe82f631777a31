"""simanneal behind the journal: never worse, and nothing of the process is left changed."""

from __future__ import annotations

import random
import signal
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.annealing import Problem, anneal
from planner.lanes import PlacementProblem, cut_ranges, place_greedily
from planner.reading import LaneVisits, OrderProblem


def placement(seed: int, ranges: int, buckets: int, lanes: int) -> PlacementProblem:
    rng = np.random.default_rng(seed)
    shard = np.repeat(np.arange(ranges), rng.integers(1, 12, ranges))
    bucket = rng.integers(0, buckets, len(shard))
    targets = np.bincount(bucket, minlength=buckets) // lanes
    cut = cut_ranges(shard, bucket, buckets, lanes)
    return PlacementProblem(cut, place_greedily(cut, targets, lanes, rng), targets, lanes)


def ordering(seed: int, visits: int, buckets: int, lanes: int) -> OrderProblem:
    rng = np.random.default_rng(seed)
    items = [
        LaneVisits(
            clips=tuple(np.empty(0, dtype=np.int64) for _ in range(visits)),
            counts=rng.integers(0, 9, (visits, buckets)) + 1,
        )
        for _ in range(lanes)
    ]
    return OrderProblem(items, [list(range(visits))] * lanes, rng.integers(1, 1000, buckets).astype(np.float64))


@pytest.mark.parametrize("make", [placement, ordering])
@given(seed=st.integers(0, 10_000), size=st.integers(1, 12), buckets=st.integers(1, 5), lanes=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_moves_change_the_energy_by_what_they_say_and_can_be_taken_back(
    make: object, seed: int, size: int, buckets: int, lanes: int
) -> None:
    assert callable(make)
    problem: Problem = make(seed, size, buckets, lanes)
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
@given(seed=st.integers(0, 10_000), size=st.integers(1, 12), lanes=st.integers(1, 5), steps=st.integers(0, 200))
@settings(max_examples=25, deadline=None)
def test_annealing_is_never_worse_and_reports_the_true_energy(
    make: object, seed: int, size: int, lanes: int, steps: int
) -> None:
    assert callable(make)
    problem: Problem = make(seed, size, 3, lanes)
    before = problem.energy()
    result = anneal(problem, steps=steps, seed=seed)
    assert result.energy_before == before
    assert result.energy_after == pytest.approx(problem.energy(), abs=1e-9)
    assert result.energy_after <= before


def test_annealing_finds_the_even_split_that_greedy_misses() -> None:
    shard = np.repeat(np.arange(8), [7, 6, 5, 4, 4, 3, 2, 1])
    bucket = np.zeros(len(shard), dtype=np.int64)
    cut = cut_ranges(shard, bucket, 1, 2)
    problem = PlacementProblem(cut, np.zeros(len(cut.start), dtype=np.int64), np.array([16]), 2)
    assert problem.energy() == 16
    assert anneal(problem, steps=500, seed=1).energy_after == 0


def test_sigint_and_the_global_random_are_left_alone() -> None:
    def handler(number: int, frame: object) -> None:
        raise AssertionError("not called here")

    before = signal.signal(signal.SIGINT, handler)
    try:
        random.seed(7)
        expected = random.Random(7).random()
        anneal(placement(1, 12, 3, 4), steps=300, seed=5)
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
    problem = Interrupted(cut, np.arange(len(cut.start)) % 2, np.array([9]), 3)
    random.seed(3)
    expected = random.Random(3).random()
    with pytest.raises(KeyboardInterrupt):
        anneal(problem, steps=1000, seed=1)
    assert random.random() == expected


def test_it_runs_off_the_main_thread_and_gives_the_same() -> None:
    results = []

    def run() -> None:
        problem = placement(4, 12, 3, 4)
        anneal(problem, steps=300, seed=9)
        results.append(problem.range_lanes)

    run()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(results) == 2 and results[0] == results[1]
