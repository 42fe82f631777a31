"""The measures of mixing and idle time: against draws, against brute force, and at their edges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from planner import mixing
from planner.mixing import mix_index, order_entropy, shared_source_ratio, tv_floor, waste, window_tv

SHARES = np.array([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize("draws", [64, 512, 4096])
def test_the_floor_is_the_mean_tv_of_random_draws(draws: int) -> None:
    rng = np.random.default_rng([1, draws])
    found = rng.multinomial(draws, SHARES, size=4000) / draws
    assert 0.5 * np.abs(found - SHARES).sum(axis=1).mean() == pytest.approx(tv_floor(SHARES, draws), rel=0.03)


def test_the_floor_takes_shares_of_any_scale_and_is_zero_for_one_group() -> None:
    assert tv_floor(SHARES * 1000, 64) == pytest.approx(tv_floor(SHARES, 64))
    assert tv_floor(np.array([3.0, 0.0]), 64) == 0.0


@pytest.mark.parametrize(("shares", "draws"), [([0.0, 0.0], 5), ([1.0, -0.5], 5), ([1.0, 1.0], 0)])
def test_the_floor_refuses_what_is_no_mix(shares: list[float], draws: int) -> None:
    with pytest.raises(ValueError, match="shares"):
        tv_floor(np.array(shares), draws)


@pytest.mark.parametrize("window", [1, 8, 64])
def test_random_steps_have_index_one(window: int) -> None:
    counts = np.random.default_rng([2, window]).multinomial(512, SHARES, size=20_000)
    assert mix_index(counts, window) == pytest.approx(1.0, rel=0.06)


def test_even_steps_have_index_zero_and_lumpy_ones_far_above_one() -> None:
    even = np.tile((SHARES * 100).astype(int), (50, 1))
    assert mix_index(even, 1) == pytest.approx(0.0, abs=1e-9)
    lumpy = np.zeros((40, 4), dtype=int)
    lumpy[np.arange(40), np.repeat([0, 1, 2, 3], 10)] = 100
    assert mix_index(lumpy, 1) > 10


def brute(counts: np.ndarray, window: int) -> list[float]:
    whole = counts.sum(axis=0) / counts.sum()
    sums = [counts[first : first + window].sum(axis=0) for first in range(len(counts) - window + 1)]
    return [float(0.5 * np.abs(one / one.sum() - whole).sum()) for one in sums if one.sum()]


@pytest.mark.parametrize("window", [1, 3, 7])
@pytest.mark.parametrize("cells", [1, 12, 1 << 22])
def test_blocks_of_any_size_give_every_window(window: int, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block size bounds memory and changes no value; windows without a draw are left out."""
    counts = np.random.default_rng(3).integers(0, 5, size=(25, 4))
    counts[4:12] = 0
    monkeypatch.setattr(mixing, "_BLOCK_CELLS", cells)
    assert window_tv(counts, window) == pytest.approx(np.array(brute(counts, window)))


def test_a_window_longer_than_the_plan_is_one_window_over_everything() -> None:
    counts = np.array([[3, 1], [0, 4]])
    assert window_tv(counts, 10).tolist() == [0.0]
    assert mix_index(counts, 10) == 0.0


def test_one_group_has_nothing_to_mix() -> None:
    assert mix_index(np.array([[5, 0], [7, 0]]), 1) == 0.0


def test_no_draw_or_no_window_is_refused() -> None:
    for counts, window in ((np.zeros((3, 2)), 1), (np.ones((3, 2)), 0), (np.ones(3), 1)):
        with pytest.raises(ValueError, match="window"):
            window_tv(counts, window)


def test_waste_counts_what_ranks_wait_for() -> None:
    """Rows cost (4, 2) and (2, 4): every row waits 2 of 4 on one lane, but the step's sums are equal."""
    seconds = np.array([[4.0, 2.0], [2.0, 4.0]])
    assert waste(seconds, 2, "micro") == pytest.approx(1 - 12 / (2 * 8))
    assert waste(seconds, 2, "step") == 0.0
    assert waste(seconds, 1, "step") == waste(seconds, 1, "micro")
    assert waste(np.zeros((2, 0)), 1, "step") == 0.0


def test_a_short_last_step_counts() -> None:
    seconds = np.array([[1.0, 1.0, 3.0], [1.0, 1.0, 1.0]])
    assert waste(seconds, 2, "step") == pytest.approx(1 - 8 / (2 * 5))


def test_shared_sources_expectation_is_the_mean_over_all_orders() -> None:
    """By every permutation of six clips on steps of 1, 2 and 3."""
    sources, steps = [0, 0, 0, 1, 1, 2], np.array([0, 1, 1, 2, 2, 2])
    ratios = [shared_source_ratio(steps, np.array(order)) for order in itertools.permutations(sources)]
    assert np.mean(ratios) == pytest.approx(1.0)
    assert max(ratios) > 1.0 > min(ratios)


def test_a_random_order_shares_sources_at_chance() -> None:
    rng = np.random.default_rng(5)
    sources = rng.permutation(np.repeat(np.arange(2000), 10))
    assert shared_source_ratio(np.arange(len(sources)) // 50, sources) == pytest.approx(1.0, abs=0.1)
    assert shared_source_ratio(np.arange(20_000) % 400, np.arange(20_000) // 10) == 0.0


def test_no_pair_of_one_source_is_ratio_zero() -> None:
    assert shared_source_ratio(np.zeros(4, dtype=int), np.arange(4)) == 0.0
    assert shared_source_ratio(np.arange(4), np.zeros(4, dtype=int)) == 0.0
    assert shared_source_ratio(np.empty(0, dtype=int), np.empty(0, dtype=int)) == 0.0


def test_order_entropy_of_data_as_they_lie_is_zero_and_of_a_shuffle_near_the_most() -> None:
    assert order_entropy(np.arange(1000)) == 0.0
    assert order_entropy(np.array([7])) == 0.0
    shuffled = order_entropy(np.random.default_rng(6).permutation(1 << 14))
    assert 12.5 < shuffled < 14.0
    blocks = np.concatenate([np.random.default_rng([7, block]).permutation(64) + 64 * block for block in range(256)])
    assert 5.0 < order_entropy(blocks) < 7.0
