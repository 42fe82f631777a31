"""One lane's walk through an epoch: reads its parts forward, row by row just in time, and gives each row its clips.

A lane may be in the middle of several shards (`max_open_shards`), so a row that asks for a bucket reads on where the next clip of that bucket comes
soonest, in bytes: in an open shard; in the richest of the next few, if one more may be opened; or by reading an open one to its end so that another
can be. Beyond what a row needs, the lane reads whole chunks (fewer, larger requests) and keeps a pool of clips of the row's bucket (a choice for the
fine annealing), both only while the buffer stays under a part of its caps. Clips of a bucket are used in reading order here. Where a bucket has fewer
clips than its rows take, the first ones that are used go back to the end of their queue, and are passed over while the step of their last use lasts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.schedule.kernels import kernel
from planner.schedule.walk_kernel import walk_rows

__all__ = ["LaneWalk", "WalkLimits", "buffer_curve", "most_open", "walk_lane"]

_POOL_CAP_SHARE = 0.5
"""Reading that could wait stops where the buffer reaches this share of a cap."""


@dataclass(frozen=True)
class WalkLimits:
    """What bounds the reading of a lane."""

    max_open: int
    chunk_bytes: int
    pool_micro_batches: int
    """Further micro-batches of the row's bucket that are kept in memory to choose from."""
    max_bytes: int
    max_clips: int
    in_order: bool = False
    """Parts are opened strictly in their order, whatever they hold; else the one that is richest in what is wanted."""


@dataclass(frozen=True)
class LaneWalk:
    """What a lane does; positions count within the lane's clips in the order of its parts."""

    read_order: np.ndarray
    """Positions in the order in which they are read (those that are read at all)."""
    read_row: np.ndarray
    """Row before which each position is read, or -1."""
    used: np.ndarray
    """Positions, row by row."""


def walk_lane(
    line: np.ndarray,
    size: np.ndarray,
    part_start: np.ndarray,
    rows: np.ndarray,
    steps: np.ndarray,
    batch: np.ndarray,
    extra: np.ndarray | None,
    limits: WalkLimits,
) -> LaneWalk | None:
    """Walk; None if clips that are to be used again cannot be kept out of one step.

    Args:
        line: bucket of each of the lane's clips, parts in reading order one behind the other; size: their bytes.
        part_start: first clip of each part, and the end.
        rows: bucket of each row; steps: step of each row; batch: clips of a row by bucket.
        extra: uses by bucket beyond one of each clip, spread as evenly over its clips as can be; or None.
    """
    lines = len(batch)
    part = np.repeat(np.arange(len(part_start) - 1), np.diff(part_start))
    key = part * lines + line
    by_line = np.argsort(key, kind="stable")
    group = np.searchsorted(key[by_line], np.arange((len(part_start) - 1) * lines + 1))
    bytes_before = np.concatenate([[0], np.cumsum(size)])
    done, read_order, read_row, used = walk_rows(
        line.astype(np.int64),
        bytes_before,
        part_start.astype(np.int64),
        by_line,
        group,
        rows.astype(np.int64),
        steps,
        batch,
        np.zeros(lines, dtype=np.int64) if extra is None else extra.astype(np.int64),
        limits.max_open,
        limits.chunk_bytes,
        limits.pool_micro_batches,
        int(limits.max_bytes * _POOL_CAP_SHARE),
        int(limits.max_clips * _POOL_CAP_SHARE),
        limits.in_order,
    )
    if not done:
        return None
    return LaneWalk(read_order=read_order, read_row=read_row, used=used)


@kernel
def buffer_curve(read_row: np.ndarray, last_row: np.ndarray, size: np.ndarray, num_rows: int) -> np.ndarray:
    """What a lane holds in each row: the sum of `size` over clips with read_row <= row <= last_row, int64; clips with last_row -1 do not count."""
    change = np.zeros(num_rows + 1, dtype=np.int64)
    for clip in range(len(read_row)):
        if last_row[clip] >= 0:
            change[read_row[clip]] += size[clip]
            change[last_row[clip] + 1] -= size[clip]
    held = 0
    for row in range(num_rows):
        held += change[row]
        change[row] = held
    return change[:num_rows]


@kernel
def most_open(part: np.ndarray, parts: int) -> Any:
    """Most parts open at once, `part` being that of each read in order; a part is open from its first to its last read."""
    last = np.full(parts, -1, dtype=np.int64)
    for index in range(len(part)):
        last[part[index]] = index
    seen = np.zeros(parts, dtype=np.uint8)
    opened, most = 0, 0
    for index in range(len(part)):
        if not seen[part[index]]:
            seen[part[index]] = 1
            opened += 1
            most = max(most, opened)
        if last[part[index]] == index:
            opened -= 1
    return most
