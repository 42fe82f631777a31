"""The packed sets that a plan reads: which file and which bytes each (plan-wide shard, ordinal) is.

A plan names the hash of every samples table it was built from; a set is taken for what that hash says, not for its folder's name, so a plan
cannot be run on other samples by accident. Price: the samples tables are held in memory, about 400 bytes a clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from schemas.errors import DataError, PlanError
from schemas.hashing import table_hash
from schemas.plan import PlanMeta, PlanSet
from schemas.shards import SetInfo, read_set_info, samples_path
from schemas.tables import SAMPLES, read_table

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
class _Columns:
    """A samples table as arrays, so that looking a clip up converts nothing."""

    clip_ids_N: np.ndarray
    offsets_N: np.ndarray
    lengths_N: np.ndarray
    latent_shapes_N4: np.ndarray
    branches_N: np.ndarray
    has_teacher_N: np.ndarray
    teacher_by_branch: Mapping[str, str | None]
    member_starts_N: np.ndarray
    """Row n has the members from the n-th of these to the next; N + 1 entries."""
    member_names_M: np.ndarray
    member_offsets_M: np.ndarray
    member_lengths_M: np.ndarray
    member_crc32_M: np.ndarray

    def members(self, row: int) -> dict[str, Member]:
        """The members of one row, by name."""
        return {
            self.member_names_M[index]: Member(
                offset=int(self.member_offsets_M[index]),
                length=int(self.member_lengths_M[index]),
                crc32=int(self.member_crc32_M[index]),
            )
            for index in range(self.member_starts_N[row], self.member_starts_N[row + 1])
        }


@dataclass(frozen=True, kw_only=True)
class _Shard:
    path: Path
    columns: _Columns
    """Of the samples table of its set."""
    rows_N: np.ndarray
    """Rows of the table, by ordinal."""
    offsets_N: np.ndarray
    lengths_N: np.ndarray


class SampleSets:
    """All sets of one plan; `infos` in the plan's order."""

    def __init__(self, shards: dict[int, _Shard], infos: Sequence[SetInfo], folders: Sequence[Path]) -> None:
        self._shards = shards
        self.infos = tuple(infos)
        self.folders = tuple(folders)

    def all_keys(self) -> Iterator[ClipKey]:
        """All samples, shard by shard."""
        for index, shard in sorted(self._shards.items()):
            yield from ((index, ordinal) for ordinal in range(len(shard.rows_N)))

    def shard_path(self, shard: int) -> Path:
        """The tar file of a plan-wide shard index."""
        return self._shard(shard).path

    def sample(self, key: ClipKey) -> Sample:
        """The sample at (shard, ordinal); PlanError when there is none."""
        columns, row = self._row(key)
        frames, channels, rows, columns_of_latent = columns.latent_shapes_N4[row].tolist()
        return Sample(
            key=key,
            clip_id=columns.clip_ids_N[row],
            offset=int(columns.offsets_N[row]),
            length=int(columns.lengths_N[row]),
            members=columns.members(row),
            latent_shape=(frames, channels, rows, columns_of_latent),
            branch=columns.branches_N[row],
            teacher=columns.teacher_by_branch.get(columns.branches_N[row]),
            has_teacher=bool(columns.has_teacher_N[row]),
        )

    def clip_id(self, key: ClipKey) -> str:
        """Clip id of a sample."""
        columns, row = self._row(key)
        return str(columns.clip_ids_N[row])

    def offset_bytes(self, key: ClipKey) -> int:
        """First byte of a sample in its shard."""
        columns, row = self._row(key)
        return int(columns.offsets_N[row])

    def size_bytes(self, key: ClipKey) -> int:
        """Bytes of a sample, tar headers and padding included; the unit of the plan's buffer."""
        columns, row = self._row(key)
        return int(columns.lengths_N[row])

    def _row(self, key: ClipKey) -> tuple[_Columns, int]:
        """Where a sample stands in its set's table; PlanError when there is none."""
        shard = self._shard(key[0])
        if not 0 <= key[1] < len(shard.rows_N):
            raise PlanError(f"the plan names sample {key[1]} of {shard.path}, which holds {len(shard.rows_N)} samples")
        return shard.columns, int(shard.rows_N[key[1]])

    def samples_in(self, shard: int, offset: int, length: int) -> range:
        """Ordinals of the samples that a byte range holds; PlanError unless it is a run of whole samples."""
        found = self._shard(shard)
        first = int(np.searchsorted(found.offsets_N, offset))
        stop = int(np.searchsorted(found.offsets_N, offset + length))
        whole = first < stop and found.offsets_N[first] == offset
        if not whole or found.offsets_N[stop - 1] + found.lengths_N[stop - 1] != offset + length:
            raise PlanError(
                f"the plan reads bytes {offset} to {offset + length} of {found.path}, which is not a run of whole samples; build the plan again"
            )
        return range(first, stop)

    def _shard(self, shard: int) -> _Shard:
        if shard not in self._shards:
            raise PlanError(f"the plan names shard {shard}, its sets have shards 0 to {len(self._shards) - 1}")
        return self._shards[shard]


