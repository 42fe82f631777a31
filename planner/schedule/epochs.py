"""One epoch from its chosen clips to every lane's rows, reads and uses.

Place (planner.schedule.placement), order each lane's parts (planner.schedule.reading), order rows (planner.schedule.rows), walk
(planner.schedule.walk), and anneal which clip is used when (planner.schedule.windows). Each annealing starts from a constructive arrangement and
what it added is recorded; each lane takes the one of the annealed and the constructive reading order that has the lower peak. If a buffer cap
does not hold on a lane, it reads more tightly; if that is not enough, the rows are bent towards the reading order, more and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.pricing.batches import BatchLine
from planner.samples import Corpus
from planner.schedule.annealing import anneal
from planner.schedule.demand import Demand
from planner.schedule.kernels import on_threads
from planner.schedule.placement import PlacementProblem, Ranges, cut_ranges, lacking_clips, place_greedily, repair
from planner.schedule.reading import OrderProblem, Parts, lane_parts, order_greedily
from planner.schedule.rows import Density, Readiness, lane_rows, spread_buckets
from planner.schedule.step_rows import order_steps
from planner.schedule.walk import LaneWalk, WalkLimits, buffer_curve, most_open, walk_lane
from planner.schedule.windows import WindowProblem, anneal_windows
from planner.settings import PlanConfig

__all__ = ["EpochInput", "EpochPlan", "plan_epoch"]

_FOLLOW = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How far the row order may be bent towards the reading order when the buffer cap asks for it."""
_NO_CAP = 1 << 62


@dataclass(frozen=True, kw_only=True)
class EpochInput:
    """What an epoch is made of."""

    number: int
    """In the plan."""
    first_row: int
    """Of the plan; a multiple of K."""
    num_rows: int
    """Rows that the plan takes of the epoch; fewer than the demand's where the plan ends."""
    clips: np.ndarray
    """Corpus positions of the chosen clips, ascending."""
    line: np.ndarray
    """Line of the batch table of each."""
    demand: Demand
    densities: tuple[Density, ...]
    """By group."""
    clip_lanes: np.ndarray | None = None
    """Lane of each clip where the policy has placed them already."""


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """What every lane does in one epoch. Flat arrays are lane by lane."""

    number: int
    rows: np.ndarray
    """Line of the batch table per (lane, row), int16."""
    read_clip: np.ndarray
    """Corpus positions in reading order, int32."""
    read_row: np.ndarray
    """Row (of the epoch) before which each is read, int32; never falls within a lane."""
    read_start: np.ndarray
    """First read of each lane; lanes + 1 entries."""
    use_clip: np.ndarray
    """Corpus positions row by row, int32."""
    use_start: np.ndarray
    """First use of each lane; lanes + 1 entries."""
    peak_bytes: np.ndarray
    """Exact, per lane."""
    peak_clips: np.ndarray
    peak_open: np.ndarray
    opens: int
    """(lane, shard) pairs that are read."""
    handed_over: int
    """Clips that the repair moved to another lane."""
    follow: float
    gains: dict[str, tuple[float, float]]
    """What annealing started from and came to: energies and what they stand for."""


@dataclass(frozen=True)
class _LaneWalked:
    """One lane's walk."""

    walk: LaneWalk
    sequence: np.ndarray
    """Epoch positions of the lane's clips, part by part in reading order."""
    part_start: np.ndarray
    peak_bytes: int
    peak_clips: int


@dataclass(frozen=True)
class _Walked:
    """All lanes' walks for one order of rows."""

    rows: np.ndarray
    lanes: Sequence[_LaneWalked]
    follow: float
    peak_unannealed: int
    """Largest peak in bytes with the constructive reading orders alone."""


def plan_epoch(
    corpus: Corpus, item: EpochInput, lines: Sequence[BatchLine], group: np.ndarray, config: PlanConfig
) -> EpochPlan | None:
    """Plan it; the peaks may be over the caps if nothing holds them, which is the caller's to refuse.

    None if clips that are to be repeated cannot be kept out of one step.
    """
    return _EpochBuilder(corpus, item, lines, group, config).build()


