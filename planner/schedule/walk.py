"""One lane's walk through an epoch: reads its parts forward, row by row just in time, and gives each row its clips.

A lane may be in the middle of several shards (`max_open_shards`), so a row that asks for a bucket reads on where the next clip of that bucket comes
soonest, in bytes; only when no open shard has one and no more may be opened is the one with least left read to its end. Beyond what a row needs,
the lane reads whole chunks (fewer, larger requests) and keeps a pool of clips of the row's bucket (a choice for the fine annealing), both only while
the buffer stays under a part of its caps. Clips of a bucket are used in reading order here. Where a bucket has fewer clips than its rows take, the
first ones that are used go back to the end of their queue, and are passed over while the step of their last use lasts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.schedule.kernels import kernel

__all__ = ["LaneWalk", "WalkLimits", "buffer_curve", "most_open", "walk_lane"]

_NEVER = -1
_LOOK_AHEAD_PARTS = 4
"""Unopened parts, in order, that are looked at for the bucket that is wanted."""
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
    done, read_order, read_row, used = _walk(
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
def _walk(
    line: np.ndarray,
    bytes_before: np.ndarray,
    part_start: np.ndarray,
    by_line: np.ndarray,
    group: np.ndarray,
    rows: np.ndarray,
    steps: np.ndarray,
    batch: np.ndarray,
    extra: np.ndarray,
    max_open: int,
    chunk_bytes: int,
    pool: int,
    soft_bytes: int,
    soft_clips: int,
    in_order: bool,
) -> Any:
    num_clips, lines, parts = len(line), len(batch), len(part_start) - 1
    total_uses = extra.copy()
    for clip in range(num_clips):
        total_uses[line[clip]] += 1
    queue_start = np.zeros(lines + 1, dtype=np.int64)
    for kind in range(lines):
        queue_start[kind + 1] = queue_start[kind] + total_uses[kind]
    queue = np.empty(queue_start[lines], dtype=np.int64)
    head = queue_start[:-1].copy()
    tail = queue_start[:-1].copy()
    unread = np.zeros(lines, dtype=np.int64)
    for clip in range(num_clips):
        unread[line[clip]] += 1
    cursor = part_start[:-1].copy()
    pointer = group[:-1].copy()
    opened = np.empty(max(max_open, 1), dtype=np.int64)
    num_open = 0
    started = np.zeros(parts, dtype=np.uint8)
    next_part = 0
    again = extra.copy()  # uses beyond one of each clip that are still to be given
    most_uses = np.ones(lines, dtype=np.int64)
    for kind in range(lines):
        distinct = total_uses[kind] - extra[kind]
        if distinct:
            most_uses[kind] = -(-total_uses[kind] // distinct)
    times = np.zeros(num_clips, dtype=np.int64)
    last_step = np.full(num_clips, -1, dtype=np.int64)
    read_order = np.empty(num_clips, dtype=np.int64)
    read_row = np.full(num_clips, -1, dtype=np.int32)
    num_read = 0
    num_used = 0
    num_wanted = 0
    for row in range(len(rows)):
        num_wanted += batch[rows[row]]
    used = np.empty(num_wanted, dtype=np.int64)
    held_bytes, held_clips = 0, 0
    repeats = extra.sum() > 0
    for row in range(len(rows)):
        kind = rows[row]
        need = batch[kind]
        while True:
            ready = tail[kind] - head[kind]
            if repeats:
                for index in range(head[kind], tail[kind]):
                    clip = queue[index]
                    # While the lane has clips of the bucket that it has not read, none is used a second time.
                    if last_step[clip] == steps[row] or (times[clip] > 0 and unread[kind] > 0):
                        ready -= 1
            must = ready < need
            if not must:
                if ready >= need * (1 + pool) or unread[kind] == 0:
                    break
                if held_bytes >= soft_bytes or held_clips >= soft_clips:
                    break
            if unread[kind] == 0:
                return False, read_order[:num_read], read_row, used[:num_used]
            # Where does the next clip of this bucket come soonest?
            best, best_distance, best_place = -1, np.int64(1) << 62, -1
            for place in range(num_open):
                part = opened[place]
                at = part * lines + kind
                while pointer[at] < group[at + 1] and by_line[pointer[at]] < cursor[part]:
                    pointer[at] += 1
                if pointer[at] < group[at + 1]:
                    distance = bytes_before[by_line[pointer[at]] + 1] - bytes_before[cursor[part]]
                    if distance < best_distance:
                        best, best_distance, best_place = part, distance, place
            # Which part would be opened for it?
            while next_part < parts and started[next_part]:
                next_part += 1
            fresh, fresh_spacing, seen = -1, np.int64(1) << 62, 0
            for part in range(next_part, parts):
                if started[part]:
                    continue
                if (seen >= _LOOK_AHEAD_PARTS and fresh >= 0) or (in_order and seen):
                    break
                seen += 1
                count = group[part * lines + kind + 1] - group[part * lines + kind]
                if count:
                    spacing = (bytes_before[part_start[part + 1]] - bytes_before[part_start[part]]) // count
                    if spacing < fresh_spacing:
                        fresh, fresh_spacing = part, spacing
            to_end = False
            if num_open < max_open:
                if fresh >= 0 and fresh_spacing < best_distance:
                    first = by_line[pointer[fresh * lines + kind]]
                    best, best_place = fresh, -1
                    best_distance = bytes_before[first + 1] - bytes_before[part_start[fresh]]
                elif best < 0 and in_order and next_part < parts:
                    best, best_place, to_end = next_part, -1, True
                    best_distance = bytes_before[part_start[next_part + 1]] - bytes_before[part_start[next_part]]
            elif must:
                # All that may be open is: is it nearer to read one of them to its end, and then open another?
                shortest, place_of_shortest = np.int64(1) << 62, -1
                for place in range(num_open):
                    part = opened[place]
                    rest = bytes_before[part_start[part + 1]] - bytes_before[cursor[part]]
                    if rest < shortest:
                        shortest, place_of_shortest = rest, place
                if best < 0 or (fresh >= 0 and shortest + fresh_spacing < best_distance):
                    best, best_place, to_end = opened[place_of_shortest], place_of_shortest, True
            if best < 0 or (to_end and not must):
                break
            if not must:
                ahead = by_line[pointer[best * lines + kind]] + 1 - cursor[best]
                if held_bytes + best_distance > soft_bytes or held_clips + ahead > soft_clips:
                    break
            if best_place < 0:
                started[best] = 1
                best_place = num_open
                opened[num_open] = best
                num_open += 1
            part = best
            stop = part_start[part + 1] if to_end else by_line[pointer[part * lines + kind]] + 1
            burst = 0
            while cursor[part] < part_start[part + 1]:
                clip = cursor[part]
                length = bytes_before[clip + 1] - bytes_before[clip]
                if clip >= stop and (
                    burst >= chunk_bytes or held_bytes + length > soft_bytes or held_clips + 1 > soft_clips
                ):
                    break
                cursor[part] += 1
                burst += length
                held_bytes += length
                held_clips += 1
                read_order[num_read] = clip
                num_read += 1
                read_row[clip] = row
                unread[line[clip]] -= 1
                queue[tail[line[clip]]] = clip
                tail[line[clip]] += 1
            if cursor[part] == part_start[part + 1]:
                num_open -= 1
                opened[best_place] = opened[num_open]
        for _ in range(need):
            index = head[kind]
            if repeats:  # the one that was used least often so far
                least = np.int64(1) << 62
                for place in range(head[kind], tail[kind]):
                    clip = queue[place]
                    if last_step[clip] != steps[row] and times[clip] < least:
                        index, least = place, times[clip]
            clip = queue[index]
            for back in range(index, head[kind], -1):
                queue[back] = queue[back - 1]
            head[kind] += 1
            used[num_used] = clip
            num_used += 1
            last_step[clip] = steps[row]
            times[clip] += 1
        for place in range(num_used - need, num_used):
            clip = used[place]
            if again[kind] > 0 and times[clip] < most_uses[kind]:
                again[kind] -= 1
                queue[tail[kind]] = clip
                tail[kind] += 1
            else:
                held_bytes -= bytes_before[clip + 1] - bytes_before[clip]
                held_clips -= 1
    return True, read_order[:num_read], read_row, used[:num_used]


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
