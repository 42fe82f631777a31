"""One pass over the lanes of a plan: everything that the page draws, in arrays that do not grow with the number of clips.

Lanes are read one at a time. By row: how many lanes run each bucket, the slowest lane. By step: draws of each domain. By lane: totals, and a picture
of at most `MOST_CELLS` cells. By (lane, shard, epoch): when the shard is open and what is read of it. With samples also the buffered bytes and
clips of every row and lane. Price: for long plans, the pictures hold one row of each bin.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from planner.report.binning import bin_edges, bin_max, sampled_rows
from planner.report.buffers import BufferCounter, BufferTally
from planner.report.sample_facts import SampleFacts
from schemas.command import progress
from schemas.errors import PlanError
from schemas.plan import PlanMeta, read_lane

__all__ = ["PlanTally", "Visits", "open_by_row", "step_starts", "tally_plan"]

MOST_CELLS = 4_000_000
"""Cells (lanes x columns) of the picture of buckets: one byte each."""
MOST_COLUMNS = 16_384
MOST_LANES = 1_024
"""Lanes of a picture; of more, evenly many are drawn."""
BUFFER_COLUMNS = 1_200


@dataclass(frozen=True)
class Visits:
    """One entry per (lane, epoch, shard) that is read, in reading order of the lanes; rows are indices into all rows."""

    lane: np.ndarray
    epoch: np.ndarray
    shard: np.ndarray
    first_row: np.ndarray
    last_row: np.ndarray
    num_reads: np.ndarray
    num_bytes: np.ndarray


@dataclass(frozen=True)
class PlanTally:
    """Facts of all lanes. V lanes, M rows, S steps, B buckets in the order of the batch table, D domains."""

    epoch_M: np.ndarray
    step_M: np.ndarray
    counts_MxB: np.ndarray
    """Lanes that run the bucket in the row."""
    slowest_M: np.ndarray
    """Predicted seconds of the slowest lane."""
    total_seconds: float
    """Of all micro-batches."""
    step_slowest_S: np.ndarray
    """Predicted seconds of the lane with most seconds in the step."""
    clips_B: np.ndarray
    """Clips used (uses) by bucket."""
    clips_V: np.ndarray
    bytes_V: np.ndarray
    reads_V: np.ndarray
    seconds_V: np.ndarray
    open_peak_V: np.ndarray
    """Most shards open at once, by lane."""
    open_max_C: np.ndarray
    """Most shards that any lane has open, by bin of `buffer_edges`; `open_mean_C` is the mean over lanes of their largest."""
    open_mean_C: np.ndarray
    drawn_lanes: np.ndarray
    picture_edges: np.ndarray
    picture_VxC: np.ndarray
    """Bucket index of one row of each bin, by drawn lane; uint8."""
    picture_rows: np.ndarray
    """Which rows those are."""
    buffer_edges: np.ndarray
    visits: Visits
    buffer: BufferTally | None
    domains: tuple[str, ...]
    domain_SxD: np.ndarray | None

    def counts_SxB(self) -> np.ndarray:  # noqa: N802
        """Micro-batches by step and bucket."""
        return np.add.reduceat(self.counts_MxB, step_starts(self.step_M), axis=0)

    def waste(self, sync: str) -> float:
        """Predicted idle share when ranks wait for each row (`micro`) or each step (`step`)."""
        time = float(self.slowest_M.sum() if sync == "micro" else self.step_slowest_S.sum())
        return 1.0 - self.total_seconds / (len(self.clips_V) * time) if time > 0.0 else 0.0


def step_starts(step_M: np.ndarray) -> np.ndarray:
    """First row of each step."""
    return np.concatenate([[0], np.flatnonzero(np.diff(step_M)) + 1])


def tally_plan(plan: Path, meta: PlanMeta, rows: pa.Table, places: SampleFacts | None) -> PlanTally:
    """Read every lane once.

    Raises:
        PlanError: on a lane that was changed after the build, lacks rows, or names what batch table or samples do not have.
    """
    worker = _Worker(meta, rows, places)
    for lane in progress(range(meta.num_lanes), what="reading lanes"):
        worker.add(lane, read_lane(plan, lane, meta))
    return worker.result()


class _Worker:
    def __init__(self, meta: PlanMeta, rows: pa.Table, places: SampleFacts | None) -> None:
        self._meta, self._places = meta, places
        self._epoch, self._step = (rows.column(name).to_numpy().astype(np.int64) for name in ("epoch", "step"))
        num_rows, lanes, buckets = rows.num_rows, meta.num_lanes, len(meta.batches)
        if not num_rows:
            raise PlanError("rows.parquet has no row; a plan without steps has nothing to report, build it again")
        self._step_starts = step_starts(self._step)
        self._sides = {tuple(map(int, entry.bucket.split("x"))): index for index, entry in enumerate(meta.batches)}
        self._seconds = np.array([entry.predicted_seconds for entry in meta.batches])
        self._counts = np.zeros((num_rows, buckets), dtype=np.int32)
        self._slowest = np.zeros(num_rows)
        self._step_slowest = np.zeros(len(self._step_starts))
        self._clips_by_bucket = np.zeros(buckets, dtype=np.int64)
        self._by_lane = {name: np.zeros(lanes) for name in ("clips", "bytes", "reads", "seconds", "open")}
        self._drawn = np.unique(bin_edges(lanes, MOST_LANES)[:-1])
        columns = min(MOST_COLUMNS, max(1, MOST_CELLS // len(self._drawn)))
        self._edges = bin_edges(num_rows, columns)
        self._sampled = sampled_rows(self._edges, meta.seed)
        self._picture = np.zeros((len(self._drawn), len(self._sampled)), dtype=np.uint8)
        self._coarse = bin_edges(num_rows, BUFFER_COLUMNS)
        self._open_max = np.zeros(len(self._coarse) - 1)
        self._open_sum = np.zeros(len(self._coarse) - 1)
        self._visits: list[np.ndarray] = []
        self._buffer = None if places is None else BufferCounter(lanes, self._coarse, num_rows)
        self._domains = (
            None if places is None else np.zeros(len(self._step_starts) * len(places.domains), dtype=np.int64)
        )
        self._step_index = np.repeat(
            np.arange(len(self._step_starts)), np.diff(np.concatenate([self._step_starts, [num_rows]]))
        )

    def add(self, lane: int, table: pa.Table) -> None:
        """Count one lane."""
        where = f"lane {lane}"
        if table.num_rows != len(self._epoch):
            raise PlanError(f"{where} has {table.num_rows} rows, rows.parquet has {len(self._epoch)}; build it again")
        bucket = self._buckets(table, where)
        self._counts[np.arange(len(bucket)), bucket] += 1
        seconds = self._seconds[bucket]
        np.maximum(self._slowest, seconds, out=self._slowest)
        np.maximum(self._step_slowest, np.add.reduceat(seconds, self._step_starts), out=self._step_slowest)
        place = int(np.searchsorted(self._drawn, lane))
        drawn = place < len(self._drawn) and self._drawn[place] == lane
        if drawn:
            self._picture[place] = bucket[self._sampled]
        clip_row, clip = _flat(table.column("clips"), ("shard", "ordinal"))
        read_row, read = _flat(table.column("reads"), ("shard", "offset", "length"))
        self._clips_by_bucket += np.bincount(bucket[clip_row], minlength=len(self._clips_by_bucket))
        opened = self._reads(lane, read_row, read)
        facts = {"clips": len(clip_row), "bytes": read[2].sum(), "reads": len(read_row), "seconds": seconds.sum()}
        for name, value in facts.items():
            self._by_lane[name][lane] = value
        self._by_lane["open"][lane] = opened.max(initial=0)
        coarse = bin_max(opened, self._coarse)
        np.maximum(self._open_max, coarse, out=self._open_max)
        self._open_sum += coarse
        if self._places is not None and self._buffer is not None and self._domains is not None:
            entry = self._places.find(clip[0], clip[1], where)
            key = self._step_index[clip_row] * len(self._places.domains) + self._places.domain[entry]
            np.add.at(self._domains, key, 1)
            offset, length = self._places.offset[entry], self._places.length[entry]
            self._buffer.add(lane, (clip_row, clip[0], offset, length), (read_row, *read), self._epoch, where)

    def _buckets(self, table: pa.Table, where: str) -> np.ndarray:
        sides = np.stack([table.column(name).to_numpy() for name in ("frames", "height", "width")], axis=1)
        found, inverse = np.unique(sides, axis=0, return_inverse=True)
        index = [self._sides.get(tuple(side)) for side in found.tolist()]
        for side, number in zip(found.tolist(), index, strict=True):
            if number is None:
                raise PlanError(
                    f"{where} runs bucket {'x'.join(map(str, side))}, which the batch table of plan.json lacks"
                )
        return np.array(index, dtype=np.int64)[inverse.reshape(-1)]

    def _reads(self, lane: int, row: np.ndarray, read: tuple[np.ndarray, ...]) -> np.ndarray:
        """Note the lane's visits; returns the most shards open within each row."""
        shard, _, length = read
        epoch = self._epoch[row]
        number = np.arange(len(shard))
        span = int(shard.max(initial=0)) + 1
        keys, first, inverse, count = np.unique(
            epoch * span + shard, return_index=True, return_inverse=True, return_counts=True
        )
        last = np.zeros(len(keys), dtype=np.int64)
        np.maximum.at(last, inverse, number)
        brought = np.bincount(inverse, length, minlength=len(keys)).astype(np.int64)
        order = np.argsort(first)
        columns = (np.full(len(keys), lane), keys // span, keys % span, row[first], row[last], count, brought)
        self._visits.append(np.stack([column[order] for column in columns]).astype(np.int64))
        return open_by_row(row, first, last, len(self._epoch))

    def result(self) -> PlanTally:
        """Everything counted."""
        lanes = self._meta.num_lanes
        domains = self._places.domains if self._places is not None else ()
        by_lane = self._by_lane
        return PlanTally(
            epoch_M=self._epoch,
            step_M=self._step,
            counts_MxB=self._counts,
            slowest_M=self._slowest,
            total_seconds=float(by_lane["seconds"].sum()),
            step_slowest_S=self._step_slowest,
            clips_B=self._clips_by_bucket,
            clips_V=by_lane["clips"].astype(np.int64),
            bytes_V=by_lane["bytes"].astype(np.int64),
            reads_V=by_lane["reads"].astype(np.int64),
            seconds_V=by_lane["seconds"],
            open_peak_V=by_lane["open"].astype(np.int64),
            open_max_C=self._open_max,
            open_mean_C=self._open_sum / lanes,
            drawn_lanes=self._drawn,
            picture_edges=self._edges,
            picture_VxC=self._picture,
            picture_rows=self._sampled,
            buffer_edges=self._coarse,
            visits=Visits(*np.concatenate(self._visits, axis=1)),
            buffer=None if self._buffer is None else self._buffer.result(self._drawn),
            domains=domains,
            domain_SxD=None if self._domains is None else self._domains.reshape(-1, len(domains)),
        )


def _flat(column: pa.ChunkedArray, fields: tuple[str, ...]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Row of each item of a list column, and the items' fields, int64."""
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.chunk(0)
    row = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    items = lists.flatten()
    return row, tuple(items.field(name).to_numpy(zero_copy_only=False).astype(np.int64) for name in fields)


def open_by_row(row: np.ndarray, first: np.ndarray, last: np.ndarray, num_rows: int) -> np.ndarray:
    """Most shards open within each row, counted read by read; between two reads, those that are open across both.

    `row` of each read, in order; `first` and `last` read of each visit.
    """
    opens = np.cumsum(np.bincount(first, minlength=len(row)))
    closes = np.cumsum(np.bincount(last, minlength=len(row)))
    during = opens - np.concatenate([[0], closes[:-1]])
    across = np.concatenate([[0], opens - closes])
    result = across[np.searchsorted(row, np.arange(num_rows), side="right")]
    np.maximum.at(result, row, during)
    return result
