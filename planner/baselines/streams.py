"""Lanes that read tars front to back: which clip leaves the buffer when, and what is in memory in each row.

Shared by the baselines that stream. A lane's stream is its tars one after another; a shuffle buffer changes the order in which clips come out
of it, and the rows take clips from what has come out. Everything that is read stays in memory until it is used or thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.baselines.outcomes import Reads, Schedule, Setup, Uses

__all__ = [
    "LaneStream",
    "deal_shards",
    "empty_schedule",
    "first_in_first_out",
    "lane_sequence",
    "shuffle_buffer",
    "shuffled_stream",
    "stream_schedule",
]


@dataclass(frozen=True)
class LaneStream:
    """What one lane reads, in order, and what becomes of it. Arrays of one entry per clip but `bucket`."""

    clips: np.ndarray
    read_row: np.ndarray
    """Row before which the clip is read; the number of rows if the epoch ends before."""
    use_row: np.ndarray
    """Row that names the clip, or -1."""
    until: np.ndarray
    """Last row in which it is in memory."""
    bucket: np.ndarray
    """Of the lane's micro-batch, per row."""


def deal_shards(setup: Setup) -> list[np.ndarray]:
    """Shards in random order, dealt to lanes round-robin; the same for every strategy that asks."""
    shards = setup.rng(5).permutation(np.unique(setup.shard))
    return [shards[lane :: setup.lanes] for lane in range(setup.lanes)]


def lane_sequence(setup: Setup, shards: Sequence[int] | np.ndarray) -> np.ndarray:
    """Clips of the shards, one shard after another, each front to back."""
    starts = np.searchsorted(setup.shard, shards, side="left")
    ends = np.searchsorted(setup.shard, shards, side="right")
    pieces = [np.arange(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return np.concatenate([np.empty(0, dtype=np.int64), *pieces])


def shuffle_buffer(length: int, buffer_clips: int, rng: np.random.Generator) -> np.ndarray:
    """The order in which positions 0 .. length-1 leave a full buffer of which each new one pushes out a random one; the rest in random order."""
    held = list(range(min(length, buffer_clips)))
    if not held:
        return np.arange(length)
    slots = rng.integers(len(held), size=length - len(held)).tolist()
    out = []
    for position, slot in enumerate(slots, start=len(held)):
        out.append(held[slot])
        held[slot] = position
    out.extend(held[index] for index in rng.permutation(len(held)).tolist())
    return np.array(out, dtype=np.int64)


def first_in_first_out(setup: Setup, bucket: np.ndarray, row_bucket: np.ndarray) -> np.ndarray:
    """Row that takes each clip of a stream, the first of a bucket by the first row of that bucket; -1 where no row is left.

    Raises:
        AssertionError: if the rows want more clips of a bucket than there are.
    """
    row = np.full(len(bucket), -1, dtype=np.int64)
    for index, batch in enumerate(setup.clips_per_batch.tolist()):
        wanted = np.repeat(np.flatnonzero(row_bucket == index), batch)
        place = np.flatnonzero(bucket == index)
        assert len(wanted) <= len(place), "rows are counted from what the lanes have"
        row[place[: len(wanted)]] = wanted
    return row


def shuffled_stream(
    clips: np.ndarray,
    order: np.ndarray,
    row_of_output: np.ndarray,
    bucket: np.ndarray,
    buffer_clips: int,
    *,
    discard_unused: bool,
) -> LaneStream:
    """A lane whose clips come out of a shuffle buffer in `order` and are used in `row_of_output` (-1: never), both by output.

    The lane reads on only as far as the next row needs. A clip that no row names is thrown away as it comes out, or kept to the end.
    """
    rows, length = len(bucket), len(clips)
    used = np.where(row_of_output >= 0, row_of_output, rows)
    drawn = np.minimum.accumulate(used[::-1])[::-1]  # row that draws each output: all before the last one a row needs
    read_row = drawn[np.maximum(0, np.arange(length) - buffer_clips)]
    use_row = np.empty(length, dtype=np.int64)
    use_row[order] = row_of_output
    thrown = np.empty(length, dtype=np.int64)
    thrown[order] = np.minimum(drawn, rows - 1) if discard_unused else rows - 1
    return LaneStream(clips, read_row, use_row, np.where(use_row >= 0, use_row, thrown), bucket)


def stream_schedule(lanes: Sequence[LaneStream]) -> Schedule:
    """Lanes of equally many rows to a schedule; what the epoch does not read is left out."""
    rows = len(lanes[0].bucket)
    lane = np.repeat(np.arange(len(lanes)), [len(one.clips) for one in lanes])
    clip, read_row, use_row, until = (
        np.concatenate([getattr(one, name) for one in lanes]) for name in ("clips", "read_row", "use_row", "until")
    )
    read, used = read_row < rows, use_row >= 0
    assert not (used & ~read).any() and (read_row[used] <= use_row[used]).all(), "a clip is read before it is used"
    return Schedule(
        np.stack([one.bucket for one in lanes]),
        Uses(lane[used], use_row[used], clip[used]),
        Reads(lane[read], read_row[read], until[read], clip[read]),
    )


def empty_schedule(setup: Setup) -> Schedule:
    """No row."""
    none = np.empty(0, dtype=np.int64)
    return Schedule(np.empty((setup.lanes, 0), dtype=np.int64), Uses(none, none, none), Reads(none, none, none, none))
