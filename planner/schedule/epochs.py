"""One epoch from its chosen clips to every lane's rows, reads and uses.

Place (planner.schedule.placement), order each lane's parts (reading), order rows and walk them (walking), and anneal which clip is used when
(windows). Each annealing starts from a constructive arrangement, and what it added is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.pricing.batches import BatchLine
from planner.samples import Corpus
from planner.schedule.annealing import anneal, moves_for
from planner.schedule.epoch_facts import EpochFacts, EpochInput
from planner.schedule.placement import PlacementProblem, Ranges, cut_ranges, lacking_clips, place_greedily, repair
from planner.schedule.reading import lane_parts
from planner.schedule.walk import buffer_curve, most_open
from planner.schedule.walking import Gains, Walked, last_rows, walk_lanes
from planner.schedule.windows import WindowProblem, anneal_windows
from planner.settings import PlanConfig

__all__ = ["EpochPlan", "plan_epoch"]


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


def plan_epoch(
    corpus: Corpus, item: EpochInput, lines: Sequence[BatchLine], group: np.ndarray, config: PlanConfig
) -> EpochPlan | None:
    """Plan it; the peaks may be over the caps if nothing holds them, which is the caller's to refuse.

    None if clips that are to be repeated cannot be kept out of one step.
    """
    facts = EpochFacts(corpus, item, lines, group, config)
    if ((facts.need > 0) & (facts.targets < 1)).any():
        return None
    gains: Gains = {}
    lane, handed = _place(facts, gains)
    parts = lane_parts(
        lane, facts.shard, facts.line, facts.source, facts.domain, facts.lanes, facts.lines, len(corpus.domains)
    )
    walked = walk_lanes(facts, parts, gains)
    return None if walked is None else _finish(facts, walked, handed, gains)


def _place(facts: EpochFacts, gains: Gains) -> tuple[np.ndarray, int]:
    """(lane of each clip, clips handed over)."""
    item, config = facts.item, facts.config
    if item.clip_lanes is not None:
        return item.clip_lanes, 0
    ranges = cut_ranges(facts.shard, facts.line, facts.lines, facts.lanes)
    start = place_greedily(ranges, facts.targets, facts.rng(2))
    lane, handed = repair(ranges, start, facts.line, facts.targets)
    opens = _opens(facts, lane)
    best = (opens, handed)
    lacking = lacking_clips(ranges.counts, start, facts.targets)
    annealed_lacking = lacking
    if config.anneal_steps and facts.lanes > 1:
        problem = PlacementProblem(ranges, start, facts.targets, _domain_counts(facts, ranges))
        anneal(problem, steps=moves_for(len(ranges.start), config.anneal_steps), seed=facts.seed(3))
        placed = np.array(problem.range_lanes)
        other, other_handed = repair(ranges, placed, facts.line, facts.targets)
        other_opens = _opens(facts, other)
        if (other_opens, other_handed) < best:
            lane, best = other, (other_opens, other_handed)
            annealed_lacking = lacking_clips(ranges.counts, placed, facts.targets)
    gains["share_before_repair"] = (
        1.0 - lacking / len(facts.line),
        1.0 - annealed_lacking / len(facts.line),
    )
    gains["opens"] = (float(opens), float(best[0]))
    gains["handed_over"] = (float(handed), float(best[1]))
    return lane, best[1]


def _domain_counts(facts: EpochFacts, ranges: Ranges) -> np.ndarray | None:
    domains = len(facts.corpus.domains)
    if domains < 2:
        return None
    which = np.repeat(np.arange(len(ranges.start)), ranges.sizes)
    counts = np.bincount(which * domains + facts.domain, minlength=len(ranges.start) * domains)
    return counts.reshape(len(ranges.start), domains)


def _opens(facts: EpochFacts, lane: np.ndarray) -> int:
    key = lane.astype(np.int64) * facts.corpus.num_shards + facts.shard
    return len(np.unique(key))


def _finish(facts: EpochFacts, walked: Walked, handed: int, gains: Gains) -> EpochPlan:
    item, config = facts.item, facts.config
    num_clips = len(item.clips)
    read_row = np.full(num_clips, -1, dtype=np.int32)
    use_start = np.concatenate([[0], np.cumsum([len(item.walk.used) for item in walked.lanes])])
    used = np.empty(int(use_start[-1]), dtype=np.int64)
    row_of_use = np.empty(len(used), dtype=np.int32)
    held = np.empty((facts.lanes, item.num_rows), dtype=np.int64)
    for lane, done in enumerate(walked.lanes):
        walk, own = done.walk, done.sequence
        read_row[own] = walk.read_row
        span = slice(int(use_start[lane]), int(use_start[lane + 1]))
        used[span] = own[walk.used]
        row_of_use[span] = np.repeat(np.arange(item.num_rows, dtype=np.int32), facts.batch[walked.rows[lane]])
        last = last_rows(walk, walked.rows[lane], facts.batch)
        held[lane] = buffer_curve(walk.read_row, last, facts.size[own], item.num_rows)
    times = np.bincount(used, minlength=num_clips)
    domains = len(facts.corpus.domains)
    gain = anneal_windows(
        WindowProblem(
            clip=used,
            lane_start=use_start,
            row=row_of_use,
            line=facts.line[used].astype(np.int16),
            step_of_row=facts.steps[: item.num_rows],
            source=facts.source,
            domain=facts.domain,
            domain_mix=np.bincount(facts.domain, minlength=domains) / num_clips,
            size=facts.size,
            read_row=read_row,
            movable=times <= 1,
            held=held,
            max_bytes=max(config.max_buffer_bytes, max(done.peak_bytes for done in walked.lanes)),
        ),
        config.window_steps,
        config.anneal_moves_per_clip,
        (config.seed, item.number, 11),
    )
    gains["window_energy"] = (gain.energy_before, gain.energy_after)
    gains["source_pairs"] = (float(gain.shared_before), float(gain.shared_after))
    return _epoch(facts, gains, walked, used, use_start, row_of_use, read_row, handed)


def _epoch(
    facts: EpochFacts,
    gains: Gains,
    walked: Walked,
    used: np.ndarray,
    use_start: np.ndarray,
    row_of_use: np.ndarray,
    read_row: np.ndarray,
    handed: int,
) -> EpochPlan:
    """Exact peaks, and reads without the clips that no row names (they are read only where the plan goes on)."""
    item = facts.item
    last_row = np.full(len(item.clips), -1, dtype=np.int32)
    np.maximum.at(last_row, used, row_of_use)
    reads: list[np.ndarray] = []
    opens = 0
    peaks = np.zeros((3, facts.lanes), dtype=np.int64)
    for lane, done in enumerate(walked.lanes):
        walk, own = done.walk, done.sequence
        kept = walk.read_order[last_row[own[walk.read_order]] >= 0]
        reads.append(own[kept])
        args = (read_row[own], last_row[own])
        peaks[0, lane] = buffer_curve(*args, facts.size[own], item.num_rows).max(initial=0)
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
        gains=gains,
    )
