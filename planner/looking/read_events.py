"""A run of a plan before it is run: step times, stalls, opens and memory on R ranks, for a given bandwidth and latency.

One reader per rank does the plan's reads in order (row by row, lane by lane), as the trainer's loader does; whole steps are handed over. With
`asked(s)` the moment at which the trainer is done with step s - 1 and `q(i)` the step that read i is for, in order of i:

    begin(i)   max(end(i - 1), asked(release(i)))
    end(i)     begin(i) + open latency, if the read opens its shard + request latency + bytes / bandwidth
    release(i) first step s >= q(i) - read_ahead for which the bytes of the reads up to i that are for steps after s are within `prefetch`
    ready(s)   end of the last read for steps up to s
    sync micro asked(s + 1) = max(asked(s), max over ranks of ready(s)) + T(s)
    sync step  asked(s + 1) = max over ranks of (max(asked(s), ready(s)) + busy seconds of the rank)

T and busy are planner.looking.step_times. Reads released at the same moment follow one another, so a step costs a few vector operations over the
ranks. Price: bandwidth is the same for all ranks at all times; a store that slows down under many ranks is simulated by giving less of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.looking.lane_arrays import LaneArrays
from planner.looking.step_times import StepTimes

__all__ = ["RankReads", "Storage", "Trace", "rank_reads", "run_reads"]

_ROUNDING_S = 1e-9
"""Stalls below this are sums of floating-point numbers that do not quite cancel."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """What the reads meet."""

    bandwidth_mb_per_s: float
    """Of each rank, in 10^6 bytes per second."""
    open_latency_ms: float = 0.0
    """Before the first byte of a shard."""
    request_latency_ms: float = 0.0
    """Before the first byte of each read, the first of a shard included."""
    prefetch_mb: float | None = None
    """Most bytes per rank (10^6) that are read ahead of the step that the trainer has asked for; null: as read_ahead_steps allows."""
    read_ahead_steps: int | None = None
    """Most steps that are read ahead; null: as prefetch_mb allows. The trainer's own loader has 1."""


@dataclass(frozen=True)
class RankReads:
    """The reads of one rank, in order."""

    step: np.ndarray
    """Step of the plan, from 0."""
    bytes: np.ndarray
    opens: np.ndarray
    """Whether the read opens its shard."""


@dataclass(frozen=True)
class Trace:
    """What happened. Arrays are per step, or (ranks, steps)."""

    asked: np.ndarray
    """Seconds since the start at which the trainer asked for the step; one entry more, for the end of the run."""
    ready: np.ndarray
    """(ranks, steps): when the rank had read all of the step."""
    stall: np.ndarray
    """Seconds by which missing data lengthened the step."""
    stall_rank: np.ndarray
    """Rank that was last, or -1 where nothing stalled."""
    fetched: np.ndarray
    """(ranks, steps): bytes read by the end of the step, since the start."""
    ahead: np.ndarray
    """(ranks, steps): of these, bytes of later steps."""
    open_starts: np.ndarray
    """Seconds since the start of every open on every rank, sorted."""


