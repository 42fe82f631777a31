"""In which order a lane reads its parts of shards, so that little has to wait in memory and like does not meet like.

Rows ask for buckets in a fixed mix, so a lane buffers what its reading is ahead of that mix: the order of the parts decides how far the two drift
apart. The start is greedy prefix balancing: always the part that keeps the mix read so far closest to the mix of the whole. Annealing then works on
an energy that it can win on: the peak of each lane, parts of one source that are read at the same time, and the mix of domains over time. It looks
at the boundaries of parts only; the walk (planner.schedule.walk) computes the exact bytes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.schedule.annealing import Problem
from planner.schedule.kernels import kernel

__all__ = ["OrderProblem", "Parts", "lane_parts", "order_greedily", "peak_estimate"]

_SOURCE_WEIGHT = 0.2
"""All parts of one source read at once, against peaks at the scale on every lane."""
_DOMAIN_WEIGHT = 1.0
"""Every time slice of a single domain, against the same."""


@dataclass(frozen=True)
class Parts:
    """What each lane reads of each shard in an epoch, lane by lane; within a lane by shard."""

    lane_start: np.ndarray
    """First part of each lane; lanes + 1 entries."""
    clip_order: np.ndarray
    """Positions among the epoch's clips, part by part, ascending within a part."""
    part_start: np.ndarray
    """First entry of each part in `clip_order`; parts + 1 entries."""
    counts: np.ndarray
    """Clips by line, (parts, lines), int64."""
    source: np.ndarray
    """The most frequent source of each part."""
    source_share: np.ndarray
    """Its share of the part's clips."""
    domains: np.ndarray
    """Share of each domain, (parts, domains)."""

    def of_lane(self, lane: int) -> range:
        """Parts of a lane."""
        return range(int(self.lane_start[lane]), int(self.lane_start[lane + 1]))


def lane_parts(
    lane: np.ndarray,
    shard: np.ndarray,
    line: np.ndarray,
    source: np.ndarray,
    domain: np.ndarray,
    lanes: int,
    lines: int,
    domains: int,
) -> Parts:
    """Group an epoch's clips (ordered by shard and position) by lane and shard."""
    order = np.argsort(lane, kind="stable")
    lane_of, shard_of = lane[order], shard[order]
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = (lane_of[1:] != lane_of[:-1]) | (shard_of[1:] != shard_of[:-1])
    start = np.flatnonzero(fresh)
    part = np.cumsum(fresh) - 1
    parts = len(start)
    counts = np.bincount(part * lines + line[order], minlength=parts * lines).reshape(parts, lines)
    by_domain = np.bincount(part * domains + domain[order], minlength=parts * domains).reshape(parts, domains)
    edges = np.append(start, len(order))
    top, share = _main_sources(source[order], edges)
    return Parts(
        lane_start=np.searchsorted(lane_of[start], np.arange(lanes + 1)),
        clip_order=order,
        part_start=edges,
        counts=counts.astype(np.int64),
        source=top,
        source_share=share,
        domains=by_domain / np.diff(edges)[:, None],
    )


@kernel
def _main_sources(source: np.ndarray, edges: np.ndarray) -> tuple:  # type: ignore[type-arg]
    """(most frequent source, its share) of each part."""
    parts = len(edges) - 1
    top = np.zeros(parts, dtype=np.int64)
    share = np.zeros(parts)
    for part in range(parts):
        values = np.sort(source[edges[part] : edges[part + 1]])
        best, run = 0, 0
        for index in range(len(values)):
            run = run + 1 if index and values[index] == values[index - 1] else 1
            if run > best:
                best, top[part] = run, values[index]
        share[part] = best / len(values)
    return top, share


def order_greedily(parts: Parts, lane: int, rng: np.random.Generator) -> np.ndarray:
    """Parts of a lane in reading order: a seeded first one, then always the one that keeps the mix read closest to the mix of the whole."""
    own = np.arange(parts.lane_start[lane], parts.lane_start[lane + 1])
    if len(own) == 0:
        return own
    shuffled = rng.permutation(own)
    return shuffled[_prefix_order(parts.counts[shuffled])]


@kernel
def _prefix_order(counts: np.ndarray) -> np.ndarray:
    """Indices of rows so that prefix sums follow the total; O(rows^2 x lines), over at most 64 candidates a time."""
    rows, lines = counts.shape
    totals = np.zeros(lines)
    for row in range(rows):
        totals += counts[row]
    whole = totals.sum()
    left = np.arange(rows)
    count = rows
    order = np.empty(rows, dtype=np.int64)
    read = np.zeros(lines)
    for place in range(rows):
        best, best_distance = 0, np.inf
        for candidate in range(1 if place == 0 else min(count, 64)):
            row = left[candidate]
            size = 0.0
            for line in range(lines):
                size += read[line] + counts[row, line]
            distance = 0.0
            for line in range(lines):
                if totals[line] > 0:
                    off = read[line] + counts[row, line] - size / whole * totals[line]
                    distance += off * off / totals[line]
            if distance < best_distance:
                best, best_distance = candidate, distance
        order[place] = left[best]
        read += counts[left[best]]
        for index in range(best, count - 1):
            left[index] = left[index + 1]
        count -= 1
    return order


