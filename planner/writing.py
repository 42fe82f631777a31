"""Planned epochs to the tables of the plan format (schemas.plan), column by column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from planner.pricing.batches import BatchLine
from planner.samples import Corpus
from planner.schedule.epochs import EpochPlan
from schemas.plan import LANE, ROWS

__all__ = ["Numbering", "lane_table", "rows_table"]

_CLIP_TYPE = LANE.field("clips").type.value_type
_READ_TYPE = LANE.field("reads").type.value_type


@dataclass(frozen=True)
class Numbering:
    """How rows are numbered: where the plan starts, and how many rows make a step."""

    first_step: int
    micro_per_step: int

    def columns(self, epochs: Sequence[EpochPlan]) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Columns epoch, step, micro of all rows."""
        lengths = [epoch.rows.shape[1] for epoch in epochs]
        row = np.arange(sum(lengths), dtype=np.int64) + self.first_step * self.micro_per_step
        number = np.repeat(np.array([epoch.number for epoch in epochs], dtype=np.int32), lengths)
        micro = (row % self.micro_per_step).astype(np.int32)
        return pa.array(number), pa.array(row // self.micro_per_step), pa.array(micro)


def rows_table(epochs: Sequence[EpochPlan], lines: Sequence[BatchLine], numbering: Numbering) -> pa.Table:
    """One row per (step, micro)."""
    tier = np.array([line.tier for line in lines], dtype=np.int32)
    seconds = np.array([line.seconds for line in lines])
    first = np.concatenate([epoch.rows[0] for epoch in epochs])
    slowest = np.concatenate([seconds[epoch.rows].max(axis=0) for epoch in epochs])
    return pa.Table.from_arrays([*numbering.columns(epochs), pa.array(tier[first]), pa.array(slowest)], schema=ROWS)


def lane_table(
    lane: int, epochs: Sequence[EpochPlan], lines: Sequence[BatchLine], corpus: Corpus, numbering: Numbering
) -> pa.Table:
    """One lane's rows: buckets, clips, reads."""
    rows = np.concatenate([epoch.rows[lane] for epoch in epochs])
    sides = np.array([(line.bucket.frames, line.bucket.height, line.bucket.width) for line in lines], dtype=np.int32)
    batch = np.array([line.clips_per_lane for line in lines], dtype=np.int64)
    clips = np.concatenate([epoch.use_clip[epoch.use_start[lane] : epoch.use_start[lane + 1]] for epoch in epochs])
    runs = [_read_runs(epoch, lane, corpus) for epoch in epochs]
    reads = pa.StructArray.from_arrays(
        [pa.array(np.concatenate([run[column] for run in runs])) for column in range(3)], fields=list(_READ_TYPE)
    )
    named = pa.StructArray.from_arrays(
        [pa.array(corpus.shard[clips]), pa.array(corpus.ordinal[clips])], fields=list(_CLIP_TYPE)
    )
    return pa.Table.from_arrays(
        [
            *numbering.columns(epochs),
            *(pa.array(sides[rows, side]) for side in range(3)),
            _lists(batch[rows], named, LANE.field("clips").type),
            _lists(np.concatenate([run[3] for run in runs]), reads, LANE.field("reads").type),
        ],
        schema=LANE,
    )


def _lists(lengths: np.ndarray, values: pa.Array, kind: pa.DataType) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind)


def _read_runs(epoch: EpochPlan, lane: int, corpus: Corpus) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(shard, offset, length) of the lane's reads in order, and reads per row; neighbours in a tar that are read for one row are one read."""
    span = slice(int(epoch.read_start[lane]), int(epoch.read_start[lane + 1]))
    clips, row = epoch.read_clip[span], epoch.read_row[span]
    if not len(clips):
        empty = np.empty(0, dtype=np.int64)
        return empty.astype(np.int32), empty, empty, np.zeros(epoch.rows.shape[1], dtype=np.int64)
    shard, offset, length = corpus.shard[clips], corpus.offset[clips], corpus.length[clips]
    end = offset + length
    fresh = np.ones(len(shard), dtype=bool)
    fresh[1:] = (shard[1:] != shard[:-1]) | (offset[1:] != end[:-1]) | (row[1:] != row[:-1])
    first = np.flatnonzero(fresh)
    last = np.concatenate([first[1:], [len(shard)]]) - 1
    per_row = np.bincount(row[first], minlength=epoch.rows.shape[1])
    return shard[first], offset[first], end[last] - offset[first], per_row
