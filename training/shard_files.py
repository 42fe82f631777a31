"""Reading byte ranges of shards: few open files, forward, with the kernel told so.

`pread` keeps no file position, so a re-read of a replaced clip does not disturb the forward order of the plan's reads.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

from schemas.errors import ShardError

__all__ = ["ShardFiles"]

_OPEN_FILES = 8


class ShardFiles:
    """Open shards, the most recently used `_OPEN_FILES` of them. For one thread."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`; ShardError when the file is gone, unreadable or ends before."""
        try:
            descriptor = self._open(path)
            pieces, left = [], length
            while left and (piece := os.pread(descriptor, left, offset + length - left)):
                pieces.append(piece)
                left -= len(piece)
        except OSError as error:
            raise ShardError(
                f"shard {path}: cannot read bytes {offset} to {offset + length} ({error.strerror})"
            ) from error
        if left:
            raise ShardError(
                f"shard {path}: ends {left} bytes before {offset + length}; the file is cut off, copy it again"
            )
        return b"".join(pieces) if len(pieces) != 1 else pieces[0]

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
