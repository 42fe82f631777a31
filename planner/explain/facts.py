"""What every chapter of `explain` starts from: one pass over the lanes, kept as counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from planner.looking.lane_arrays import open_lanes
from planner.looking.step_times import lane_seconds
from schemas.buckets import Bucket
from schemas.plan import LEDGER, PlanMeta, read_plan_table

__all__ = ["PlanFacts", "plan_facts"]


@dataclass(frozen=True)
class PlanFacts:
    """A plan in counts; arrays by bucket follow its batch table."""

    meta: PlanMeta
    buckets: tuple[Bucket, ...]
    bucket_VN: np.ndarray
    """(lanes, rows): index of the bucket."""
    ledger: pa.Table
    """bucket, event, reason, clips: entries of the ledger, counted over all epochs."""

    @property
    def lane_seconds(self) -> np.ndarray:
        """(lanes, rows): predicted seconds."""
        return lane_seconds(self.bucket_VN, self.meta)

    @property
    def seconds(self) -> np.ndarray:
        """Predicted seconds of one micro-batch, by bucket."""
        return np.array([entry.predicted_seconds for entry in self.meta.batches])

    @property
    def micro_batches(self) -> np.ndarray:
        """By bucket, over all lanes, epochs and rows."""
        return np.bincount(self.bucket_VN.ravel(), minlength=len(self.buckets))

    def by_row(self, bucket: int) -> np.ndarray:
        """Per row: lanes that run the bucket."""
        return (self.bucket_VN == bucket).sum(axis=0)


def plan_facts(plan: Path, meta: PlanMeta) -> PlanFacts:
    """Read the lanes and the ledger."""
    bucket_VN = np.empty((meta.num_lanes, meta.num_steps * meta.micro_per_step), dtype=np.int16)
    for lane in open_lanes(plan, meta):
        bucket_VN[lane.lane] = lane.bucket
    ledger = read_plan_table(plan, "ledger", LEDGER, meta)
    sides = [pc.cast(ledger.column(name), pa.string()) for name in ("frames", "height", "width")]
    named = ledger.append_column("bucket", pc.binary_join_element_wise(*sides, "x"))
    return PlanFacts(
        meta=meta,
        buckets=tuple(Bucket.parse(entry.bucket) for entry in meta.batches),
        bucket_VN=bucket_VN,
        ledger=named.group_by(["bucket", "event", "reason"]).aggregate([([], "count_all")]),
    )
