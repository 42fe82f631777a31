"""The pack phase: WebDataset tars with exact offsets, and the set folder around them.

The bytes are those that `webdataset.TarWriter` makes of the same members in the same order, with time, user and group fixed; a test compares them.
It is not used itself: it writes in pieces of 10 KiB whose rest is copied again each time. Here headers are tarfile's and data goes to the file
uncopied, while threads read and sum what comes next. Offsets are read back from the tar's own headers, not computed beside it, so the samples
table says what is there; crc32 is of the bytes handed to the tar. A member that is a plain float16 .npy already goes in as it lies on disk.
Price: the headers of each tar are read once after it is written.
"""

from __future__ import annotations

import io
import math
import os
import tarfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from mmap import MAP_POPULATE, MAP_SHARED, PROT_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.shard_layout import PackSettings, plan_shards
from schemas.config import build_config
from schemas.errors import DataError, ShardError
from schemas.files import atomic_path, write_bytes
from schemas.ids import content_hash
from schemas.shards import (
    CAPTION_KINDS,
    MEMBER_ORDER,
    SampleRecord,
    SetInfo,
    ShardInfo,
    samples_path,
    write_set_info,
)
from schemas.tables import SAMPLES, table_from_rows, write_table

__all__ = ["PackEntry", "PackSettings", "assemble_shard", "finish_set", "plan_shards", "shard_info"]

_BLOCK = 512
_HEADER = 4096
_READERS = 2
"""Threads that map files and sum them ahead of the writing."""
Data = bytes | mmap
"""Bytes of a member: made here, or mapped from the cache, so that they are copied once, into the tar."""
_REQUIRED = frozenset(MEMBER_ORDER) - {"teacher.npy", "image.npy", "json"}


