"""The strategies that others use, as schedules of the same clips on the same lanes, so that `reelyard-plan compare` measures all alike.

Random access (a clip is fetched where it is used): micro-batches dealt at random as Open-Sora does; bucket after bucket (NeMo Automodel); sorted by
cost; and two that balance each step: longest first (LPT) and Karmarkar-Karp with equal counts. Streams (a lane reads its own tars front to
back): WebDataset's shuffle buffer, and Lhotse's synchronised buckets. Each is rebuilt from its description, with the parts that decide which clip
goes where and none of the rest; where a loader leaves a choice, the docstring says which one was taken. Incomplete micro-batches, rows and steps
are dropped by all.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.baselines.outcomes import Outcome, Reads, Schedule, Setup, Uses, full_steps, measure
from planner.baselines.streams import (
    LaneStream,
    deal_shards,
    empty_schedule,
    lane_sequence,
    shuffle_buffer,
    shuffled_stream,
    stream_schedule,
)
from planner.baselines.whole_tars import SWAPS, paper_annealed, paper_greedy, paper_random

__all__ = [
    "BASELINES",
    "SHUFFLE_CLIPS",
    "Baseline",
    "cost_sorted",
    "karmarkar_karp",
    "lhotse_synchronised",
    "longest_first",
    "merge_layers",
    "open_sora_random",
    "run_baseline",
    "sequential_buckets",
    "webdataset_shuffle",
]

SHUFFLE_CLIPS = 4096
"""Clips that a stream's shuffle buffer, or Lhotse's reservoir, holds per lane: as many as the paper's rolling window, so that all have one memory."""


@dataclass(frozen=True)
class MicroBatches:
    """All full micro-batches of random clips of their bucket; batch i holds `clips[first[i] : first[i] + B]`."""

    clips: np.ndarray
    bucket: np.ndarray
    first: np.ndarray


def draw_micro_batches(setup: Setup) -> MicroBatches:
    """Each bucket's clips shuffled and cut into B_b; buckets one after another."""
    rng = setup.rng(1)
    clips, bucket, first, filled = [], [], [], 0
    for index, batch in enumerate(setup.clips_per_batch.tolist()):
        drawn = rng.permutation(np.flatnonzero(setup.bucket == index))
        count = len(drawn) // batch
        clips.append(drawn[: count * batch])
        bucket.append(np.full(count, index))
        first.append(filled + np.arange(count) * batch)
        filled += count * batch
    return MicroBatches(np.concatenate(clips), np.concatenate(bucket), np.concatenate(first))


def _random_access(setup: Setup, batches: MicroBatches, chosen_VxM: np.ndarray) -> Schedule:
    """Micro-batch numbers by lane and row to a schedule in which each clip is fetched in the row that uses it."""
    kept = chosen_VxM[:, : full_steps(chosen_VxM.shape[1], setup.micro_per_step)]
    number = kept.ravel()
    sizes = setup.clips_per_batch[batches.bucket[number]]
    ends = np.cumsum(sizes)
    inside = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - sizes, sizes)
    clip = batches.clips[np.repeat(batches.first[number], sizes) + inside]
    lane = np.repeat(np.repeat(np.arange(kept.shape[0]), kept.shape[1]), sizes)
    row = np.repeat(np.tile(np.arange(kept.shape[1]), kept.shape[0]), sizes)
    return Schedule(batches.bucket[kept], Uses(lane, row, clip), Reads(lane, row, row, clip))


def _in_rows(numbers: np.ndarray, lanes: int) -> np.ndarray:
    """A list of micro-batches cut into rows of one per lane, (lanes, rows)."""
    rows = len(numbers) // lanes
    return numbers[: rows * lanes].reshape(rows, lanes).T


def open_sora_random(setup: Setup) -> Schedule:
    """All micro-batches in one random list, cut into rows: lanes run whatever bucket comes."""
    batches = draw_micro_batches(setup)
    return _random_access(setup, batches, _in_rows(setup.rng(2).permutation(len(batches.bucket)), setup.lanes))


