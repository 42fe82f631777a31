"""Byte ranges of one tar, read ahead by as much as pays: a small window where members are large, a growing one where headers lie close together.

A header tells where the next one is, so a tar is walked request by request. A file costs a system call per request, an object a round trip;
hence the larger windows of objects. Every reader counts its requests and bytes. Price: a few KiB of data behind each header are read in vain.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from planner.indexing.places import TarPlace, is_remote, open_store, store_call
from schemas.errors import DataError

__all__ = ["OF_FILES", "OF_OBJECTS", "RangeReader", "ReadAhead", "open_ranges"]


@dataclass(frozen=True)
class ReadAhead:
    """Bytes of a window: `smallest` after a gap, doubled up to `largest` while the next range lies within one window."""

    smallest: int
    largest: int


OF_FILES = ReadAhead(4 << 10, 16 << 10)
"""A page, as most members are larger than that; up to a few, as gaps below that are read through sooner than jumped."""
OF_OBJECTS = ReadAhead(32 << 10, 1 << 20)
"""A round trip takes as long as some hundred KiB; yet what is read is paid for."""


class RangeReader(ABC):
    """Ranges of a tar through one window. Use as a context manager."""

    def __init__(self, place: TarPlace, ahead: ReadAhead) -> None:
        self.address = place.address
        self.size_bytes = place.size_bytes
        self.requests = 0
        self.bytes_read = 0
        self.window = b""
        self.start = 0
        """Offset of the window's first byte."""
        self._ahead = ahead
        self._next = ahead.smallest

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - only files have something to let go of
        """Let go of the file."""

    def hold(self, offset: int, length: int) -> int:
        """Bring `length` bytes from `offset` into the window, fewer at the end of the tar, and return where in the window they are."""
        position = offset - self.start
        if position >= 0 and position + length <= len(self.window):
            return position
        gap = position - len(self.window)
        close_by = self.requests and -len(self.window) <= gap <= self._next
        self._next = min(self._next * 2, self._ahead.largest) if close_by else self._ahead.smallest
        held = self.window[position:] if position >= 0 else b""
        first = offset + len(held)
        end = min(max(offset + length, first + self._next), self.size_bytes)
        self.window = held + self._fetch(first, end) if first < end else held
        self.start = offset
        return 0

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer at the end of the tar."""
        position = self.hold(offset, length)
        return self.window[position : position + length]

    def _fetch(self, start: int, end: int) -> bytes:
        data = self._range(start, end)
        self.requests += 1
        self.bytes_read += len(data)
        return data

    @abstractmethod
    def _range(self, start: int, end: int) -> bytes:
        """The bytes from start to end, fewer at the end of the tar."""


class _FileRanges(RangeReader):
    def __init__(self, place: TarPlace) -> None:
        super().__init__(place, OF_FILES)
        try:
            self._file = os.open(place.address, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(
                f"{place.address} cannot be opened ({error.strerror}); correct its permissions, or leave it out"
            ) from error
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(
                self._file, 0, 0, os.POSIX_FADV_RANDOM
            )  # the window reads ahead; the kernel would read the data

    def _range(self, start: int, end: int) -> bytes:
        try:
            return os.pread(self._file, end - start, start)
        except OSError as error:
            raise DataError(
                f"{self.address} cannot be read at byte {start} ({error.strerror}); check the disk"
            ) from error

    def close(self) -> None:
        os.close(self._file)


class _ObjectRanges(RangeReader):
    def __init__(self, place: TarPlace) -> None:
        super().__init__(place, OF_OBJECTS)
        self._store, self._path = open_store(place.address)

    def _range(self, start: int, end: int) -> bytes:
        try:
            data: Any = store_call(self.address, lambda: self._store.cat_file(self._path, start=start, end=end))
        except FileNotFoundError as error:
            raise DataError(f"{self.address} is gone while it was being indexed; index again") from error
        if len(data) > end - start:
            raise DataError(
                f"{self.address}: asked for {end - start} bytes from byte {start}, got {len(data)}: the server does not give ranges; "
                "copy the tar to a folder or bucket"
            )
        return bytes(data)


def open_ranges(place: TarPlace) -> RangeReader:
    """A reader of the tar at `place`, for one thread."""
    return _ObjectRanges(place) if is_remote(place.address) else _FileRanges(place)
