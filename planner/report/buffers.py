"""What waits on each lane: bytes and clips that were read and are still to be used, in every row.

A clip counts from the row of the read that brings it to the last row of the epoch that uses it, so the sums are exact, not simulated; the largest
of a lane is what `plan.json` gives as its peak. Which read brings a clip follows from byte ranges alone, and a clip that no read brings in time is
refused. Price: needs the samples, and lanes x bins of floats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.report.binning import bin_max
from schemas.errors import PlanError

__all__ = ["BufferCounter", "BufferTally"]


@dataclass(frozen=True)
class BufferTally:
    """What waits on the lanes: needs the samples."""

    bytes_VxC: np.ndarray
    """Largest in each bin of rows, by drawn lane."""
    highest_C: np.ndarray
    """Over all lanes; `median_C` and `lowest_C` alike."""
    median_C: np.ndarray
    lowest_C: np.ndarray
    peak_bytes_V: np.ndarray
    peak_clips_V: np.ndarray
    peak_row_V: np.ndarray
    """First row in which the lane has its peak of bytes."""
    wait_rows: np.ndarray
    """Clips by rows between being read and last used: entry r counts those that wait r rows, the last one all longer ones."""


class BufferCounter:
    """Counts lane by lane; `edges` are the bins of rows."""

    _LONGEST_WAIT = 4096

    def __init__(self, lanes: int, edges: np.ndarray, num_rows: int) -> None:
        self._edges, self._num_rows = edges, num_rows
        self._bytes = np.zeros((lanes, len(edges) - 1), dtype=np.float64)
        self._peaks = np.zeros((3, lanes), dtype=np.int64)
        self._wait = np.zeros(min(num_rows, self._LONGEST_WAIT) + 1, dtype=np.int64)

    def add(
        self,
        lane: int,
        clips: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
        reads: tuple[np.ndarray, ...],
        epoch_M: np.ndarray,
        where: str,
    ) -> None:
        """`clips`: row, shard, offset, length of each use; `reads`: row, shard, offset, length of each read."""
        row, shard, offset, length = clips
        read_row, read_shard, read_offset, read_length = reads
        keys, read_keys = _keys(
            (epoch_M[row], shard, offset + length), (epoch_M[read_row], read_shard, read_offset + read_length)
        )
        last, one = _last_uses(keys, row)
        order = np.argsort(read_keys, kind="stable")
        at = np.minimum(np.searchsorted(read_keys[order], keys[one]), max(0, len(order) - 1))
        read = order[at] if len(order) else np.zeros(0, dtype=np.int64)
        known = len(read) == len(one) and bool(
            np.all(
                (epoch_M[read_row[read]] == epoch_M[row[one]])
                & (read_shard[read] == shard[one])
                & (read_offset[read] <= offset[one])
                & (offset[one] + length[one] <= read_offset[read] + read_length[read])
                & (read_row[read] <= last)
            )
        )
        if not known:
            raise PlanError(
                f"{where} uses clips that none of its reads brings in time; --samples are not those of the plan, or the plan is broken: "
                "run `reelyard-plan verify`"
            )
        brought = read_row[read]
        held = np.bincount(read_row, read_length, minlength=self._num_rows)
        held_bytes = _held(held, np.bincount(last, length[one], minlength=self._num_rows))
        held_clips = _held(np.bincount(brought, minlength=self._num_rows), np.bincount(last, minlength=self._num_rows))
        self._bytes[lane] = bin_max(held_bytes, self._edges)
        self._peaks[:, lane] = (held_bytes.max(), held_clips.max(), held_bytes.argmax())
        self._wait += np.bincount(np.minimum(last - brought, len(self._wait) - 1), minlength=len(self._wait))

    def result(self, drawn: np.ndarray) -> BufferTally:
        peak_bytes, peak_clips, peak_row = self._peaks
        return BufferTally(
            bytes_VxC=self._bytes[drawn],
            highest_C=self._bytes.max(axis=0),
            median_C=np.median(self._bytes, axis=0),
            lowest_C=self._bytes.min(axis=0),
            peak_bytes_V=peak_bytes,
            peak_clips_V=peak_clips,
            peak_row_V=peak_row,
            wait_rows=self._wait,
        )


def _keys(*places: tuple[np.ndarray, np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """(epoch, shard, byte) of each place as one integer that sorts the same, with as many bits as the largest needs."""
    bits = max(int(byte.max(initial=0)) for _, _, byte in places).bit_length()
    span = max(int(shard.max(initial=0)) for _, shard, _ in places) + 1
    first = min((int(epoch.min()) for epoch, _, _ in places if len(epoch)), default=0)
    return [(((epoch - first) * span + shard) << bits) + byte for epoch, shard, byte in places]


def _last_uses(keys: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each distinct key, in ascending order: its last row, and the index of that use. Rows ascend."""
    _, position = np.unique(keys[::-1], return_index=True)
    one = len(keys) - 1 - position
    return row[one], one


def _held(brought: np.ndarray, released: np.ndarray) -> np.ndarray:
    """What is held in each row: all that was brought up to it, less what rows before it released."""
    return np.cumsum(brought.astype(np.int64)) - np.concatenate([[0], np.cumsum(released.astype(np.int64))[:-1]])