def sequential_buckets(setup: Setup) -> Schedule:
    """Every lane the same bucket, one bucket after another, the cheapest first; what does not fill a row of its bucket is dropped."""
    batches = draw_micro_batches(setup)
    order = np.argsort(setup.seconds, kind="stable")
    rows = [_in_rows(np.flatnonzero(batches.bucket == bucket), setup.lanes) for bucket in order]
    return _random_access(setup, batches, np.concatenate(rows, axis=1))


def cost_sorted(setup: Setup) -> Schedule:
    """All micro-batches sorted by cost and cut into rows, the least idle time there is under micro-sync; rows in random order."""
    batches = draw_micro_batches(setup)
    rows = _in_rows(np.argsort(setup.seconds[batches.bucket], kind="stable"), setup.lanes)
    return _random_access(setup, batches, rows[:, setup.rng(2).permutation(rows.shape[1])])


def _random_steps(setup: Setup, batches: MicroBatches) -> np.ndarray:
    """(steps, lanes x K) micro-batches of random steps, the dearest of each step first."""
    per_step = setup.lanes * setup.micro_per_step
    steps = len(batches.bucket) // per_step
    order = setup.rng(2).permutation(len(batches.bucket))[: steps * per_step].reshape(steps, per_step)
    by_cost = np.argsort(-setup.seconds[batches.bucket[order]], axis=1, kind="stable")
    return np.take_along_axis(order, by_cost, axis=1)


def longest_first(setup: Setup) -> Schedule:
    """Random steps; within each, the dearest micro-batch goes to the lane with least seconds so far that has fewer than K (LPT)."""
    batches = draw_micro_batches(setup)
    steps = _random_steps(setup, batches)
    K = setup.micro_per_step
    chosen = np.empty((setup.lanes, len(steps) * K), dtype=np.int64)
    load = np.zeros((len(steps), setup.lanes))
    held = np.zeros((len(steps), setup.lanes), dtype=np.int64)
    every = np.arange(len(steps))
    for column in steps.T:
        lane = np.where(held < K, load, np.inf).argmin(axis=1)
        chosen[lane, every * K + held[every, lane]] = column
        load[every, lane] += setup.seconds[batches.bucket[column]]
        held[every, lane] += 1
    return _random_access(setup, batches, chosen)


def karmarkar_karp(setup: Setup) -> Schedule:
    """Random steps; within each, K layers of V micro-batches by cost, and the two layers that differ most are merged, the dear end of one with
    the cheap end of the other, until one is left (Karmarkar-Karp, equal counts)."""
    batches = draw_micro_batches(setup)
    steps = _random_steps(setup, batches)
    K = setup.micro_per_step
    chosen = np.empty((setup.lanes, len(steps) * K), dtype=np.int64)
    for step, members in enumerate(steps):
        layers = members.reshape(K, setup.lanes)
        merged = merge_layers(layers, setup.seconds[batches.bucket[layers]])
        by_cost = np.argsort(-setup.seconds[batches.bucket[merged]], axis=1, kind="stable")
        chosen[:, step * K : (step + 1) * K] = np.take_along_axis(merged, by_cost, axis=1)
    return _random_access(setup, batches, chosen)


def merge_layers(layers_KxV: np.ndarray, seconds_KxV: np.ndarray) -> np.ndarray:
    """(V, K) members of each lane."""
    heap: list[tuple[float, int, np.ndarray, np.ndarray]] = []
    for number, (members, seconds) in enumerate(zip(layers_KxV, seconds_KxV, strict=True)):
        heapq.heappush(heap, (float(seconds.min() - seconds.max()), number, members[:, None], seconds))
    number = len(heap)
    while len(heap) > 1:
        _, _, first, first_sum = heapq.heappop(heap)
        _, _, second, second_sum = heapq.heappop(heap)
        dear, cheap = np.argsort(-first_sum, kind="stable"), np.argsort(second_sum, kind="stable")
        total = first_sum[dear] + second_sum[cheap]
        members = np.concatenate([first[dear], second[cheap]], axis=1)
        heapq.heappush(heap, (float(total.min() - total.max()), number, members, total))
        number += 1
    return heap[0][2]


