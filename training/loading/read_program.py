"""A lane's read program: which samples each row brings in, where each goes, which row lets it go, and how much memory that takes.

The plan says what is read before each row and which clips the row uses; a clip is served by the latest read of it. From that this module
derives, once and in whole arrays, when each sample enters and leaves memory, so that starting at any step is a look-up, and step 100,000 costs what
step 10 does. A sample that one row alone uses is read straight into its place in that row's latents, also when the row comes later; then the
row's array is there from its first clip on. That takes more memory than the clips themselves, so it is done for clips that wait at most `lag`
rows: the longest for which the lane stays within twice the plan's buffer. The others are held as read, and copied when they are used.

Legend: R rows, U uses (clips of rows), A arrivals (samples read that some row uses, in the plan's order), N samples of the sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.buckets import Bucket
from schemas.errors import PlanError
from schemas.plan import PlanMeta, read_lane
from training.loading.batch_memory import rounded_bytes
from training.loading.sample_layout import SampleLayout
from training.loading.sample_sets import SampleSets

__all__ = ["MOST_READ_BYTES", "LaneProgram", "open_lane"]

MOST_READ_BYTES = 8 << 20
"""Of one read, unless a single sample has more."""
_MOST_SAMPLES = 64
"""Of one read: few enough that small ones are checked while the processor's cache still holds them."""
_LATENT_BYTES = 2
_LAGS = (1 << 60, 4096, 1024, 256, 64, 16, 4, 1, 0)
"""Rows that a clip may wait in its place, tried in this order."""


@dataclass(frozen=True, kw_only=True)
class LaneProgram:
    """All rows of one lane, in order."""

    lane: int
    buckets: tuple[Bucket, ...]
    first_step: int
    row_S: np.ndarray
    """First row of each step of the plan, and of the one after the last."""
    step_R: np.ndarray
    micro_R: np.ndarray
    bucket_R: np.ndarray
    """Into `buckets`."""
    use_start_R: np.ndarray
    """First use of each row; R + 1 entries."""
    sample_U: np.ndarray
    arrival_U: np.ndarray
    """The arrival that serves each use."""
    arrival_start_R: np.ndarray
    """First arrival of each row; R + 1 entries."""
    sample_A: np.ndarray
    row_A: np.ndarray
    """The row before which it is read."""
    last_A: np.ndarray
    """The row that uses it last."""
    first_A: np.ndarray
    """The row that uses it first."""
    slot_A: np.ndarray
    """Its place among the clips of that row, into which it is read; -1: it is held as read."""
    read_stop_A: np.ndarray
    """The arrival behind the last one that a read from it on may take: its neighbours in one shard that one row reads, as far as one read goes."""
    run_stop_A: np.ndarray
    """The byte of the shard behind the last of the neighbours that the lane reads from it on, whatever rows they are for."""
    length_A: np.ndarray
    """Bytes of the sample."""
    held_A: np.ndarray
    """Bytes that it is kept in beside its latent's place."""
    scratch_A: np.ndarray
    """Bytes of frames that are read and not kept, and of features that are read over."""
    array_R: np.ndarray
    """Bytes of each row's latents."""
    ready_R: np.ndarray
    """Bytes of each row's micro-batch, latents and all."""
    peak_planned_bytes: int
    """Most bytes of samples that are read and still to be used, as the plan counts them."""
    bound_bytes: int
    """Most bytes that the lane's reader needs at once."""
    most_waiting_rows: int
    """Most rows that a sample waits for its last use."""

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.step_R)

    def first_row(self, step: int) -> int:
        """Index of the first row of a step; the number of rows for the step after the last."""
        return int(self.row_S[step - self.first_step])

    def bucket(self, row: int) -> Bucket:
        """The bucket of a row."""
        return self.buckets[self.bucket_R[row]]

    def samples(self, row: int) -> list[int]:
        """Sample indices of a row's clips."""
        found: list[int] = self.sample_U[self.use_start_R[row] : self.use_start_R[row + 1]].tolist()
        return found

    def carried_into(self, row: int) -> np.ndarray:
        """Arrivals that rows before `row` read and `row` or a later one uses, in reading order."""
        if row >= self.num_rows:
            return np.zeros(0, np.int64)
        first = self.arrival_start_R[max(0, row - self.most_waiting_rows)]
        stop = self.arrival_start_R[row]
        found: np.ndarray = first + np.flatnonzero(self.last_A[first:stop] >= row)
        return found

    def earlier_samples(self, row: int) -> Iterator[int]:
        """Samples that rows before `row` used at the same bucket, nearest first, each once; found as they are asked for."""
        bucket, seen = self.bucket_R[row], set()
        for index in range(row - 1, -1, -1):
            for sample in self.samples(index) if self.bucket_R[index] == bucket else ():
                if sample not in seen:
                    seen.add(sample)
                    yield sample

    def samples_of_step(self, row: int) -> list[int]:
        """Samples that the plan names in the step of `row`, on this lane."""
        step = int(self.step_R[row])
        first, stop = self.first_row(step), self.first_row(step + 1)
        found: list[int] = self.sample_U[self.use_start_R[first] : self.use_start_R[stop]].tolist()
        return found


