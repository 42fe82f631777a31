"""Cost tiers: which buckets may share a row, and what a number of tiers costs in idle time and gives in mixing.

Under micro-sync a row lasts as long as its slowest lane. With all buckets in one tier many rows wait for a dearer bucket; with a tier for each
bucket nothing waits, but a step of K rows holds at most K buckets. In between, for even steps (planner.schedule.rows) whose rows are put in order
of cost (planner.schedule.step_rows):

* **time.** A tier of row share r_t has K r_t rows in a step, floor or ceil of it. Of its k V micro-batches there, N_j cost at least c_j (the share of
  such buckets, rounded to floor or ceil), and in order of cost they reach into ceil(N_j / V) rows: the tier's rows take
  sum_j (c_j - c_{j-1}) E[ceil(N_j / V)]. waste = 1 - busy seconds / that. Rows that are merely drawn at the tier's shares take
  sum_j c_j (F_j^V - F_{j-1}^V) each, F the cumulative share (`row_seconds`), often several times the waste.
* **mixing.** Whatever the order, the mean of |rows - K r_t| over an epoch is at least 2 f_t (1 - f_t), f_t the fraction of K r_t, and an even order
  comes near that; inside a tier every bucket has its share of the step's lanes, rounded likewise. So TV = sum_t f_t (1 - f_t) / K, plus the
  roundings inside; over windows of 8 steps the same with 8 K.

Both are sums over tiers, so the best cuts are found exactly by dynamic programming over the cost-sorted buckets: for least waste, and for the
whole front of waste against mixing. Price: caps on memory may bend the order of rows away from the even one; what a plan really has, the verifier
computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.mixing import tv_floor
from planner.pricing.tier_search import Segments, best_cut, least_waste_cuts
from planner.settings import PlanConfig
from schemas.errors import ConfigError
from schemas.plan import TierPoint

__all__ = [
    "TierCut",
    "choose_tiers",
    "curve_points",
    "cut_of",
    "mix_index_of",
    "row_seconds",
    "step_seconds",
    "tier_curve",
    "tier_seconds",
]


@dataclass(frozen=True, kw_only=True)
class TierCut:
    """One way to put buckets into tiers, and what it gives by the model."""

    tier_of: tuple[int, ...]
    """Tier of each bucket, tiers numbered in order of cost."""
    waste: float
    mix_index_1: float
    mix_index_8: float

    @property
    def tiers(self) -> int:
        """How many."""
        return max(self.tier_of) + 1

    @property
    def point(self) -> TierPoint:
        """For `plan.json`."""
        return TierPoint(tiers=self.tiers, waste=self.waste, mix_index_1=self.mix_index_1, mix_index_8=self.mix_index_8)


def row_seconds(seconds: np.ndarray, weights: np.ndarray, lanes: int) -> float:
    """Expected slowest of `lanes` draws from buckets of these seconds at these weights: sum_j c_j (F_j^V - F_{j-1}^V).

    `row_seconds([1, 3], [1, 1], 2) == 2.5`
    """
    order = np.argsort(seconds, kind="stable")
    cumulative = np.cumsum(weights[order])
    powers = (cumulative / cumulative[-1]) ** lanes
    return float((seconds[order] * np.diff(powers, prepend=0.0)).sum())


def step_seconds(seconds: np.ndarray, weights: np.ndarray, lanes: int, rows: float) -> float:
    """Expected sum over a tier's rows in one step of the slowest lane, the step's micro-batches of the tier put in order of cost.

    `rows` may be a fraction: floor or ceil of it, unbiased. `step_seconds([1, 3], [3, 1], 2, 2.0) == 4`: the two rows are (3, 1) and (1, 1).
    """
    low = int(np.floor(rows))
    part = rows - low
    return (1.0 - part) * _whole_rows(seconds, weights, lanes, low) + part * _whole_rows(
        seconds, weights, lanes, low + 1
    )


def _whole_rows(seconds: np.ndarray, weights: np.ndarray, lanes: int, rows: int) -> float:
    order = np.argsort(seconds, kind="stable")
    at_least = np.cumsum(weights[order][::-1])[::-1]
    exact = rows * lanes * (at_least / at_least[0])
    low = np.floor(exact * (1.0 + 1e-12))
    part = np.clip(exact - low, 0.0, 1.0)
    reached = (1.0 - part) * np.ceil(low / lanes) + part * np.ceil((low + 1.0) / lanes)
    return float((np.diff(seconds[order], prepend=0.0) * np.minimum(reached, rows)).sum())


def mix_index_of(weights_by_tier: Sequence[np.ndarray], lanes: int, micro_per_step: int, window: int) -> float:
    """Predicted mean total variation over windows of `window` steps from the whole, over that of random micro-batches (planner.mixing)."""
    total = float(sum(weights.sum() for weights in weights_by_tier))
    rows = window * micro_per_step
    shares = np.concatenate(weights_by_tier) / total
    if np.count_nonzero(shares) < 2:
        return 0.0
    variation = sum(_variation(weights / total, lanes, rows) for weights in weights_by_tier)
    return float(variation) / tv_floor(shares, lanes * rows)


def _variation(shares: np.ndarray, lanes: int, rows: int) -> float:
    """A tier's part of the total variation of a window of `rows` rows."""
    between = _rounding(np.array([rows * shares.sum()])) / rows
    if np.count_nonzero(shares) < 2:
        return between
    within = _rounding(rows * lanes * shares) / (rows * lanes)
    return float(np.hypot(between, within))