def webdataset_shuffle(setup: Setup, buffer_clips: int = SHUFFLE_CLIPS) -> Schedule:
    """Shards in random order dealt to lanes; each lane reads through a shuffle buffer and has a micro-batch whenever a bucket is full.

    A row is whatever each lane has next. The epoch ends when the first lane has nothing more, as training would hang otherwise.
    """
    clips = [lane_sequence(setup, shards) for shards in deal_shards(setup)]
    orders = [shuffle_buffer(len(one), buffer_clips, setup.rng(3, lane)) for lane, one in enumerate(clips)]
    filled = [_fill_buckets(setup, setup.bucket[one[order]]) for one, order in zip(clips, orders, strict=True)]
    rows = full_steps(min(len(bucket) for _, bucket in filled), setup.micro_per_step)
    if rows == 0:
        return empty_schedule(setup)
    return stream_schedule(
        [
            shuffled_stream(
                one, order, np.where(row < rows, row, -1), bucket[:rows], buffer_clips, discard_unused=False
            )
            for one, order, (row, bucket) in zip(clips, orders, filled, strict=True)
        ]
    )


def _fill_buckets(setup: Setup, bucket: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row that each clip of a stream is used in (-1: its micro-batch never fills), and the bucket of each row, by the order of filling."""
    group = np.full(len(bucket), -1, dtype=np.int64)
    complete: list[np.ndarray] = []
    owner: list[np.ndarray] = []
    members: list[np.ndarray] = []
    for index, batch in enumerate(setup.clips_per_batch.tolist()):
        place = np.flatnonzero(bucket == index)
        count = len(place) // batch
        place = place[: count * batch]
        members.append(place)
        complete.append(place[batch - 1 :: batch])
        owner.append(np.full(count, index))
    ends = np.concatenate(complete)
    order = np.argsort(ends)
    row_of_batch = np.empty(len(ends), dtype=np.int64)
    row_of_batch[order] = np.arange(len(ends))
    sizes = setup.clips_per_batch[np.concatenate(owner)]
    group[np.concatenate(members)] = np.repeat(row_of_batch, sizes)
    return group, np.concatenate(owner)[order]


def lhotse_synchronised(setup: Setup, buffer_clips: int = SHUFFLE_CLIPS) -> Schedule:
    """Lanes hold reservoirs of their own shards; one shared draw names a bucket per row, and a lane that cannot fill it takes the nearest.

    The draw is by the buckets' shares of micro-batches (Lhotse's is uniform, over bins that it cuts to equal durations); nearest is by cost, the
    cheaper first; the clips are random ones of the bucket in the reservoir. Each lane refills what it used. The epoch ends when the first lane has
    no full micro-batch left.
    """
    clips = [lane_sequence(setup, shards) for shards in deal_shards(setup)]
    taken, use_rows = _shared_draws(setup, [setup.bucket[one].tolist() for one in clips], buffer_clips)
    rows = full_steps(taken.shape[1], setup.micro_per_step)
    if rows == 0:
        return empty_schedule(setup)
    lanes = []
    for one, bucket, row in zip(clips, taken[:, :rows], use_rows, strict=True):
        use_row = np.where(row < rows, row, -1)
        read_before = buffer_clips + np.concatenate([[0], np.cumsum(setup.clips_per_batch[bucket])[:-1]])
        read_row = np.searchsorted(read_before, np.arange(len(one)), side="right")
        until = np.where(use_row >= 0, use_row, rows - 1)
        lanes.append(LaneStream(one, read_row, use_row, until, bucket))
    return stream_schedule(lanes)


def _shared_draws(setup: Setup, streams: list[list[int]], buffer_clips: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Bucket of each (lane, row), and the row of each clip of each lane's stream, -1 where it is in none."""
    nearest = _nearest(setup.seconds)
    batch = setup.clips_per_batch.tolist()
    held: list[list[list[int]]] = [[[] for _ in batch] for _ in streams]
    room, read = [buffer_clips] * len(streams), [0] * len(streams)
    use_rows = [[-1] * len(stream) for stream in streams]
    chances = [iter(setup.rng(10, lane).random(len(stream)).tolist()) for lane, stream in enumerate(streams)]
    share = np.bincount(setup.bucket, minlength=setup.num_buckets) / setup.clips_per_batch
    upto = np.cumsum(share / share.sum())
    rng = setup.rng(4)
    rows: list[list[int]] = []
    while True:
        for lane, stream in enumerate(streams):
            stop = min(len(stream), read[lane] + room[lane])
            for position in range(read[lane], stop):
                held[lane][stream[position]].append(position)
            room[lane] -= stop - read[lane]
            read[lane] = stop
        drawn = min(int(np.searchsorted(upto, rng.random(), side="right")), setup.num_buckets - 1)
        picks = [next((index for index in nearest[drawn] if len(have[index]) >= batch[index]), -1) for have in held]
        if -1 in picks:
            taken = np.array(rows, dtype=np.int64).reshape(-1, len(streams)).T
            return taken, [np.array(row, dtype=np.int64) for row in use_rows]
        for lane, index in enumerate(picks):
            have, chance = held[lane][index], chances[lane]
            for _ in range(batch[index]):
                place = int(next(chance) * len(have))
                have[place], have[-1] = have[-1], have[place]
                use_rows[lane][have.pop()] = len(rows)
            room[lane] += batch[index]
        rows.append(picks)


