"""Reading byte ranges of shards: few open files, forward, with the kernel told so.

A range is one read into a buffer per sample (`preadv`), so that neighbours cost one request and are still let go one by one. Positions are given
with each read, so a re-read of a replaced clip does not disturb the forward order of the plan's reads.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from schemas.errors import ShardError

__all__ = ["ShardFiles"]

_OPEN_FILES = 8
_MOST_BUFFERS = 1024
"""Of one preadv; Linux's IOV_MAX."""


class ShardFiles:
    """Open shards, the most recently used `_OPEN_FILES` of them. For one thread."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, lengths: Sequence[int]) -> list[memoryview | ShardError]:
        """Samples of `lengths` bytes that lie one behind the other from `offset` on, each in memory of its own.

        A sample that cannot be had is a ShardError in its place: the file is gone, ends before, or is unreadable there.
        """
        samples: list[memoryview | ShardError] = []
        for first in range(0, len(lengths), _MOST_BUFFERS):
            some = lengths[first : first + _MOST_BUFFERS]
            samples += self._read(path, offset + sum(lengths[:first]), some)
        return samples

    def _read(self, path: Path, offset: int, lengths: Sequence[int]) -> list[memoryview | ShardError]:
        buffers = [np.empty(length, np.uint8).data for length in lengths]
        end, filled, left = offset + sum(lengths), 0, buffers
        try:
            descriptor = self._open(path)
            while left and (count := os.preadv(descriptor, left, offset + filled)):
                filled += count
                left = _after(buffers, filled)
        except OSError as error:
            if len(lengths) > 1:  # one bad block must not cost the samples around it
                starts = [offset + sum(lengths[:index]) for index in range(len(lengths))]
                return [self._read(path, start, [size])[0] for start, size in zip(starts, lengths, strict=True)]
            return [ShardError(f"shard {path}: cannot read bytes {offset} to {end} ({error.strerror})")]
        samples: list[memoryview | ShardError] = []
        stop = 0
        for buffer in buffers:
            stop += len(buffer)
            samples.append(
                buffer.toreadonly()
                if stop <= filled
                else ShardError(
                    f"shard {path}: ends {stop - filled} bytes before {offset + stop}; "
                    "the file is cut off, copy it again"
                )
            )
        return samples

    def close(self) -> None:
        """Close all files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _open(self, path: Path) -> int:
        if path in self._descriptors:
            self._descriptors.move_to_end(path)
            return self._descriptors[path]
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self._descriptors[path] = descriptor
        if len(self._descriptors) > _OPEN_FILES:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor


def _after(buffers: Sequence[memoryview], filled: int) -> list[memoryview]:
    """What of the buffers is left to fill."""
    left, start = [], 0
    for buffer in buffers:
        if start + len(buffer) > filled:
            left.append(buffer[max(0, filled - start) :])
        start += len(buffer)
    return left
