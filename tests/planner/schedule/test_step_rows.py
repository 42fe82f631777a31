"""Rows of a step in order of cost: counts of steps and lanes stay, waiting goes down to what sorting alone could reach."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.pricing.tier_bounds import sort_bound
from planner.schedule.step_rows import REACH, order_steps


def random_rows(
    lanes: int, steps: int, micro: int, groups: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(rows, group of line, step of row, seconds): three lines a group, drawn at random."""
    rng = np.random.default_rng([seed, 8])
    group_of_line = np.repeat(np.arange(groups), 3)
    seconds = rng.uniform(1.0, 9.0, 3 * groups)
    group_of_row = rng.integers(groups, size=steps * micro)
    rows = 3 * group_of_row + rng.choice(3, size=(lanes, steps * micro), p=[0.6, 0.3, 0.1])
    return rows.astype(np.int16), group_of_line, np.repeat(np.arange(steps), micro), seconds


def counts(rows: np.ndarray, names: np.ndarray, lines: int) -> np.ndarray:
    found = np.zeros((int(names.max()) + 1, lines), dtype=int)
    np.add.at(found, (np.broadcast_to(names, rows.shape).ravel(), rows.ravel()), 1)
    return found


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 6), st.integers(1, 3), st.integers(0, 99))
def test_steps_lanes_and_groups_keep_what_they_have_and_time_never_grows(
    lanes: int, steps: int, micro: int, groups: int, seed: int
) -> None:
    rows, group_of_line, step_of_row, seconds = random_rows(lanes, steps, micro, groups, seed)
    before = rows.copy()
    result = order_steps(rows, group_of_line, step_of_row, seconds, [seed])
    lines = len(seconds)
    assert (counts(rows, step_of_row, lines) == counts(before, step_of_row, lines)).all()
    lane = np.arange(lanes)[:, None]
    assert (counts(rows, lane, lines) == counts(before, lane, lines)).all()
    assert (group_of_line[rows] == group_of_line[before][0]).all()
    assert result.after == pytest.approx(float(seconds[rows].max(axis=0).sum()))
    assert result.bound - 1e-9 <= result.after <= result.before
    assert result.before == pytest.approx(float(seconds[before].max(axis=0).sum()))


def test_the_bound_is_that_of_sorting_each_step_and_group() -> None:
    rows, group_of_line, step_of_row, seconds = random_rows(5, 12, 4, 2, 3)
    groups = group_of_line[rows[0]]
    least = sum(
        sort_bound(seconds[rows[:, (groups == group) & (step_of_row == step)]], 5)
        for group in range(2)
        for step in range(12)
    )
    assert order_steps(rows, group_of_line, step_of_row, seconds, [0]).bound == pytest.approx(least)


def test_random_lanes_come_within_a_per_cent_of_the_bound() -> None:
    rows, group_of_line, step_of_row, seconds = random_rows(32, 80, 8, 1, 5)
    result = order_steps(rows, group_of_line, step_of_row, seconds, [1])
    assert result.before > 1.12 * result.bound
    assert result.after < 1.01 * result.bound


def test_a_lane_that_needs_no_partner_is_only_sorted() -> None:
    """Two lanes with one dear bucket each, in different rows of the step."""
    rows = np.array([[1, 0, 0, 0], [0, 1, 0, 0]], dtype=np.int16)
    result = order_steps(rows, np.zeros(2, dtype=int), np.zeros(4, dtype=int), np.array([1.0, 5.0]), [0])
    assert rows.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert (result.before, result.after, result.bound) == (12.0, 8.0, 8.0)


def test_partners_are_near_steps_only() -> None:
    """Lane 0 has both dear buckets of step 0, lane 1 those of a step too far away: nothing can be exchanged."""
    far = REACH + 1
    rows = np.zeros((2, 2 * (far + 1)), dtype=np.int16)
    rows[0, :2] = rows[1, -2:] = 1
    step_of_row = np.repeat(np.arange(far + 1), 2)
    seconds = np.array([1.0, 5.0])
    stuck = order_steps(rows.copy(), np.zeros(2, dtype=int), step_of_row, seconds, [0])
    near = order_steps(rows[:, 2:].copy(), np.zeros(2, dtype=int), step_of_row[2:], seconds, [0])
    assert stuck.after == stuck.before > stuck.bound
    rows[0, 2:4], rows[1, -2:], rows[1, 2:4], rows[0, :2] = 1, 0, 0, 0
    rows[1, :2] = 1
    assert order_steps(rows, np.zeros(2, dtype=int), step_of_row, seconds, [0]).after == pytest.approx(stuck.bound)
    assert near.before >= near.after


def test_the_same_seed_gives_the_same_rows() -> None:
    one, two = (random_rows(16, 40, 6, 2, 7) for _ in range(2))
    order_steps(*one, [4])
    order_steps(*two, [4])
    assert (one[0] == two[0]).all()