@kernel
def peak_estimate(counts: np.ndarray, order: np.ndarray, bytes_per_clip: np.ndarray) -> Any:
    """Largest buffer at the boundaries of parts, bytes, if rows ask for an even mix; `order` lists rows of `counts` (parts, lines).

    After reading c_b clips of each line, rows can have used the share t = min_b c_b / total_b; what is read beyond t waits.
    """
    lines = counts.shape[1]
    totals = np.zeros(lines)
    for row in order:
        totals += counts[row]
    read = np.zeros(lines)
    peak = 0.0
    for row in order:
        read += counts[row]
        share = 1.0
        for line in range(lines):
            if totals[line] > 0:
                share = min(share, read[line] / totals[line])
        held = 0.0
        for line in range(lines):
            held += (read[line] - share * totals[line]) * bytes_per_clip[line]
        peak = max(peak, held)
    return peak


class OrderProblem(Problem):
    """Swap two parts in the order of one lane.

    Energy, each term about 1 or less at its worst: the mean over lanes of (peak / scale)^4, so that the worst lane leads; parts of one source in
    the same slice of time, over all lanes; and how far each slice's domains are from the whole's. The scale is `comfortable_bytes`, or the first
    worst peak where that is more: a lane well below its cap need not give up mixing for memory.
    """

    def __init__(
        self, parts: Parts, orders: Sequence[np.ndarray], bytes_per_clip: np.ndarray, comfortable_bytes: float = 0.0
    ) -> None:
        self._parts = parts
        self._bytes = bytes_per_clip
        self.orders = [order.copy() for order in orders]
        self._movable = [lane for lane, order in enumerate(self.orders) if len(order) > 1]
        self._peaks = [self._peak(lane) for lane in range(len(self.orders))]
        self._scale = max(max(self._peaks), comfortable_bytes, 1.0)
        self._slices = max(len(order) for order in self.orders)
        self._source = parts.source.tolist()
        self._source_share = parts.source_share.tolist()
        self._shares_sources = len(set(self._source)) < len(self._source)
        self._by_source: list[dict[int, float]] = [{} for _ in range(self._slices)]
        self._squares = [0.0] * self._slices
        """Sum of squares of each slice's `_by_source`, kept up to date."""
        self._domain = parts.domains
        self._by_domain = np.zeros((self._slices, parts.domains.shape[1]))
        self._domain_mix = parts.domains.mean(axis=0)
        self._num_parts = len(parts.source)
        for lane, order in enumerate(self.orders):
            for place, part in enumerate(order.tolist()):
                self._enter(self._slice(lane, place), part, 1)

    def energy(self) -> float:
        """From scratch."""
        peaks = sum((self._peak(lane) / self._scale) ** 4 for lane in range(len(self.orders))) / len(self.orders)
        self._squares = [sum(value * value for value in present.values()) for present in self._by_source]
        return peaks + self._meetings(range(self._slices)) + self._off_mix(range(self._slices))

    def propose(self) -> tuple[int, int, int] | None:
        """(lane, place, other place)."""
        if not self._movable:
            return None
        lane = random.choice(self._movable)
        first, second = random.sample(range(len(self.orders[lane])), 2)
        return (lane, first, second)

    def apply(self, move: tuple[int, int, int]) -> float:
        """Change of `energy`; one lane and two slices are computed again."""
        lane, first, second = move
        slices = sorted({self._slice(lane, first), self._slice(lane, second)})
        before = self._local(lane, slices)
        self.undo(move)
        return self._local(lane, slices) - before

    def undo(self, move: tuple[int, int, int]) -> None:
        """Swap (back)."""
        lane, first, second = move
        order = self.orders[lane]
        one, other = int(order[first]), int(order[second])
        order[first], order[second] = other, one
        self._peaks[lane] = self._peak(lane)
        for place, old, new in ((first, one, other), (second, other, one)):
            at = self._slice(lane, place)
            self._enter(at, old, -1)
            self._enter(at, new, 1)

    def _local(self, lane: int, slices: Sequence[int]) -> float:
        peak = (self._peaks[lane] / self._scale) ** 4 / len(self.orders)
        return peak + self._meetings(slices) + self._off_mix(slices)

    def _slice(self, lane: int, place: int) -> int:
        return place * self._slices // len(self.orders[lane])

    def _enter(self, at: int, part: int, sign: int) -> None:
        if self._shares_sources:
            present = self._by_source[at]
            source = self._source[part]
            share, change = present.get(source, 0.0), sign * self._source_share[part]
            present[source] = share + change
            self._squares[at] += change * (2.0 * share + change)
        if self._domain.shape[1] > 1:
            self._by_domain[at] += sign * self._domain[part]

    def _meetings(self, slices: Sequence[int]) -> float:
        if not self._shares_sources:
            return 0.0
        return _SOURCE_WEIGHT * sum(self._squares[at] for at in slices) / self._num_parts

    def _off_mix(self, slices: Sequence[int]) -> float:
        if self._domain.shape[1] < 2:
            return 0.0
        rows = self._by_domain[list(slices)]
        off = rows - rows.sum(axis=1, keepdims=True) * self._domain_mix
        return _DOMAIN_WEIGHT * float(np.abs(off).sum()) / (2 * self._num_parts)

    def _peak(self, lane: int) -> float:
        return float(peak_estimate(self._parts.counts, self.orders[lane], self._bytes))