class _EpochBuilder:
    def __init__(
        self, corpus: Corpus, item: EpochInput, lines: Sequence[BatchLine], group: np.ndarray, config: PlanConfig
    ) -> None:
        self._corpus, self._item, self._group, self._config = corpus, item, group, config
        self._batch = np.array([line.clips_per_lane for line in lines], dtype=np.int64)
        self._seconds = np.array([line.seconds for line in lines])
        self._lanes, self._lines = item.demand.micro.shape
        self._line = item.line.astype(np.int64)
        self._shard = corpus.shard[item.clips]
        self._size = corpus.length[item.clips]
        self._source = corpus.source[item.clips].astype(np.int64)
        self._domain = corpus.domain[item.clips].astype(np.int64)
        self._need = item.demand.micro * self._batch
        self._targets = self._distinct_targets()
        self._gains: dict[str, tuple[float, float]] = {}
        total = np.bincount(self._line, minlength=self._lines)
        self._bytes = np.bincount(self._line, self._size, self._lines) / np.maximum(total, 1)
        rows = item.first_row + np.arange(item.demand.num_rows, dtype=np.int64)
        self._steps = rows // config.micro_per_step
        self._reading = WalkLimits(
            max_open=config.max_open_shards,
            chunk_bytes=config.read_chunk_kb * 1024,
            pool_micro_batches=config.pool_micro_batches,
            max_bytes=config.max_buffer_bytes,
            max_clips=config.max_buffer_clips or _NO_CAP,
        )

    def build(self) -> EpochPlan | None:
        if ((self._need > 0) & (self._targets < 1)).any():
            return None
        lane, handed = self._place()
        parts = self._parts(lane)
        walked = self._walk(parts)
        return None if walked is None else self._finish(walked, handed)

    def _distinct_targets(self) -> np.ndarray:
        """Different clips by lane and line: the need less the lane's share of the repeated uses."""
        targets = self._need.copy()
        for line in np.flatnonzero(self._item.demand.repeated).tolist():
            repeated = int(self._item.demand.repeated[line])
            share = self._need[:, line] * repeated // int(self._need[:, line].sum())
            rest = repeated - int(share.sum())
            share[np.argsort(-self._need[:, line], kind="stable")[:rest]] += 1
            targets[:, line] -= share
        return targets

    def _place(self) -> tuple[np.ndarray, int]:
        """(lane of each clip, clips handed over)."""
        item, config = self._item, self._config
        if item.clip_lanes is not None:
            return item.clip_lanes, 0
        ranges = cut_ranges(self._shard, self._line, self._lines, self._lanes)
        start = place_greedily(ranges, self._targets, self._rng(2))
        lane, handed = repair(ranges, start, self._line, self._targets)
        opens = self._opens(lane)
        best = (opens, handed)
        lacking = lacking_clips(ranges.counts, start, self._targets)
        annealed_lacking = lacking
        if config.anneal_steps and self._lanes > 1:
            problem = PlacementProblem(ranges, start, self._targets, self._domain_counts(ranges))
            anneal(problem, steps=config.anneal_steps, seed=self._seed(3))
            placed = np.array(problem.range_lanes)
            other, other_handed = repair(ranges, placed, self._line, self._targets)
            other_opens = self._opens(other)
            if (other_opens, other_handed) < best:
                lane, best = other, (other_opens, other_handed)
                annealed_lacking = lacking_clips(ranges.counts, placed, self._targets)
        self._gains["share_before_repair"] = (
            1.0 - lacking / len(self._line),
            1.0 - annealed_lacking / len(self._line),
        )
        self._gains["opens"] = (float(opens), float(best[0]))
        self._gains["handed_over"] = (float(handed), float(best[1]))
        return lane, best[1]

    def _domain_counts(self, ranges: Ranges) -> np.ndarray | None:
        domains = len(self._corpus.domains)
        if domains < 2:
            return None
        which = np.repeat(np.arange(len(ranges.start)), ranges.sizes)
        counts = np.bincount(which * domains + self._domain, minlength=len(ranges.start) * domains)
        return counts.reshape(len(ranges.start), domains)

    def _opens(self, lane: np.ndarray) -> int:
        key = lane.astype(np.int64) * self._corpus.num_shards + self._shard
        return len(np.unique(key))

    def _parts(self, lane: np.ndarray) -> Parts:
        return lane_parts(
            lane,
            self._shard,
            self._line,
            self._source,
            self._domain,
            self._lanes,
            self._lines,
            len(self._corpus.domains),
        )

    def _walk(self, parts: Parts) -> _Walked | None:
        """The most even rows that hold the caps, or those that come nearest."""
        rng = self._rng(4)
        orders = [[order_greedily(parts, lane, rng)] for lane in range(self._lanes)]
        if self._config.anneal_steps and self._item.clip_lanes is None:
            problem = OrderProblem(parts, [order[0] for order in orders], self._bytes, self._comfortable_bytes())
            result = anneal(problem, steps=self._config.anneal_steps, seed=self._seed(5))
            self._gains["order_energy"] = (result.energy_before, result.energy_after)
            for own, annealed in zip(orders, problem.orders, strict=True):
                own.append(annealed)
        best: _Walked | None = None
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
        """Half of the tighter cap."""
        most = self._config.max_buffer_clips
        by_clips = float("inf") if most is None else most * float(self._size.mean())
        return min(self._config.max_buffer_bytes, by_clips) / 2

    def _excess(self, walked: _Walked) -> float:
        """Largest peak over its cap; at most 1 if the caps hold."""
        return max(self._lane_excess(lane) for lane in walked.lanes)

    def _lane_excess(self, lane: _LaneWalked) -> float:
        config = self._config
        by_clips = 0.0 if config.max_buffer_clips is None else lane.peak_clips / config.max_buffer_clips
        return max(lane.peak_bytes / config.max_buffer_bytes, by_clips)

    def _walk_rows(self, parts: Parts, orders: Sequence[Sequence[np.ndarray]], follow: float) -> _Walked | None:
        item, config = self._item, self._config
        readiness = self._readiness(parts, [own[-1] for own in orders]) if follow else None
        rows = lane_rows(
            item.demand,
            self._group,
            item.densities,
            follow,
            readiness,
            config.micro_per_step,
            [config.seed, item.number],
        )
        if len(np.unique(self._group)) < self._lines:
            seed = [config.seed, item.number]
            if not follow:
                self._gains["bucket_mix_energy"] = spread_buckets(rows, self._group, self._steps, seed)
            order = order_steps(rows, self._group, self._steps, self._seconds, seed)
            self._gains["row_seconds"] = (order.before, order.after)
        rows = np.ascontiguousarray(rows[:, : item.num_rows])

        def run(lane: int) -> tuple[_LaneWalked | None, int]:
            return self._walk_lane(parts, orders[lane], rows[lane], lane)

        results = on_threads(run, range(self._lanes))
        lanes = [walked for walked, _ in results if walked is not None]
        if len(lanes) < self._lanes:
            return None
        return _Walked(rows, lanes, follow, max(peak for _, peak in results))

    def _walk_lane(
        self, parts: Parts, orders: Sequence[np.ndarray], rows: np.ndarray, lane: int
    ) -> tuple[_LaneWalked | None, int]:
        """(the walk of lowest peak over the reading orders, the peak of the first one).

        Where a cap does not hold, nothing is read that could wait, then parts are opened strictly in order, then one after another.
        """
        best: _LaneWalked | None = None
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
                if best is None or self._lane_excess(walked) < self._lane_excess(best):
                    best = walked
            if best is not None and self._lane_excess(best) <= 1.0:
                break
        return best, first_peak

    def _walk_order(
        self, parts: Parts, order: np.ndarray, rows: np.ndarray, lane: int, limits: WalkLimits
    ) -> _LaneWalked | None:
        own, start = _sequence(parts, order)
        line, size = self._line[own], self._size[own]
        steps = self._steps[: self._item.num_rows]
        walk = walk_lane(line, size, start, rows, steps, self._batch, self._uses(lane, line), limits)
        if walk is None:
            return None
        last = _last_rows(walk, rows, self._batch)
        held = buffer_curve(walk.read_row, last, size, len(rows))
        clips = buffer_curve(walk.read_row, last, np.ones(len(own), dtype=np.int64), len(rows))
        return _LaneWalked(walk, own, start, int(held.max(initial=0)), int(clips.max(initial=0)))

    def _uses(self, lane: int, line: np.ndarray) -> np.ndarray | None:
        """How often each clip of a lane is used, its first ones more often; None for once."""
        extra = self._need[lane] - self._targets[lane]
        if not extra.any():
            return None
        uses = np.ones(len(line), dtype=np.int64)
        for kind in np.flatnonzero(extra).tolist():
            own = np.flatnonzero(line == kind)
            each, more = divmod(int(extra[kind]), len(own))
            uses[own] += each
            uses[own[:more]] += 1
        return uses

    def _readiness(self, parts: Parts, orders: Sequence[np.ndarray]) -> Readiness:
        reached = []
        for lane, order in enumerate(orders):
            own, _ = _sequence(parts, order)
            share = np.cumsum(self._size[own]) / max(1, int(self._size[own].sum()))
            line = self._line[own]
            by_line = []
            for kind in range(self._lines):
                at = share[line == kind]
                micro = int(self._item.demand.micro[lane, kind])
                last = np.minimum((np.arange(micro) + 1) * int(self._batch[kind]) - 1, max(0, len(at) - 1))
                by_line.append(at[last] if micro else np.empty(0))
            reached.append(by_line)
        return Readiness(reached)

    def _finish(self, walked: _Walked, handed: int) -> EpochPlan:
        item, config = self._item, self._config
        num_clips = len(item.clips)
        read_row = np.full(num_clips, -1, dtype=np.int32)
        use_start = np.concatenate([[0], np.cumsum([len(item.walk.used) for item in walked.lanes])])
        used = np.empty(int(use_start[-1]), dtype=np.int64)
        row_of_use = np.empty(len(used), dtype=np.int32)
        held = np.empty((self._lanes, item.num_rows), dtype=np.int64)
        for lane, done in enumerate(walked.lanes):
            walk, own = done.walk, done.sequence
            read_row[own] = walk.read_row
            span = slice(int(use_start[lane]), int(use_start[lane + 1]))
            used[span] = own[walk.used]
            row_of_use[span] = np.repeat(np.arange(item.num_rows, dtype=np.int32), self._batch[walked.rows[lane]])
            last = _last_rows(walk, walked.rows[lane], self._batch)
            held[lane] = buffer_curve(walk.read_row, last, self._size[own], item.num_rows)
        times = np.bincount(used, minlength=num_clips)
        domains = len(self._corpus.domains)
        gain = anneal_windows(
            WindowProblem(
                clip=used,
                lane_start=use_start,
                row=row_of_use,
                line=self._line[used].astype(np.int16),
                step_of_row=self._steps[: item.num_rows],
                source=self._source,
                domain=self._domain,
                domain_mix=np.bincount(self._domain, minlength=domains) / num_clips,
                size=self._size,
                read_row=read_row,
                movable=times <= 1,
                held=held,
                max_bytes=max(config.max_buffer_bytes, max(done.peak_bytes for done in walked.lanes)),
            ),
            config.window_steps,
            config.anneal_moves_per_clip,
            (config.seed, item.number, 11),
        )
        self._gains["window_energy"] = (gain.energy_before, gain.energy_after)
        self._gains["source_pairs"] = (float(gain.shared_before), float(gain.shared_after))
        return self._epoch(walked, used, use_start, row_of_use, read_row, handed)

    def _epoch(
        self,
        walked: _Walked,
        used: np.ndarray,
        use_start: np.ndarray,
        row_of_use: np.ndarray,
        read_row: np.ndarray,
        handed: int,
    ) -> EpochPlan:
        """Exact peaks, and reads without the clips that no row names (they are read only where the plan goes on)."""
        item = self._item
        last_row = np.full(len(item.clips), -1, dtype=np.int32)
        np.maximum.at(last_row, used, row_of_use)
        reads: list[np.ndarray] = []
        opens = 0
        peaks = np.zeros((3, self._lanes), dtype=np.int64)
        for lane, done in enumerate(walked.lanes):
            walk, own = done.walk, done.sequence
            kept = walk.read_order[last_row[own[walk.read_order]] >= 0]
            reads.append(own[kept])
            args = (read_row[own], last_row[own])
            peaks[0, lane] = buffer_curve(*args, self._size[own], item.num_rows).max(initial=0)
            peaks[1, lane] = buffer_curve(*args, np.ones(len(own), dtype=np.int64), item.num_rows).max(initial=0)
            part = np.searchsorted(done.part_start, kept, side="right") - 1
            peaks[2, lane] = most_open(part, len(done.part_start) - 1)
            opens += int((np.bincount(part) > 0).sum())
        read = np.concatenate(reads)
        return EpochPlan(
            number=item.number,
            rows=walked.rows,
            read_clip=item.clips[read].astype(np.int32),
            read_row=read_row[read],
            read_start=np.concatenate([[0], np.cumsum([len(own) for own in reads])]),
            use_clip=item.clips[used].astype(np.int32),
            use_start=use_start,
            peak_bytes=peaks[0],
            peak_clips=peaks[1],
            peak_open=peaks[2],
            opens=opens,
            handed_over=handed,
            follow=walked.follow,
            gains=self._gains,
        )

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._config.seed, self._item.number, purpose])

    def _seed(self, purpose: int) -> int:
        return int(self._rng(purpose).integers(2**63))


def _sequence(parts: Parts, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(epoch positions of a lane's clips, part by part in the order; where each part begins among them, and the end)."""
    pieces = [parts.clip_order[parts.part_start[part] : parts.part_start[part + 1]] for part in order.tolist()]
    start = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces], dtype=np.int64)])
    return (np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)), start


def _last_rows(walk: LaneWalk, rows: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Row of the last use of each of a lane's clips, or -1, int32."""
    last = np.full(len(walk.read_row), -1, dtype=np.int32)
    np.maximum.at(last, walk.used, np.repeat(np.arange(len(rows), dtype=np.int32), batch[rows]))
    return last
