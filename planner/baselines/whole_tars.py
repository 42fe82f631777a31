"""The paper's sampler (arXiv 2604.16503, section 5.3) as a baseline: whole tars on lanes, at random, greedily, or annealed.

A tar belongs to one lane, so a bucket has as many rows as its poorest lane has micro-batches; the rest is lost. Greedy: each tar goes where it
lowers the imbalance most. Annealed: 30,000 proposals to swap two tars between lanes. The report does not fix temperatures, weights or order; ours:
imbalance is the sum over buckets of the coefficient of variation across lanes of the clip counts (over joint buckets of frames and size, which decide
the steps; the report names the four frame counts), largest tar first, cooling from the mean uphill change of 200 swaps to a thousandth of it, and the
arrangement with the lowest imbalance is kept. At run time a lane reads its tars in order through a rolling shuffle window of 4,096 clips, and
rows follow in an even interleave of the buckets.
"""

from __future__ import annotations

import math

import numpy as np

from planner.baselines.outcomes import Schedule, Setup, full_steps
from planner.baselines.streams import (
    empty_schedule,
    first_in_first_out,
    lane_sequence,
    shuffle_buffer,
    shuffled_stream,
    stream_schedule,
)

__all__ = [
    "SWAPS",
    "WINDOW_CLIPS",
    "anneal_swaps",
    "imbalance",
    "interleave",
    "paper_annealed",
    "paper_greedy",
    "paper_random",
    "place_tars_at_random",
    "place_tars_greedily",
    "tar_counts",
    "whole_tar_rows",
]

SWAPS = 30_000
WINDOW_CLIPS = 4096
_PROBES = 200
_COOLING = 1e-3


def tar_counts(setup: Setup) -> tuple[np.ndarray, np.ndarray]:
    """(shards, clips by shard and bucket)."""
    shards, index = np.unique(setup.shard, return_inverse=True)
    cells = index.astype(np.int64) * setup.num_buckets + setup.bucket
    counts = np.bincount(cells, minlength=len(shards) * setup.num_buckets)
    return shards, counts.reshape(len(shards), setup.num_buckets)


def imbalance(counts_VxG: np.ndarray) -> float:
    """Sum over buckets of standard deviation over mean, across lanes; buckets without clips count 0."""
    mean = counts_VxG.mean(axis=0)
    return float((counts_VxG.std(axis=0)[mean > 0] / mean[mean > 0]).sum())