@dataclass(frozen=True)
class PackEntry:
    """One sample to pack: its record, its labels, and the files that become its members."""

    record: SampleRecord
    subject: str
    style: str
    admissions: tuple[str, ...]
    members: Mapping[str, str]
    """Member name (`latent.npy`) to the path of a .npy file; the `.json` member is made from the record."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `json.dumps`."""
        return asdict(self) | {"record": self.record.model_dump(mode="json"), "admissions": list(self.admissions)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PackEntry:
        """Inverse of `to_json`."""
        record = build_config(SampleRecord, dict(value["record"]), source="pack entry: record")
        return cls(**{**value, "record": record, "admissions": tuple(value["admissions"])})


def assemble_shard(
    entries: Sequence[PackEntry], *, set_name: str, shard_index: int, tar_path: Path
) -> list[dict[str, Any]]:
    """Write one tar atomically, in the order given; returns its SAMPLES rows.

    Raises:
        DataError: a member is missing, unknown, not .npy, of another type or shape than the record says, or holds a pickle.
    """
    facts: list[dict[str, Any]] = []
    checksums: dict[str, int] = {}
    with atomic_path(tar_path) as temporary:
        with temporary.open("wb", buffering=0) as stream:
            size = 0
            for entry, members, found in _read_ahead(entries):
                facts.append(_facts(entry, members))
                checksums |= found
                for name, data in members.items():
                    header = _header(f"{entry.record.clip_id}.{name}", len(data))
                    size += _write_all(stream, [header, data, bytes(-len(data) % _BLOCK)])
            end = 2 * _BLOCK
            _write_all(stream, [bytes(end + -(size + end) % tarfile.RECORDSIZE)])
        placed = _scan(temporary, checksums)
    rows = []
    for ordinal, (entry, fact) in enumerate(zip(entries, facts, strict=True)):
        offset, length, members_found = placed[entry.record.clip_id]
        place = {"set": set_name, "shard_index": shard_index, "ordinal": ordinal, "offset": offset, "length": length}
        rows.append({**fact, **place, "members": members_found})
    return rows


def finish_set(
    folder: Path,
    *,
    rows: Sequence[Mapping[str, Any]],
    shards: Sequence[ShardInfo],
    null_text: NDArray[np.float16],
    facts: Mapping[str, Any],
) -> SetInfo:
    """Write null_text.npy, samples.parquet and, last, set.json: a set folder with a set.json is complete.

    Args:
        rows: SAMPLES rows of all shards.
        shards: in the order of shard_index.
        null_text: float16 (tokens, width) of the empty prompt.
        facts: the other fields of SetInfo.

    Raises:
        DataError: rows and shards do not fit each other.
    """
    counts = [0] * len(shards)
    for row in rows:
        if not 0 <= row["shard_index"] < len(shards):
            raise DataError(
                f"sample {row['clip_id']} is in shard {row['shard_index']}, but there are {len(shards)} shards"
            )
        counts[row["shard_index"]] += 1
    for shard, count in zip(shards, counts, strict=True):
        if shard.num_samples != count:
            raise DataError(
                f"{folder / shard.name} holds {shard.num_samples} samples, its rows are {count}; pack it again"
            )
    info = build_config(SetInfo, {**facts, "shards": tuple(shards)}, source=f"{folder}: facts of the set")
    write_bytes(folder / info.null_text, _npy_bytes(null_text))
    ordered = sorted(rows, key=lambda row: (row["shard_index"], row["ordinal"]))
    write_table(samples_path(folder), table_from_rows(SAMPLES, ordered), SAMPLES)
    write_set_info(folder, info)
    return info


def shard_info(tar_path: Path, num_samples: int) -> ShardInfo:
    """Name, size and sha256 of a finished tar."""
    with tar_path.open("rb") as stream:
        digest = content_hash(stream)
    return ShardInfo(name=tar_path.name, size_bytes=tar_path.stat().st_size, sha256=digest, num_samples=num_samples)


def _header(name: str, size: int) -> bytes:
    """The tar header of a member, as tarfile writes it: no owner, time 0."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    return header.tobuf(tarfile.DEFAULT_FORMAT)


def _write_all(stream: io.FileIO, parts: Sequence[Data]) -> int:
    """Write the parts one after another without copying them; returns their length."""
    total = sum(map(len, parts))
    left = [memoryview(part) for part in parts if part]
    while left:
        written = os.writev(stream.fileno(), left)
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if left:
            left[0] = left[0][written:]
    return total


def _read_ahead(entries: Sequence[PackEntry]) -> Iterator[tuple[PackEntry, dict[str, Data], dict[str, int]]]:
    """Each entry with its members and their crc32; the next samples are read and summed by threads while this one is written."""

    def read(entry: PackEntry) -> tuple[PackEntry, dict[str, Data], dict[str, int]]:
        members = _member_bytes(entry)
        return entry, members, {f"{entry.record.clip_id}.{name}": zlib.crc32(data) for name, data in members.items()}

    with ThreadPoolExecutor(_READERS) as pool:
        upcoming: deque[Future[tuple[PackEntry, dict[str, Data], dict[str, int]]]] = deque()
        for entry in entries:
            upcoming.append(pool.submit(read, entry))
            if len(upcoming) > _READERS:
                yield upcoming.popleft().result()
        while upcoming:
            yield upcoming.popleft().result()


def _member_bytes(entry: PackEntry) -> dict[str, Data]:
    """Member name to data, in `MEMBER_ORDER`; only plain float16 .npy gets into a tar."""
    clip = entry.record.clip_id
    missing, unknown = sorted(_REQUIRED - set(entry.members)), sorted(set(entry.members) - set(MEMBER_ORDER[:-1]))
    if missing or unknown:
        raise DataError(f"clip {clip}: members {missing} are missing and {unknown} are unknown; encode it again")
    members: dict[str, Data] = {}
    for name in MEMBER_ORDER[:-1]:
        if name in entry.members:
            path = Path(entry.members[name])
            members[name] = _plain_bytes(path, name) or _npy_bytes(_read_array(path, clip, name))
    return members | {"json": (entry.record.model_dump_json() + "\n").encode()}


def _dimensions(name: str) -> int:
    return 4 if name in ("latent.npy", "teacher.npy") else 2


def _plain_bytes(path: Path, name: str) -> mmap | None:
    """The file, mapped, if it is what `_npy_bytes` would write: version 1.0, float16, C order, the right dimensions, nothing missing or added."""
    try:
        with path.open("rb") as file:
            data = mmap(file.fileno(), 0, flags=MAP_SHARED | MAP_POPULATE, prot=PROT_READ)
        stream = io.BytesIO(data[:_HEADER])
        version = np.lib.format.read_magic(stream)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except (OSError, ValueError, EOFError):
        return None
    size = stream.tell() + math.prod(shape) * dtype.itemsize
    fits = version == (1, 0) and not fortran and dtype == np.dtype("<f2") and len(shape) == _dimensions(name)
    return data if fits and size == len(data) else None


def _read_array(path: Path, clip: str, name: str) -> NDArray[np.float16]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"clip {clip}: {path} cannot be read as .npy ({error}); encode it again") from error
    dimensions = _dimensions(name)
    if not isinstance(array, np.ndarray) or array.dtype != np.float16 or array.ndim != dimensions:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(
            f"clip {clip}: {path} holds {found}, expected float16 with {dimensions} dimensions; encode it again"
        )
    return array


def _npy_bytes(array: NDArray[np.float16]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _shape(npy: Data) -> tuple[int, ...]:
    stream = io.BytesIO(npy[:_HEADER])
    np.lib.format.read_magic(stream)
    shape, _, _ = np.lib.format.read_array_header_1_0(stream)
    return tuple(int(side) for side in shape)


def _facts(entry: PackEntry, members: Mapping[str, Data]) -> dict[str, Any]:
    """The SAMPLES columns that do not depend on the tar; DataError when the latent does not fit the record."""
    record = entry.record
    shape = _shape(members["latent.npy"])
    expected = ((record.frames - 1) // 4 + 1, record.height // 8, record.width // 8)
    if (shape[0], shape[2], shape[3]) != expected:
        raise DataError(
            f"clip {record.clip_id}: latent of shape {shape}, expected T, H, W = {expected} for "
            f"{record.frames} frames of {record.width}x{record.height}; encode it again"
        )
    return {
        "clip_id": record.clip_id,
        "latent_shape": list(shape),
        **{
            name: getattr(record, name)
            for name in ("frames", "height", "width", "branch", "domain", "source", "start_us")
        },
        **{f"text_tokens_{kind}": _shape(members[f"text_{kind}.npy"])[0] for kind in CAPTION_KINDS},
        "subject": entry.subject,
        "style": entry.style,
        "admissions": list(entry.admissions),
        "has_teacher": "teacher.npy" in members,
    }


def _scan(path: Path, checksums: Mapping[str, int]) -> dict[str, tuple[int, int, list[dict[str, Any]]]]:
    """Clip id to (offset of its first header, length up to the next sample, members), from the tar's own headers."""
    found: dict[str, tuple[int, int, list[dict[str, Any]]]] = {}
    with tarfile.open(path, "r:") as archive:
        for header in archive:
            clip, _, name = header.name.partition(".")
            member = {
                "name": name,
                "offset": header.offset_data,
                "length": header.size,
                "crc32": checksums[header.name],
            }
            offset, _, members = found.get(clip, (header.offset, 0, []))
            end = header.offset_data + -(-header.size // _BLOCK) * _BLOCK
            if members and header.offset != offset + found[clip][1]:
                raise ShardError(f"{path}: the members of clip {clip} do not stand together; pack the shard again")
            found[clip] = (offset, end - offset, [*members, member])
    return found
