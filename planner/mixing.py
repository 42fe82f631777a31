"""How well a plan mixes and how much of its time is idle: the measures, each with its exact definition.

A window's mix is judged by its total variation (TV) from the mix of the whole, and that against what as many random draws would have
(`tv_floor`): an index of 1 is a perfect shuffle, below 1 is more even than chance, above 1 is lumpy. The unit of a draw is the micro-batch for
buckets (a micro-batch holds one bucket) and the clip for domains. The price of one number per window length: it does not say which group is off;
`window_tv` by group does.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

__all__ = [
    "MIXING_FORMULAS",
    "mix_index",
    "order_entropy",
    "shared_source_ratio",
    "tv_floor",
    "waste",
    "window_tv",
]

MIXING_FORMULAS = {
    "mix_index": (
        "mean over all windows of w consecutive steps of TV(window mix, whole mix) / sum over groups of sqrt(p (1 - p) / (2 pi N)), "
        "N the mean number of draws in a window (micro-batches for buckets, clips for domains), p the whole mix; 1 is a random order"
    ),
    "waste_micro": "1 - sum of micro-batch seconds / (lanes x sum over rows of the slowest lane)",
    "waste_step": "1 - sum of micro-batch seconds / (lanes x sum over steps of the lane with most seconds in the step)",
    "shared_source_ratio": (
        "pairs of clips of one source in the same step / their number in a random order: "
        "sum over sources of m (m - 1) / 2 x sum over steps of n (n - 1) / (N (N - 1)), m clips of the source, n of the step, N of all"
    ),
    "order_entropy": "entropy in bits of the distances between the places that neighbours of the order have in the data",
}
"""Metric to definition in words, for reports."""

_BLOCK_CELLS = 1 << 22
"""Windows are taken in blocks of so many (window, group) cells: 32 MiB at a time, whatever the plan's length."""


def tv_floor(shares: np.ndarray, draws: float) -> float:
    """Expected TV between the mix of `draws` independent draws and the mix that they are drawn from.

    sum_b sqrt(p_b (1 - p_b) / (2 pi N)), the normal limit of the binomial's mean absolute deviation; too high where N p_b is below about one.
    `shares` need not be normalised. 0 if there is one group only.

    Raises:
        ValueError: on shares below 0 or all 0, or less than one draw.
    """
    shares = np.asarray(shares, dtype=np.float64)
    total = float(shares.sum())
    if total <= 0.0 or (shares < 0.0).any() or draws < 1:
        raise ValueError(
            f"shares sum to {total:g} and draws is {draws:g}; need shares of at least 0, one above 0, and a draw"
        )
    p = shares / total
    return float(np.sqrt(p * (1.0 - p) / (2.0 * math.pi * draws)).sum())


