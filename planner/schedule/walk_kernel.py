"""The compiled walk of one lane (planner.schedule.walk says what it does and why).

What does not change is in `_Lane`, what does in `_State`; numbers that change stand in `_State.counts` at the places named below, since a tuple's own
numbers cannot be set. Each function is one decision of the walk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from planner.schedule.kernels import kernel

__all__ = ["walk_rows"]

LOOK_AHEAD_PARTS = 4
"""Unopened parts, in order, that are looked at for the bucket that is wanted. More find richer ones, but leave the order that was balanced: at 32,
buffers were larger by half."""
_FAR = np.int64(1) << 62
_OPEN, _NEXT, _READ, _BYTES, _CLIPS = range(5)
"""Places in `counts`: parts open; first part that may be unopened; clips read so far; bytes and clips held."""


class _Lane(NamedTuple):
    line: np.ndarray
    """Of each clip, parts one behind the other."""
    bytes_before: np.ndarray
    part_start: np.ndarray
    by_line: np.ndarray
    """Clips by (part, line), ascending."""
    group: np.ndarray
    """First entry of each (part, line) in `by_line`."""
    lines: int


class _State(NamedTuple):
    counts: np.ndarray
    cursor: np.ndarray
    """Next clip of each part."""
    pointer: np.ndarray
    """By (part, line): entry of `by_line` that is not before the cursor, once it is asked for."""
    opened: np.ndarray
    started: np.ndarray
    queue: np.ndarray
    """Clips that are read and may be used, line by line; those of a line from head to tail."""
    head: np.ndarray
    tail: np.ndarray
    unread: np.ndarray
    """Clips of each line that are not read."""
    again: np.ndarray
    """Uses of each line beyond one of each clip that are still to be given."""
    most_uses: np.ndarray
    times: np.ndarray
    """Uses of each clip so far."""
    last_step: np.ndarray
    read_order: np.ndarray
    read_row: np.ndarray


@kernel
def walk_rows(
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
    """(whether it could be done, clips in reading order, row before which each is read, clips in the order of use)."""
    lane = _Lane(line, bytes_before, part_start, by_line, group, len(batch))
    state = _start(lane, extra, max_open)
    repeats = extra.sum() > 0
    wanted = 0
    for row in range(len(rows)):
        wanted += batch[rows[row]]
    used = np.empty(wanted, dtype=np.int64)
    num_used = 0
    for row in range(len(rows)):
        kind = rows[row]
        need = batch[kind]
        while True:
            ready = _ready(state, kind, steps[row], repeats)
            must = ready < need
            full = state.counts[_BYTES] >= soft_bytes or state.counts[_CLIPS] >= soft_clips
            if not must and (ready >= need * (1 + pool) or full or state.unread[kind] == 0):
                break
            if state.unread[kind] == 0:
                return False, state.read_order[: state.counts[_READ]], state.read_row, used[:num_used]
            part, place, to_end, distance = _where(lane, state, kind, must, max_open, in_order)
            if part < 0 or (to_end and not must):
                break
            if not must:
                ahead = by_line[state.pointer[part * lane.lines + kind]] + 1 - state.cursor[part]
                if state.counts[_BYTES] + distance > soft_bytes or state.counts[_CLIPS] + ahead > soft_clips:
                    break
            stop = part_start[part + 1] if to_end else by_line[state.pointer[part * lane.lines + kind]] + 1
            _read_on(lane, state, part, place, stop, row, chunk_bytes, soft_bytes, soft_clips)
        for _ in range(need):
            used[num_used] = _take(state, kind, steps[row], repeats)
            num_used += 1
        for index in range(num_used - need, num_used):
            _let_go(lane, state, used[index], kind)
    return True, state.read_order[: state.counts[_READ]], state.read_row, used[:num_used]


@kernel
def _start(lane: Any, extra: np.ndarray, max_open: int) -> Any:
    num_clips, lines = len(lane.line), lane.lines
    unread = np.zeros(lines, dtype=np.int64)
    for clip in range(num_clips):
        unread[lane.line[clip]] += 1
    queue_start = np.zeros(lines + 1, dtype=np.int64)
    most_uses = np.ones(lines, dtype=np.int64)
    for kind in range(lines):
        queue_start[kind + 1] = queue_start[kind] + unread[kind] + extra[kind]
        if unread[kind]:
            most_uses[kind] = -(-(unread[kind] + extra[kind]) // unread[kind])
    return _State(
        np.zeros(5, dtype=np.int64),
        lane.part_start[:-1].copy(),
        lane.group[:-1].copy(),
        np.empty(max(max_open, 1), dtype=np.int64),
        np.zeros(len(lane.part_start) - 1, dtype=np.uint8),
        np.empty(queue_start[lines], dtype=np.int64),
        queue_start[:-1].copy(),
        queue_start[:-1].copy(),
        unread,
        extra.copy(),
        most_uses,
        np.zeros(num_clips, dtype=np.int64),
        np.full(num_clips, -1, dtype=np.int64),
        np.empty(num_clips, dtype=np.int64),
        np.full(num_clips, -1, dtype=np.int32),
    )


@kernel
def _ready(state: Any, kind: int, step: int, repeats: bool) -> Any:
    """Clips of a line that a row of the step may use now."""
    ready = state.tail[kind] - state.head[kind]
    if repeats:
        for index in range(state.head[kind], state.tail[kind]):
            clip = state.queue[index]
            # While the lane has clips of the bucket that it has not read, none is used a second time.
            if state.last_step[clip] == step or (state.times[clip] > 0 and state.unread[kind] > 0):
                ready -= 1
    return ready


@kernel
def _where(lane: Any, state: Any, kind: int, must: bool, max_open: int, in_order: bool) -> Any:
    """(part to read on in or -1, its place among the open ones or -1 to open it, whether to its end, bytes until the next clip of the line)."""
    part, place, distance = _nearest_open(lane, state, kind)
    fresh, spacing = _richest_unopened(lane, state, kind, in_order)
    following = state.counts[_NEXT]
    if state.counts[_OPEN] < max_open:
        if fresh >= 0 and spacing < distance:
            first = lane.by_line[state.pointer[fresh * lane.lines + kind]]
            return fresh, -1, False, lane.bytes_before[first + 1] - lane.bytes_before[lane.part_start[fresh]]
        if part < 0 and in_order and following < len(state.started):
            return following, -1, True, _rest(lane, state, following)
    elif must:
        # All that may be open is: is it nearer to read one of them to its end, and then open another?
        shortest, place_of_shortest = _FAR, -1
        for index in range(state.counts[_OPEN]):
            rest = _rest(lane, state, state.opened[index])
            if rest < shortest:
                shortest, place_of_shortest = rest, index
        if part < 0 or (fresh >= 0 and shortest + spacing < distance):
            return state.opened[place_of_shortest], place_of_shortest, True, shortest
    return part, place, False, distance


@kernel
def _rest(lane: Any, state: Any, part: int) -> Any:
    """Bytes from a part's cursor to its end."""
    return lane.bytes_before[lane.part_start[part + 1]] - lane.bytes_before[state.cursor[part]]


