"""Which lane reads which clips of an epoch: contiguous ranges placed greedily, annealed, then repaired to exact counts.

Every lane must end with exactly its target of each bucket, else the poorest lane decides how many rows a bucket has and the rest is lost (the
paper's loss). Ranges are whole shards, or equal parts where the shards are few. What placement leaves unequal is repaired by handing clips from
lanes that have too many to lanes that have too few. Sharing tars out in fractions is a transport problem whose basic solutions have at most
tars + lanes x buckets pieces; the repair stays near that by taking, in each round, the one (giver, shard) that closes most of what a lane lacks.
The taker's clips are the last ones of their bucket in the giver's part, so both read forward and no byte is read twice; the price is an open more
for each piece, and reads with gaps where the two parts interlock. Both are counted in the metrics.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from planner.schedule.annealing import Problem
from planner.schedule.kernels import kernel

__all__ = ["PlacementProblem", "Ranges", "cut_ranges", "lacking_clips", "place_greedily", "repair"]

_RANGES_PER_LANE = 4
"""At least this many ranges per lane, so that greedy placement has a choice."""
_CLIPS_PER_DOMAIN_CLIP = 10
"""A clip that has to be handed over weighs as many clips of domains that a lane lacks. Integers, so that sums do not depend on their order."""


@dataclass(frozen=True)
class Ranges:
    """Contiguous runs of an epoch's clips within one shard each; clip positions count within the epoch's clips."""

    start: np.ndarray
    end: np.ndarray
    """Excluded."""
    shard: np.ndarray
    counts: np.ndarray
    """Clips by line of the batch table, (ranges, lines), int64."""

    @property
    def sizes(self) -> np.ndarray:
        """Clips of each range."""
        sizes: np.ndarray = self.end - self.start
        return sizes


def cut_ranges(shard: np.ndarray, line: np.ndarray, num_lines: int, lanes: int) -> Ranges:
    """Whole shards; where those are fewer than four per lane, each in equal parts. `shard` is sorted."""
    edges = np.flatnonzero(np.diff(shard)) + 1
    starts = np.concatenate([[0], edges])
    ends = np.concatenate([edges, [len(shard)]])
    parts = np.minimum(max(1, -(-_RANGES_PER_LANE * lanes // len(starts))), ends - starts)
    which = np.repeat(np.arange(len(starts)), parts)
    piece = np.arange(len(which)) - np.repeat(np.cumsum(parts) - parts, parts)
    start = starts[which] + (ends - starts)[which] * piece // parts[which]
    end = np.concatenate([start[1:], [len(shard)]])
    key = np.repeat(np.arange(len(start), dtype=np.int64), end - start) * num_lines + line
    counts = np.bincount(key, minlength=len(start) * num_lines).reshape(len(start), num_lines)
    return Ranges(start=start, end=end, shard=shard[start].astype(np.int64), counts=counts.astype(np.int64))


def place_greedily(ranges: Ranges, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lane of each range: largest first, each where it lowers the weighted squared distance to `targets` (lanes, lines) most.

    Ties go by seeded order. O(ranges x lanes x lines).
    """
    lanes = len(targets)
    order = np.lexsort((rng.permutation(len(ranges.start)), -ranges.sizes))
    mean = targets.mean(axis=0)
    weights = np.where(mean > 0, 1.0 / np.maximum(mean, 1e-9), 0.0)
    return _greedy(order, ranges.counts, targets, weights, rng.permutation(lanes))


@kernel
def _greedy(
    order: np.ndarray, counts: np.ndarray, targets: np.ndarray, weights: np.ndarray, preference: np.ndarray
) -> np.ndarray:
    lines = targets.shape[1]
    over = -targets.astype(np.float64)
    result = np.zeros(len(counts), dtype=np.int64)
    for index in order:
        best, best_change = -1, np.inf
        for lane in preference:
            change = 0.0
            for line in range(lines):
                change += over[lane, line] * weights[line] * counts[index, line]
            if change < best_change:
                best, best_change = lane, change
        result[index] = best
        for line in range(lines):
            over[best, line] += counts[index, line]
    return result


