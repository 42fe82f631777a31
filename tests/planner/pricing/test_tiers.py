"""Tiers: the model of time and mixing against simulation, the search against every cut, and the bounds."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.mixing import mix_index, waste
from planner.pricing.tier_bounds import mix_index_1_bound, row_rounding, sort_bound
from planner.pricing.tiers import (
    TierCut,
    choose_tiers,
    curve_points,
    cut_of,
    row_seconds,
    step_seconds,
    tier_curve,
)
from planner.schedule.step_rows import order_steps
from planner.settings import PlanConfig
from schemas.errors import ConfigError, UsageError

LANES, MICRO = 16, 8
SECONDS = np.array([1.0, 1.1, 1.3, 1.6, 2.0, 2.6, 5.0, 9.0])
WEIGHTS = np.array([9.0, 4.0, 8.0, 11.0, 7.0, 13.0, 20.0, 12.0]) * 100


def config(**values: object) -> PlanConfig:
    return PlanConfig.model_validate(
        {"lanes": LANES, "micro_per_step": MICRO, "policy": "tiers", "max_tokens_per_micro_batch": 4096, **values}
    )


def all_cuts(count: int) -> list[tuple[int, ...]]:
    """Tier of each of `count` cost-sorted buckets, for every contiguous cut."""
    found = []
    for size in range(count):
        for inside in combinations(range(1, count), size):
            found.append(tuple(int(np.searchsorted(inside, index, side="right")) for index in range(count)))
    return found


def simulated(cut: TierCut, steps: int, seed: int) -> tuple[float, float, float, float]:
    """(waste, least waste in order of cost, MixIndex_1, MixIndex_8) of rows in even order that are dealt the tier's micro-batches evenly."""
    rng = np.random.default_rng([seed, 1])
    tiers = np.array(cut.tier_of)
    rows = steps * MICRO
    ends = np.round(np.cumsum(np.bincount(tiers, WEIGHTS)) / WEIGHTS.sum() * rows).astype(int)
    counts = np.diff(ends, prepend=0)
    keys = np.concatenate([(np.arange(count) + rng.random()) / count for count in counts])
    tier_of_row = np.repeat(np.arange(len(counts)), counts)[np.argsort(keys, kind="stable")]
    buckets = np.empty((rows, LANES), dtype=int)
    for tier, count in enumerate(counts.tolist()):
        members = np.flatnonzero(tiers == tier)
        share = np.cumsum(WEIGHTS[members]) / WEIGHTS[members].sum()
        number = np.diff(np.round(share * count * LANES).astype(int), prepend=0)
        place = np.concatenate([(np.arange(each) + rng.random()) / each for each in number])
        dealt = np.repeat(members, number)[np.argsort(place, kind="stable")]
        turns = np.arange(count)[:, None] * 5 + np.arange(LANES)  # so that every lane gets its share
        buckets[tier_of_row == tier] = np.take_along_axis(dealt.reshape(count, LANES), turns % LANES, axis=1)
    of_step = np.zeros((steps, len(WEIGHTS)))
    np.add.at(of_step, (np.repeat(np.arange(steps), MICRO * LANES), buckets.ravel()), 1)
    drawn = waste(SECONDS[buckets].T, MICRO, "micro")
    lanes = buckets.T.copy()
    sorted_rows = order_steps(lanes, tiers, np.repeat(np.arange(steps), MICRO), SECONDS, [seed])
    least = 1.0 - SECONDS[buckets].sum() / LANES / sorted_rows.bound
    assert waste(SECONDS[lanes], MICRO, "micro") < least + 0.02
    return drawn, least, mix_index(of_step, 1), mix_index(of_step, 8)


def test_expected_row_seconds_are_the_mean_of_the_slowest_of_random_draws() -> None:
    assert row_seconds(np.array([1.0, 3.0]), np.array([1.0, 1.0]), 2) == pytest.approx(2.5)
    assert row_seconds(np.array([3.0, 1.0]), np.array([1.0, 1.0]), 2) == pytest.approx(2.5)
    assert row_seconds(np.array([2.0]), np.array([7.0]), 64) == 2.0
    weights = np.array([0.9, 0.09, 0.01])
    draws = np.random.default_rng([0, 2]).choice([1.0, 2.0, 4.0], p=weights, size=(40_000, 16)).max(axis=1)
    assert row_seconds(np.array([1.0, 2.0, 4.0]), weights, 16) == pytest.approx(draws.mean(), rel=0.01)


