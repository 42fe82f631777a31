"""Which bucket each lane runs in each row: exact counts, even spacing under any weight, bending towards the reading order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.schedule.demand import Demand
from planner.schedule.rows import EVEN, Density, Readiness, lane_rows, order_groups, spread_buckets


@dataclass
class Case:
    """Lines of a few groups, dealt to lanes so that each lane has as many micro-batches of a group as there are rows of it."""

    demand: Demand
    group_of_line: np.ndarray
    readiness: Readiness
    per_step: int
    """K: rows of a step; divides the rows."""

    @property
    def even(self) -> list[Density]:
        return [EVEN] * len(self.demand.rows_by_group)

    def lane_rows(self, seed: int, follow: float = 0.0) -> np.ndarray:
        readiness = self.readiness if follow else None
        return lane_rows(self.demand, self.group_of_line, self.even, follow, readiness, self.per_step, [seed])


@st.composite
def cases(draw: st.DrawFn, most_lines: int = 3) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    lanes, groups = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    lines = rng.integers(1, most_lines + 1, groups)
    group_of_line = np.repeat(np.arange(groups), lines)
    rows = rng.integers(0, draw(st.sampled_from([4, 40])), groups)
    rows[int(rng.integers(groups))] += 1
    micro = np.zeros((lanes, len(group_of_line)), dtype=np.int64)
    for group in range(groups):
        members = np.flatnonzero(group_of_line == group)
        for lane in range(lanes):
            micro[lane, members] = rng.multinomial(rows[group], rng.dirichlet(np.ones(len(members))))
    total = micro.sum(axis=0)
    demand = Demand(micro=micro, rows_by_group=rows, distinct=total, repeated=np.zeros_like(total), cut=())
    reached = [[np.sort(rng.random(int(count))) for count in lane] for lane in micro]
    per_step = draw(st.sampled_from([count for count in (1, 2, 3, 5) if demand.num_rows % count == 0]))
    return Case(demand, group_of_line, Readiness(reached), per_step)


def counts(rows: np.ndarray, lines: int) -> list[list[int]]:
    return [np.bincount(row, minlength=lines).tolist() for row in rows]


@given(count=st.integers(0, 60), phase=st.floats(0, 0.999), weights=st.lists(st.floats(0.1, 9), min_size=1, max_size=4))
def test_places_have_the_weight_of_the_density_before_them(count: int, phase: float, weights: list[float]) -> None:
    edges = np.linspace(0, 1, len(weights) + 1) ** 2
    places = Density(edges, np.array(weights)).places(count, phase)
    assert (np.diff(places) > 0).all() and ((places >= 0) & (places <= 1)).all()
    mass = np.diff(edges) * np.array(weights)
    for index, edge in enumerate(edges):
        share = mass[:index].sum() / mass.sum()
        assert abs((places < edge).sum() - count * share) <= 1 + 1e-9


def test_three_quarters_of_the_weight_in_the_first_half() -> None:
    places = Density(np.array([0.0, 0.5, 1.0]), np.array([3.0, 1.0])).places(8, 0.5)
    assert places.tolist() == pytest.approx([1 / 24, 1 / 8, 5 / 24, 7 / 24, 3 / 8, 11 / 24, 5 / 8, 7 / 8])


@given(case=cases(), seed=st.integers(0, 99))
@settings(max_examples=150)
def test_up_to_each_row_every_group_has_nearly_its_share(case: Case, seed: int) -> None:
    """A group's rows up to place x are within one of x times its rows; the rest is arithmetic."""
    order = order_groups(case.demand, case.even, 0.0, None, [seed])
    rows = case.demand.rows_by_group
    assert np.bincount(order, minlength=len(rows)).tolist() == rows.tolist()
    present = int((rows > 0).sum())
    for group in np.flatnonzero(rows).tolist():
        share = rows[group] / len(order)
        off = np.cumsum(order == group) - share * np.arange(1, len(order) + 1)
        assert np.abs(off).max() <= 1 - share + share * (present - 1) + 1e-9


def test_a_weight_that_falls_brings_its_rows_forward() -> None:
    rows = np.array([30, 30])
    demand = Demand(np.array([[30, 30]]), rows, rows, np.zeros(2, dtype=np.int64), ())
    early = Density(np.array([0.0, 0.5, 1.0]), np.array([2 / 3, 1 / 3]))
    late = Density(np.array([0.0, 0.5, 1.0]), np.array([1 / 3, 2 / 3]))
    order = order_groups(demand, [early, late], 0.0, None, [0])
    assert abs((order[:30] == 0).sum() - 20) <= 1
    assert abs((order[30:] == 0).sum() - 10) <= 1


@given(case=cases(), follow=st.sampled_from([0.0, 0.25, 1.0]), seed=st.integers(0, 99))
@settings(max_examples=150)
def test_every_lane_runs_its_micro_batches_in_rows_of_one_group(case: Case, follow: float, seed: int) -> None:
    rows = case.lane_rows(seed, follow)
    assert counts(rows, len(case.group_of_line)) == case.demand.micro.tolist()
    groups = case.group_of_line[rows]
    assert (groups == groups[0]).all()
    assert np.array_equal(rows, case.lane_rows(seed, follow))


