"""The packed sets that a plan reads: which file and which bytes each (plan-wide shard, ordinal) is.

A plan names the hash of every samples table it was built from; a set is taken for what that hash says, not for its folder's name, so a plan
cannot be run on other samples by accident. All samples of all sets have one index, shard after shard, so that lanes are worked out in whole
arrays. Price: the samples tables are held in memory, about 450 bytes a clip.

Legend: N samples, S shards, M member kinds in the order of `schemas.shards.MEMBER_ORDER`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import DataError, PlanError
from schemas.hashing import table_hash
from schemas.plan import PlanMeta, PlanSet
from schemas.shards import MEMBER_ORDER, SetInfo
from training.loading.set_folders import OpenedSet, SetPlace, open_set, place_of, shard_sizes

__all__ = ["ClipKey", "Member", "Sample", "SampleSets", "open_sample_sets", "open_whole_sets"]

ClipKey = tuple[int, int]
"""(plan-wide shard index, ordinal within the shard)."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """Where one tar member's data lies."""

    offset: int
    length: int
    crc32: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One clip of a set, as its samples table has it."""

    key: ClipKey
    clip_id: str
    offset: int
    """First byte of the sample in its shard."""
    length: int
    members: dict[str, Member]
    """Member name without the clip id."""
    latent_shape: tuple[int, int, int, int]
    """T C H W of the stored latent."""
    branch: str
    teacher: str | None
    """The teacher of its branch by `set.json`, whether or not features are stored."""
    has_teacher: bool
    """Whether features are stored."""


@dataclass(frozen=True, kw_only=True)
class _Shards:
    """The shards of one set, and their samples in the order of shards and ordinals."""

    addresses: tuple[str, ...]
    counts_S: np.ndarray
    columns: dict[str, np.ndarray]
    """Samples as arrays of N, named as `SampleSets` has them."""


class SampleSets:
    """All sets of one plan; `infos` in the plan's order. Arrays are by sample index."""

    def __init__(
        self, parts: Sequence[_Shards], infos: Sequence[SetInfo], folders: Sequence[SetPlace], notes: Sequence[str]
    ) -> None:
        self.infos = tuple(infos)
        self.folders = tuple(folders)
        self.notes = tuple(notes)
        """What somebody who reads the log should know: shards of another size than the plan says."""
        self.addresses = tuple(address for part in parts for address in part.addresses)
        self.first_S = np.concatenate(
            ([0], np.cumsum(np.concatenate([part.counts_S for part in parts]), dtype=np.int64))
        )
        """Index of each shard's first sample; S + 1 entries."""
        columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
        self.shard_N = np.repeat(np.arange(len(self.addresses)), np.diff(self.first_S))
        self.clip_id_N: np.ndarray = columns["clip_id"]
        self.offset_N: np.ndarray = columns["offset"]
        """First byte of each sample in its shard."""
        self.length_N: np.ndarray = columns["length"]
        """Bytes of each sample, tar headers and padding included; the unit of the plan's buffer."""
        self.latent_shape_N4: np.ndarray = columns["latent_shape"]
        self.branch_N: np.ndarray = columns["branch"]
        self.teacher_N: np.ndarray = columns["teacher"]
        self.has_teacher_N: np.ndarray = columns["has_teacher"]
        self.member_start_NM: np.ndarray = columns["member_start"]
        """First data byte of each member from the sample's first byte on; -1 where there is none."""
        self.member_length_NM: np.ndarray = columns["member_length"]
        self.member_crc32_NM: np.ndarray = columns["member_crc32"]

    @property
    def largest_members(self) -> tuple[int, int]:
        """Bytes of the largest text and the largest image member."""
        text = [kind for kind, name in enumerate(MEMBER_ORDER) if name.startswith("text_")]
        image = MEMBER_ORDER.index("image.npy")
        lengths_NM = self.member_length_NM
        return int(lengths_NM[:, text].max(initial=0)), int(lengths_NM[:, image].max(initial=0))

    def all_keys(self) -> Iterator[ClipKey]:
        """All samples, shard by shard."""
        yield from map(self.key_of, range(len(self.clip_id_N)))

    def shard_address(self, shard: int) -> str:
        """Path or URL of the tar of a plan-wide shard index."""
        self._check_shard(shard)
        return self.addresses[shard]

    def key_of(self, index: int) -> ClipKey:
        """(shard, ordinal) of a sample index."""
        shard = int(self.shard_N[index])
        return shard, index - int(self.first_S[shard])

    def index_of(self, key: ClipKey) -> int:
        """Index of the sample at (shard, ordinal); PlanError when there is none."""
        self._check_shard(key[0])
        first, stop = self.first_S[key[0] : key[0] + 2].tolist()
        if not 0 <= key[1] < stop - first:
            raise PlanError(
                f"the plan names sample {key[1]} of {self.addresses[key[0]]}, which holds {stop - first} samples"
            )
        return int(first + key[1])

    def indices_of(self, shard_K: np.ndarray, ordinal_K: np.ndarray) -> np.ndarray:
        """`index_of`, of many."""
        if len(shard_K):
            self._check_shard(int(shard_K.min()))
            self._check_shard(int(shard_K.max()))
        index_K: np.ndarray = self.first_S[shard_K] + ordinal_K
        for bad in np.flatnonzero((ordinal_K < 0) | (index_K >= self.first_S[shard_K + 1]))[:1]:
            self.index_of((int(shard_K[bad]), int(ordinal_K[bad])))
        return index_K

    def sample(self, key: ClipKey) -> Sample:
        """The sample at (shard, ordinal); PlanError when there is none."""
        return self.sample_at(self.index_of(key))

    def sample_at(self, index: int) -> Sample:
        """The sample of an index."""
        offset = int(self.offset_N[index])
        facts = zip(
            MEMBER_ORDER,
            self.member_start_NM[index].tolist(),
            self.member_length_NM[index].tolist(),
            self.member_crc32_NM[index].tolist(),
            strict=True,
        )
        frames, channels, rows, columns = self.latent_shape_N4[index].tolist()
        return Sample(
            key=self.key_of(index),
            clip_id=self.clip_id_N[index],
            offset=offset,
            length=int(self.length_N[index]),
            members={
                name: Member(offset=offset + start, length=length, crc32=crc32)
                for name, start, length, crc32 in facts
                if start >= 0
            },
            latent_shape=(frames, channels, rows, columns),
            branch=self.branch_N[index],
            teacher=self.teacher_N[index],
            has_teacher=bool(self.has_teacher_N[index]),
        )

    def samples_in(
        self, shard_K: np.ndarray, offset_K: np.ndarray, length_K: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """First sample index and the index after the last of byte ranges; PlanError unless each is a run of whole samples."""
        first_K, stop_K = np.zeros(len(shard_K), np.int64), np.zeros(len(shard_K), np.int64)
        whole_K = np.zeros(len(shard_K), bool)
        for shard in np.unique(shard_K).tolist():
            self._check_shard(shard)
            begin, end = self.first_S[shard : shard + 2].tolist()
            offsets, lengths = self.offset_N[begin:end], self.length_N[begin:end]
            mine = np.flatnonzero(shard_K == shard)
            first = np.searchsorted(offsets, offset_K[mine])
            stop = np.searchsorted(offsets, offset_K[mine] + length_K[mine])
            whole = first < stop
            inside = np.minimum(first, max(0, end - begin - 1)), np.maximum(stop - 1, 0)
            if end > begin:
                whole &= offsets[inside[0]] == offset_K[mine]
                whole &= offsets[inside[1]] + lengths[inside[1]] == offset_K[mine] + length_K[mine]
            first_K[mine], stop_K[mine], whole_K[mine] = first + begin, stop + begin, whole
        for bad in np.flatnonzero(~whole_K)[:1]:
            raise PlanError(
                f"the plan reads bytes {offset_K[bad]} to {offset_K[bad] + length_K[bad]} of {self.addresses[shard_K[bad]]}, "
                "which is not a run of whole samples; build the plan again"
            )
        return first_K, stop_K

    def _check_shard(self, shard: int) -> None:
        if not 0 <= shard < len(self.addresses):
            raise PlanError(f"the plan names shard {shard}, its sets have shards 0 to {len(self.addresses) - 1}")


def open_sample_sets(meta: PlanMeta, folders: Sequence[Path | str]) -> SampleSets:
    """Find each of the plan's sets among `folders` (paths or URLs) by the hash of its samples table.

    Raises:
        PlanError: if a set of the plan is not among them.
        DataError: if a folder is not a set, or its shards are not there.
        ServiceError: if an object store fails.
    """
    opened = [open_set(place_of(folder)) for folder in folders]
    by_hash = {table_hash(found.samples): found for found in opened}
    parts: list[_Shards] = []
    used: list[OpenedSet] = []
    notes: list[str] = []
    for plan_set in sorted(meta.sets, key=lambda each: each.first_shard):
        if plan_set.samples_hash not in by_hash:
            seen = ", ".join(f"{found.place} ({digest[:12]})" for digest, found in by_hash.items()) or "none"
            raise PlanError(
                f"the plan was built for other samples: its set {plan_set.name!r} has samples hash {plan_set.samples_hash[:12]}, "
                f"given: {seen}; give the sets it was built from with --samples, or build the plan again"
            )
        found = by_hash[plan_set.samples_hash]
        used.append(found)
        parts.append(_shards_of(plan_set, found, notes))
    _check_alike(used)
    return SampleSets(parts, [found.info for found in used], [found.place for found in used], notes)


def open_whole_sets(folders: Sequence[Path | str]) -> SampleSets:
    """Sets by themselves, without a plan, their shards numbered in the order of the folders.

    Raises:
        DataError: if a folder is not a set, its shards are not there, or the sets were packed with different encoders.
    """
    opened = [open_set(place_of(folder)) for folder in folders]
    parts: list[_Shards] = []
    notes: list[str] = []
    first = 0
    for found in opened:
        alone = PlanSet(
            name=found.info.set_name,
            samples_hash=table_hash(found.samples),
            first_shard=first,
            shard_names=tuple(shard.name for shard in found.info.shards),
            shard_bytes=tuple(shard.size_bytes for shard in found.info.shards),
        )
        first += len(alone.shard_names)
        parts.append(_shards_of(alone, found, notes))
    _check_alike(opened)
    return SampleSets(parts, [found.info for found in opened], [found.place for found in opened], notes)


def _shards_of(plan_set: PlanSet, found: OpenedSet, notes: list[str]) -> _Shards:
    """The shards of one set. One of another size is noted and not refused: its broken clips are replaced one by one."""
    addresses = tuple(map(found.shard_address, plan_set.shard_names))
    sizes = shard_sizes(addresses)
    for address, size_bytes in zip(addresses, plan_set.shard_bytes, strict=True):
        if address not in sizes:
            raise DataError(f"shard {address} is missing; the plan reads it: copy the whole set, or pack it again")
        if sizes[address] != size_bytes:
            notes.append(
                f"shard {address} has {sizes[address]} bytes, the plan says {size_bytes}: its clips that are cut off or changed are replaced "
                "one by one; copy it again"
            )
    shard_N, ordinal_N = (_array_of(found.samples.column(name)) for name in ("shard_index", "ordinal"))
    order_N = np.lexsort((ordinal_N, shard_N))
    counts_S = np.bincount(shard_N, minlength=len(addresses)).astype(np.int64)
    expected_N = np.arange(len(order_N)) - np.repeat(np.concatenate(([0], np.cumsum(counts_S)[:-1])), counts_S)
    if len(counts_S) > len(addresses):
        raise DataError(f"{found.place}: samples.parquet names shard {len(counts_S) - 1}, the set has {len(addresses)}")
    for bad in np.flatnonzero(ordinal_N[order_N] != expected_N)[:1]:
        shard = int(shard_N[order_N[bad]])
        raise DataError(
            f"{found.place}: the ordinals of shard {shard} in samples.parquet are not 0 to {counts_S[shard] - 1}"
        )
    columns = {name: values[order_N] for name, values in _columns_of(found).items()}
    return _Shards(addresses=addresses, counts_S=counts_S, columns=columns)


def _columns_of(found: OpenedSet) -> dict[str, np.ndarray]:
    """The samples table as arrays, in its own order."""
    table = found.samples
    offset_N = _array_of(table.column("offset"))
    branch_N = _names_of(table.column("branch"))
    teachers = found.info.teacher_by_branch
    lists = table.column("members").combine_chunks()
    members = lists.flatten()
    row_K = np.repeat(np.arange(len(offset_N)), np.asarray(lists.value_lengths()))
    name_K = members.field("name")
    columns: dict[str, np.ndarray] = {
        "clip_id": _array_of(table.column("clip_id")),
        "offset": offset_N,
        "length": _array_of(table.column("length")),
        "latent_shape": _array_of(table.column("latent_shape").combine_chunks().flatten())
        .reshape(-1, 4)
        .astype(np.int64),
        "branch": branch_N,
        "teacher": np.array([teachers.get(branch) for branch in branch_N], dtype=object),
        "has_teacher": _array_of(table.column("has_teacher")),
    }
    shape = (len(offset_N), len(MEMBER_ORDER))
    columns["member_start"] = np.full(shape, -1, np.int64)
    columns["member_length"] = np.zeros(shape, np.int64)
    columns["member_crc32"] = np.zeros(shape, np.uint32)
    for kind, name in enumerate(MEMBER_ORDER):
        which_K = np.flatnonzero(_array_of(pc.equal(name_K, name)))
        rows = row_K[which_K]
        columns["member_start"][rows, kind] = _array_of(members.field("offset"))[which_K] - offset_N[rows]
        columns["member_length"][rows, kind] = _array_of(members.field("length"))[which_K]
        columns["member_crc32"][rows, kind] = _array_of(members.field("crc32"))[which_K]
    return columns


def _array_of(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column as an array; texts become an array of Python strings."""
    if isinstance(column, pa.ChunkedArray):
        return np.asarray(column.to_numpy())
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _names_of(column: pa.ChunkedArray) -> np.ndarray:
    """A column of few distinct texts, each of them one Python string."""
    coded = column.combine_chunks().dictionary_encode()
    return np.array(coded.dictionary.to_pylist(), dtype=object)[_array_of(coded.indices)]


def _check_alike(sets: Sequence[OpenedSet]) -> None:
    """Sets of one run must come from the same codec and text encoder: the network has one input for each. Teachers may differ."""
    names = ("codec_fingerprint", "text_encoder_fingerprint", "latent_channels", "text_width", "fps")
    for found in sets[1:]:
        for name in names:
            first, other = sets[0].info.model_dump()[name], found.info.model_dump()[name]
            if first != other:
                raise DataError(
                    f"sets {sets[0].place} and {found.place} differ in set.json: {name} ({first!r} and {other!r}); "
                    "train them in runs of their own, or pack them with the same encoders"
                )