def lacking_clips(counts: np.ndarray, range_lanes: np.ndarray, targets: np.ndarray) -> int:
    """Clips that lanes lack of their targets, when `counts` (ranges, lines) are placed so: what the repair hands over."""
    have = np.zeros_like(targets)
    np.add.at(have, range_lanes, counts)
    return int(np.maximum(targets - have, 0).sum())


class PlacementProblem(Problem):
    """Swap or move ranges between lanes; energy: clips that lanes lack, and a tenth of the clips of domains that they lack, in integers."""

    def __init__(
        self, ranges: Ranges, range_lanes: np.ndarray, targets: np.ndarray, domain_counts: np.ndarray | None
    ) -> None:
        held, wanted = [ranges.counts], [targets]
        if domain_counts is not None:
            share = domain_counts.sum(axis=0) / max(1, domain_counts.sum())
            held.append(domain_counts)
            wanted.append(np.rint(targets.sum(axis=1, keepdims=True) * share[None, :]).astype(np.int64))
        self._held = np.concatenate(held, axis=1).astype(np.int64)
        self._lack = np.concatenate(wanted, axis=1).astype(np.int64)
        """Wanted less held, by lane and column."""
        self._weight = np.ones(self._held.shape[1], dtype=np.int64)
        self._weight[: targets.shape[1]] = _CLIPS_PER_DOMAIN_CLIP
        self.range_lanes: list[int] = range_lanes.tolist()
        for index, lane in enumerate(self.range_lanes):
            self._lack[lane] -= self._held[index]
        self._lacking = [self._lane_lacking(lane) for lane in range(len(targets))]

    def energy(self) -> float:
        """Clips lacking over all lanes and buckets, and a tenth of those over domains."""
        return sum(self._lane_lacking(lane) for lane in range(len(self._lack))) / _CLIPS_PER_DOMAIN_CLIP

    def propose(self) -> list[tuple[int, int, int]] | None:
        """[(range, from lane, to lane), ...]: one range moved, or two swapped."""
        lanes = len(self._lack)
        if lanes < 2:
            return None
        first = random.randrange(len(self.range_lanes))
        lane = self.range_lanes[first]
        second = random.randrange(len(self.range_lanes))
        other = self.range_lanes[second]
        if other == lane:
            other = (lane + 1 + random.randrange(lanes - 1)) % lanes
            return [(first, lane, other)]
        return [(first, lane, other), (second, other, lane)]

    def apply(self, move: list[tuple[int, int, int]]) -> float:
        """Change of `energy`, over the lanes that the move touches."""
        lanes = sorted({lane for _, old, new in move for lane in (old, new)})
        before = sum(self._lacking[lane] for lane in lanes)
        for index, old, new in move:
            self._shift(index, old, new)
        return (sum(self._lacking[lane] for lane in lanes) - before) / _CLIPS_PER_DOMAIN_CLIP

    def undo(self, move: list[tuple[int, int, int]]) -> None:
        """Put the ranges back."""
        for index, old, new in reversed(move):
            self._shift(index, new, old)

    def _lane_lacking(self, lane: int) -> int:
        return int(np.maximum(self._lack[lane], 0) @ self._weight)

    def _shift(self, index: int, old: int, new: int) -> None:
        self._lack[old] += self._held[index]
        self._lack[new] -= self._held[index]
        self._lacking[old], self._lacking[new] = self._lane_lacking(old), self._lane_lacking(new)
        self.range_lanes[index] = new


