"""Each strategy keeps its own rules, replayed clip by clip; and does what it is known for."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from planner.baselines.outcomes import Schedule, Setup
from planner.baselines.strategies import BASELINES, merge_layers, run_baseline
from planner.baselines.streams import deal_shards, first_in_first_out, lane_sequence, shuffle_buffer
from planner.baselines.whole_tars import (
    anneal_swaps,
    imbalance,
    interleave,
    place_tars_at_random,
    place_tars_greedily,
    tar_counts,
    whole_tar_rows,
)

STREAMS = ("webdataset", "lhotse", "paper_random", "paper_greedy", "paper_annealed")
SAME_BUCKET = ("sequential_buckets", "paper_random", "paper_greedy", "paper_annealed")
SHARES = np.array([0.4, 0.3, 0.2, 0.1])


def setup(
    tars: int = 40, clips: int = 100, *, lanes: int = 4, micro: int = 2, seed: int = 0, even: bool = False
) -> Setup:
    """Tars whose bucket mixes differ as in the paper's situation, or are all the same."""
    rng = np.random.default_rng([77, seed])
    mixes = np.tile(SHARES, (tars, 1)) if even else rng.dirichlet(SHARES, size=tars)
    bucket = np.concatenate([rng.choice(4, size=clips, p=mix) for mix in mixes])
    shard = np.repeat(np.arange(tars), clips)
    return Setup(
        bucket=bucket,
        shard=shard,
        length=rng.integers(1, 50, size=len(shard)),
        source=np.arange(len(shard)) // 3,
        domain=shard % 5,
        clips_per_batch=np.array([6, 4, 2, 1]),
        seconds=np.array([1.0, 5.0, 6.0, 9.0]),
        lanes=lanes,
        micro_per_step=micro,
        seed=seed,
    )


