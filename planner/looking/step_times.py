"""Predicted time of each step on R ranks, from the batch table alone: what ranks wait for under each kind of synchronisation.

A rank runs its V / R lanes of a row one after another. Then

    row    of rank r:  c[r, i] = sum over its lanes of the seconds of their bucket in row i
    micro  T = sum over rows of the step of max over ranks of c     (ranks meet after each row: FSDP that gathers parameters anew)
    step   T = max over ranks of sum over rows of the step of c     (ranks meet at the optimizer step)
    idle       1 - sum over ranks and rows of c / (R * T)

Ranks that run several lanes and gather anew in each micro-batch meet more often than after each row: `every` is the time if the j-th lanes of
all ranks wait for each other. For one lane per rank it is the same as `micro`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schemas.plan import PlanMeta

__all__ = ["StepTimes", "idle_share", "lane_seconds", "step_times"]


@dataclass(frozen=True)
class StepTimes:
    """Seconds, one value per step unless said otherwise."""

    micro: np.ndarray
    step: np.ndarray
    every: np.ndarray
    busy: np.ndarray
    """Mean over ranks."""
    by_rank: np.ndarray
    """(ranks, steps): busy seconds of each rank."""

    def under(self, sync: str) -> np.ndarray:
        """`micro` or `step`."""
        return self.micro if sync == "micro" else self.step


def lane_seconds(bucket_VN: np.ndarray, meta: PlanMeta) -> np.ndarray:
    """(lanes, rows): predicted seconds of each micro-batch."""
    return np.array([entry.predicted_seconds for entry in meta.batches])[bucket_VN]


def step_times(seconds_VN: np.ndarray, ranks: int, micro_per_step: int) -> StepTimes:
    """Times of all steps on `ranks`, which must divide the lanes."""
    lanes, rows = seconds_VN.shape
    split = seconds_VN.reshape(ranks, lanes // ranks, rows // micro_per_step, micro_per_step)
    by_row = split.sum(axis=1)
    by_rank = by_row.sum(axis=2)
    return StepTimes(
        micro=by_row.max(axis=0).sum(axis=1),
        step=by_rank.max(axis=0),
        every=split.max(axis=0).sum(axis=(0, 2)),
        busy=by_rank.mean(axis=0),
        by_rank=by_rank,
    )


def idle_share(busy: np.ndarray, waited: np.ndarray) -> float:
    """1 - busy / waited-for, over all steps; 0 where nothing takes time."""
    total = float(waited.sum())
    return 1.0 - float(busy.sum()) / total if total > 0 else 0.0