def repair(ranges: Ranges, range_lanes: np.ndarray, line: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, int]:
    """Lane of each clip (int32) such that lane l has exactly `targets[l, b]` clips of line b, and how many clips changed lane.

    Needs `targets.sum(axis=0)` clips of each line. `line` is that of each clip of the epoch.
    """
    key = range_lanes * (int(ranges.shard.max()) + 1) + ranges.shard
    keys, visit_of_range = np.unique(key, return_inverse=True)
    stock = np.zeros((len(keys), targets.shape[1]), dtype=np.int64)
    np.add.at(stock, visit_of_range, ranges.counts)
    giver, shard = np.divmod(keys, int(ranges.shard.max()) + 1)
    have = np.zeros(targets.shape, dtype=np.int64)
    np.add.at(have, giver, stock)
    assert (have.sum(axis=0) == targets.sum(axis=0)).all(), "selection must give exact totals"
    takers, from_visit, amounts = _hand_over(giver, shard, stock, have - targets)
    lane = np.repeat(range_lanes, ranges.sizes).astype(np.int32)
    if len(takers):
        order = np.argsort(from_visit, kind="stable")
        first = np.searchsorted(from_visit[order], np.arange(len(keys) + 1))
        visit = np.repeat(visit_of_range, ranges.sizes)
        _assign_takers(lane, visit, line, first, takers[order], amounts[order])
    return lane, int(amounts.sum())


@kernel
def _hand_over(giver: np.ndarray, shard: np.ndarray, stock: np.ndarray, excess: np.ndarray) -> tuple:  # type: ignore[type-arg]
    """(taker, visit, clips by line) of each piece that is handed over; changes stock and excess. O(pieces x visits x lines)."""
    visits, lines = stock.shape
    lanes = len(excess)
    takers = [0][:0]
    sources = [0][:0]
    amounts = [np.zeros(lines, dtype=np.int64)][:0]
    shortage = np.zeros(lanes, dtype=np.int64)
    for lane in range(lanes):
        for line in range(lines):
            shortage[lane] -= min(excess[lane, line], 0)
    reads = np.zeros(int(shard.max()) + 1, dtype=np.int64)
    for lane in np.argsort(-shortage, kind="mergesort"):
        if shortage[lane] == 0:
            continue
        for visit in range(visits):
            if giver[visit] == lane:
                reads[shard[visit]] = lane + 1
        while shortage[lane] > 0:
            best, best_score = -1, 0
            for visit in range(visits):
                owner = giver[visit]
                gain = 0
                for line in range(lines):
                    if excess[lane, line] < 0 and excess[owner, line] > 0:
                        gain += min(stock[visit, line], excess[owner, line], -excess[lane, line])
                score = 2 * gain + (1 if gain > 0 and reads[shard[visit]] == lane + 1 else 0)
                if score > best_score:
                    best, best_score = visit, score
            owner = giver[best]
            amount = np.zeros(lines, dtype=np.int64)
            for line in range(lines):
                if excess[lane, line] < 0 and excess[owner, line] > 0:
                    count = min(stock[best, line], excess[owner, line], -excess[lane, line])
                    amount[line] = count
                    stock[best, line] -= count
                    excess[owner, line] -= count
                    excess[lane, line] += count
                    shortage[lane] -= count
            reads[shard[best]] = lane + 1
            takers.append(lane)
            sources.append(best)
            amounts.append(amount)
    result = np.zeros((len(takers), lines), dtype=np.int64)
    for index in range(len(takers)):
        result[index] = amounts[index]
    return np.array(takers, dtype=np.int64), np.array(sources, dtype=np.int64), result


@kernel
def _assign_takers(
    lane: np.ndarray, visit: np.ndarray, line: np.ndarray, first: np.ndarray, takers: np.ndarray, amounts: np.ndarray
) -> None:
    """Give the last clips of each bucket of a visit to its takers."""
    visits = len(first) - 1
    lines = amounts.shape[1]
    current = np.empty((visits, lines), dtype=np.int64)
    for index in range(visits):
        current[index, :] = first[index]
    for position in range(len(lane) - 1, -1, -1):
        at, kind = visit[position], line[position]
        while current[at, kind] < first[at + 1] and amounts[current[at, kind], kind] == 0:
            current[at, kind] += 1
        if current[at, kind] < first[at + 1]:
            lane[position] = takers[current[at, kind]]
            amounts[current[at, kind], kind] -= 1
