"""One tar to rows: members to samples, samples to facts, and what was left out and why.

Members are grouped as the webdataset package groups them: the key of a member is its path up to the first dot of its base name, a sample is a run of
members with one key. Links, folders, hidden files, files without a suffix and `__names__` are no members of samples; their bytes count to the
sample before them. Of member data only `.json` members and the headers of `.npy` members are read, and only where the rules ask for them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from planner.indexing.headers import BLOCK, Damage, TarMember, TarWalk
from planner.indexing.places import TarPlace
from planner.indexing.ranges import RangeReader, open_ranges
from planner.indexing.rows import INDEX, RowWriter
from planner.indexing.rules import NPY_PREFIX, IndexRules, LeftOutError, SampleFacts, npy_length, npy_start
from schemas.tables import SAMPLES

__all__ = ["LEFT_BY_DAMAGE", "DuplicateKey", "TarScan", "scan_tar", "split_path"]

LEFT_BY_DAMAGE = "the tar breaks off behind it, so that it may lack members"
_LARGEST_JSON = 16 << 20
_LONGEST_PADDING = 10_752 + BLOCK
"""Two zero blocks, filled up to a record of 20 blocks, which is 21 blocks at most, and the header of another archive."""
_META = re.compile(r"__[^/]*__(/|$)")


@dataclass(frozen=True)
class DuplicateKey:
    """A key whose members do not stand together."""

    key: str
    first: int
    """Offset of the sample that has it."""
    again: int
    """Offset of the other one."""


@dataclass
class TarScan:
    """What one tar gave. The tables have shard_index 0."""

    samples: pa.Table
    index: pa.Table
    num_members: int = 0
    num_ignored: int = 0
    """Members that belong to no sample."""
    num_shortened: int = 0
    """Samples that are longer than their bucket."""
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    """Reason to the first sample that was left out for it."""
    duplicates: list[DuplicateKey] = field(default_factory=list)
    damage: Damage | None = None
    appended: bool = False
    """Behind the end of the archive stands more than zeros, which no reader of tars sees."""
    requests: int = 0
    bytes_read: int = 0


class _Sample:
    """A sample while its members come in."""

    __slots__ = ("json_data", "key", "lengths", "names", "npy_header", "offset", "offsets", "paths")

    def __init__(self, key: str, offset: int) -> None:
        self.key = key
        self.offset = offset
        self.paths: list[str] = []
        self.names: list[str] = []
        self.offsets: list[int] = []
        self.lengths: list[int] = []
        self.json_data: bytes | None = None
        self.npy_header: bytes | None = None


def split_path(path: str) -> tuple[str, str] | None:
    """Key and suffix of a member, or None if it belongs to no sample.

    `split_path("a/b.latent.npy") == ("a/b", "latent.npy")`; None for `a/.b.json`, `README` and `__meta__`.
    """
    base = path.rfind("/") + 1
    dot = path.find(".", base)
    if dot <= base or (path.startswith("__") and _META.match(path)):
        return None
    return path[:dot], path[dot + 1 :]


def scan_tar(place: TarPlace, name: str, rules: IndexRules) -> TarScan:
    """Walk one tar. `name` is its path below the set's location, which the clip ids hang on.

    Raises:
        DataError: the tar cannot be read; that it is damaged is part of the scan.
    """
    rows = RowWriter(name, rules)
    with open_ranges(place) as reader:
        walk = TarWalk(reader)
        scan = TarScan(SAMPLES.empty_table(), INDEX.empty_table())
        found = list(_samples(walk, reader, rules, scan))
        scan.damage = walk.damage
        if walk.damage is not None:
            found = _whole(found, walk.damage.offset)
        else:
            scan.appended = any(reader.read(walk.end, _LONGEST_PADDING))
        scan.num_ignored += walk.others
        scan.requests, scan.bytes_read = reader.requests, reader.bytes_read
    starts = [sample.offset for sample, _ in found]
    ends = [*starts[1:], walk.damage.offset if walk.damage else walk.end][: len(found)]
    seen: dict[str, int] = {}
    for position, ((sample, facts), end) in enumerate(zip(found, ends, strict=True)):
        if walk.damage is not None and position == len(found) - 1:
            facts = LeftOutError(LEFT_BY_DAMAGE)
        first = seen.setdefault(sample.key, sample.offset)
        if first != sample.offset:
            scan.duplicates.append(DuplicateKey(sample.key, first, sample.offset))
        place_of = (position, sample.offset, end - sample.offset)
        if isinstance(facts, LeftOutError):
            scan.left_out[facts.reason] += 1
            scan.examples.setdefault(facts.reason, f"{sample.key}: {facts.detail}" if facts.detail else sample.key)
            rows.leave_out(sample.key, place_of, facts.reason)
        else:
            scan.num_members += len(sample.names)
            scan.num_shortened += facts.shortened > 0
            rows.add(sample.key, place_of, facts, (sample.names, sample.offsets, sample.lengths))
    scan.samples, scan.index = rows.samples(), rows.index()
    return scan


def _samples(
    walk: TarWalk, reader: RangeReader, rules: IndexRules, scan: TarScan
) -> Iterator[tuple[_Sample, SampleFacts | LeftOutError]]:
    """Samples with their facts, in the order of the tar."""
    current: _Sample | None = None
    for member in walk:
        split = split_path(member[0])
        if split is None:
            scan.num_ignored += 1
            continue
        key, suffix = split
        if current is None or key != current.key:
            if current is not None:
                yield current, _facts(current, rules)
            current = _Sample(key, member[1])
        _take(current, member, suffix, reader, rules)
    if current is not None:
        yield current, _facts(current, rules)


def _take(sample: _Sample, member: TarMember, suffix: str, reader: RangeReader, rules: IndexRules) -> None:
    path, _, data, length = member
    sample.paths.append(path)
    sample.names.append(suffix)
    sample.offsets.append(data)
    sample.lengths.append(length)
    lower = suffix.lower()
    if lower == rules.json_member and length <= _LARGEST_JSON:
        sample.json_data = reader.read(data, length)
    elif lower == rules.npy_member:
        header = reader.read(data, min(length, NPY_PREFIX))
        if len(header) == NPY_PREFIX and header[:1] == b"\x93":
            header = reader.read(data, min(length, npy_start(header) + npy_length(header)))
        sample.npy_header = header


def _facts(sample: _Sample, rules: IndexRules) -> SampleFacts | LeftOutError:
    try:
        if not sample.key.isascii():
            _refuse_other_bytes(sample.key)
        names = {name.lower() for name in sample.names}
        if len(names) != len(sample.names):
            return LeftOutError("two of its members have one name", ", ".join(sample.names))
        return rules.facts(sample.paths, sample.json_data, sample.npy_header)
    except LeftOutError as left_out:
        return left_out


def _refuse_other_bytes(key: str) -> None:
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise LeftOutError("its name is not UTF-8") from error


def _whole(
    found: list[tuple[_Sample, SampleFacts | LeftOutError]], damaged_from: int
) -> list[tuple[_Sample, SampleFacts | LeftOutError]]:
    """The samples that begin before the damage; whoever comes last may lack members."""
    return [item for item in found if item[0].offset < damaged_from]