def test_rows_in_order_of_cost_reach_as_far_as_the_dear_micro_batches_do() -> None:
    two = np.array([1.0, 3.0])
    assert step_seconds(two, np.array([3.0, 1.0]), 2, 2.0) == pytest.approx(4.0)
    assert step_seconds(two, np.array([1.0, 1.0]), 4, 2.0) == pytest.approx(4.0)
    assert step_seconds(two, np.array([5.0, 3.0]), 4, 2.0) == pytest.approx(4.0)
    assert step_seconds(two, np.array([3.0, 5.0]), 4, 2.0) == pytest.approx(6.0)
    assert step_seconds(two, np.array([1.0, 1.0]), 4, 2.5) == pytest.approx((4.0 + 7.0) / 2)
    assert step_seconds(two, np.array([1.0, 1.0]), 4, 0.0) == 0.0


@pytest.mark.parametrize("tiers", range(1, 9))
def test_the_model_says_what_a_simulation_of_even_rows_finds(tiers: int) -> None:
    cut = tier_curve(SECONDS, WEIGHTS, LANES, MICRO)[tiers - 1]
    found = np.mean([simulated(cut, 320, seed) for seed in range(3)], axis=0)
    assert cut.tiers == tiers
    parts = [np.flatnonzero(np.array(cut.tier_of) == tier) for tier in range(tiers)]
    drawn = sum(WEIGHTS[part].sum() * row_seconds(SECONDS[part], WEIGHTS[part], LANES) for part in parts)
    assert 1.0 - (WEIGHTS * SECONDS).sum() / drawn == pytest.approx(found[0], abs=0.02)
    assert cut.waste == pytest.approx(found[1], rel=0.05, abs=0.001)
    assert cut.mix_index_1 == pytest.approx(found[2], rel=0.15, abs=0.02)
    assert cut.mix_index_8 == pytest.approx(found[3], rel=0.15, abs=0.01)


def test_the_curve_has_the_least_waste_of_all_cuts_for_each_number_of_tiers() -> None:
    order = np.random.default_rng([4, 4]).permutation(len(SECONDS))
    curve = tier_curve(SECONDS[order], WEIGHTS[order], LANES, MICRO)
    least: dict[int, float] = {}
    for tier_of in all_cuts(len(SECONDS)):
        cut = cut_of(tier_of, SECONDS, WEIGHTS, LANES, MICRO)
        least[cut.tiers] = min(cut.waste, least.get(cut.tiers, 1.0))
    assert [cut.tiers for cut in curve] == list(range(1, 9))
    assert [cut.waste for cut in curve] == pytest.approx([least[cut.tiers] for cut in curve])
    for cut in curve:
        by_cost = np.array(cut.tier_of)[np.argsort(SECONDS[order], kind="stable")]
        assert (np.diff(by_cost) >= 0).all()


@pytest.mark.parametrize("max_waste", [0.005, 0.02, 0.05, 0.2])
def test_the_chosen_cut_mixes_best_of_all_that_waste_so_little(max_waste: float) -> None:
    curve = tier_curve(SECONDS, WEIGHTS, LANES, MICRO)
    chosen = choose_tiers(curve, SECONDS, WEIGHTS, config(max_waste=max_waste))
    every = [cut_of(tier_of, SECONDS, WEIGHTS, LANES, MICRO) for tier_of in all_cuts(len(SECONDS))]
    assert chosen.waste <= max_waste
    assert chosen.mix_index_1 == pytest.approx(min(cut.mix_index_1 for cut in every if cut.waste <= max_waste))
    bound = mix_index_1_bound(SECONDS, WEIGHTS, LANES, MICRO, max_waste)
    assert chosen.mix_index_1 - 0.15 <= bound <= chosen.mix_index_1 * (1 + 1e-12)
    assert bound <= mix_index_1_bound(SECONDS, WEIGHTS, LANES, MICRO, max_waste, drawn=True)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 50.0), st.integers(1, 500)), min_size=2, max_size=7), st.integers(1, 40))
