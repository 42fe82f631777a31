"""All lanes' walks of one epoch: reading orders, rows, and the limits under which each lane reads.

A lane takes the annealed reading order while that stays well below its caps, else the one of lower peak. If a buffer cap does not hold on a lane, it
reads more tightly; if that is not enough, the rows are bent towards the reading order, more and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.schedule.annealing import anneal, moves_for
from planner.schedule.epoch_facts import EpochFacts
from planner.schedule.kernels import on_threads
from planner.schedule.reading import OrderProblem, Parts, order_greedily
from planner.schedule.rows import Readiness, lane_rows, spread_buckets
from planner.schedule.step_rows import order_steps
from planner.schedule.walk import LaneWalk, WalkLimits, buffer_curve, walk_lane

__all__ = ["Gains", "LaneWalked", "Walked", "last_rows", "walk_lanes"]

Gains = dict[str, tuple[float, float]]
"""What each annealing started from and came to."""

_FOLLOW = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How far the row order may be bent towards the reading order when the buffer cap asks for it."""
_COMFORTABLE = 0.75
"""Share of a cap up to which a lane need not care for memory."""
_NO_CAP = 1 << 62


@dataclass(frozen=True)
class LaneWalked:
    """One lane's walk."""

    walk: LaneWalk
    sequence: np.ndarray
    """Epoch positions of the lane's clips, part by part in reading order."""
    part_start: np.ndarray
    peak_bytes: int
    peak_clips: int


@dataclass(frozen=True)
class Walked:
    """All lanes' walks for one order of rows."""

    rows: np.ndarray
    lanes: Sequence[LaneWalked]
    follow: float
    peak_unannealed: int
    """Largest peak in bytes with the constructive reading orders alone."""


def walk_lanes(facts: EpochFacts, parts: Parts, gains: Gains) -> Walked | None:
    """The most even rows that hold the caps, or those that come nearest; what annealing added goes into `gains`.

    None if clips that are to be repeated cannot be kept out of one step.
    """
    return _Walker(facts, gains).walk(parts)