def rank_reads(lanes: Sequence[LaneArrays], micro_per_step: int) -> RankReads:
    """The lanes of one rank, row by row and lane by lane."""
    row = np.concatenate([lane.read_row for lane in lanes])
    order = np.argsort(row, kind="stable") if len(lanes) > 1 else slice(None)
    return RankReads(
        step=(row[order] // micro_per_step).astype(np.int32),
        bytes=np.concatenate([lane.read_length for lane in lanes])[order],
        opens=np.concatenate([lane.opens for lane in lanes])[order],
    )


def release_steps(reads: RankReads, steps: int, storage: Storage) -> np.ndarray:
    """Per read, the step that must have been asked for before it may begin; never after its own."""
    handed_over = np.cumsum(np.bincount(reads.step, reads.bytes, minlength=steps))
    release = np.zeros(len(reads.step), dtype=np.int64)
    if storage.prefetch_mb is not None:
        over = np.cumsum(reads.bytes) - storage.prefetch_mb * 1e6
        release = np.minimum(np.searchsorted(handed_over, over, side="left"), reads.step)
    if storage.read_ahead_steps is not None:
        release = np.maximum(release, reads.step - storage.read_ahead_steps)
    return np.maximum(release, 0)


def run_reads(ranks: Sequence[RankReads], times: StepTimes, sync: str, storage: Storage) -> Trace:
    """Simulate all steps."""
    count, steps = times.by_rank.shape
    lines = [_Line(reads, steps, storage) for reads in ranks]
    work_RS = np.stack([line.work for line in lines])
    group_RS = np.stack([line.group for line in lines])
    within_RS = np.stack([line.within for line in lines])
    begin_RS = np.zeros((count, steps))
    ready_RS = np.zeros((count, steps))
    asked = np.zeros(steps + 1)
    stall = np.zeros(steps)
    stall_rank = np.full(steps, -1, dtype=np.int32)
    free_R = np.zeros(count)
    every = np.arange(count)
    for step in range(steps):
        begin_RS[:, step] = np.maximum(free_R, asked[step])
        free_R = np.where(work_RS[:, step] > 0, begin_RS[:, step] + work_RS[:, step], free_R)
        ready_R = begin_RS[every, group_RS[:, step]] + within_RS[:, step]
        ready_RS[:, step] = ready_R
        start_R = np.maximum(asked[step], ready_R)
        if sync == "micro":
            last, end, ideal = int(start_R.argmax()), start_R.max() + times.micro[step], times.micro[step]
        else:
            end_R = start_R + times.by_rank[:, step]
            last, end, ideal = int(end_R.argmax()), end_R.max(), times.step[step]
        asked[step + 1] = end
        late = end - asked[step] - ideal
        if late > _ROUNDING_S:
            stall[step], stall_rank[step] = late, last
    fetched_RS = np.stack([line.fetched(begin_RS[rank], asked[1:]) for rank, line in enumerate(lines)])
    handed_over_RS = np.stack([line.handed_over for line in lines])
    starts = [line.open_starts(begin_RS[rank]) for rank, line in enumerate(lines)]
    return Trace(
        asked=asked,
        ready=ready_RS,
        stall=stall,
        stall_rank=stall_rank,
        fetched=fetched_RS,
        ahead=fetched_RS - handed_over_RS,
        open_starts=np.sort(np.concatenate(starts)),
    )


class _Line:
    """One rank's reads, grouped by the moment that releases them: within a group they follow one another without a gap."""

    def __init__(self, reads: RankReads, steps: int, storage: Storage) -> None:
        per_byte = 1.0 / (storage.bandwidth_mb_per_s * 1e6)
        self._opens = reads.opens
        self._release = release_steps(reads, steps, storage)
        service = (
            reads.bytes * per_byte
            + storage.request_latency_ms / 1e3
            + np.where(reads.opens, storage.open_latency_ms / 1e3, 0.0)
        )
        done = np.concatenate([[0.0], np.cumsum(service)])
        first_of_group = np.searchsorted(self._release, np.arange(steps + 1))
        self.work = np.diff(done[first_of_group])
        """Per step: seconds of the reads that it releases."""
        self._done = done[1:] - done[first_of_group[self._release]]
        """Per read: seconds from the beginning of its group to its end."""
        self._service = service
        self._total = np.concatenate([[0], np.cumsum(reads.bytes)])
        past = np.searchsorted(reads.step, np.arange(steps), side="right")
        last = np.maximum(past - 1, 0)
        some = past > 0
        self.group = (
            np.where(some, self._release[last], 0) if len(last) and len(self._release) else np.zeros(steps, int)
        )
        self.within = np.where(some, self._done[last], 0.0) if len(self._done) else np.zeros(steps)
        self.handed_over = self._total[past]
        """Per step: bytes of the reads for steps up to it."""

    def fetched(self, begin: np.ndarray, moments: np.ndarray) -> np.ndarray:
        """Bytes of the reads that have ended by each moment, given when each group began."""
        ends = begin[self._release] + self._done
        return self._total[np.searchsorted(ends, moments, side="right")]

    def open_starts(self, begin: np.ndarray) -> np.ndarray:
        """When each open began."""
        return (begin[self._release] + self._done - self._service)[self._opens]
