"""A lane as a loader would run it, in compiled code: reads in order, clips into the buffer, clips out of it, shards opened and closed.

Loops over flat arrays, compiled by numba, since the rules are about one clip after another. Work arrays are as long as the samples and are cleaned
behind each lane, so that a lane costs its own clips only. Price: some seconds of compilation on a machine's first run (cached from then on).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

__all__ = ["Examples", "Replayed", "ShardWalk", "find_reads", "replay_lane", "walk_shards"]

_MOST = 5
_MOST_COUNTED = 255


class Examples(NamedTuple):
    """Breaches of one kind: how many, and (row, what) of the first ones."""

    number: int
    first: np.ndarray


class Replayed(NamedTuple):
    """What the replay of a lane found."""

    peak_bytes: int
    peak_clips: int
    unused_bytes: int
    late: Examples
    """Uses of a clip that was not read by then: (row, position)."""
    unused: Examples
    """Reads of a clip that the lane does not use in the epoch: (row, position)."""


class ShardWalk(NamedTuple):
    """What a lane's reads do to shards."""

    peak_open: int
    opens: int
    runs: int
    """Runs of neighbours in a shard, whatever is read in between."""
    back_bytes: int
    back: Examples
    """Reads that go back in their shard: (number of the read, shard)."""


@njit(cache=True, nogil=True)
def find_reads(
    shard: np.ndarray,
    offset: np.ndarray,
    length: np.ndarray,
    shard_first: np.ndarray,
    sample_offset: np.ndarray,
    sample_length: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(first sample, number of samples) of each read; number 0 where the bytes are no run of whole samples."""
    first = np.zeros(len(shard), np.int64)
    count = np.zeros(len(shard), np.int64)
    for index in range(len(shard)):
        if shard[index] < 0 or shard[index] >= len(shard_first) - 1 or length[index] <= 0:
            continue
        low, end = shard_first[shard[index]], shard_first[shard[index] + 1]
        high = end
        while low < high:
            middle = (low + high) // 2
            if sample_offset[middle] < offset[index]:
                low = middle + 1
            else:
                high = middle
        position, reached, stop = low, offset[index], offset[index] + length[index]
        while position < end and sample_offset[position] == reached and reached < stop:
            reached += sample_length[position]
            position += 1
        first[index] = low
        if reached == stop:
            count[index] = position - low
    return first, count


@njit(cache=True, nogil=True)
def _replay(
    row_epoch: np.ndarray,
    use_start: np.ndarray,
    use_clip: np.ndarray,
    read_start: np.ndarray,
    read_first: np.ndarray,
    read_count: np.ndarray,
    length: np.ndarray,
    uses: np.ndarray,
    reads: np.ndarray,
    last_use: np.ndarray,
    read_row: np.ndarray,
    late: np.ndarray,
    unused: np.ndarray,
) -> tuple[int, int, int, int, int]:
    """Counts into `uses` and `reads`; `last_use` and `read_row` hold -1 before and after."""
    peak_bytes = peak_clips = unused_bytes = num_late = num_unused = 0
    begin = 0
    while begin < len(row_epoch):
        epoch = row_epoch[begin]
        end = begin
        while end < len(row_epoch) and row_epoch[end] == epoch:
            for use in range(use_start[end], use_start[end + 1]):
                clip = use_clip[use]
                if clip >= 0:
                    last_use[clip] = end
                    if uses[epoch, clip] < _MOST_COUNTED:
                        uses[epoch, clip] += 1
            end += 1
        held_bytes = held_clips = 0
        for row in range(begin, end):
            for read in range(read_start[row], read_start[row + 1]):
                for clip in range(read_first[read], read_first[read] + read_count[read]):
                    if reads[epoch, clip] < _MOST_COUNTED:
                        reads[epoch, clip] += 1
                    if last_use[clip] < begin:
                        if num_unused < _MOST:
                            unused[num_unused, 0], unused[num_unused, 1] = row, clip
                        num_unused += 1
                        unused_bytes += length[clip]
                    read_row[clip] = row
                    held_bytes += length[clip]
                    held_clips += 1
            peak_bytes = max(peak_bytes, held_bytes)
            peak_clips = max(peak_clips, held_clips)
            for use in range(use_start[row], use_start[row + 1]):
                clip = use_clip[use]
                if clip >= 0 and read_row[clip] < begin:
                    if num_late < _MOST:
                        late[num_late, 0], late[num_late, 1] = row, clip
                    num_late += 1
            for use in range(use_start[row], use_start[row + 1]):
                clip = use_clip[use]
                if clip >= 0 and last_use[clip] == row and read_row[clip] >= begin:
                    held_bytes -= length[clip]
                    held_clips -= 1
                    read_row[clip] = -1
        begin = end
    for clip in use_clip:
        if clip >= 0:
            last_use[clip] = -1
    for read in range(len(read_first)):
        for clip in range(read_first[read], read_first[read] + read_count[read]):
            read_row[clip] = -1
    return peak_bytes, peak_clips, unused_bytes, num_late, num_unused


def replay_lane(
    row_epoch: np.ndarray,
    uses_of_rows: tuple[np.ndarray, np.ndarray],
    reads_of_rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    length: np.ndarray,
    counters: tuple[np.ndarray, np.ndarray],
    work: tuple[np.ndarray, np.ndarray],
) -> Replayed:
    """Run one lane: before each row its reads, then its uses; clips go after the last row of the epoch that uses them.

    Args:
        row_epoch: epoch of each row, 0 for the plan's first.
        uses_of_rows: first use of each row (rows + 1 numbers), and the sample of each use (-1: unknown).
        reads_of_rows: first read of each row (rows + 1 numbers), first sample and number of samples of each read.
        length: bytes of each sample.
        counters: uses and reads, each epochs x samples; added to, up to 255.
        work: two int32 arrays of -1, one number per sample; left as they were.
    """
    late, unused = np.zeros((_MOST, 2), np.int64), np.zeros((_MOST, 2), np.int64)
    peak_bytes, peak_clips, unused_bytes, num_late, num_unused = _replay(
        row_epoch,
        uses_of_rows[0],
        uses_of_rows[1],
        reads_of_rows[0],
        reads_of_rows[1],
        reads_of_rows[2],
        length,
        counters[0],
        counters[1],
        work[0],
        work[1],
        late,
        unused,
    )
    return Replayed(
        peak_bytes,
        peak_clips,
        unused_bytes,
        Examples(num_late, late[:num_late]),
        Examples(num_unused, unused[:num_unused]),
    )


@njit(cache=True, nogil=True)
def _walk(
    read_epoch: np.ndarray,
    shard: np.ndarray,
    offset: np.ndarray,
    length: np.ndarray,
    last_read: np.ndarray,
    opened: np.ndarray,
    reached: np.ndarray,
    shard_lanes: np.ndarray,
    back: np.ndarray,
) -> tuple[int, int, int, int, int]:
    peak_open = opens = runs = back_bytes = num_back = 0
    begin = 0
    while begin < len(shard):
        epoch = read_epoch[begin]
        end = begin
        while end < len(shard) and read_epoch[end] == epoch:
            if 0 <= shard[end] < len(last_read):
                last_read[shard[end]] = end
            end += 1
        now_open = 0
        for read in range(begin, end):
            tar = shard[read]
            if tar < 0 or tar >= len(last_read):
                continue
            if opened[tar] < begin:
                opened[tar] = read
                reached[tar] = 0
                shard_lanes[epoch, tar] += 1
                now_open += 1
                opens += 1
                runs += 1
            elif offset[read] != reached[tar]:
                runs += 1
            peak_open = max(peak_open, now_open)
            if offset[read] < reached[tar]:
                if num_back < _MOST:
                    back[num_back, 0], back[num_back, 1] = read, tar
                num_back += 1
                back_bytes += length[read]
            reached[tar] = offset[read] + length[read]
            if last_read[tar] == read:
                now_open -= 1
        begin = end
    return peak_open, opens, runs, back_bytes, num_back


def walk_shards(
    read_epoch: np.ndarray, shard: np.ndarray, offset: np.ndarray, length: np.ndarray, shard_lanes: np.ndarray
) -> ShardWalk:
    """Follow a lane's reads in order: which shards are open, and which reads go back.

    `shard_lanes` (epochs x shards) counts the lanes that read a shard, and is added to.
    """
    num_shards = shard_lanes.shape[1]
    back = np.zeros((_MOST, 2), np.int64)
    last_read, opened, reached = (np.full(num_shards, -1, np.int64) for _ in range(3))
    peak_open, opens, runs, back_bytes, num_back = _walk(
        read_epoch, shard, offset, length, last_read, opened, reached, shard_lanes, back
    )
    return ShardWalk(peak_open, opens, runs, back_bytes, Examples(num_back, back[:num_back]))