def open_sample_sets(meta: PlanMeta, folders: Sequence[Path]) -> SampleSets:
    """Find each of the plan's sets among `folders` by the hash of its samples table.

    Raises:
        PlanError: if a set of the plan is not among them.
        DataError: if a folder is not a set, or its shards are not there.
    """
    tables = {}
    for folder in folders:
        info = read_set_info(folder)
        table = read_table(samples_path(folder), SAMPLES)
        tables[table_hash(table)] = (folder, info, table)
    shards: dict[int, _Shard] = {}
    infos, used = [], []
    for plan_set in meta.sets:
        if plan_set.samples_hash not in tables:
            seen = ", ".join(f"{folder} ({found[:12]})" for found, (folder, _, _) in tables.items()) or "none"
            raise PlanError(
                f"the plan was built for other samples: its set {plan_set.name!r} has samples hash {plan_set.samples_hash[:12]}, "
                f"given: {seen}; give the sets it was built from with --samples, or build the plan again"
            )
        folder, info, table = tables[plan_set.samples_hash]
        infos.append(info)
        used.append(folder)
        shards |= _shards_of(plan_set, folder, info, table)
    _check_alike(infos, used)
    return SampleSets(shards, infos, used)


def open_whole_sets(folders: Sequence[Path]) -> SampleSets:
    """Sets by themselves, without a plan, their shards numbered in the order of the folders.

    Raises:
        DataError: if a folder is not a set, its shards are not there, or the sets were packed with different encoders.
    """
    shards: dict[int, _Shard] = {}
    infos = []
    for folder in folders:
        info, table = read_set_info(folder), read_table(samples_path(folder), SAMPLES)
        alone = PlanSet(
            name=info.set_name,
            samples_hash=table_hash(table),
            first_shard=len(shards),
            shard_names=tuple(shard.name for shard in info.shards),
            shard_bytes=tuple(shard.size_bytes for shard in info.shards),
        )
        infos.append(info)
        shards |= _shards_of(alone, folder, info, table)
    _check_alike(infos, folders)
    return SampleSets(shards, infos, folders)


def _shards_of(plan_set: PlanSet, folder: Path, info: SetInfo, table: pa.Table) -> dict[int, _Shard]:
    """The plan-wide shards of one set. A shard of another size is not refused here: its broken clips are replaced one by one."""
    columns = _columns_of(table, info.teacher_by_branch)
    shard_of_N, ordinal_N = (_array_of(table.column(name)) for name in ("shard_index", "ordinal"))
    shards = {}
    for index, name in enumerate(plan_set.shard_names):
        path = folder / name
        rows = np.flatnonzero(shard_of_N == index)
        rows = rows[np.argsort(ordinal_N[rows], kind="stable")]
        if not np.array_equal(ordinal_N[rows], np.arange(len(rows))):
            raise DataError(f"{samples_path(folder)}: the ordinals of shard {index} are not 0 to {len(rows) - 1}")
        if not path.is_file():
            raise DataError(f"shard {path} is missing; the plan reads it: copy the whole set, or pack it again")
        shards[plan_set.first_shard + index] = _Shard(
            path=path,
            columns=columns,
            rows_N=rows,
            offsets_N=columns.offsets_N[rows],
            lengths_N=columns.lengths_N[rows],
        )
    return shards


def _columns_of(table: pa.Table, teacher_by_branch: Mapping[str, str | None]) -> _Columns:
    lists = table.column("members").combine_chunks()
    members = lists.flatten()
    counts = np.asarray(lists.value_lengths())
    return _Columns(
        clip_ids_N=_array_of(table.column("clip_id")),
        offsets_N=_array_of(table.column("offset")),
        lengths_N=_array_of(table.column("length")),
        latent_shapes_N4=_array_of(table.column("latent_shape").combine_chunks().flatten()).reshape(-1, 4),
        branches_N=_names_of(table.column("branch")),
        has_teacher_N=_array_of(table.column("has_teacher")),
        teacher_by_branch=teacher_by_branch,
        member_starts_N=np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
        member_names_M=_array_of(members.field("name")),
        member_offsets_M=_array_of(members.field("offset")),
        member_lengths_M=_array_of(members.field("length")),
        member_crc32_M=_array_of(members.field("crc32")),
    )


def _array_of(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column as an array; texts become an array of Python strings."""
    if isinstance(column, pa.ChunkedArray):
        return np.asarray(column.to_numpy())
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _names_of(column: pa.ChunkedArray) -> np.ndarray:
    """A column of few distinct texts, each of them one Python string."""
    coded = column.combine_chunks().dictionary_encode()
    return np.array(coded.dictionary.to_pylist(), dtype=object)[_array_of(coded.indices)]


def _check_alike(infos: Sequence[SetInfo], folders: Sequence[Path]) -> None:
    """Sets of one run must come from the same codec and text encoder: the network has one input for each. Teachers may differ."""
    names = ("codec_fingerprint", "text_encoder_fingerprint", "latent_channels", "text_width", "fps")
    for info, folder in zip(infos[1:], folders[1:], strict=True):
        for name in names:
            first, other = infos[0].model_dump()[name], info.model_dump()[name]
            if first != other:
                raise DataError(
                    f"sets {folders[0]} and {folder} differ in set.json: {name} ({first!r} and {other!r}); "
                    "train them in runs of their own, or pack them with the same encoders"
                )
