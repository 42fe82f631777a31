"""Planned epochs to the tables of the plan format (schemas.plan), column by column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from planner.batches import BatchLine
from planner.epochs import EpochPlan
from planner.samples import Corpus
from planner.schedule import LaneSchedule, RowStarts
from schemas.plan import LANE, LEDGER, ROWS, SPARES

__all__ = ["lane_table", "ledger_table", "read_runs", "rows_table", "spares_table"]

_CLIP_TYPE = LANE.field("clips").type.value_type
_READ_TYPE = LANE.field("reads").type.value_type


def rows_table(epochs: Sequence[EpochPlan], starts: Sequence[RowStarts], table: Sequence[BatchLine]) -> pa.Table:
    """One row per (step, micro)."""
    tier = np.array([line.tier for line in table], dtype=np.int32)
    seconds = np.array([line.seconds for line in table])
    number, step, micro = _row_numbers(starts)
    lines = np.concatenate([epoch.lane_rows for epoch in epochs], axis=1)
    columns = [number, step, micro, pa.array(tier[lines[0]]), pa.array(seconds[lines].max(axis=0))]
    return pa.Table.from_arrays(columns, schema=ROWS)


def _row_numbers(starts: Sequence[RowStarts]) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Columns epoch, step, micro."""
    rows = np.arange(sum(start.num_rows for start in starts), dtype=np.int64)
    per_step = starts[0].micro_per_step
    number = np.repeat(np.arange(len(starts), dtype=np.int32), [start.num_rows for start in starts])
    return pa.array(number), pa.array(rows // per_step), pa.array((rows % per_step).astype(np.int32))


def lane_table(
    lane: int, epochs: Sequence[EpochPlan], starts: Sequence[RowStarts], table: Sequence[BatchLine], corpus: Corpus
) -> pa.Table:
    """One lane's rows: buckets, clips, reads."""
    lines = np.concatenate([epoch.lane_rows[lane] for epoch in epochs])
    sides = np.array([(line.bucket.frames, line.bucket.height, line.bucket.width) for line in table], dtype=np.int32)
    clips = np.concatenate(
        [epoch.lanes[lane].clips[np.argsort(epoch.lanes[lane].use, kind="stable")] for epoch in epochs]
    )
    batch = np.array([line.clips_per_lane for line in table], dtype=np.int64)[lines]
    runs = [read_runs(epoch.lanes[lane], corpus, start.num_rows) for epoch, start in zip(epochs, starts, strict=True)]
    reads = pa.StructArray.from_arrays(
        [pa.array(np.concatenate([run[column] for run in runs])) for column in range(3)], fields=list(_READ_TYPE)
    )
    named = pa.StructArray.from_arrays(
        [pa.array(corpus.shard[clips]), pa.array(corpus.ordinal[clips])], fields=list(_CLIP_TYPE)
    )
    return pa.Table.from_arrays(
        [
            *_row_numbers(starts),
            *(pa.array(sides[lines, side]) for side in range(3)),
            _lists(batch, named, LANE.field("clips").type),
            _lists(np.concatenate([run[3] for run in runs]), reads, LANE.field("reads").type),
        ],
        schema=LANE,
    )


def _lists(lengths: np.ndarray, values: pa.Array, kind: pa.DataType) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind)


def read_runs(
    lane: LaneSchedule, corpus: Corpus, num_rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(shard, offset, length) of the lane's reads in order, and reads per row; neighbours in a tar that are read for one row are one read."""
    shard, offset, length = corpus.shard[lane.clips], corpus.offset[lane.clips], corpus.length[lane.clips]
    end = offset + length
    fresh = np.ones(len(shard), dtype=bool)
    fresh[1:] = (shard[1:] != shard[:-1]) | (offset[1:] != end[:-1]) | (lane.read[1:] != lane.read[:-1])
    first = np.flatnonzero(fresh)
    last = np.concatenate([first[1:], [len(shard)]]) - 1
    per_row = np.bincount(lane.read[first], minlength=num_rows)
    return shard[first], offset[first], end[last] - offset[first], per_row


def ledger_table(entries: Sequence[tuple[int, np.ndarray, str]], corpus: Corpus) -> pa.Table:
    """`left_over` entries: (epoch, clip positions, reason), each in position order."""
    sides = np.array([(item.frames, item.height, item.width) for item in corpus.buckets], dtype=np.int32)
    tables = [LEDGER.empty_table()]
    for epoch, clips, reason in entries:
        count = len(clips)
        columns = [
            pa.array(np.full(count, epoch, dtype=np.int32)),
            pa.array([corpus.clip_id[index] for index in clips.tolist()], pa.string()),
            pa.array(corpus.shard[clips]),
            pa.array(corpus.ordinal[clips]),
            *(pa.array(sides[corpus.bucket[clips], side]) for side in range(3)),
            pa.array(["left_over"] * count, pa.string()),
            pa.array([reason] * count, pa.string()),
        ]
        tables.append(pa.Table.from_arrays(columns, schema=LEDGER))
    return pa.concat_tables(tables)


def spares_table(
    corpus: Corpus, table: Sequence[BatchLine], left_over: np.ndarray, epochs: Sequence[EpochPlan], per_bucket: int
) -> pa.Table:
    """Up to `per_bucket` clips per lane and bucket out of those left over in some epoch (`left_over` counts how often).

    Clips of the bucket itself come before longer ones of its size, and those left over most before others; a clip goes to a lane that reads its
    shard while that lane has room, else to the lane with fewest.
    """
    num_lanes = len(epochs[0].lanes)
    readers: dict[int, set[int]] = {}
    for epoch in epochs:
        for lane, schedule in enumerate(epoch.lanes):
            for shard in np.unique(corpus.shard[schedule.clips]).tolist():
                readers.setdefault(shard, set()).add(lane)
    rows: list[tuple[int, int, int, int, int, int]] = []
    for line in table:
        if not line.rows_per_epoch:
            continue
        counts = [0] * num_lanes
        for clip in _spare_candidates(corpus, line, left_over, num_lanes * per_bucket):
            near = [lane for lane in sorted(readers.get(int(corpus.shard[clip]), ())) if counts[lane] < per_bucket]
            lane = min(near or range(num_lanes), key=counts.__getitem__)
            if counts[lane] < per_bucket:
                counts[lane] += 1
                bucket = line.bucket
                rows.append(
                    (
                        lane,
                        bucket.frames,
                        bucket.height,
                        bucket.width,
                        int(corpus.shard[clip]),
                        int(corpus.ordinal[clip]),
                    )
                )
    rows.sort(key=lambda row: row[:4])
    columns = [pa.array([row[column] for row in rows], pa.int32()) for column in range(6)]
    return pa.Table.from_arrays(columns, schema=SPARES)


def _spare_candidates(corpus: Corpus, line: BatchLine, left_over: np.ndarray, most: int) -> list[int]:
    fits = [
        index
        for index, bucket in enumerate(corpus.buckets)
        if (bucket.height, bucket.width) == (line.bucket.height, line.bucket.width)
        and bucket.frames >= line.bucket.frames
    ]
    clips = np.flatnonzero(np.isin(corpus.bucket, fits) & (left_over > 0))
    frames = np.array([bucket.frames for bucket in corpus.buckets])[corpus.bucket[clips]]
    chosen: list[int] = clips[np.lexsort((clips, -left_over[clips], frames))][:most].tolist()
    return chosen