def open_lane(
    plan: Path, lane: int, meta: PlanMeta, sets: SampleSets, layout: SampleLayout, *, pinned: bool = False
) -> LaneProgram:
    """Read one lane's table and derive its program; `pinned` counts latents as page-locked memory takes them.

    Raises:
        PlanError: if a row uses a clip that no row has read, or its buffer would exceed the plan's.
    """
    rows, arrivals = _rows_and_arrivals(plan, lane, meta, sets)
    num_rows, length_A = len(rows.step_R), sets.length_N[arrivals.sample_A]
    planned = _peak(length_A, arrivals.row_A, arrivals.last_A, num_rows)
    if planned > meta.peak_buffer_bytes[lane]:
        raise PlanError(
            f"{plan}: lane {lane} holds up to {planned} bytes, plan.json says {meta.peak_buffer_bytes[lane]}; the plan is wrong, build it again"
        )
    channels = sets.infos[0].latent_channels
    clip_R = rows.latent_shapes().prod(axis=1) * channels * _LATENT_BYTES
    array_R = rounded_bytes(clip_R * np.diff(rows.use_start_R), pinned=pinned)
    can_A = _can_be_read_in_place(rows, arrivals, sets, layout, channels)
    direct_A, held_A, bound = _read_in_place(arrivals, can_A, length_A, array_R, layout, most_bytes=2 * planned)
    ready_R = array_R + np.bincount(rows.row_U, weights=held_A[arrivals.arrival_U], minlength=num_rows).astype(np.int64)
    slot_A = np.full(len(arrivals.row_A), -1, np.int64)
    slot_A[arrivals.arrival_U] = np.arange(len(rows.row_U)) - rows.use_start_R[rows.row_U]
    return LaneProgram(
        lane=lane,
        buckets=rows.buckets,
        first_step=meta.steps.start,
        row_S=np.searchsorted(rows.step_R, np.arange(meta.steps.start, meta.steps.stop + 1)),
        step_R=rows.step_R,
        micro_R=rows.micro_R,
        bucket_R=rows.bucket_R,
        use_start_R=rows.use_start_R,
        sample_U=rows.sample_U,
        arrival_U=arrivals.arrival_U,
        arrival_start_R=np.searchsorted(arrivals.row_A, np.arange(num_rows + 1)),
        sample_A=arrivals.sample_A,
        row_A=arrivals.row_A,
        last_A=arrivals.last_A,
        first_A=arrivals.first_A,
        slot_A=np.where(direct_A, slot_A, -1),
        read_stop_A=_read_stops(sets, arrivals.row_A, arrivals.sample_A),
        run_stop_A=_run_stops(sets, arrivals.sample_A),
        length_A=length_A,
        held_A=held_A,
        scratch_A=np.where(direct_A, length_A - held_A - clip_R[arrivals.first_A], 0),
        array_R=array_R,
        ready_R=ready_R,
        peak_planned_bytes=planned,
        bound_bytes=bound,
        most_waiting_rows=int((arrivals.last_A - arrivals.row_A).max(initial=0)),
    )


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Rows of a lane's table and their clips; names as in `LaneProgram`."""

    step_R: np.ndarray
    micro_R: np.ndarray
    buckets: tuple[Bucket, ...]
    bucket_R: np.ndarray
    use_start_R: np.ndarray
    sample_U: np.ndarray
    row_U: np.ndarray

    def latent_shapes(self) -> np.ndarray:
        """(R, 3): frames, rows and columns of the latents of each row's clips."""
        of_buckets = np.array([bucket.latent_shape for bucket in self.buckets], np.int64)
        found: np.ndarray = of_buckets.reshape(-1, 3)[self.bucket_R]
        return found


@dataclass(frozen=True, kw_only=True)
class _Arrivals:
    """Samples that are read and used; names as in `LaneProgram`."""

    arrival_U: np.ndarray
    row_A: np.ndarray
    sample_A: np.ndarray
    last_A: np.ndarray
    first_A: np.ndarray
    uses_A: np.ndarray
    """How many uses it serves."""