class _Walker:
    def __init__(self, facts: EpochFacts, gains: Gains) -> None:
        self._facts, self._gains = facts, gains
        config = facts.config
        self._reading = WalkLimits(
            max_open=config.max_open_shards,
            chunk_bytes=config.read_chunk_kb * 1024,
            pool_micro_batches=config.pool_micro_batches,
            max_bytes=config.max_buffer_bytes,
            max_clips=config.max_buffer_clips or _NO_CAP,
        )

    def walk(self, parts: Parts) -> Walked | None:
        """The most even rows that hold the caps, or those that come nearest."""
        rng = self._facts.rng(4)
        orders = [[order_greedily(parts, lane, rng)] for lane in range(self._facts.lanes)]
        if self._facts.config.anneal_steps and self._facts.item.clip_lanes is None:
            problem = OrderProblem(
                parts, [order[0] for order in orders], self._facts.mean_bytes, self._comfortable_bytes()
            )
            moves = moves_for(len(parts.source), self._facts.config.anneal_steps)
            result = anneal(problem, steps=moves, seed=self._facts.seed(5))
            self._gains["order_energy"] = (result.energy_before, result.energy_after)
            for own, annealed in zip(orders, problem.orders, strict=True):
                own.append(annealed)
        best: Walked | None = None
        for follow in _FOLLOW:
            walked = self._walk_rows(parts, orders, follow)
            if walked is not None and (best is None or self._excess(walked) < self._excess(best)):
                best = walked
            if best is None or self._excess(best) <= 1.0:
                break
        if best is not None:
            peak = max(lane.peak_bytes for lane in best.lanes)
            self._gains["peak_buffer_bytes"] = (float(best.peak_unannealed), float(peak))
        return best

    def _comfortable_bytes(self) -> float:
        """What a lane may hold of the tighter cap without care."""
        most = self._facts.config.max_buffer_clips
        by_clips = float("inf") if most is None else most * float(self._facts.size.mean())
        return min(self._facts.config.max_buffer_bytes, by_clips) * _COMFORTABLE

    def _excess(self, walked: Walked) -> float:
        """Largest peak over its cap; at most 1 if the caps hold."""
        return max(self._lane_excess(lane) for lane in walked.lanes)

    def _lane_excess(self, lane: LaneWalked) -> float:
        config = self._facts.config
        by_clips = 0.0 if config.max_buffer_clips is None else lane.peak_clips / config.max_buffer_clips
        return max(lane.peak_bytes / config.max_buffer_bytes, by_clips)

    def _walk_rows(self, parts: Parts, orders: Sequence[Sequence[np.ndarray]], follow: float) -> Walked | None:
        item, config = self._facts.item, self._facts.config
        readiness = self._readiness(parts, [own[-1] for own in orders]) if follow else None
        rows = lane_rows(
            item.demand,
            self._facts.group,
            item.densities,
            follow,
            readiness,
            config.micro_per_step,
            [config.seed, item.number],
        )
        if len(np.unique(self._facts.group)) < self._facts.lines:
            seed = [config.seed, item.number]
            if not follow:
                self._gains["bucket_mix_energy"] = spread_buckets(rows, self._facts.group, self._facts.steps, seed)
            order = order_steps(rows, self._facts.group, self._facts.steps, self._facts.seconds, seed)
            self._gains["row_seconds"] = (order.before, order.after)
        rows = np.ascontiguousarray(rows[:, : item.num_rows])

        def run(lane: int) -> tuple[LaneWalked | None, int]:
            return self._walk_lane(parts, orders[lane], rows[lane], lane)

        results = on_threads(run, range(self._facts.lanes), what="walking lanes")
        lanes = [walked for walked, _ in results if walked is not None]
        if len(lanes) < self._facts.lanes:
            return None
        return Walked(rows, lanes, follow, max(peak for _, peak in results))

    def _walk_lane(
        self, parts: Parts, orders: Sequence[np.ndarray], rows: np.ndarray, lane: int
    ) -> tuple[LaneWalked | None, int]:
        """(the walk taken, the peak of that of the first, constructive order).

        The annealed order is taken where it stays well below the caps, since it mixes better; else the one of lower peak. Where a cap does not
        hold, nothing is read that could wait, then parts are opened strictly in order, then one after another.
        """
        best: LaneWalked | None = None
        first_peak = 0
        bare = replace(self._reading, pool_micro_batches=0, chunk_bytes=0)
        in_order = replace(bare, in_order=True)
        for limits in (self._reading, bare, in_order, replace(in_order, max_open=1)):
            for number, order in enumerate(orders):
                walked = self._walk_order(parts, order, rows, lane, limits)
                if walked is None:
                    return None, 0
                if limits is self._reading and number == 0:
                    first_peak = walked.peak_bytes
                comfortable = limits is self._reading and self._lane_excess(walked) <= _COMFORTABLE
                if best is None or comfortable or self._lane_excess(walked) < self._lane_excess(best):
                    best = walked
            if best is not None and self._lane_excess(best) <= 1.0:
                break
        return best, first_peak

    def _walk_order(
        self, parts: Parts, order: np.ndarray, rows: np.ndarray, lane: int, limits: WalkLimits
    ) -> LaneWalked | None:
        own, start = _sequence(parts, order)
        line, size = self._facts.line[own], self._facts.size[own]
        steps = self._facts.steps[: self._facts.item.num_rows]
        walk = walk_lane(line, size, start, rows, steps, self._facts.batch, self._facts.extra(lane), limits)
        if walk is None:
            return None
        last = last_rows(walk, rows, self._facts.batch)
        held = buffer_curve(walk.read_row, last, size, len(rows))
        clips = buffer_curve(walk.read_row, last, np.ones(len(own), dtype=np.int64), len(rows))
        return LaneWalked(walk, own, start, int(held.max(initial=0)), int(clips.max(initial=0)))

    def _readiness(self, parts: Parts, orders: Sequence[np.ndarray]) -> Readiness:
        reached = []
        for lane, order in enumerate(orders):
            own, _ = _sequence(parts, order)
            share = np.cumsum(self._facts.size[own]) / max(1, int(self._facts.size[own].sum()))
            line = self._facts.line[own]
            by_line = []
            for kind in range(self._facts.lines):
                at = share[line == kind]
                micro = int(self._facts.item.demand.micro[lane, kind])
                last = np.minimum((np.arange(micro) + 1) * int(self._facts.batch[kind]) - 1, max(0, len(at) - 1))
                by_line.append(at[last] if micro else np.empty(0))
            reached.append(by_line)
        return Readiness(reached)


def _sequence(parts: Parts, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(epoch positions of a lane's clips, part by part in the order; where each part begins among them, and the end)."""
    pieces = [parts.clip_order[parts.part_start[part] : parts.part_start[part + 1]] for part in order.tolist()]
    start = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces], dtype=np.int64)])
    return (np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)), start


def last_rows(walk: LaneWalk, rows: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Row of the last use of each of a lane's clips, or -1, int32."""
    last = np.full(len(walk.read_row), -1, dtype=np.int32)
    np.maximum.at(last, walk.used, np.repeat(np.arange(len(rows), dtype=np.int32), batch[rows]))
    return last