def window_tv(counts_SxG: np.ndarray, window: int) -> np.ndarray:
    """TV of each sliding window of `window` consecutive steps from the mix of all steps, float64, in order.

    `counts_SxG`: draws by step and group, integers or floats. TV is half the sum of absolute differences of shares, in [0, 1]. There are
    S - window + 1 windows; one over everything (TV 0) where `window` is longer than S. Windows without a draw have no mix and are left out.

    Raises:
        ValueError: if there is no draw at all, or `window` is below 1.
    """
    counts = np.asarray(counts_SxG)
    total = float(counts.sum())
    if counts.ndim != 2 or window < 1 or total <= 0.0:
        raise ValueError(
            f"counts of shape {counts.shape} with {total:g} draws and window {window}; need (steps, groups), a draw and a step"
        )
    steps, groups = counts.shape
    window = min(window, steps)
    share_G = counts.sum(axis=0, dtype=np.float64) / total
    block = max(1, _BLOCK_CELLS // max(1, groups))
    found = []
    for first in range(0, steps - window + 1, block):
        last = min(first + block, steps - window + 1)
        sums = np.zeros((last - first + window, groups), dtype=np.float64)
        np.cumsum(counts[first : last + window - 1], axis=0, out=sums[1:])
        inside = sums[window:] - sums[:-window]
        draws = inside.sum(axis=1)
        filled = draws > 0
        found.append(0.5 * np.abs(inside[filled] / draws[filled, None] - share_G).sum(axis=1))
    return np.concatenate(found)


def mix_index(counts_SxG: np.ndarray, window: int) -> float:
    """Mean of `window_tv` over `tv_floor` at the mean number of draws in a window: 1 is a random order, less is more even.

    0 where one group has all draws: there is nothing to mix.
    """
    counts = np.asarray(counts_SxG)
    values = window_tv(counts, window)
    shares = counts.sum(axis=0, dtype=np.float64)
    if np.count_nonzero(shares) < 2:
        return 0.0
    window = min(window, len(counts))
    sums = np.concatenate([[0.0], np.cumsum(counts.sum(axis=1, dtype=np.float64))])
    draws = sums[window:] - sums[:-window]
    return float(values.mean()) / tv_floor(shares, max(1.0, float(draws[draws > 0].mean())))


def waste(seconds_VxM: np.ndarray, micro_per_step: int, sync: Literal["micro", "step"]) -> float:
    """Idle share of the lanes' time: 1 - sum c / (V T).

    `seconds_VxM`: seconds of each lane's micro-batches in row order. T is the sum over rows of the slowest lane (`micro`: ranks wait for each
    row, as FSDP with parameters gathered anew does), or the sum over steps of `micro_per_step` rows of the lane with most seconds (`step`); a
    last step may be short. 0 if nothing takes time.
    """
    seconds = np.asarray(seconds_VxM, dtype=np.float64)
    lanes, rows = seconds.shape
    if sync == "step" and rows:
        seconds = np.add.reduceat(seconds, np.arange(0, rows, micro_per_step), axis=1)
    time = float(seconds.max(axis=0).sum()) if rows else 0.0
    return max(0.0, 1.0 - float(seconds.sum()) / (lanes * time)) if time > 0.0 else 0.0


def shared_source_ratio(steps: np.ndarray, sources: np.ndarray) -> float:
    """Pairs of clips of one source in the same step, over the number expected if the clips were shuffled: 0 is none, 1 is chance.

    One entry per use, any order; give one epoch at a time. With m_u clips of source u, n_s clips in step s and N in all, a pair meets in a random
    order with probability sum_s n_s (n_s - 1) / (N (N - 1)), exactly; the expectation is that times sum_u m_u (m_u - 1) / 2. 0 where no
    pair exists or none can meet.
    """
    steps, sources = np.asarray(steps), np.asarray(sources)
    step = np.unique(steps, return_inverse=True)[1].astype(np.int64)
    source, per_source = np.unique(sources, return_inverse=True, return_counts=True)[1:]
    together = np.unique(step * max(1, len(per_source)) + source, return_counts=True)[1]
    uses = len(steps)
    meeting = _pairs(np.bincount(step)) / max(1.0, uses * (uses - 1) / 2)
    expected = _pairs(per_source) * meeting
    return _pairs(together) / expected if expected > 0.0 else 0.0


def _pairs(counts: np.ndarray) -> float:
    values = counts.astype(np.float64)
    return float((values * (values - 1.0) / 2.0).sum())


def order_entropy(order: np.ndarray) -> float:
    """Entropy in bits of |difference| of neighbours in `order`: 0 for data read as they lie, near log2(N) for a shuffle.

    `order` holds the place of each use in the data (sample or shard number). The definition is that of MosaicML streaming's simulator
    (simulation/core/shuffle_quality.py), which reports the harmonic mean of this over samples and over shards.
    """
    distances = np.abs(np.diff(np.asarray(order, dtype=np.int64)))
    if not len(distances):
        return 0.0
    share = np.unique(distances, return_counts=True)[1] / len(distances)
    return float(-(share * np.log2(share)).sum()) + 0.0
