"""Rows of an epoch: which bucket each lane runs, which clips it names, and when their bytes are read.

Buckets follow each other in low-discrepancy order: the i-th of n rows of a bucket stands at (i + phase) / n of the epoch. A lane's clips go to its
rows in reading order, and a read happens just before the first row that needs it or anything behind it. When that needs more memory than the cap,
the order is bent towards the one in which the slowest lane gets its clips anyway (`follow` from 0, the even order, to 1), and only when that does
not fit either is the plan refused. Price of the just-in-time reads: prefetching is the loader's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "LaneSchedule",
    "RowShape",
    "RowStarts",
    "buffered_bytes",
    "full_steps",
    "order_rows",
    "schedule_lane",
    "separate_sources",
]

_LOOK_AHEAD = 64
"""Buffered clips that are looked at for one of another source."""


@dataclass(frozen=True)
class RowShape:
    """What the batch table says, as arrays over its lines."""

    rows: np.ndarray
    """Rows per epoch."""
    clips: np.ndarray
    """B_b."""
    group: np.ndarray
    """Lines of one group may share a row: the line itself (uniform) or its tier (tiers)."""


@dataclass(frozen=True)
class RowStarts:
    """Where an epoch's rows lie in the plan: their global numbers decide which step they are in."""

    first_row: int
    """A multiple of `micro_per_step`: no step is in two epochs."""
    num_rows: int
    micro_per_step: int


@dataclass(frozen=True)
class LaneSchedule:
    """One lane's epoch, in reading order; rows count within the epoch."""

    clips: np.ndarray
    use: np.ndarray
    """Row that names the clip."""
    read: np.ndarray
    """Row before which its bytes are read; never falls."""


