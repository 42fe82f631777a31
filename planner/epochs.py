"""One epoch from its chosen clips to every lane's rows and reads, twice: the constructive plan and the annealed one; the better is kept.

Better is: a lower peak buffer, then fewer opens, then fewer clips that share a source within a step. The used share is the same for both, because
the repair makes every lane's counts exact; what annealing gives to the used share is therefore measured before the repair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.annealing import anneal
from planner.batches import BatchLine
from planner.lanes import PlacementProblem, Ranges, cut_ranges, place_greedily, repair
from planner.reading import LaneVisits, OrderProblem, lane_visits, order_greedily, sequence_of
from planner.samples import Corpus
from planner.schedule import (
    LaneSchedule,
    RowShape,
    RowStarts,
    buffered_bytes,
    full_steps,
    order_rows,
    schedule_lane,
    separate_sources,
)
from planner.settings import PlanConfig
from schemas.errors import PlanError

__all__ = ["EpochPlan", "plan_epoch", "row_shape"]

_FOLLOW = (0.0, 0.5, 1.0)
"""How far the row order may be bent towards the reading order when the buffer cap asks for it."""

_AHEAD_ROWS = (0, 8)
"""Rows that clips may be read ahead, within the cap, so that clips of one source need not meet in a step."""


@dataclass(frozen=True)
class EpochPlan:
    """What every lane does in one epoch."""

    lane_rows: np.ndarray
    """Line of the batch table per (lane, row)."""
    lanes: tuple[LaneSchedule, ...]
    peaks: tuple[int, ...]
    """Exact peak buffer per lane, bytes."""
    opens: int
    """(lane, shard) pairs that are read."""
    handed_over: int
    """Clips that the repair moved to another lane."""
    share_before_repair: float
    """Clips that full rows could use if only whole ranges were placed, over all admitted clips."""
    shared_sources: int
    """Clips of a step beyond the first of their source."""
    follow: float

    @property
    def rank(self) -> tuple[int, int, int]:
        """Lower is better."""
        return (max(self.peaks), self.opens, self.shared_sources)


def row_shape(table: Sequence[BatchLine], policy: str) -> RowShape:
    """The batch table as arrays."""
    return RowShape(
        rows=np.array([line.rows_per_epoch for line in table], dtype=np.int64),
        clips=np.array([line.clips_per_lane for line in table], dtype=np.int64),
        group=np.array(
            [index if policy == "uniform" else line.tier for index, line in enumerate(table)], dtype=np.int64
        ),
    )


def plan_epoch(
    corpus: Corpus,
    chosen: np.ndarray,
    shape: RowShape,
    config: PlanConfig,
    epoch: int,
    starts: RowStarts,
    dropped: np.ndarray,
) -> tuple[EpochPlan, EpochPlan]:
    """(constructive plan, the better of it and the annealed one). `dropped`: rows that each group lost in earlier epochs.

    Raises:
        PlanError: if no row order holds the buffer cap.
    """
    builder = _EpochBuilder(corpus, chosen, shape, config, epoch, starts, dropped)
    constructive = best = builder.build(annealed=False)
    if config.anneal_steps:
        annealed = builder.build(annealed=True)
        best = annealed if annealed.rank < constructive.rank else constructive
    builder.refuse_over_cap(best)
    return constructive, best


class _EpochBuilder:
    """Holds what both variants start from."""

    def __init__(
        self,
        corpus: Corpus,
        chosen: np.ndarray,
        shape: RowShape,
        config: PlanConfig,
        epoch: int,
        starts: RowStarts,
        dropped: np.ndarray,
    ) -> None:
        self._corpus, self._chosen, self._shape, self._config = corpus, chosen, shape, config
        self._epoch, self._starts, self._dropped = epoch, starts, dropped
        self._clips = np.flatnonzero(chosen >= 0)
        self._bucket = chosen[self._clips]
        self._shard = corpus.shard[self._clips]
        self._targets = shape.rows * shape.clips
        self._bytes = np.bincount(self._bucket, corpus.length[self._clips], len(shape.rows)) / np.maximum(
            np.bincount(self._bucket, minlength=len(shape.rows)), 1
        )
        self._ranges: Ranges = cut_ranges(self._shard, self._bucket, len(shape.rows), config.lanes)

    def build(self, *, annealed: bool) -> EpochPlan:
        config = self._config
        lanes = place_greedily(self._ranges, self._targets, config.lanes, self._rng(2))
        if annealed:
            placement = PlacementProblem(self._ranges, lanes, self._targets, config.lanes)
            anneal(placement, steps=config.anneal_steps, seed=self._seed(3))
            lanes = np.array(placement.range_lanes)
        clip_lanes, handed = repair(
            self._ranges.clip_lanes(lanes), self._shard, self._bucket, self._targets, config.lanes
        )
        visits = [
            lane_visits(np.flatnonzero(clip_lanes == lane), self._shard, self._bucket, len(self._targets))
            for lane in range(config.lanes)
        ]
        sequences = self._sequences(visits, annealed=annealed)
        return self._fit(sequences, handed, self._share(lanes))

    def _sequences(self, visits: list[LaneVisits], *, annealed: bool) -> list[np.ndarray]:
        """Corpus positions of each lane's clips, in reading order."""
        rng = self._rng(4)
        orders = [order_greedily(item, rng) for item in visits]
        if annealed:
            problem = OrderProblem(visits, orders, self._bytes)
            anneal(problem, steps=self._config.anneal_steps, seed=self._seed(5))
            orders = problem.orders
        return [self._clips[sequence_of(item, order)] for item, order in zip(visits, orders, strict=True)]

    def _fit(self, sequences: list[np.ndarray], handed: int, share: float) -> EpochPlan:
        """The most even row order that holds the cap, or the one with the lowest peak where none does."""
        tried: list[EpochPlan] = []
        for follow in _FOLLOW:
            lane_rows, lanes = self._rows(sequences, follow)
            plan = EpochPlan(
                lane_rows=lane_rows,
                lanes=tuple(lanes),
                peaks=self._peaks(lanes),
                opens=sum(len(np.unique(self._corpus.shard[lane.clips])) for lane in lanes),
                handed_over=handed,
                share_before_repair=share,
                shared_sources=self._shared_sources(lanes),
                follow=follow,
            )
            if max(plan.peaks) <= self._config.max_buffer_bytes:
                return plan
            tried.append(plan)
        return min(tried, key=lambda plan: plan.rank)

    def refuse_over_cap(self, plan: EpochPlan) -> None:
        """PlanError with numbers if the plan needs more buffer than the cap."""
        peak, cap = max(plan.peaks), self._config.max_buffer_bytes
        if peak > cap:
            raise PlanError(
                f"lane {plan.peaks.index(peak)} needs a buffer of {peak:,} bytes in epoch {self._epoch}, the cap is {cap:,} "
                f"(config: max_buffer_mb {self._config.max_buffer_mb:g}); one micro-batch alone takes up to {self._largest_batch():,}. "
                f"Set max_buffer_mb to {math.ceil(peak / 1000) / 1000:.3f} or more, make micro-batches smaller, or pack more and smaller shards"
            )

    def _rows(self, sequences: list[np.ndarray], follow: float) -> tuple[np.ndarray, list[LaneSchedule]]:
        buckets = [self._chosen[clips] for clips in sequences]
        sizes = [self._corpus.length[clips] for clips in sequences]
        every = order_rows(self._shape, buckets, sizes, follow, self._rng(6))
        full = full_steps(every, self._shape, self._starts.micro_per_step, self._dropped)
        lane_rows = full[:, : self._starts.num_rows]
        fifo = [
            schedule_lane(clips, bucket, row, self._shape)
            for clips, bucket, row in zip(sequences, buckets, lane_rows, strict=True)
        ]
        best = fifo
        for ahead in _AHEAD_ROWS if self._shared_sources(fifo) else ():
            spread = separate_sources(
                fifo, lane_rows, self._chosen, self._corpus.source, self._shape, self._starts, ahead
            )
            fits = max(self._peaks(spread)) <= max(self._config.max_buffer_bytes, max(self._peaks(best)))
            if fits and self._shared_sources(spread) < self._shared_sources(best):
                best = spread
        return lane_rows, best

    def _peaks(self, lanes: Sequence[LaneSchedule]) -> tuple[int, ...]:
        rows = self._starts.num_rows
        return tuple(int(buffered_bytes(lane, self._corpus.length, rows).max()) for lane in lanes)

    def _largest_batch(self) -> int:
        return int((self._shape.clips * self._bytes)[self._shape.rows > 0].max())

    def _shared_sources(self, lanes: Sequence[LaneSchedule]) -> int:
        use = np.concatenate([lane.use for lane in lanes])
        source = self._corpus.source[np.concatenate([lane.clips for lane in lanes])]
        step = (self._starts.first_row + use) // self._starts.micro_per_step
        return len(use) - len(np.unique(step * (int(source.max()) + 1) + source))

    def _share(self, range_lanes: np.ndarray) -> float:
        have = np.zeros((self._config.lanes, len(self._targets)), dtype=np.int64)
        np.add.at(have, range_lanes, self._ranges.counts)
        rows = (have // self._shape.clips).min(axis=0)
        return float((rows * self._shape.clips).sum() * self._config.lanes / self._corpus.num_clips)

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._config.seed, self._epoch, purpose])

    def _seed(self, purpose: int) -> int:
        return int(self._rng(purpose).integers(2**63))