def _nearest(seconds: np.ndarray) -> list[list[int]]:
    """For each bucket all buckets, the nearest in the order of cost first, the cheaper one of two."""
    rank = np.argsort(np.argsort(seconds, kind="stable"), kind="stable").tolist()
    buckets = range(len(rank))
    return [sorted(buckets, key=lambda other: (abs(rank[other] - rank[own]), rank[other])) for own in buckets]


@dataclass(frozen=True)
class Baseline:
    """A strategy with its words for the table."""

    label: str
    about: str
    make: Callable[[Setup], Schedule]


BASELINES = {
    "open_sora": Baseline(
        "Open-Sora random", "random micro-batches; each clip fetched where it is used", open_sora_random
    ),
    "webdataset": Baseline(
        "WebDataset shuffle",
        f"tars dealt to lanes, shuffle buffer of {SHUFFLE_CLIPS} clips, a micro-batch when a bucket fills",
        webdataset_shuffle,
    ),
    "lhotse": Baseline(
        "Lhotse synchronised",
        f"tars dealt to lanes, reservoir of {SHUFFLE_CLIPS} clips, one shared draw of the bucket",
        lhotse_synchronised,
    ),
    "sequential_buckets": Baseline(
        "bucket after bucket", "all lanes one bucket until it is used up, then the next", sequential_buckets
    ),
    "longest_first": Baseline(
        "LPT per step", "random steps, dearest micro-batch to the least loaded lane", longest_first
    ),
    "karmarkar_karp": Baseline(
        "Karmarkar-Karp per step", "random steps, layers of equal count merged by differences", karmarkar_karp
    ),
    "cost_sorted": Baseline("global cost sort", "all micro-batches sorted by cost, rows shuffled", cost_sorted),
    "paper_random": Baseline(
        "paper: random tars", "whole tars dealt to lanes at random, same bucket on all lanes", paper_random
    ),
    "paper_greedy": Baseline("paper: greedy", "whole tars, each where it lowers the imbalance most", paper_greedy),
    "paper_annealed": Baseline("paper: annealed", f"greedy, then {SWAPS:,} annealed swaps", paper_annealed),
}
"""Name to strategy, in the order of the table."""


def run_baseline(name: str, setup: Setup) -> Outcome:
    """Plan, then measure."""
    start = time.perf_counter()
    schedule = BASELINES[name].make(setup)
    return measure(name, setup, schedule, time.perf_counter() - start)
