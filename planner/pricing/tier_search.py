"""Exact search for the best cut of cost-sorted buckets into tiers, by dynamic programming over (buckets so far, tiers so far).

A cut's row time and its total variation are sums over tiers, so a cut of the first j buckets that is no better in either than another
one with as many tiers can be forgotten. Buckets of the same group and the same seconds (a size and its transpose) always share a tier. Price: the
front of (time, variation) may grow with the number of buckets; past `EXACT_BUCKETS` distinct costs it is kept on a grid of 0.01 % of time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["EXACT_BUCKETS", "Cut", "Segments", "best_cut", "least_waste_cuts"]

EXACT_BUCKETS = 20
_GRID = 1e-4
_SAME_COST = 1e-9

Cut = tuple[int, ...]
"""Ends of the tiers, rising, over the positions of `Segments`."""


class Segments:
    """Buckets in order of (group, cost) as positions, and what a tier from one position to another costs."""

    def __init__(
        self,
        seconds: np.ndarray,
        weights: np.ndarray,
        group: np.ndarray,
        cost: Callable[[np.ndarray], tuple[float, float]],
    ) -> None:
        order = np.lexsort((seconds, group))
        new_group = np.diff(group[order]) != 0
        starts = np.flatnonzero(
            np.concatenate([[True], new_group | (np.diff(seconds[order]) > _SAME_COST * seconds[order][1:])])
        )
        self._atoms = np.split(order, starts[1:])
        self.num_positions = len(self._atoms)
        self._group = group[order][starts]
        self.least_time = float((seconds * weights).sum() / weights.sum())
        """Row time without any idle time."""
        self.time = np.full((self.num_positions + 1,) * 2, np.inf)
        """[i, j]: share of rows x expected seconds of a tier of positions i to j - 1; infinite where groups meet."""
        self.variation = np.full_like(self.time, np.inf)
        for first in range(self.num_positions):
            for last in range(first + 1, self.num_positions + 1):
                if self._group[first] == self._group[last - 1]:
                    costs = cost(np.concatenate(self._atoms[first:last]))
                    self.time[first, last], self.variation[first, last] = costs

    def tier_of(self, cut: Cut) -> tuple[int, ...]:
        """Tier of each bucket, numbered by position."""
        result = np.empty(sum(map(len, self._atoms)), dtype=np.int64)
        for tier, (first, last) in enumerate(zip((0, *cut[:-1]), cut, strict=True)):
            result[np.concatenate(self._atoms[first:last])] = tier
        return tuple(result.tolist())

    def waste(self, time: float) -> float:
        """Idle share of a row time."""
        return 1.0 - self.least_time / time


def least_waste_cuts(segments: Segments) -> list[Cut]:
    """The cut of least row time for each possible number of tiers, fewest first."""
    count = segments.num_positions
    best = np.full((count + 1, count + 1), np.inf)
    before = np.zeros((count + 1, count + 1), dtype=np.int64)
    best[0, 0] = 0.0
    for tiers in range(1, count + 1):
        for last in range(tiers, count + 1):
            times = best[tiers - 1, :last] + segments.time[:last, last]
            before[tiers, last] = int(np.argmin(times))
            best[tiers, last] = times[before[tiers, last]]
    cuts = []
    for tiers in range(1, count + 1):
        if np.isfinite(best[tiers, count]):
            ends, last = [], count
            for left in range(tiers, 0, -1):
                ends.append(last)
                last = int(before[left, last])
            cuts.append(tuple(reversed(ends)))
    return cuts


@dataclass(frozen=True)
class _Front:
    """Cuts of the first positions, none better in both than another; in rising order of time."""

    time: np.ndarray
    variation: np.ndarray
    before: np.ndarray
    """Position at which the last tier starts."""
    index: np.ndarray
    """Place in the front there."""


def best_cut(segments: Segments, max_waste: float) -> Cut:
    """The cut of least variation among those whose waste is at most `max_waste`, whatever the number of tiers; of equals the one of least time.

    The cut of least time (a tier for each position) if none is.
    """
    count = segments.num_positions
    most = max(segments.least_time / (1.0 - max_waste), float(np.diagonal(segments.time, 1).sum())) * (1.0 + 1e-12)
    fronts = [_Front(*(np.zeros(1) for _ in range(2)), *(np.zeros(1, np.int64) for _ in range(2)))]
    for last in range(1, count + 1):
        parts = [
            (
                first,
                fronts[first].time + segments.time[first, last],
                fronts[first].variation + segments.variation[first, last],
            )
            for first in range(last)
            if np.isfinite(segments.time[first, last])
        ]
        time = np.concatenate([part[1] for part in parts])
        variation = np.concatenate([part[2] for part in parts])
        before = np.concatenate([np.full(len(part[1]), part[0]) for part in parts])
        index = np.concatenate([np.arange(len(part[1])) for part in parts])
        kept = _undominated(time, variation, most, exact=count <= EXACT_BUCKETS)
        fronts.append(_Front(time[kept], variation[kept], before[kept], index[kept]))
    place = int(np.lexsort((fronts[-1].time, fronts[-1].variation))[0])
    ends, last = [], count
    while last:
        ends.append(last)
        last, place = int(fronts[last].before[place]), int(fronts[last].index[place])
    return tuple(reversed(ends))


def _undominated(time: np.ndarray, variation: np.ndarray, most: float, *, exact: bool) -> np.ndarray:
    """Places of the front, by rising time."""
    order = np.lexsort((variation, time))
    order = order[time[order] <= most]
    least = np.minimum.accumulate(np.concatenate([[np.inf], variation[order][:-1]]))
    order = order[variation[order] < least - 1e-15]
    if exact or len(order) < 2:
        return order
    cells = np.floor(time[order] / (_GRID * most))
    return order[np.concatenate([cells[1:] != cells[:-1], [True]])]
