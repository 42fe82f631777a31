"""Which lane reads which clips of an epoch: contiguous ranges placed greedily, annealed, then repaired to exact counts.

Every lane must end with exactly rows x B_b clips of each bucket, else the poorest lane decides how many rows a bucket has and the rest is lost
(the paper's loss). Ranges are whole shards, or parts where the shards are few. What placement leaves unequal is repaired by handing single clips
from lanes that have too many to lanes that have too few, shard by shard so that a repair opens as few shards as it can. A handed-over clip is
still read once, forward, by one lane; the price is an open more, counted in the metrics.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from planner.annealing import Problem

__all__ = ["PlacementProblem", "Ranges", "cut_ranges", "place_greedily", "repair"]

_RANGES_PER_LANE = 4
"""At least this many ranges per lane, so that greedy placement has a choice."""


@dataclass(frozen=True)
class Ranges:
    """Contiguous runs of an epoch's clips within one shard each; clip positions count within the epoch's clips."""

    start: np.ndarray
    end: np.ndarray
    """Excluded."""
    counts: np.ndarray
    """Clips by bucket, (ranges, buckets)."""

    def clip_lanes(self, range_lanes: np.ndarray) -> np.ndarray:
        """Lane of each clip from the lane of each range."""
        return np.repeat(range_lanes, self.end - self.start)


def cut_ranges(shard: np.ndarray, bucket: np.ndarray, num_buckets: int, lanes: int) -> Ranges:
    """Whole shards; where those are fewer than four per lane, each in equal parts."""
    edges = np.flatnonzero(np.diff(shard)) + 1
    starts = np.concatenate([[0], edges])
    ends = np.concatenate([edges, [len(shard)]])
    parts = max(1, -(-_RANGES_PER_LANE * lanes // len(starts)))
    cuts: list[int] = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        pieces = min(parts, end - start)
        cuts.extend(start + (end - start) * piece // pieces for piece in range(pieces))
    start_array = np.array(cuts, dtype=np.int64)
    end_array = np.concatenate([start_array[1:], [len(shard)]])
    counts = np.zeros((len(cuts), num_buckets), dtype=np.int64)
    np.add.at(counts, (np.repeat(np.arange(len(cuts)), end_array - start_array), bucket), 1)
    return Ranges(start=start_array, end=end_array, counts=counts)


def place_greedily(ranges: Ranges, targets: np.ndarray, lanes: int, rng: np.random.Generator) -> np.ndarray:
    """Lane of each range: largest first, each where it lowers the weighted squared distance to `targets` most; ties by seeded order."""
    sizes = ranges.end - ranges.start
    order = np.lexsort((rng.permutation(len(sizes)), -sizes))
    preference = rng.permutation(lanes)
    weights = np.where(targets > 0, 1.0 / np.maximum(targets, 1), 0.0)
    short_of = np.repeat(-targets[None, :].astype(np.float64), lanes, axis=0)
    result = np.zeros(len(sizes), dtype=np.int64)
    for index in order:
        # Not a matrix product: BLAS sums in an order that depends on threads, and ties decide the plan's hash.
        change = (short_of[preference] * (weights * ranges.counts[index])).sum(axis=1)
        lane = int(preference[int(np.argmin(change))])
        result[index] = lane
        short_of[lane] += ranges.counts[index]
    return result


class PlacementProblem(Problem):
    """Swap or move ranges between lanes; energy: clips that lanes lack, which the repair would have to hand over."""

    def __init__(self, ranges: Ranges, range_lanes: np.ndarray, targets: np.ndarray, lanes: int) -> None:
        self._targets: list[int] = targets.tolist()
        self._lanes = lanes
        self._held = [[(bucket, int(row[bucket])) for bucket in np.flatnonzero(row).tolist()] for row in ranges.counts]
        self.range_lanes: list[int] = range_lanes.tolist()
        self._have = [[0] * len(self._targets) for _ in range(lanes)]
        for index, lane in enumerate(self.range_lanes):
            self._add(index, lane, 1)

    def energy(self) -> float:
        """Clips lacking over all lanes and buckets."""
        return float(
            sum(max(0, target - have) for row in self._have for target, have in zip(self._targets, row, strict=True))
        )

    def propose(self) -> list[tuple[int, int, int]] | None:
        """[(range, from lane, to lane), ...]: one range moved, or two swapped."""
        if self._lanes < 2:
            return None
        first = random.randrange(len(self.range_lanes))
        lane = self.range_lanes[first]
        second = random.randrange(len(self.range_lanes))
        other = self.range_lanes[second]
        if other == lane:
            other = (lane + 1 + random.randrange(self._lanes - 1)) % self._lanes
            return [(first, lane, other)]
        return [(first, lane, other), (second, other, lane)]

    def apply(self, move: list[tuple[int, int, int]]) -> float:
        """Change of `energy`, over the buckets and lanes that the move touches."""
        cells = {(lane, bucket) for index, old, new in move for bucket, _ in self._held[index] for lane in (old, new)}
        before = self._lacking(cells)
        for index, old, new in move:
            self._shift(index, old, new)
        return float(self._lacking(cells) - before)

    def undo(self, move: list[tuple[int, int, int]]) -> None:
        """Put the ranges back."""
        for index, old, new in reversed(move):
            self._shift(index, new, old)

    def _lacking(self, cells: set[tuple[int, int]]) -> int:
        return sum(max(0, self._targets[bucket] - self._have[lane][bucket]) for lane, bucket in cells)

    def _shift(self, index: int, old: int, new: int) -> None:
        self._add(index, old, -1)
        self._add(index, new, 1)
        self.range_lanes[index] = new

    def _add(self, index: int, lane: int, sign: int) -> None:
        row = self._have[lane]
        for bucket, count in self._held[index]:
            row[bucket] += sign * count


def repair(
    clip_lanes: np.ndarray, shard: np.ndarray, bucket: np.ndarray, targets: np.ndarray, lanes: int
) -> tuple[np.ndarray, int]:
    """Lane of each clip such that every lane has exactly `targets[b]` clips of bucket b, and how many clips changed lane.

    Needs `lanes * targets[b]` clips of each bucket. Each round hands one lane, from one (lane, shard), all the clips there that it lacks and
    the giver has too many of, taken from the end of the giver's part; the round that hands over most comes first.
    """
    result = clip_lanes.copy()
    have = np.zeros((lanes, len(targets)), dtype=np.int64)
    np.add.at(have, (result, bucket), 1)
    assert (have.sum(axis=0) == lanes * targets).all(), "selection must give exact totals"
    excess = have - targets
    visits, visit_of = np.unique(np.stack([result, shard]), axis=1, return_inverse=True)
    givers = visits[0]
    stock = np.zeros((visits.shape[1], len(targets)), dtype=np.int64)
    np.add.at(stock, (visit_of, bucket), 1)
    order = np.lexsort((np.arange(len(result)), bucket, visit_of))
    group_start = np.concatenate([[0], np.cumsum(stock.ravel())])[:-1].reshape(stock.shape)
    handed = 0
    for lane in np.argsort(np.minimum(excess, 0).sum(axis=1), kind="stable").tolist():
        reads_here = set(shard[result == lane].tolist()) if (excess[lane] < 0).any() else set()
        while (excess[lane] < 0).any():
            wanted = np.maximum(-excess[lane], 0)
            possible = np.minimum(np.minimum(stock, np.maximum(excess, 0)[givers]), wanted)
            already_open = np.isin(visits[1], list(reads_here))
            visit = int(np.argmax(possible.sum(axis=1) * 2 + (already_open & (possible.sum(axis=1) > 0))))
            for index in np.flatnonzero(possible[visit]).tolist():
                count = int(possible[visit, index])
                last = group_start[visit, index] + stock[visit, index]
                result[order[last - count : last]] = lane
                stock[visit, index] -= count
                excess[givers[visit], index] -= count
                excess[lane, index] += count
                handed += count
            reads_here.add(int(visits[1, visit]))
    return result, handed