@kernel
def _nearest_open(lane: Any, state: Any, kind: int) -> Any:
    """(open part whose next clip of the line comes soonest or -1, its place, bytes until then)."""
    nearest, nearest_place, least = -1, -1, int(_FAR)
    for place in range(state.counts[_OPEN]):
        part = state.opened[place]
        at = part * lane.lines + kind
        while state.pointer[at] < lane.group[at + 1] and lane.by_line[state.pointer[at]] < state.cursor[part]:
            state.pointer[at] += 1
        if state.pointer[at] < lane.group[at + 1]:
            distance = lane.bytes_before[lane.by_line[state.pointer[at]] + 1] - lane.bytes_before[state.cursor[part]]
            if distance < least:
                nearest, nearest_place, least = part, place, distance
    return nearest, nearest_place, least


@kernel
def _richest_unopened(lane: Any, state: Any, kind: int, in_order: bool) -> Any:
    """(unopened part in which clips of the line lie closest or -1, bytes from one to the next); the first one alone if `in_order`."""
    parts = len(state.started)
    while state.counts[_NEXT] < parts and state.started[state.counts[_NEXT]]:
        state.counts[_NEXT] += 1
    richest, least, seen = -1, int(_FAR), 0
    for part in range(state.counts[_NEXT], parts):
        if state.started[part]:
            continue
        if (seen >= LOOK_AHEAD_PARTS and richest >= 0) or (in_order and seen):
            break
        seen += 1
        count = lane.group[part * lane.lines + kind + 1] - lane.group[part * lane.lines + kind]
        if count:
            spacing = _rest(lane, state, part) // count
            if spacing < least:
                richest, least = part, spacing
    return richest, least


@kernel
def _read_on(
    lane: Any,
    state: Any,
    part: int,
    place: int,
    stop: int,
    row: int,
    chunk_bytes: int,
    soft_bytes: int,
    soft_clips: int,
) -> None:
    """Read a part (opening it where `place` is -1) up to `stop`, and on to a whole chunk while memory allows."""
    if place < 0:
        state.started[part] = 1
        place = state.counts[_OPEN]
        state.opened[place] = part
        state.counts[_OPEN] += 1
    burst = 0
    while state.cursor[part] < lane.part_start[part + 1]:
        clip = state.cursor[part]
        length = lane.bytes_before[clip + 1] - lane.bytes_before[clip]
        fits = state.counts[_BYTES] + length <= soft_bytes and state.counts[_CLIPS] + 1 <= soft_clips
        if clip >= stop and (burst >= chunk_bytes or not fits):
            break
        kind = lane.line[clip]
        state.cursor[part] += 1
        burst += length
        state.counts[_BYTES] += length
        state.counts[_CLIPS] += 1
        state.read_order[state.counts[_READ]] = clip
        state.counts[_READ] += 1
        state.read_row[clip] = row
        state.unread[kind] -= 1
        state.queue[state.tail[kind]] = clip
        state.tail[kind] += 1
    if state.cursor[part] == lane.part_start[part + 1]:
        state.counts[_OPEN] -= 1
        state.opened[place] = state.opened[state.counts[_OPEN]]


@kernel
def _take(state: Any, kind: int, step: int, repeats: bool) -> Any:
    """The clip that a row uses next: the oldest one, or of those used least often so far."""
    chosen = state.head[kind]
    if repeats:
        least = _FAR
        for index in range(state.head[kind], state.tail[kind]):
            clip = state.queue[index]
            if state.last_step[clip] != step and state.times[clip] < least:
                chosen, least = index, state.times[clip]
    clip = state.queue[chosen]
    for back in range(chosen, state.head[kind], -1):
        state.queue[back] = state.queue[back - 1]
    state.head[kind] += 1
    state.last_step[clip] = step
    state.times[clip] += 1
    return clip


@kernel
def _let_go(lane: Any, state: Any, clip: int, kind: int) -> None:
    """After the row: back into the queue if it is to be used again, else out of memory."""
    if state.again[kind] > 0 and state.times[clip] < state.most_uses[kind]:
        state.again[kind] -= 1
        state.queue[state.tail[kind]] = clip
        state.tail[kind] += 1
    else:
        state.counts[_BYTES] -= lane.bytes_before[clip + 1] - lane.bytes_before[clip]
        state.counts[_CLIPS] -= 1