def order_rows(
    shape: RowShape,
    lane_buckets: Sequence[np.ndarray],
    lane_bytes: Sequence[np.ndarray],
    follow: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Line of the batch table for each (lane, row) of the epoch. `lane_buckets` and `lane_bytes` are in reading order."""
    ready = [_readiness(shape, buckets, sizes) for buckets, sizes in zip(lane_buckets, lane_bytes, strict=True)]
    keys: list[np.ndarray] = []
    lines: list[np.ndarray] = []
    for group in np.unique(shape.group[shape.rows > 0]).tolist():
        members = np.flatnonzero((shape.group == group) & (shape.rows > 0))
        total = int(shape.rows[members].sum())
        phase = rng.random()
        order = np.empty((len(ready), total), dtype=np.int64)
        reached = np.zeros(total)
        for lane, by_line in enumerate(ready):
            order[lane], lane_reached = _order_within(shape, members.tolist(), by_line, follow, rng)
            reached = np.maximum(reached, lane_reached)
        keys.append((1 - follow) * (np.arange(total) + phase) / total + follow * reached)
        lines.append(order)
    return np.concatenate(lines, axis=1)[:, np.argsort(np.concatenate(keys), kind="stable")]


def full_steps(lane_rows: np.ndarray, shape: RowShape, micro_per_step: int, dropped: np.ndarray) -> np.ndarray:
    """The rows without those that fill no step: few enough to name no clip twice in a step, which a step over two epochs could.

    Out go rows of few clips, and of groups that lost a small share of their rows so far (`dropped`: rows lost by group): clips x share squared, so
    that a row of four times the clips is left out half as often, and every group has its turns.
    """
    group = shape.group[lane_rows[0]]
    clips = shape.clips[lane_rows].sum(axis=0)
    rows = np.bincount(group, minlength=len(dropped))
    lost = dropped.copy()
    keep = np.ones(len(group), dtype=bool)
    for _ in range(len(group) % micro_per_step):
        left = np.flatnonzero(keep)
        share = (lost[group[left]] + 1) / rows[group[left]]
        out = left[np.lexsort((-left, clips[left] * share**2))[0]]
        keep[out] = False
        lost[group[out]] += 1
    return lane_rows[:, keep]


def _readiness(shape: RowShape, buckets: np.ndarray, sizes: np.ndarray) -> dict[int, np.ndarray]:
    """Per line: share of the lane's bytes that must be read for its first, second, ... micro-batch."""
    read = np.cumsum(sizes) / sizes.sum()
    return {
        line: read[np.flatnonzero(buckets == line)[shape.clips[line] - 1 :: shape.clips[line]]]
        for line in np.flatnonzero(shape.rows).tolist()
    }


def _order_within(
    shape: RowShape, members: Sequence[int], ready: dict[int, np.ndarray], follow: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One lane's lines in the rows of one group, and the share of its bytes that each has to have read by then."""
    even = [(np.arange(shape.rows[line]) + rng.random()) / shape.rows[line] for line in members]
    needs = np.concatenate([ready[line] for line in members])
    names = np.repeat(np.array(members), shape.rows[list(members)])
    order = np.argsort((1 - follow) * np.concatenate(even) + follow * needs, kind="stable")
    return names[order], np.maximum.accumulate(needs[order])


def schedule_lane(clips: np.ndarray, buckets: np.ndarray, lane_rows: np.ndarray, shape: RowShape) -> LaneSchedule:
    """Give each row its clips in reading order; clips of rows that the epoch does not have fall out and are not read."""
    use = np.full(len(clips), -1, dtype=np.int64)
    for line in np.unique(lane_rows).tolist():
        rows = np.repeat(np.flatnonzero(lane_rows == line), shape.clips[line])
        use[np.flatnonzero(buckets == line)[: len(rows)]] = rows
    kept = use >= 0
    return _just_in_time(clips[kept], use[kept])


def _just_in_time(clips: np.ndarray, use: np.ndarray) -> LaneSchedule:
    return LaneSchedule(clips=clips, use=use, read=np.minimum.accumulate(use[::-1])[::-1])


def buffered_bytes(lane: LaneSchedule, length: np.ndarray, num_rows: int) -> np.ndarray:
    """Bytes held during each row: read before or at it, not used before it. `length` is over all clips."""
    sizes = length[lane.clips]
    change = np.zeros(num_rows + 1, dtype=np.int64)
    np.add.at(change, lane.read, sizes)
    np.subtract.at(change, lane.use + 1, sizes)
    return np.cumsum(change)[:num_rows]


def separate_sources(
    lanes: Sequence[LaneSchedule],
    lane_rows: np.ndarray,
    chosen: np.ndarray,
    source: np.ndarray,
    shape: RowShape,
    starts: RowStarts,
    ahead: int,
) -> list[LaneSchedule]:
    """Among clips that a lane would have read by `ahead` rows later, let each row name those whose source its step does not have yet.

    Counts per row stay, so every row still finds its clips. With `ahead` 0 the choice is among clips that wait in memory anyway; more rows give
    more choice and need more memory.
    """
    uses = [np.empty(len(lane.clips), dtype=np.int64) for lane in lanes]
    waiting: list[dict[int, list[int]]] = [{line: [] for line in np.flatnonzero(shape.rows).tolist()} for _ in lanes]
    sources = [source[lane.clips].tolist() for lane in lanes]
    lines = [chosen[lane.clips].tolist() for lane in lanes]
    reads = [lane.read.tolist() for lane in lanes]
    next_read = [0] * len(lanes)
    seen: set[int] = set()
    for row in range(starts.num_rows):
        if (starts.first_row + row) % starts.micro_per_step == 0:
            seen.clear()
        for index in range(len(lanes)):
            position = next_read[index]
            while position < len(reads[index]) and reads[index][position] <= row + ahead:
                waiting[index][lines[index][position]].append(position)
                position += 1
            next_read[index] = position
            line = int(lane_rows[index, row])
            for taken in _take(waiting[index][line], int(shape.clips[line]), sources[index], seen):
                uses[index][taken] = row
    return [_just_in_time(lane.clips, use) for lane, use in zip(lanes, uses, strict=True)]


def _take(queue: list[int], count: int, sources: Sequence[int], seen: set[int]) -> list[int]:
    """Remove `count` positions from the queue: first those of unseen sources, then the oldest."""
    fresh: list[int] = []
    for position in queue[:_LOOK_AHEAD]:
        if len(fresh) == count:
            break
        if sources[position] not in seen:
            seen.add(sources[position])
            fresh.append(position)
    taken = fresh + [position for position in queue if position not in fresh][: count - len(fresh)]
    for position in taken:
        queue.remove(position)
        seen.add(sources[position])
    return taken