@given(case=cases(), seed=st.integers(0, 99))
@settings(max_examples=150)
def test_every_step_has_its_share_of_each_group_to_the_row(case: Case, seed: int) -> None:
    rows = case.demand.rows_by_group
    groups = case.group_of_line[case.lane_rows(seed)[0]].reshape(-1, case.per_step)
    found = np.stack([(groups == group).sum(axis=1) for group in range(len(rows))])
    share = rows / len(groups)
    assert (np.abs(found - share[:, None]) < 1 - 1e-9).all(), "floor or ceil of its rows in each step"
    off = np.cumsum(found, axis=1) - share[:, None] * np.arange(1, len(groups) + 1)
    assert (np.abs(off) < 1 + 1e-9).all(), "and within one row up to any step"


@given(case=cases(), seed=st.integers(0, 99))
@settings(max_examples=100)
def test_a_lane_deals_its_buckets_evenly_over_the_rows_of_their_group(case: Case, seed: int) -> None:
    rows = case.lane_rows(seed)
    groups = case.group_of_line[rows[0]]
    for lane, group in np.ndindex(len(rows), len(case.demand.rows_by_group)):
        own = rows[lane, groups == group]
        members = int((case.demand.micro[lane, case.group_of_line == group] > 0).sum())
        for line in np.unique(own).tolist():
            share = (own == line).mean()
            off = np.cumsum(own == line) - share * np.arange(1, len(own) + 1)
            assert np.abs(off).max() <= 1 - share + share * (members - 1) + 1e-9


@given(case=cases(most_lines=1), seed=st.integers(0, 99))
@settings(max_examples=50)
def test_groups_of_one_bucket_give_the_same_row_on_all_lanes(case: Case, seed: int) -> None:
    rows = case.lane_rows(seed)
    assert (rows == rows[0]).all()


def test_following_whole_puts_rows_where_the_slowest_lane_has_their_clips() -> None:
    demand = Demand(np.full((2, 2), 2), np.array([2, 2]), np.array([4, 4]), np.zeros(2, dtype=np.int64), ())
    reached = [[np.array([0.5, 1.0]), np.array([0.1, 0.9])], [np.array([0.2, 0.4]), np.array([0.3, 0.6])]]
    for follow in (1.0, 0.999):
        rows = lane_rows(demand, np.arange(2), [EVEN, EVEN], follow, Readiness(reached), 1, [0])
        assert rows.tolist() == [[1, 0, 1, 0]] * 2
    sorted_tars = [[np.array([0.25, 0.5]), np.array([0.75, 1.0])]] * 2
    rows = lane_rows(demand, np.arange(2), [EVEN, EVEN], 1.0, Readiness(sorted_tars), 1, [0])
    assert rows.tolist() == [[0, 0, 1, 1]] * 2


def test_rows_follow_weights_that_change() -> None:
    """Twice as many images as videos in the first half of the epoch, the other way round in the second."""
    demand = Demand(np.array([[30, 30]] * 2), np.array([30, 30]), np.array([60, 60]), np.zeros(2, dtype=np.int64), ())
    densities = [Density(np.array([0.0, 0.5, 1.0]), np.array(weights)) for weights in ([2.0, 1.0], [1.0, 2.0])]
    rows = lane_rows(demand, np.arange(2), densities, 0.0, None, 3, [5])
    assert counts(rows, 2) == [[30, 30]] * 2
    assert abs(int((rows[0, :30] == 0).sum()) - 20) <= 1


def mix_energy(rows: np.ndarray, step: np.ndarray, lines: int) -> float:
    """Sum over steps and lines of (count - expected)^2 / expected, counted anew."""
    mix = np.bincount(rows.ravel(), minlength=lines) / rows.size
    total = 0.0
    for at in np.unique(step):
        own = rows[:, step == at]
        for line in np.flatnonzero(mix):
            expected = own.size * mix[line]
            total += ((own == line).sum() - expected) ** 2 / expected
    return float(total)


@given(case=cases(), first_step=st.sampled_from([0, 7]), seed=st.integers(0, 99))
@settings(max_examples=100)
def test_spreading_keeps_lanes_and_groups_and_is_never_worse(case: Case, first_step: int, seed: int) -> None:
    lines = len(case.group_of_line)
    rows = case.lane_rows(seed)
    step = first_step + np.arange(rows.shape[1]) // case.per_step
    before = rows.copy()
    energies = spread_buckets(rows, case.group_of_line, step, [seed])
    assert energies == pytest.approx((mix_energy(before, step, lines), mix_energy(rows, step, lines)), abs=1e-6)
    assert energies[1] <= energies[0]
    assert counts(rows, lines) == counts(before, lines)
    assert np.array_equal(case.group_of_line[rows], case.group_of_line[before])


def test_spreading_mixes_what_was_clumped() -> None:
    """Two buckets of one tier; every lane has bucket 0 in even steps and bucket 1 in odd ones."""
    step = np.arange(40)
    rows = np.tile((step % 2).astype(np.int16), (8, 1))
    before, after = spread_buckets(rows, np.zeros(2, dtype=np.int64), step, [1])
    assert before == pytest.approx(40 * 2 * 16 / 4)
    assert after < 0.05 * before