def whole_tar_rows(setup: Setup, counts_VxG: np.ndarray) -> np.ndarray:
    """Rows of each bucket: the micro-batches of its poorest lane."""
    return (counts_VxG // setup.clips_per_batch).min(axis=0)


def place_tars_at_random(setup: Setup, tars: int) -> np.ndarray:
    """Lane of each tar: tars in random order, round-robin."""
    lanes = np.empty(tars, dtype=np.int64)
    lanes[setup.rng(6).permutation(tars)] = np.arange(tars) % setup.lanes
    return lanes


def place_tars_greedily(setup: Setup, counts_TxG: np.ndarray) -> np.ndarray:
    """Lane of each tar: largest first (ties at random), each where the imbalance is lowest afterwards."""
    rng = setup.rng(7)
    order = np.lexsort((rng.permutation(len(counts_TxG)), -counts_TxG.sum(axis=1)))
    preference = rng.permutation(setup.lanes)
    have = np.zeros((setup.lanes, counts_TxG.shape[1]))
    squares, total = np.zeros(counts_TxG.shape[1]), np.zeros(counts_TxG.shape[1])
    lanes = np.empty(len(counts_TxG), dtype=np.int64)
    for tar in order.tolist():
        tar_G = counts_TxG[tar].astype(np.float64)
        total += tar_G
        mean = total / setup.lanes
        here = total > 0
        after = (squares + tar_G * (2.0 * have[preference] + tar_G))[:, here]
        spread = np.sqrt(np.maximum(0.0, after / setup.lanes - mean[here] ** 2)) / mean[here]
        lane = int(preference[int(spread.sum(axis=1).argmin())])
        squares += tar_G * (2.0 * have[lane] + tar_G)
        have[lane] += tar_G
        lanes[tar] = lane
    return lanes


def anneal_swaps(setup: Setup, counts_TxG: np.ndarray, lanes: np.ndarray, swaps: int = SWAPS) -> np.ndarray:
    """The best arrangement seen over `swaps` proposals; never a worse one than `lanes`."""
    rng = setup.rng(8)
    tars, groups = counts_TxG.shape
    have = np.zeros((setup.lanes, groups), dtype=np.int64)
    np.add.at(have, lanes, counts_TxG)
    mean = have.mean(axis=0)
    kept = np.flatnonzero(mean > 0)
    held, tar_rows = have[:, kept].tolist(), counts_TxG[:, kept].tolist()
    square = [float(value) for value in (have[:, kept].astype(np.float64) ** 2).sum(axis=0)]
    weights = (1.0 / (setup.lanes * mean[kept] ** 2)).tolist()
    where: list[int] = lanes.tolist()
    columns = range(len(kept))

    def squares_after(first: int, second: int) -> list[float]:
        a, b, one, two = held[where[first]], held[where[second]], tar_rows[first], tar_rows[second]
        return [square[c] + 2.0 * (two[c] - one[c]) * (a[c] - b[c] + two[c] - one[c]) for c in columns]

    def energy(squares: list[float]) -> float:
        return sum(math.sqrt(max(0.0, squares[c] * weights[c] - 1.0)) for c in columns)

    pairs = rng.integers(tars, size=(_PROBES + swaps, 2)).tolist()
    present = best = energy(square)
    uphill = [
        change
        for first, second in pairs[:_PROBES]
        if where[first] != where[second] and (change := energy(squares_after(first, second)) - present) > 0.0
    ]
    if not uphill or swaps == 0:
        return lanes.copy()
    hottest = sum(uphill) / len(uphill)
    chance = rng.random(swaps).tolist()
    best_lanes = where.copy()
    for number, (first, second) in enumerate(pairs[_PROBES:]):
        if where[first] == where[second]:
            continue
        squares = squares_after(first, second)
        after = energy(squares)
        temperature = hottest * _COOLING ** (number / swaps)
        if after > present and chance[number] >= math.exp((present - after) / temperature):
            continue
        a, b, one, two = held[where[first]], held[where[second]], tar_rows[first], tar_rows[second]
        for c in columns:
            a[c] += two[c] - one[c]
            b[c] += one[c] - two[c]
        where[first], where[second] = where[second], where[first]
        square, present = squares, after
        if present < best:
            best, best_lanes = present, where.copy()
    return np.array(best_lanes, dtype=np.int64)


def interleave(rows: np.ndarray) -> np.ndarray:
    """Each bucket's rows spread evenly over the epoch: row j of a bucket of n stands at (j + 1/2) / n; the bucket of each row."""
    bucket = np.repeat(np.arange(len(rows)), rows)
    number = np.arange(len(bucket)) - np.repeat(np.cumsum(rows) - rows, rows)
    return bucket[np.lexsort((bucket, (number + 0.5) / np.maximum(1, rows)[bucket]))]


def _schedule(setup: Setup, shards: np.ndarray, counts_TxG: np.ndarray, lanes: np.ndarray) -> Schedule:
    have = np.zeros((setup.lanes, setup.num_buckets), dtype=np.int64)
    np.add.at(have, lanes, counts_TxG)
    bucket = interleave(whole_tar_rows(setup, have))
    bucket = bucket[: full_steps(len(bucket), setup.micro_per_step)]
    if not len(bucket):
        return empty_schedule(setup)
    streams = []
    for lane in range(setup.lanes):
        clips = lane_sequence(setup, shards[lanes == lane])
        order = shuffle_buffer(len(clips), WINDOW_CLIPS, setup.rng(9, lane))
        row = first_in_first_out(setup, setup.bucket[clips[order]], bucket)
        streams.append(shuffled_stream(clips, order, row, bucket, WINDOW_CLIPS, discard_unused=True))
    return stream_schedule(streams)


def paper_random(setup: Setup) -> Schedule:
    """Whole tars, round-robin in random order."""
    shards, counts = tar_counts(setup)
    return _schedule(setup, shards, counts, place_tars_at_random(setup, len(shards)))


def paper_greedy(setup: Setup) -> Schedule:
    """Whole tars, greedily."""
    shards, counts = tar_counts(setup)
    return _schedule(setup, shards, counts, place_tars_greedily(setup, counts))


def paper_annealed(setup: Setup) -> Schedule:
    """Whole tars, greedily, then annealed swaps."""
    shards, counts = tar_counts(setup)
    return _schedule(setup, shards, counts, anneal_swaps(setup, counts, place_tars_greedily(setup, counts)))
