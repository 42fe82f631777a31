"""Which clip is used when: swaps keep what each lane uses of each bucket, caps hold, and the numbers are those of a count from scratch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.schedule.walk import buffer_curve
from planner.schedule.windows import WindowProblem, anneal_windows


def random_problem(
    seed: int, lanes: int, rows: int, per_step: int, lines: int, domains: int, sources: int, room: int
) -> WindowProblem:
    """Lanes that read clips in the order in which they use them, up to 8 rows ahead; `room`: bytes between the peak and the cap."""
    rng = np.random.default_rng(seed)
    batch = rng.integers(1, 4, lines)
    line_of_row = rng.integers(0, lines, (lanes, rows))
    uses = batch[line_of_row]
    total = int(uses.sum())
    row = np.concatenate([np.repeat(np.arange(rows), lane) for lane in uses])
    line = np.concatenate([np.repeat(lane, count) for lane, count in zip(line_of_row, uses, strict=True)])
    clip = rng.permutation(total + 5)[:total]
    read_row = np.full(total + 5, -1, dtype=np.int32)
    read_row[clip] = np.maximum(0, row - rng.integers(0, 9, total))
    movable = np.ones(total + 5, dtype=bool)
    movable[rng.integers(0, total + 5, 3)] = False
    domain = rng.integers(0, domains, total + 5)
    lane_start = np.concatenate([[0], np.cumsum(uses.sum(axis=1))])
    problem = WindowProblem(
        clip=clip,
        lane_start=lane_start,
        row=row.astype(np.int32),
        line=line.astype(np.int16),
        step_of_row=5 + np.arange(rows) // per_step,
        source=rng.integers(0, sources, total + 5),
        domain=domain,
        domain_mix=np.bincount(domain[clip], minlength=domains) / total,
        size=rng.integers(1, 100, total + 5) * 512,
        read_row=read_row,
        movable=movable,
        held=np.zeros((lanes, rows), dtype=np.int64),
        max_bytes=0,
    )
    now = held(problem)
    return replace(problem, held=now, max_bytes=int(now.max()) + room)


def held(problem: WindowProblem) -> np.ndarray:
    """Bytes of each lane in each row, with the clips as they stand."""
    lanes, rows = len(problem.lane_start) - 1, len(problem.step_of_row)
    result = np.zeros((lanes, rows), dtype=np.int64)
    for lane in range(lanes):
        own = slice(problem.lane_start[lane], problem.lane_start[lane + 1])
        clip = problem.clip[own]
        result[lane] = buffer_curve(problem.read_row[clip], problem.row[own], problem.size[clip], rows)
    return result


def shared_pairs(problem: WindowProblem) -> int:
    """Pairs of uses of one source in one step, counted pair by pair."""
    steps = problem.step_of_row[problem.row]
    sources = problem.source[problem.clip].tolist()
    by_step = {step: [source for source, at in zip(sources, steps, strict=True) if at == step] for step in set(steps)}
    return sum(one == other for inside in by_step.values() for one, other in combinations(inside, 2))


def cells(problem: WindowProblem) -> dict[tuple[int, int, int], Counter[int]]:
    """Clips by (window of 4 steps, lane, line)."""
    lane = np.repeat(np.arange(len(problem.lane_start) - 1), np.diff(problem.lane_start))
    window = (problem.step_of_row - problem.step_of_row[0])[problem.row] // 4
    found: dict[tuple[int, int, int], Counter[int]] = {}
    for key, clip in zip(
        zip(window.tolist(), lane.tolist(), problem.line.tolist(), strict=True), problem.clip, strict=True
    ):
        found.setdefault(key, Counter())[int(clip)] += 1
    return found


@given(
    seed=st.integers(0, 9999),
    lanes=st.integers(1, 4),
    rows=st.integers(1, 24),
    per_step=st.integers(1, 3),
    lines=st.integers(1, 3),
    domains=st.integers(1, 3),
    sources=st.sampled_from([1, 4, 400]),
    room=st.sampled_from([0, 20_000, 1 << 40]),
    moves=st.sampled_from([0.0, 1.0, 30.0]),
)
@settings(max_examples=200)
def test_swaps_keep_lanes_and_buckets_caps_and_reads(
    seed: int, lanes: int, rows: int, per_step: int, lines: int, domains: int, sources: int, room: int, moves: float
) -> None:
    problem = random_problem(seed, lanes, rows, per_step, lines, domains, sources, room)
    before, pairs_before, clips_before = cells(problem), shared_pairs(problem), problem.clip.copy()
    gain = anneal_windows(problem, 4, moves, (seed, 1))
    assert cells(problem) == before
    assert (problem.read_row[problem.clip] <= problem.row).all(), "used before it is read"
    changed = problem.clip != clips_before
    assert problem.movable[problem.clip[changed]].all() and problem.movable[clips_before[changed]].all()
    assert held(problem).max() <= problem.max_bytes
    assert (gain.shared_before, gain.shared_after) == (pairs_before, shared_pairs(problem))
    assert gain.energy_after <= gain.energy_before
    if not moves:
        assert not changed.any() and gain.energy_after == gain.energy_before


@given(seed=st.integers(0, 9999), domains=st.integers(1, 3))
@settings(max_examples=50)
def test_the_energy_is_pairs_of_sources_and_half_of_the_chi_square_of_domains(seed: int, domains: int) -> None:
    problem = random_problem(seed, 3, 16, 2, 2, domains, 6, 1 << 40)

    def energy() -> float:
        step = problem.step_of_row[problem.row]
        total = float(shared_pairs(problem))
        for at in np.unique(step):
            own = problem.domain[problem.clip[step == at]]
            expected = len(own) * problem.domain_mix
            found = np.bincount(own, minlength=domains)
            total += 0.5 * float((((found - expected) ** 2)[expected > 0] / expected[expected > 0]).sum())
        return total

    first = energy()
    gain = anneal_windows(problem, 4, 30.0, (seed, 2))
    assert gain.energy_before == pytest.approx(first)
    assert gain.energy_after == pytest.approx(energy())


def test_clips_of_a_source_that_meet_are_parted_as_far_as_reads_allow() -> None:
    """One row a step, sources in runs of four clips; what is read early may move, what is read for its row may not."""
    problem = random_problem(3, 1, 32, 1, 1, 1, 1, 1 << 40)
    source = np.zeros_like(problem.source)
    source[problem.clip] = np.arange(len(problem.clip)) // 4
    problem = replace(problem, source=source, movable=np.ones_like(problem.movable))
    free = replace(problem, clip=problem.clip.copy(), read_row=np.zeros_like(problem.read_row))
    start = shared_pairs(free)
    anneal_windows(free, 64, 50.0, (1,))
    assert start > 60 and shared_pairs(free) <= 2
    read_row = problem.read_row.copy()
    read_row[problem.clip] = problem.row
    stuck = replace(problem, clip=problem.clip.copy(), read_row=read_row)
    gain = anneal_windows(stuck, 64, 50.0, (1,))
    assert (stuck.clip == problem.clip).all() and gain.shared_after == start


@contextmanager
def processors(count: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def test_one_thread_and_two_give_the_same() -> None:
    found = []
    for count in (1, 2):
        problem = random_problem(11, 4, 60, 2, 3, 3, 9, 50_000)
        with processors(count):
            gain = anneal_windows(problem, 4, 20.0, (7, 1))
        found.append((problem.clip.tolist(), gain))
    assert found[0] == found[1]
    assert found[0][1].energy_after < found[0][1].energy_before
