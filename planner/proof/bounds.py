"""What no schedule can beat, and how far the plan is from it: clips that integer batches can use, and seconds that the micro-batches need."""

from __future__ import annotations

import math

import numpy as np

from planner.proof.lanes import LaneChecks
from planner.proof.truth import Truth
from schemas.plan import PlanMeta

__all__ = ["largest_use", "sort_bound", "time_bounds", "used_share_bound"]


def largest_use(batches: list[tuple[int, int]]) -> int:
    """Most clips of one size that whole micro-batches can take; `batches` are (clips per micro-batch, clips that fit), longest bucket first.

    Clips that fit grow along the list, since a longer clip fits a shorter bucket: `largest_use([(4, 6), (5, 14)]) == 14` (4 + 5 + 5).
    Exact, by marking each reachable sum; a byte per clip.
    """
    most = batches[-1][1] if batches else 0
    reach = np.zeros(most + 1, dtype=bool)
    reach[0] = True
    for batch, fits in batches:
        rows = -(-len(reach) // batch)
        padded = np.zeros(rows * batch, dtype=bool)
        padded[: len(reach)] = reach
        reach = np.logical_or.accumulate(padded.reshape(rows, batch), axis=0).ravel()[: most + 1]
        reach[fits + 1 :] = False
    return int(np.flatnonzero(reach)[-1])


def used_share_bound(meta: PlanMeta, truth: Truth) -> float:
    """Largest share of distinct clips that the batch table, lanes, policy and whole steps allow (the certificate has the formula)."""
    admitted = truth.admitted
    num_admitted = int(admitted.sum())
    if not num_admitted:
        return 1.0
    epochs = max(1, meta.num_epochs)
    per_epoch = _usable(meta, truth, admitted)
    first = per_epoch
    if truth.used_before.any():
        first = _usable(meta, truth, admitted & (truth.used_before == 0))
    usable = first + per_epoch * (epochs - 1)
    return min(usable, _in_whole_steps(meta, usable)) / (num_admitted * epochs)


def _in_whole_steps(meta: PlanMeta, usable: int) -> int:
    """Most clips that whole steps can take, rows of the smallest batches and filled by the largest.

    How many steps the plan has says nothing of how many there could be, but where `max_steps` ended it.
    """
    batches = [entry.clips_per_lane for entry in meta.batches]
    if not batches:
        return 0
    rows = usable * meta.max_uses_per_epoch // (meta.num_lanes * min(batches))
    rows -= rows % meta.micro_per_step
    if meta.config.get("max_steps") == meta.first_step + meta.num_steps:
        rows = min(rows, meta.num_steps * meta.micro_per_step)
    return rows * meta.num_lanes * max(batches)


def _usable(meta: PlanMeta, truth: Truth, clips: np.ndarray) -> int:
    """Distinct clips that an epoch can use of these."""
    counts = np.bincount(truth.code[clips], minlength=len(truth.sizes))
    by_size: dict[tuple[int, int], dict[int, int]] = {}
    for (frames, height, width), count in zip(truth.sizes, counts.tolist(), strict=True):
        by_size.setdefault((height, width), {})[frames] = count
    batches: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for entry in meta.batches:
        frames, height, width = map(int, entry.bucket.split("x"))
        batches.setdefault((height, width), []).append((frames, entry.clips_per_lane))
    unit = 1 if meta.policy == "tiers" else meta.num_lanes
    total = 0
    for size, lines in batches.items():
        own = by_size.get(size, {})
        fits = [
            (batch, sum(count for at, count in own.items() if at >= frames))
            for frames, batch in sorted(lines, reverse=True)
        ]
        if meta.max_uses_per_epoch > 1:
            total += fits[-1][1]
        else:
            total += unit * largest_use([(batch, count // unit) for batch, count in fits])
    return total


def sort_bound(micro_batches: np.ndarray, seconds: np.ndarray, lanes: int) -> float:
    """All micro-batches sorted by seconds, cut into rows of `lanes`: the sum of row maxima, which no order of them undercuts under sync micro.

    `sort_bound(np.array([3, 1]), np.array([1.0, 5.0]), 2) == 6.0` (rows 5 1 and 1 1).
    """
    order = np.argsort(-seconds, kind="stable")
    ends = np.cumsum(micro_batches[order])
    rows = -(-ends // lanes) - -(-(ends - micro_batches[order]) // lanes)
    return float((rows * seconds[order]).sum())


def time_bounds(meta: PlanMeta, checks: LaneChecks) -> dict[str, float]:
    """Predicted seconds of the plan, their lower bounds, and the gap."""
    seconds = np.array([entry.predicted_seconds for entry in meta.batches])
    total = float((checks.micro_batches * seconds).sum())
    mean = total / max(1, meta.num_lanes)
    by_rows = sort_bound(checks.micro_batches, seconds, max(1, meta.num_lanes))
    predicted = math.fsum((checks.slowest if meta.sync == "micro" else checks.slowest_steps).tolist())
    bound = by_rows if meta.sync == "micro" else mean
    return {
        "predicted_seconds": predicted,
        "predicted_seconds_mean_bound": mean,
        "predicted_seconds_sort_bound": by_rows,
        "predicted_gap": max(0.0, predicted / bound - 1.0) if bound > 0 else 0.0,
        "predicted_idle_share": max(0.0, 1.0 - mean / predicted) if predicted > 0 else 0.0,
    }