def test_choice_and_curve_hold_on_any_buckets(buckets: list[tuple[float, int]], lanes: int) -> None:
    seconds = np.array([cost for cost, _ in buckets])
    weights = np.array([float(count) for _, count in buckets])
    curve = tier_curve(seconds, weights, lanes, 4)
    assert all(0.0 <= later.waste <= first.waste + 1e-12 for first, later in pairwise(curve))
    chosen = choose_tiers(curve, seconds, weights, config(lanes=lanes, micro_per_step=4, max_waste=0.1))
    assert chosen.waste <= 0.1 or chosen.waste == pytest.approx(curve[-1].waste)
    assert sorted(set(chosen.tier_of)) == list(range(chosen.tiers))


def test_many_buckets_are_searched_quickly_and_still_hold_the_waste() -> None:
    rng = np.random.default_rng([6, 1])
    seconds, weights = rng.uniform(1.0, 40.0, 48), rng.uniform(1.0, 100.0, 48)
    curve = tier_curve(seconds, weights, 64, 8)
    chosen = choose_tiers(curve, seconds, weights, config(lanes=64, max_waste=0.03))
    fewest = next(cut for cut in curve if cut.waste <= 0.03)
    assert chosen.waste <= 0.03 and chosen.mix_index_1 <= fewest.mix_index_1


def test_a_given_number_of_tiers_is_taken_or_refused() -> None:
    curve = tier_curve(SECONDS, WEIGHTS, LANES, MICRO)
    assert choose_tiers(curve, SECONDS, WEIGHTS, config(tiers=3)) == curve[2]
    with pytest.raises(ConfigError, match="tiers is 9, but these buckets can be put into 1 to 8 tiers"):
        choose_tiers(curve, SECONDS, WEIGHTS, config(tiers=9))


def test_groups_never_share_a_tier_and_equal_costs_always_do() -> None:
    seconds = np.array([1.0, 1.05, 1.1, 1.15])
    group = np.array([1, 0, 1, 0])
    curve = tier_curve(seconds, np.ones(4), 8, 4, group)
    assert [cut.tiers for cut in curve] == [2, 3, 4]
    for cut in curve:
        tiers = np.array(cut.tier_of)
        assert not set(tiers[group == 0]) & set(tiers[group == 1])
    same = tier_curve(np.array([1.0, 2.0, 1.0, 2.0]), np.ones(4), 8, 4)
    assert [cut.tiers for cut in same] == [1, 2] and same[1].tier_of == (0, 1, 0, 1)


def test_a_bucket_without_micro_batches_costs_nothing() -> None:
    with_none = tier_curve(np.array([1.0, 50.0, 2.0]), np.array([10.0, 0.0, 10.0]), 8, 4)
    without = tier_curve(np.array([1.0, 2.0]), np.array([10.0, 10.0]), 8, 4)
    assert with_none[0].waste == pytest.approx(without[0].waste)
    assert with_none[1].waste == pytest.approx(0.0)


def test_the_curve_of_a_plan_has_its_own_cut_at_its_number_of_tiers() -> None:
    curve = tier_curve(SECONDS, WEIGHTS, LANES, MICRO)
    chosen = choose_tiers(curve, SECONDS, WEIGHTS, config(max_waste=0.02))
    points = curve_points(curve, chosen)
    assert [point.tiers for point in points] == [cut.tiers for cut in curve]
    assert points[chosen.tiers - 1] == chosen.point


def test_row_rounding_is_the_least_mean_distance_of_whole_numbers() -> None:
    assert row_rounding(3.0) == 0.0 and row_rounding(1.25) == pytest.approx(0.375)
    floor_and_ceil = np.array([1, 1, 1, 2])
    assert np.abs(floor_and_ceil - 1.25).mean() == pytest.approx(row_rounding(1.25))


def test_the_bound_refuses_more_cuts_than_it_can_go_through_and_wastes_that_no_cut_has() -> None:
    many = np.arange(1.0, 16.0)
    with pytest.raises(UsageError, match="15 buckets"):
        mix_index_1_bound(many, np.ones(15), 4, 4, 0.1)
    assert mix_index_1_bound(SECONDS, WEIGHTS, LANES, MICRO, -0.1) == np.inf


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=4, max_size=4))
def test_the_sort_bound_is_the_best_of_all_rows(seconds: list[int]) -> None:
    every = [max(order[:2]) + max(order[2:]) for order in permutations(seconds)]
    assert sort_bound(np.array(seconds), 2) == min(every)
    assert sort_bound(np.array([1, 9, 2, 8]), 2) == 11.0
