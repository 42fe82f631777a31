"""The numbers of the page that `plan.json` does not have: mixing over windows against random draws, and how shards are opened.

Definitions are those of `planner.mixing`. Windows that are not shorter than the plan are left out: over the whole, every mix is the whole's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.mixing import mix_index, tv_floor, window_tv
from planner.report.binning import bin_edges, bin_mean
from planner.report.tally import Visits

__all__ = ["WINDOWS", "ShardOpens", "WindowMix", "shard_opens", "wait_quantile", "window_mixes"]

WINDOWS = (1, 8, 64, 512)
"""Steps of the windows that mixing is looked at over."""
_POINTS = 900


@dataclass(frozen=True)
class WindowMix:
    """How far windows of `window` steps are from the mix of the whole."""

    window: int
    index: float
    """Mean over the windows / floor: 1 is a random order."""
    mean: float
    worst: float
    floor: float
    """Expected for random draws."""
    middles: np.ndarray
    """Middle of each point's windows, in steps from the plan's first."""
    values: np.ndarray
    """Total variation, mean of the windows of a point."""


def window_mixes(counts_SxG: np.ndarray) -> list[WindowMix]:
    """One entry per window shorter than the plan; empty where fewer than two groups have draws."""
    draws_S = counts_SxG.sum(axis=1)
    shares = counts_SxG.sum(axis=0)
    if np.count_nonzero(shares) < 2:
        return []
    found = []
    for window in WINDOWS:
        if window > 1 and window >= len(counts_SxG):
            continue
        values = window_tv(counts_SxG, window)
        edges = bin_edges(len(values), _POINTS)
        middles = (edges[:-1] + edges[1:] - 1) / 2 + window / 2
        sums = np.concatenate([[0.0], np.cumsum(draws_S.astype(np.float64))])
        draws = float((sums[window:] - sums[:-window]).mean())
        found.append(
            WindowMix(
                window=window,
                index=mix_index(counts_SxG, window),
                mean=float(values.mean()),
                worst=float(values.max()),
                floor=tv_floor(shares, draws),
                middles=middles,
                values=bin_mean(values, edges),
            )
        )
    return found


@dataclass(frozen=True)
class ShardOpens:
    """How many lanes open the shards."""

    per_shard: float
    """(lane, shard) pairs per epoch and shard."""
    by_lanes: np.ndarray
    """Entry n: (shard, epoch) pairs that n lanes open."""
    most_opened: list[tuple[int, int, int, int]]
    """(shard, epoch, lanes, byte ranges) of those that most lanes open."""


def shard_opens(visits: Visits, num_shards: int, num_epochs: int, first_epoch: int = 0, most: int = 20) -> ShardOpens:
    """Counts over all visits of epochs first_epoch to first_epoch + num_epochs - 1."""
    pair = (visits.epoch - first_epoch) * num_shards + visits.shard
    keys, inverse = np.unique(pair, return_inverse=True)
    lanes = np.bincount(inverse, minlength=len(keys))
    ranges = np.bincount(inverse, visits.num_reads, minlength=len(keys)).astype(np.int64)
    by_lanes = np.bincount(lanes)
    by_lanes[0] = num_shards * num_epochs - len(keys)
    top = np.lexsort((keys, -ranges, -lanes))[:most]
    rows = [
        (
            int(keys[index] % num_shards),
            int(keys[index] // num_shards) + first_epoch,
            int(lanes[index]),
            int(ranges[index]),
        )
        for index in top
    ]
    return ShardOpens(len(pair) / (num_shards * num_epochs), by_lanes, rows)


def wait_quantile(wait_rows: np.ndarray, share: float) -> int:
    """Rows that at least `share` of the clips wait at most."""
    counts = np.cumsum(wait_rows)
    return int(np.searchsorted(counts, share * counts[-1]))
