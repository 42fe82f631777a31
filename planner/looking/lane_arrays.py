"""A lane's table as flat NumPy arrays, which is what every look at a plan computes on; one lane at a time, so that memory does not grow with lanes.

Arrow keeps clips and reads as lists of structs; here each use and each read is one entry that knows its row. Price: the row number of each
entry, 8 bytes, where the table has one offset per row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.buckets import Bucket
from schemas.command import progress
from schemas.errors import PlanError
from schemas.plan import PlanMeta, read_lane

__all__ = ["LaneArrays", "lane_arrays", "open_lane", "open_lanes"]


@dataclass(frozen=True)
class LaneArrays:
    """One lane. Rows are numbered from 0 within the plan: row i is micro-batch i % K of step `first_step + i // K`."""

    lane: int
    epoch: np.ndarray
    """Per row."""
    step: np.ndarray
    """Per row."""
    bucket: np.ndarray
    """Per row: index into the plan's batch table."""
    clip_row: np.ndarray
    """Per use of a clip, in the order of rows."""
    clip_shard: np.ndarray
    clip_ordinal: np.ndarray
    read_row: np.ndarray
    """Per read, in reading order."""
    read_shard: np.ndarray
    read_offset: np.ndarray
    read_length: np.ndarray

    @property
    def opens(self) -> np.ndarray:
        """Per read: whether it is the first of its shard in the epoch, so that the shard has to be opened."""
        epoch = self.epoch[self.read_row].astype(np.int64)
        keys = epoch << 32 | self.read_shard.astype(np.int64)
        first = np.zeros(len(keys), dtype=bool)
        first[np.unique(keys, return_index=True)[1]] = True
        return first


def open_lane(plan: Path, lane: int, meta: PlanMeta) -> LaneArrays:
    """Read one lane of a plan.

    Raises:
        PlanError: if the table was changed, or its rows are not those of plan.json.
    """
    return lane_arrays(read_lane(plan, lane, meta), lane, meta)


def open_lanes(plan: Path, meta: PlanMeta, *, what: str = "reading lanes") -> Iterator[LaneArrays]:
    """All lanes in order, with progress."""
    for lane in progress(range(meta.num_lanes), what=what):
        yield open_lane(plan, lane, meta)


def lane_arrays(table: pa.Table, lane: int, meta: PlanMeta) -> LaneArrays:
    """The arrays of a lane's table."""
    rows = meta.num_steps * meta.micro_per_step
    step = table.column("step").to_numpy()
    if table.num_rows != rows or not np.array_equal(step, meta.first_step + np.arange(rows) // meta.micro_per_step):
        raise PlanError(
            f"lane {lane} has {table.num_rows} rows, expected {meta.num_steps} steps x {meta.micro_per_step} = {rows} from step "
            f"{meta.first_step} on; run `reelyard-plan verify` on the plan"
        )
    clip_row, clips = _flat(table.column("clips"))
    read_row, reads = _flat(table.column("reads"))
    return LaneArrays(
        lane=lane,
        epoch=table.column("epoch").to_numpy(),
        step=step,
        bucket=_bucket_numbers(table, lane, meta),
        clip_row=clip_row,
        clip_shard=clips.field("shard").to_numpy(),
        clip_ordinal=clips.field("ordinal").to_numpy(),
        read_row=read_row,
        read_shard=reads.field("shard").to_numpy(),
        read_offset=reads.field("offset").to_numpy(),
        read_length=reads.field("length").to_numpy(),
    )


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.StructArray]:
    """(row of each entry, the entries) of a column of lists."""
    lists = column.combine_chunks()
    return np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy()), lists.flatten()


def _bucket_numbers(table: pa.Table, lane: int, meta: PlanMeta) -> np.ndarray:
    def keys(frames: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
        return frames.astype(np.int64) << 40 | height.astype(np.int64) << 20 | width.astype(np.int64)

    buckets = [Bucket.parse(entry.bucket) for entry in meta.batches]
    known = keys(*(np.array([getattr(item, side) for item in buckets]) for side in ("frames", "height", "width")))
    asked = keys(*(table.column(side).to_numpy() for side in ("frames", "height", "width")))
    order = np.argsort(known)
    at = order[np.minimum(np.searchsorted(known[order], asked), len(known) - 1)]
    if (known[at] != asked).any():
        row = int(np.flatnonzero(known[at] != asked)[0])
        sides = "x".join(str(table.column(side)[row]) for side in ("frames", "height", "width"))
        raise PlanError(
            f"lane {lane}, row {row}: bucket {sides} is not in the plan's batch table; run `reelyard-plan verify` on the plan"
        )
    return at.astype(np.int32)