def _rows_and_arrivals(plan: Path, lane: int, meta: PlanMeta, sets: SampleSets) -> tuple[_Rows, _Arrivals]:
    """What the lane's table says; PlanError if a row uses a clip that no row has read."""
    table = read_lane(plan, lane, meta)
    buckets, bucket_R = _buckets_of(table)
    use_start_R, shard_U, ordinal_U = _lists(table, "clips", "shard", "ordinal")
    rows = _Rows(
        step_R=table.column("step").to_numpy(),
        micro_R=table.column("micro").to_numpy(),
        buckets=buckets,
        bucket_R=bucket_R,
        use_start_R=use_start_R,
        sample_U=sets.indices_of(shard_U, ordinal_U),
        row_U=np.repeat(np.arange(table.num_rows), np.diff(use_start_R)),
    )
    row_A, sample_A = _arrivals_of(table, sets)
    arrival_U = _served(row_A, sample_A, rows.row_U, rows.sample_U, table.num_rows)
    for bad in np.flatnonzero(arrival_U < 0)[:1]:
        raise PlanError(
            f"{plan}: lane {lane} uses sample {ordinal_U[bad]} of shard {shard_U[bad]} in step {rows.step_R[rows.row_U[bad]]} before any row "
            "reads it; build the plan again"
        )
    return rows, _used_arrivals(arrival_U, row_A, sample_A, rows.row_U)


def _can_be_read_in_place(
    rows: _Rows, arrivals: _Arrivals, sets: SampleSets, layout: SampleLayout, channels: int
) -> np.ndarray:
    """Whether a sample has one use, and a latent whose first frames are what that row wants, laid out as usual."""
    shape_A, wanted_A = sets.latent_shape_N4[arrivals.sample_A], rows.latent_shapes()[arrivals.first_A]
    fits_A = (shape_A[:, 1] == channels) & (shape_A[:, 0] >= wanted_A[:, 0])
    fits_A &= (shape_A[:, 2:] == wanted_A[:, 1:]).all(axis=1)
    found_A: np.ndarray = (arrivals.uses_A == 1) & fits_A & layout.is_regular_N[arrivals.sample_A]
    return found_A