def _rounding(exact: np.ndarray) -> float:
    """Half the mean absolute error of rounding each to floor or ceil, unbiased: sum f (1 - f)."""
    fraction = exact - np.floor(exact)
    return float((fraction * (1.0 - fraction)).sum())


def tier_curve(
    seconds: np.ndarray, weights: np.ndarray, lanes: int, micro_per_step: int, group: np.ndarray | None = None
) -> tuple[TierCut, ...]:
    """The cut of least waste for each possible number of tiers, fewest first; exact.

    `seconds`: of a micro-batch of each bucket; `weights`: its micro-batches in an epoch; buckets of different `group` never share a tier.
    """
    segments = _segments(seconds, weights, lanes, micro_per_step, group)
    cuts = [segments.tier_of(cut) for cut in least_waste_cuts(segments)]
    return tuple(cut_of(tiers, seconds, weights, lanes, micro_per_step) for tiers in cuts)


def choose_tiers(
    curve: Sequence[TierCut],
    seconds: np.ndarray,
    weights: np.ndarray,
    config: PlanConfig,
    group: np.ndarray | None = None,
) -> TierCut:
    """`config.tiers` tiers of least waste if given; else, of all cuts whose waste is at most `config.max_waste`, the one of best mixing in a step.

    Raises:
        ConfigError: if `config.tiers` is fewer or more than the buckets allow.
    """
    if config.tiers is not None:
        found = [cut for cut in curve if cut.tiers == config.tiers]
        if not found:
            raise ConfigError(
                f"tiers is {config.tiers}, but these buckets can be put into {curve[0].tiers} to {curve[-1].tiers} tiers; "
                "give one of these numbers, or tiers: null"
            )
        return found[0]
    segments = _segments(seconds, weights, config.lanes, config.micro_per_step, group)
    best = best_cut(segments, config.max_waste)
    return cut_of(segments.tier_of(best), seconds, weights, config.lanes, config.micro_per_step)


def cut_of(
    tier_of: Sequence[int], seconds: np.ndarray, weights: np.ndarray, lanes: int, micro_per_step: int
) -> TierCut:
    """What one way of putting buckets into tiers gives, tiers numbered anew in order of cost."""
    names = np.asarray(tier_of)
    kept = np.flatnonzero(weights > 0)
    parts = [kept[names[kept] == name] for name in np.unique(names[kept])]
    total = float(weights.sum())
    time = sum(tier_seconds(seconds[part], weights[part] / total, lanes, micro_per_step) for part in parts)
    mixed = [weights[part] for part in parts]
    order = sorted(set(names.tolist()), key=lambda name: (seconds[names == name].max(), name))
    return TierCut(
        tier_of=tuple(order.index(name) for name in names.tolist()),
        waste=max(0.0, 1.0 - float((weights * seconds).sum()) / total / time),
        mix_index_1=mix_index_of(mixed, lanes, micro_per_step, 1),
        mix_index_8=mix_index_of(mixed, lanes, micro_per_step, 8),
    )


def tier_seconds(seconds: np.ndarray, shares: np.ndarray, lanes: int, micro_per_step: int) -> float:
    """A tier's part of the mean row time; `shares` are of all micro-batches."""
    return step_seconds(seconds, shares, lanes, micro_per_step * float(shares.sum())) / micro_per_step


def curve_points(curve: Sequence[TierCut], chosen: TierCut) -> tuple[TierPoint, ...]:
    """For `plan.json`: the curve, with the plan's own cut at its number of tiers."""
    return tuple((chosen if cut.tiers == chosen.tiers else cut).point for cut in curve)


def _segments(
    seconds: np.ndarray, weights: np.ndarray, lanes: int, micro_per_step: int, group: np.ndarray | None
) -> Segments:
    total = float(weights.sum())

    def cost(part: np.ndarray) -> tuple[float, float]:
        some = part[weights[part] > 0]
        if not len(some):
            return 0.0, 0.0
        shares = weights[some] / total
        return tier_seconds(seconds[some], shares, lanes, micro_per_step), _variation(shares, lanes, micro_per_step)

    return Segments(seconds, weights, np.zeros(len(seconds), np.int64) if group is None else group, cost)
