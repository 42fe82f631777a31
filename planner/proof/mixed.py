"""The mix index from counts by step, computed apart from the planner's: one window slides over the steps in compiled code, in the memory of a row.

A window's mix is its shares of groups; its distance from the mix of all is half the sum of absolute differences; the index is the mean distance over
what as many random draws would have, sum over groups of sqrt(p (1 - p) / (2 pi N)).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

__all__ = ["sliding_mix_index"]


def sliding_mix_index(counts: np.ndarray, window: int) -> float | None:
    """`counts`: draws by step and group. 0 where one group has all; None where there is no draw or no window.

    `sliding_mix_index(np.array([[1, 0], [0, 1]]), 1) == 0.5 / (2 * 0.5 / sqrt(2 * pi))`
    """
    groups = counts.sum(axis=0, dtype=np.int64)
    total = int(groups.sum())
    if not total or window < 1:
        return None
    share = groups / total
    if np.count_nonzero(groups) < 2:
        return 0.0
    distance, windows, draws = _slide(counts, min(window, len(counts)), share)
    floor = float(np.sqrt(share * (1.0 - share) / (2.0 * math.pi * max(1.0, draws / windows))).sum())
    return float(distance) / windows / floor


@njit(cache=True, nogil=True)
def _slide(counts: np.ndarray, window: int, share: np.ndarray) -> tuple[float, int, int]:
    """(summed distance, windows that hold a draw, summed draws)."""
    steps, groups = counts.shape
    inside = np.zeros(groups, np.int64)
    held = 0
    summed = 0.0
    windows = draws = 0
    for step in range(steps):
        for group in range(groups):
            leaves = counts[step - window, group] if step >= window else 0
            change = int(counts[step, group]) - int(leaves)
            inside[group] += change
            held += change
        if step + 1 < window or held == 0:
            continue
        distance = 0.0
        for group in range(groups):
            distance += abs(inside[group] / held - share[group])
        summed += distance / 2
        windows += 1
        draws += held
    return summed, windows, draws
