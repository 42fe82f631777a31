"""Rows of groups in steps: whole numbers next to the exact share, in every step and up to every step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.pricing.tier_bounds import row_rounding
from planner.schedule.quotas import step_quotas


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12), st.integers(1, 16))
def test_every_step_is_full_and_has_floor_or_ceil_of_each_share(rows: list[int], micro: int) -> None:
    rows[0] += -sum(rows) % micro
    steps = sum(rows) // micro
    quotas = step_quotas(np.array(rows), steps)
    exact = np.array(rows) / steps
    assert (quotas.sum(axis=1) == micro).all() and quotas.sum(axis=0).tolist() == rows
    assert (quotas >= np.floor(exact)).all() and (quotas <= np.ceil(exact)).all()
    so_far = quotas.cumsum(axis=0) - exact * np.arange(1, steps + 1)[:, None]
    assert np.abs(so_far).max() < 1.0 + 1e-9


@given(st.lists(st.integers(1, 400), min_size=2, max_size=8), st.integers(1, 8))
def test_the_mean_distance_is_the_least_that_whole_rows_have(rows: list[int], micro: int) -> None:
    rows[0] += -sum(rows) % micro
    steps = sum(rows) // micro
    quotas = step_quotas(np.array(rows), steps)
    for group, count in enumerate(rows):
        off = np.abs(quotas[:, group] - count / steps).mean()
        assert off == pytest.approx(row_rounding(count / steps), abs=1e-9)


def test_rows_that_do_not_fill_the_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="7 rows fill no 2 steps"):
        step_quotas(np.array([3, 4]), 2)
    assert step_quotas(np.array([4, 0]), 2).tolist() == [[2, 0], [2, 0]]