def _read_in_place(
    arrivals: _Arrivals,
    can_A: np.ndarray,
    length_A: np.ndarray,
    array_R: np.ndarray,
    layout: SampleLayout,
    *,
    most_bytes: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Which samples are read into their row's array, the bytes that each is held in beside it, and the most bytes at once, which stay within
    `most_bytes` if any lag allows it."""
    row_A, last_A, number_R = arrivals.row_A, arrivals.last_A, np.arange(len(array_R))
    for lag in _LAGS:
        direct_A = can_A & (last_A - row_A <= lag)
        held_A = np.where(direct_A, layout.rest_length_N[arrivals.sample_A], length_A)
        opened_R = number_R.copy()
        np.minimum.at(opened_R, last_A[direct_A], row_A[direct_A])
        bound = _peak(
            np.concatenate((held_A, array_R)),
            np.concatenate((row_A, opened_R)),
            np.concatenate((last_A, number_R)),
            len(array_R),
        )
        if bound <= most_bytes:
            break
    return direct_A, held_A, bound


def _buckets_of(table: pa.Table) -> tuple[tuple[Bucket, ...], np.ndarray]:
    sizes = np.stack([table.column(name).to_numpy() for name in ("frames", "height", "width")], axis=1)
    distinct, bucket_R = np.unique(sizes.reshape(-1, 3), axis=0, return_inverse=True)
    return tuple(Bucket(*size) for size in distinct.tolist()), bucket_R.reshape(-1)


def _lists(table: pa.Table, column: str, *names: str) -> tuple[np.ndarray, ...]:
    """First entry of each row, and fields of the entries, as arrays."""
    lists = table.column(column).combine_chunks()
    entries = lists.flatten()
    start_R = np.concatenate(([0], np.cumsum(np.asarray(lists.value_lengths()), dtype=np.int64)))
    fields: list[Any] = [np.asarray(entries.field(name)).astype(np.int64) for name in names]
    return start_R, *fields


def _arrivals_of(table: pa.Table, sets: SampleSets) -> tuple[np.ndarray, np.ndarray]:
    """Row and sample of everything that is read, in order; what a row reads twice counts once."""
    start_R, shard_K, offset_K, length_K = _lists(table, "reads", "shard", "offset", "length")
    row_K = np.repeat(np.arange(len(start_R) - 1), np.diff(start_R))
    first_K, stop_K = sets.samples_in(shard_K, offset_K, length_K)
    counts_K = stop_K - first_K
    row_A = np.repeat(row_K, counts_K)
    begins = np.concatenate(([0], np.cumsum(counts_K)[:-1])) if len(counts_K) else np.zeros(0, np.int64)
    sample_A = np.arange(counts_K.sum()) - np.repeat(begins - first_K, counts_K)
    _, kept = np.unique(row_A * (len(sets.length_N) + 1) + sample_A, return_index=True)
    kept.sort()
    return row_A[kept], sample_A[kept]


def _served(
    row_A: np.ndarray, sample_A: np.ndarray, row_U: np.ndarray, sample_U: np.ndarray, num_rows: int
) -> np.ndarray:
    """For each use the latest arrival of its sample up to its row; -1 where there is none."""
    if not len(row_A):
        return np.full(len(row_U), -1, np.int64)
    key_A = sample_A * (num_rows + 1) + row_A
    order_A = np.argsort(key_A, kind="stable")
    found = np.searchsorted(key_A[order_A], sample_U * (num_rows + 1) + row_U, side="right") - 1
    arrival_U: np.ndarray = order_A[np.maximum(found, 0)]
    return np.where((found >= 0) & (sample_A[arrival_U] == sample_U), arrival_U, -1)


def _used_arrivals(arrival_U: np.ndarray, row_A: np.ndarray, sample_A: np.ndarray, row_U: np.ndarray) -> _Arrivals:
    """Arrivals that some row uses, renumbered."""
    uses_A = np.bincount(arrival_U, minlength=len(row_A))
    kept = np.flatnonzero(uses_A)
    number_A = np.zeros(len(row_A), np.int64)
    number_A[kept] = np.arange(len(kept))
    arrival_U = number_A[arrival_U]
    last_A, first_A = np.zeros(len(kept), np.int64), np.full(len(kept), np.iinfo(np.int64).max)
    np.maximum.at(last_A, arrival_U, row_U)
    np.minimum.at(first_A, arrival_U, row_U)
    return _Arrivals(
        arrival_U=arrival_U,
        row_A=row_A[kept],
        sample_A=sample_A[kept],
        last_A=last_A,
        first_A=first_A,
        uses_A=uses_A[kept],
    )


def _peak(bytes_X: np.ndarray, first_X: np.ndarray, last_X: np.ndarray, num_rows: int) -> int:
    """Most bytes at once of things that are there from one row to the end of another."""
    change = np.zeros(num_rows + 1, np.int64)
    np.add.at(change, first_X, bytes_X)
    np.subtract.at(change, last_X + 1, bytes_X)
    return int(np.cumsum(change).max(initial=0))


def _begins(sets: SampleSets, sample_A: np.ndarray) -> np.ndarray:
    """For each arrival but the first, whether it is no neighbour of the one before it."""
    stop_A = sets.offset_N[sample_A] + sets.length_N[sample_A]
    apart = sets.shard_N[sample_A[1:]] != sets.shard_N[sample_A[:-1]]
    found: np.ndarray = apart | (sets.offset_N[sample_A[1:]] != stop_A[:-1])
    return found


def _stops_of(begins: np.ndarray) -> np.ndarray:
    """For each arrival the one behind the last of its run, of runs that begin so (and with the first)."""
    first_X = np.concatenate((np.flatnonzero(begins) + 1, [len(begins) + 1]))
    found: np.ndarray = first_X[np.searchsorted(first_X, np.arange(len(begins) + 1), side="right")]
    return found


def _run_stops(sets: SampleSets, sample_A: np.ndarray) -> np.ndarray:
    """For each arrival the byte behind the last of the neighbours that follow it."""
    if not len(sample_A):
        return np.zeros(0, np.int64)
    last_A = sample_A[_stops_of(_begins(sets, sample_A)) - 1]
    found: np.ndarray = sets.offset_N[last_A] + sets.length_N[last_A]
    return found


def _read_stops(sets: SampleSets, row_A: np.ndarray, sample_A: np.ndarray) -> np.ndarray:
    """For each arrival the one behind the last that a read beginning with it takes."""
    if not len(row_A):
        return np.zeros(0, np.int64)
    run_stop_A = _stops_of((row_A[1:] != row_A[:-1]) | _begins(sets, sample_A))
    number_A = np.arange(len(row_A))
    bytes_A = np.cumsum(sets.length_N[sample_A])
    before_A = bytes_A - sets.length_N[sample_A]
    full_A = np.searchsorted(bytes_A, before_A + MOST_READ_BYTES, side="right")
    found: np.ndarray = np.minimum(np.minimum(run_stop_A, number_A + _MOST_SAMPLES), np.maximum(full_A, number_A + 1))
    return found
