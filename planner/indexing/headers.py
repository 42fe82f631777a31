"""The headers of a tar, one after another: ustar, GNU long names, pax paths and sizes, base-256 sizes.

Python's `tarfile` reads a header in some 30 us and seeks in a stream; here a header costs a few, because checksums are computed over many headers
at once and only the fields that an index needs are looked at. Price: a bad checksum is noticed up to `_BATCH` headers late, so whoever walks must
drop members that end behind `damage.offset`. What ends a walk early (a cut file, a bad checksum, compression) is data, not an exception.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.indexing.ranges import RangeReader

__all__ = ["BLOCK", "Damage", "TarMember", "TarWalk"]

BLOCK = 512
_BATCH = 1024
_NO_BLOCK = bytes(BLOCK)
_LARGEST_EXTENSION = 1 << 20
"""Bytes of a long name or pax header; a larger one is taken for damage."""
_EXTENSIONS = frozenset(b"LKxXg")
"""GNU long name and long link, pax, Solaris pax, pax for all members that follow."""
_FOR_ALL = ord("g")
_SPARSE = ord("S")
_REGULAR = frozenset(b"0\x007")
_WITHOUT_DATA = frozenset(b"123456")
"""Links, devices, folders, pipes: their headers may give a size, but no data follows."""
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

TarMember = tuple[str, int, int, int]
"""Path, offset of the first header byte (of a long name or pax header where there is one), offset of the data, bytes of data."""


@dataclass(frozen=True)
class Damage:
    """Where and why a tar cannot be read on; members that end at or before `offset` are whole."""

    offset: int
    reason: str


class TarWalk:
    """Iterates over the regular members of a tar. Afterwards `damage` tells whether that was all of it, and `end` where it ends."""

    def __init__(self, reader: RangeReader) -> None:
        self.damage: Damage | None = None
        self.end = 0
        """Offset of the end-of-archive blocks."""
        self.others = 0
        """Members that are no files: folders, links, devices."""
        self._broken: Damage | None = None
        self._reader = reader
        self._blocks: list[bytes] = []
        self._offsets: list[int] = []
        self._shared: dict[str, str] = {}

    def __iter__(self) -> Iterator[TarMember]:
        yield from self._members()
        self._check_sums()
        self.damage = self.damage or self._broken

    def _members(self) -> Iterator[TarMember]:
        """The members up to where the walk ends; `_broken` is set if that is no end of an archive."""
        reader, size = self._reader, self._reader.size_bytes
        blocks, offsets, shared = self._blocks, self._offsets, self._shared
        start, offset = 0, 0
        own: dict[str, str] = {}
        while True:
            at = offset - reader.start
            if not 0 <= at <= len(reader.window) - BLOCK:
                at = reader.hold(offset, BLOCK)
            block = reader.window[at : at + BLOCK]
            if len(block) < BLOCK or block == _NO_BLOCK:
                self.end = start
                if len(block) < BLOCK or own:
                    self._broken = Damage(min(start, size), self._why_short(len(block)))
                return
            if len(blocks) == _BATCH:
                self._check_sums()
                if self.damage is not None:
                    return
            blocks.append(block)
            offsets.append(offset)
            kind = block[156]
            length = _size_field(block)
            data = offset + BLOCK
            if length is None:
                self._broken = Damage(start, _no_header(block, f"its size field is {block[124:136]!r}"))
                return
            if kind in _EXTENSIONS:
                wrong = self._extend(kind, data, length, own)
                if wrong:
                    self._broken = Damage(start, wrong)
                    return
                offset = data + -(-length // BLOCK) * BLOCK
                if kind == _FOR_ALL and not own:
                    start = offset
                continue
            if own or shared:
                path = own.get("path") or shared.get("path") or _path_of(block)
                length = int(own.get("size") or shared.get("size") or length)
            else:
                path = _path_of(block)
            if kind in _WITHOUT_DATA:
                length = 0
            if data + length > size or kind == _SPARSE or "sparse" in own:
                self._broken = Damage(start, _why_no_member(path, kind, data + length, size))
                return
            after = data + -(-length // BLOCK) * BLOCK
            if kind in _REGULAR and not (kind == 0 and path.endswith("/")):
                yield path, start, data, length
            else:
                self.others += 1
            if own:
                own = {}
            start = offset = after

    def _why_short(self, length: int) -> str:
        size = self._reader.size_bytes
        if size == 0:
            return "the file is empty"
        if length == BLOCK:
            return "the archive ends between a long name or pax header and its member"
        if length:
            return f"the file ends at byte {size}, within a header; it is cut off or no tar"
        return f"the file ends at byte {size} without end-of-archive blocks: cut off, or never finished"

    def _extend(self, kind: int, data: int, length: int, own: dict[str, str]) -> str | None:
        """Take in a long name or pax header; returns what is wrong with it, if anything."""
        if length > _LARGEST_EXTENSION:
            return f"no tar header: {length} bytes of a long name or pax header"
        body = self._reader.read(data, length)
        if len(body) < length:
            return f"the file ends at byte {self._reader.size_bytes}, within a header that ends at {data + length}"
        if kind == 76:
            own["path"] = _text(body.split(b"\0", 1)[0])
            return None
        if kind == 75:
            own.setdefault("link", "")
            return None
        into = self._shared if kind == _FOR_ALL else own
        into["pax"] = ""
        if not any(word in body for word in (b"path=", b"size=", b"GNU.sparse")):
            return None
        records = _pax_records(body)
        if records is None:
            return "a pax header is not made of records `LENGTH KEY=VALUE`"
        for key, value in records:
            if key == "size" and not (value.isascii() and value.isdigit() and len(value) < 20):
                return f"a pax header gives the size {value!r}"
            if key in ("path", "size"):
                into[key] = value
            elif key.startswith("GNU.sparse"):
                into["sparse"] = value
        return None

    def _check_sums(self) -> None:
        """Compare the checksums of the headers since the last time."""
        if not self._blocks:
            return
        blocks = np.frombuffer(b"".join(self._blocks), np.uint8).reshape(-1, BLOCK)
        field = blocks[:, 148:156]
        stated = _octal(field)
        found = blocks.sum(axis=1, dtype=np.int64) - field.sum(axis=1, dtype=np.int64) + 8 * ord(" ")
        wrong = np.flatnonzero(stated != found)
        if len(wrong):  # some old writers took bytes for signed
            high = (blocks[wrong] > 127).sum(axis=1) - (field[wrong] > 127).sum(axis=1)
            wrong = wrong[stated[wrong] != found[wrong] - 256 * high]
        if len(wrong):
            first = int(wrong[0])
            told = "no number" if stated[first] < 0 else str(stated[first])
            what = f"the checksum of the header is {found[first]}, the header says {told}"
            self.damage = Damage(self._offsets[first], _no_header(self._blocks[first], what))
        self._blocks.clear()
        self._offsets.clear()


def _no_header(block: bytes, what: str) -> str:
    packed = next((name for magic, name in _PACKED.items() if block.startswith(magic)), None)
    if packed:
        return f"the file is compressed ({packed}), so that no sample can be read by itself; unpack it"
    return f"no tar header: {what}"


def _why_no_member(path: str, kind: int, end: int, size: int) -> str:
    if end > size:
        return f"member {path!r} ends at byte {end}, the file at {size}"
    return f"member {path!r} is a sparse file ({chr(kind)!r}), whose bytes do not stand in the tar as they are; pack it plainly"


def _path_of(block: bytes) -> str:
    name = block[: block.find(b"\0", 0, 100)] if not block[99] else block[:100].split(b"\0", 1)[0]
    if block[345] and block[257:263] == b"ustar\0":
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    """UTF-8; other bytes become lone surrogates, which tell that the name is not text."""
    return name.decode("utf-8", "surrogateescape")


def _size_field(block: bytes) -> int | None:
    """Bytes of data: octal, or base-256 when the first bit is set; None if it is neither."""
    try:
        length = int(block[124:136] if 48 <= block[135] < 56 else block[124:135], 8)
        return length if length >= 0 else None
    except ValueError:
        field = block[124:136]
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    try:
        length = int(digits, 8) if digits else 0
    except ValueError:
        return None
    return length if length >= 0 else None


def _pax_records(body: bytes) -> list[tuple[str, str]] | None:
    records = []
    at = 0
    while at < len(body) and body[at]:
        digits, space, _ = body[at : at + 20].partition(b" ")
        if not space or not digits.isdigit():
            return None
        end = at + int(digits)
        record = body[at + len(digits) + 1 : end]
        if end > len(body) or not record.endswith(b"\n"):
            return None
        key, mark, value = record[:-1].partition(b"=")
        if not mark:
            return None
        records.append((_text(key), _text(value)))
        at = end
    return records


def _octal(field: np.ndarray) -> np.ndarray:
    """Numbers of octal digits, spaces before them allowed, per row; -1 where there is no digit."""
    values = np.zeros(len(field), dtype=np.int64)
    begun = np.zeros(len(field), dtype=bool)
    ended = np.zeros(len(field), dtype=bool)
    for column in field.T:
        digit = (column >= 48) & (column < 56)
        ended |= ~digit & (begun | (column != 32))
        take = digit & ~ended
        values[take] = values[take] * 8 + column[take] - 48
        begun |= take
    return np.where(begun, values, -1)
