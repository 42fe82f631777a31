"""What no cut into tiers, and no order at all, can beat: the bounds that a plan's waste and mixing are printed beside.

`mix_index_1_bound` goes through every contiguous cut (2^(n-1)), each with its best integer number of rows in every step; `sort_bound` is the least
time of any rows at all, from the exchange argument that grouping neighbours in order of cost minimises the sum of group maxima.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from planner.mixing import tv_floor
from planner.pricing.tiers import row_seconds, tier_seconds
from schemas.errors import UsageError

__all__ = ["MOST_BUCKETS", "mix_index_1_bound", "row_rounding", "sort_bound"]

MOST_BUCKETS = 14


def row_rounding(rows_per_step: float) -> float:
    """Least mean |rows - x| over steps, for whole rows whose mean is x: 2 f (1 - f), f the fraction of x.

    Floor in a share 1 - f of the steps and ceil in the others; anything else is farther off on average. `row_rounding(1.25) == 0.375`
    """
    fraction = rows_per_step - np.floor(rows_per_step)
    return float(2.0 * fraction * (1.0 - fraction))


def mix_index_1_bound(
    seconds: np.ndarray, weights: np.ndarray, lanes: int, micro_per_step: int, max_waste: float, *, drawn: bool = False
) -> float:
    """Smallest MixIndex_1 of any contiguous cut into tiers whose expected waste is at most `max_waste`.

    Rows of a step and tier are in order of cost, as plans have them, or are `drawn` at the tier's shares, as samplers without an order have them.

    `seconds` and `weights` (micro-batches of an epoch) by bucket. A tier's rows are whole, so its number in a step is floor or ceil of its mean:
    that alone is the total variation, buckets inside a tier are taken as perfectly even. Infinite if no cut wastes so little.

    Raises:
        UsageError: for more than 14 buckets that are used.
    """
    used = np.flatnonzero(weights > 0)
    count = len(used)
    if count > MOST_BUCKETS:
        raise UsageError(
            f"{count} buckets have 2^{count - 1} cuts; the bound goes through at most 2^{MOST_BUCKETS - 1}"
        )
    order = used[np.argsort(seconds[used], kind="stable")]
    cost, share = seconds[order], weights[order] / weights[order].sum()
    floor = tv_floor(share, lanes * micro_per_step) if count > 1 else 1.0
    time = {}
    for first in range(count):
        for last in range(first + 1, count + 1):
            part = share[first:last]
            if drawn:
                time[first, last] = float(part.sum()) * row_seconds(cost[first:last], part, lanes)
            else:
                time[first, last] = tier_seconds(cost[first:last], part, lanes, micro_per_step)
    least = float((cost * share).sum())
    best = np.inf
    for cuts in range(count):
        for inside in combinations(range(1, count), cuts):
            tiers = list(zip((0, *inside), (*inside, count), strict=True))
            if 1.0 - least / sum(time[tier] for tier in tiers) <= max_waste:
                off = sum(row_rounding(micro_per_step * float(share[first:last].sum())) for first, last in tiers)
                best = min(best, off / (2.0 * micro_per_step * floor))
    return float(best)


def sort_bound(seconds: np.ndarray, lanes: int) -> float:
    """Least sum of row maxima over all ways to put these micro-batches into rows of `lanes`; a last row may be short.

    `sort_bound([1, 9, 2, 8], 2) == 11`
    """
    falling = np.sort(np.asarray(seconds, dtype=np.float64).ravel())[::-1]
    return float(falling[::lanes].sum())
