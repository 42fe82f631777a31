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
    own = np.array(parts.of_lane(lane), dtype=np.int64)
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


@kernel
def _spread_in_time(
    held: np.ndarray, order: np.ndarray, size: np.ndarray, domains: np.ndarray, first: int, last: int, sign: float
) -> None:
    """Add (or take away) the clips of places first to last of a lane's order to the slices of time in which they are read, (slices, domains)."""
    slices = len(held)
    total = 0.0
    for part in order:
        total += size[part]
    read = 0.0
    for place in range(last + 1):
        part = order[place]
        begin, end = read / total * slices, (read + size[part]) / total * slices
        read += size[part]
        if place < first:
            continue
        for at in range(int(begin), min(int(end), slices - 1) + 1):
            share = (min(end, at + 1.0) - max(begin, float(at))) / (end - begin)
            if share > 0:
                for domain in range(domains.shape[1]):
                    held[at, domain] += sign * share * size[part] * domains[part, domain]


@kernel
def _off_mix(held: np.ndarray, mix: np.ndarray) -> Any:
    """Clips that stand in the wrong slice by their domain, over all clips."""
    off, total = 0.0, 0.0
    for at in range(len(held)):
        count = 0.0
        for domain in range(len(mix)):
            count += held[at, domain]
        for domain in range(len(mix)):
            off += abs(held[at, domain] - count * mix[domain])
        total += count
    return off / (2.0 * total)


class OrderProblem(Problem):
    """Swap two parts in the order of one lane.

    Energy, each term about 1 or less at its worst: the mean over lanes of (peak / scale)^4, so that the worst lane leads; parts of one source in
    the same slice of time, over all lanes; and how far each slice's domains are from the whole's. Lanes read at even speed, so a part is in the
    slices that its clips take in the lane's order. The scale is `comfortable_bytes`, or the first worst peak where that is more: a lane well below
    its cap need not give up mixing for memory.
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
        self._size = np.diff(parts.part_start).astype(np.float64)
        self._mix = (parts.domains * self._size[:, None]).sum(axis=0) / self._size.sum()
        self._source = parts.source.tolist()
        self._source_share = parts.source_share.tolist()
        self._shares_sources = len(set(self._source)) < len(self._source)
        self._enter_all()

    def energy(self) -> float:
        """From scratch."""
        self._enter_all()
        peaks = sum((self._peak(lane) / self._scale) ** 4 for lane in range(len(self.orders))) / len(self.orders)
        return peaks + self._mixing()

    def propose(self) -> tuple[int, int, int] | None:
        """(lane, place, later place)."""
        if not self._movable:
            return None
        lane = random.choice(self._movable)
        first, second = sorted(random.sample(range(len(self.orders[lane])), 2))
        return (lane, first, second)

    def apply(self, move: tuple[int, int, int]) -> float:
        """Change of `energy`; what the lane reads between the two places is entered again."""
        lane = move[0]
        before = (self._peaks[lane] / self._scale) ** 4 / len(self.orders) + self._mixing()
        self.undo(move)
        return (self._peaks[lane] / self._scale) ** 4 / len(self.orders) + self._mixing() - before

    def undo(self, move: tuple[int, int, int]) -> None:
        """Swap (back)."""
        lane, first, second = move
        self._enter(lane, first, second, -1)
        order = self.orders[lane]
        order[first], order[second] = order[second], order[first]
        self._peaks[lane] = self._peak(lane)
        self._enter(lane, first, second, 1)

    def _enter_all(self) -> None:
        self._by_domain = np.zeros((self._slices, len(self._mix)))
        self._by_source: list[dict[int, float]] = [{} for _ in range(self._slices)]
        self._squares = 0.0
        """Sum of squares over `_by_source`, kept up to date."""
        for lane, order in enumerate(self.orders):
            if len(order):
                self._enter(lane, 0, len(order) - 1, 1)

    def _enter(self, lane: int, first: int, last: int, sign: int) -> None:
        """Enter (1) or take out (-1) places first to last of a lane."""
        order = self.orders[lane]
        if len(self._mix) > 1:
            _spread_in_time(self._by_domain, order, self._size, self._parts.domains, first, last, float(sign))
        if self._shares_sources:
            ends = np.cumsum(self._size[order])
            middle = (ends - self._size[order] / 2) / ends[-1] * self._slices
            for part, at in zip(
                order[first : last + 1].tolist(), middle[first : last + 1].astype(int).tolist(), strict=True
            ):
                present = self._by_source[at]
                share, change = present.get(self._source[part], 0.0), sign * self._source_share[part]
                present[self._source[part]] = share + change
                self._squares += change * (2.0 * share + change)

    def _mixing(self) -> float:
        energy = 0.0
        if self._shares_sources:
            energy += _SOURCE_WEIGHT * self._squares / len(self._source)
        if len(self._mix) > 1:
            energy += _DOMAIN_WEIGHT * float(_off_mix(self._by_domain, self._mix))
        return energy

    def _peak(self, lane: int) -> float:
        return float(peak_estimate(self._parts.counts, self.orders[lane], self._bytes))