def replay(setting: Setup, schedule: Schedule) -> int:
    """Check every micro-batch and read in plain Python; the largest number of clips that a lane holds."""
    lanes, rows = schedule.bucket_VxM.shape
    assert lanes == setting.lanes and rows % setting.micro_per_step == 0
    batches: dict[tuple[int, int], list[int]] = {(lane, row): [] for lane in range(lanes) for row in range(rows)}
    for lane, row, clip in zip(*(part.tolist() for part in vars(schedule.uses).values()), strict=True):
        batches[lane, row].append(clip)
    for (lane, row), clips in batches.items():
        bucket = schedule.bucket_VxM[lane, row]
        assert len(clips) == setting.clips_per_batch[bucket]
        assert {int(setting.bucket[clip]) for clip in clips} == {int(bucket)}
    assert max(Counter(schedule.uses.clip.tolist()).values(), default=0) <= 1
    spans = {}
    for lane, row, until, clip in zip(*(part.tolist() for part in vars(schedule.reads).values()), strict=True):
        assert 0 <= row <= until < rows
        spans[lane, clip] = (row, until)
    assert len(spans) == len(schedule.reads.clip)
    for (lane, row), clips in batches.items():
        for clip in clips:
            assert spans[lane, clip][0] <= row == spans[lane, clip][1]
    held = Counter((lane, row) for (lane, _), (first, last) in spans.items() for row in range(first, last + 1))
    return max(held.values(), default=0)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize(
    "setting",
    [
        setup(),
        setup(lanes=7, micro=1, seed=1),
        setup(tars=3, lanes=5, micro=1, seed=2),
        setup(tars=12, clips=30, lanes=1, micro=3, seed=3),
    ],
    ids=["tars", "odd lanes", "fewer tars than lanes", "one lane"],
)
def test_micro_batches_are_full_of_one_bucket_and_read_before_use(name: str, setting: Setup) -> None:
    schedule = BASELINES[name].make(setting)
    peak = replay(setting, schedule)
    found = run_baseline(name, setting)
    if not schedule.bucket_VxM.shape[1]:
        assert name in STREAMS and found.values["used_share"] == 0.0
        return
    assert found.values["peak_buffer_clips"] == peak
    assert found.values["used_share"] == len(schedule.uses.clip) / setting.num_clips
    assert found.values["read_amplification"] == 1.0
    if name in STREAMS:
        assert found.values["sequential_share"] == 1.0
        assert found.values["opens_per_shard"] == found.values["ranges_per_shard"]
        assert found.values["opens_per_shard"] <= 1.0
    if name in SAME_BUCKET:
        assert (schedule.bucket_VxM == schedule.bucket_VxM[0]).all()
        assert found.values["waste_micro"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", BASELINES)
def test_the_seed_decides_and_nothing_else(name: str) -> None:
    first, again = (BASELINES[name].make(setup()) for _ in range(2))
    other = BASELINES[name].make(setup(seed=9))
    assert np.array_equal(first.uses.clip, again.uses.clip) and np.array_equal(first.reads.row, again.reads.row)
    assert not np.array_equal(first.uses.clip, other.uses.clip)


def test_random_micro_batches_mix_as_draws_do_and_idle() -> None:
    values = run_baseline("open_sora", setup(tars=400, lanes=8, micro=2)).values
    assert values["mix_bucket_1"] == pytest.approx(1.0, abs=0.1)
    assert values["mix_domain_8"] == pytest.approx(1.0, abs=0.15)
    assert (values["waste_micro"] or 0) > 0.3


def test_bucket_after_bucket_is_the_worst_mix_and_idles_never() -> None:
    values = run_baseline("sequential_buckets", setup(tars=100)).values
    random_values = run_baseline("open_sora", setup(tars=100)).values
    assert (values["mix_bucket_64"] or 0) > 5 * (random_values["mix_bucket_64"] or 0)


def test_cost_sort_idles_least_of_all_ways_to_cut_rows() -> None:
    setting = setup(micro=1)
    sorted_waste = run_baseline("cost_sorted", setting).values["waste_micro"]
    assert sorted_waste is not None
    random_wastes = [run_baseline("open_sora", setup(micro=1, seed=seed)).values["waste_micro"] for seed in range(5)]
    assert sorted_waste < 0.02 < min(waste for waste in random_wastes if waste is not None)


def test_balancing_a_step_lowers_what_the_step_waits_for() -> None:
    waits = {name: run_baseline(name, setup(tars=200, lanes=8, micro=4)).values["waste_step"] for name in BASELINES}
    assert (waits["karmarkar_karp"] or 1) < (waits["open_sora"] or 0)
    assert (waits["longest_first"] or 1) < (waits["open_sora"] or 0)


@pytest.mark.parametrize("seed", range(5))
def test_two_layers_are_merged_into_the_best_pairs(seed: int) -> None:
    """With K = 2 the largest sum of a pair is least when dear meets cheap; by every pairing."""
    seconds = -np.sort(-np.random.default_rng(seed).random(10)).reshape(2, 5)
    members = merge_layers(np.arange(10).reshape(2, 5), seconds)
    assert sorted(members.ravel().tolist()) == list(range(10))
    flat = seconds.ravel()
    found = max(flat[pair].sum() for pair in members)
    best = min(max(seconds[0] + seconds[1][list(order)]) for order in itertools.permutations(range(5)))
    assert found == pytest.approx(best)


def test_a_shuffle_buffer_gives_back_each_clip_no_sooner_than_it_was_read() -> None:
    order = shuffle_buffer(500, 32, np.random.default_rng(1))
    assert sorted(order.tolist()) == list(range(500))
    assert (order <= np.arange(500) + 32).all()
    assert not np.array_equal(order, np.arange(500))
    assert shuffle_buffer(0, 32, np.random.default_rng(1)).tolist() == []
    assert shuffle_buffer(5, 0, np.random.default_rng(1)).tolist() == list(range(5))


def test_the_shuffle_buffer_epoch_ends_when_the_first_lane_runs_dry() -> None:
    """That lane's incomplete micro-batches are all that it has left."""
    setting = setup(lanes=6, micro=1)
    schedule = BASELINES["webdataset"].make(setting)
    per_lane = [setting.bucket[lane_sequence(setting, shards)] for shards in deal_shards(setting)]
    most = [sum((bucket == index).sum() // batch for index, batch in enumerate([6, 4, 2, 1])) for bucket in per_lane]
    assert schedule.bucket_VxM.shape[1] == min(most)


def test_synchronised_buckets_agree_where_all_lanes_have_the_same() -> None:
    """Every tar holds the same sequence of buckets, so no lane ever has to take another bucket than the one drawn."""
    setting = setup(tars=16, clips=120, lanes=4, micro=1)
    same = np.tile(setting.bucket[:120], 16)
    even = Setup(**{**vars(setting), "bucket": same})
    schedule = BASELINES["lhotse"].make(even)
    assert schedule.bucket_VxM.shape[1] > 100
    assert (schedule.bucket_VxM == schedule.bucket_VxM[0]).all()
    uneven = BASELINES["lhotse"].make(setting)
    assert not (uneven.bucket_VxM == uneven.bucket_VxM[0]).all()


def test_first_in_first_out_gives_the_first_clips_to_the_first_row_of_their_bucket() -> None:
    setting = setup()
    row = first_in_first_out(setting, np.array([3, 2, 2, 3, 2, 2, 3]), np.array([2, 3, 2, 3]))
    assert row.tolist() == [1, 0, 0, 3, 2, 2, -1]


@pytest.mark.parametrize("seed", range(3))
def test_the_papers_steps_use_more_and_more_and_what_its_formula_says(seed: int) -> None:
    setting = setup(tars=60, lanes=8, micro=1, seed=seed)
    _, counts = tar_counts(setting)
    shares = []
    placed = place_tars_greedily(setting, counts)
    for name, lanes in (
        ("paper_random", place_tars_at_random(setting, len(counts))),
        ("paper_greedy", placed),
        ("paper_annealed", anneal_swaps(setting, counts, placed)),
    ):
        have = np.stack([counts[lanes == lane].sum(axis=0) for lane in range(setting.lanes)])
        formula = (setting.lanes * setting.clips_per_batch * (have // setting.clips_per_batch).min(axis=0)).sum()
        assert whole_tar_rows(setting, have).sum() == (have // setting.clips_per_batch).min(axis=0).sum()
        shares.append(run_baseline(name, setting).values["used_share"] or 0.0)
        assert shares[-1] == formula / setting.num_clips
    assert shares[0] < shares[1] and shares[0] < shares[2]


def test_annealing_never_returns_a_worse_imbalance_and_keeps_tars_per_lane() -> None:
    setting = setup(tars=60, lanes=8)
    _, counts = tar_counts(setting)
    start = place_tars_at_random(setting, len(counts))

    def of(lanes: np.ndarray) -> float:
        return imbalance(np.stack([counts[lanes == lane].sum(axis=0) for lane in range(setting.lanes)]))

    for swaps in (0, 50, 3000):
        lanes = anneal_swaps(setting, counts, start, swaps)
        assert of(lanes) <= of(start)
        assert np.bincount(lanes, minlength=8).tolist() == np.bincount(start, minlength=8).tolist()
    assert of(anneal_swaps(setting, counts, start, 3000)) < 0.5 * of(start)


def test_equal_tars_leave_nothing_to_anneal() -> None:
    setting = setup(tars=16, clips=50)
    _, counts = tar_counts(setting)
    same = np.tile(counts[0], (16, 1))
    lanes = place_tars_at_random(setting, 16)
    assert anneal_swaps(setting, same, lanes).tolist() == lanes.tolist()


def test_rows_are_spread_evenly_by_their_counts() -> None:
    assert interleave(np.array([2, 4, 0])).tolist() == [1, 0, 1, 1, 0, 1]
    long = interleave(np.array([400, 300, 200, 100]))
    assert np.bincount(long).tolist() == [400, 300, 200, 100]
    ahead = np.cumsum(long == 3) - np.arange(1, 1001) * 0.1
    assert np.abs(ahead).max() <= 1.0
