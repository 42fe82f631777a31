"""Where the samples of a plan's sets lie, looked up by place: NumPy arrays for offsets and lengths, Arrow for the few clip ids that are shown.

A plan names clips by (plan-wide shard, ordinal). Tables are read by column, never as Python objects, and are held to be those of the plan when the
names and sizes of their shards are; only `verify` hashes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import PlanError
from schemas.plan import PlanMeta
from schemas.shards import read_set_info, samples_path
from schemas.tables import SAMPLES, read_table

__all__ = ["SamplePlaces", "find_clip", "name_clips", "place_key", "read_samples", "sample_places", "shard_label"]

_ORDINAL_BITS = 31
_OFFSET_BITS = 40


def place_key(shard: np.ndarray, ordinal: np.ndarray) -> np.ndarray:
    """One integer per (shard, ordinal), in their order."""
    return shard.astype(np.int64) << _ORDINAL_BITS | ordinal.astype(np.int64)


def shard_label(meta: PlanMeta, shard: int) -> str:
    """`set/shard-000003.tar` of a plan-wide shard index."""
    for item in meta.sets:
        if item.first_shard <= shard < item.first_shard + len(item.shard_names):
            return f"{item.name}/{item.shard_names[shard - item.first_shard]}"
    return f"shard {shard}"


def read_samples(meta: PlanMeta, samples: Sequence[Path], columns: Sequence[str]) -> pa.Table:
    """`columns` of all sets, with `shard`, the plan-wide index, in place of `shard_index`.

    Raises:
        PlanError: if the number of sets, or the shards of one, are not the plan's.
    """
    if len(samples) != len(meta.sets):
        raise PlanError(
            f"the plan reads {len(meta.sets)} sets, --samples gives {len(samples)}; give each once, in the order of the build"
        )
    pieces = []
    for path, item in zip(samples, meta.sets, strict=True):
        folder = path.parent if path.suffix == ".parquet" else path
        table_path = path if path.suffix == ".parquet" else samples_path(folder)
        table = read_table(table_path, SAMPLES, columns=["shard_index", *columns])
        _check_shards(folder, table_path, table, item.name, item.shard_names, item.shard_bytes)
        shard = pc.add(table.column("shard_index"), pa.scalar(item.first_shard, pa.int32()))
        pieces.append(table.drop_columns(["shard_index"]).add_column(0, "shard", shard))
    return pa.concat_tables(pieces)


def _check_shards(
    folder: Path, path: Path, table: pa.Table, name: str, names: Sequence[str], sizes: Sequence[int]
) -> None:
    if table.num_rows and (pc.max(table.column("shard_index")).as_py() or 0) >= len(names):
        raise PlanError(f"{path} names shards that set {name} of the plan does not have; these are other samples")
    if (folder / "set.json").is_file():
        listed = [(shard.name, shard.size_bytes) for shard in read_set_info(folder).shards]
        if listed != list(zip(names, sizes, strict=True)):
            raise PlanError(
                f"{folder / 'set.json'} lists {len(listed)} shards whose names or sizes are not the {len(names)} of set {name} in the plan; "
                "give the sets that the plan was built from, in its order"
            )


def find_clip(meta: PlanMeta, samples: Sequence[Path], clip_id: str) -> list[tuple[int, int]]:
    """Places of a clip id; one per set that has it."""
    table = read_samples(meta, samples, ["clip_id", "ordinal"])
    hits = table.filter(pc.equal(table.column("clip_id"), clip_id))
    return list(zip(hits.column("shard").to_pylist(), hits.column("ordinal").to_pylist(), strict=True))


def name_clips(
    meta: PlanMeta, samples: Sequence[Path], shard: np.ndarray, ordinal: np.ndarray
) -> dict[tuple[int, int], str]:
    """Clip ids of the given places; those that the samples do not have are left out."""
    table = read_samples(meta, samples, ["clip_id", "ordinal"])
    wanted = np.unique(place_key(shard, ordinal))
    keys = place_key(table.column("shard").to_numpy(), table.column("ordinal").to_numpy())
    found = table.take(np.flatnonzero(np.isin(keys, wanted)))
    columns = (found.column(name).to_pylist() for name in ("shard", "ordinal", "clip_id"))
    return {(at, position): clip for at, position, clip in zip(*columns, strict=True)}


@dataclass(frozen=True)
class SamplePlaces:
    """All samples, ordered by (shard, ordinal), which is their order in each tar."""

    shard: np.ndarray
    ordinal: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    key: np.ndarray
    start: np.ndarray
    """Shard and offset as one integer."""

    def find(self, shard: np.ndarray, ordinal: np.ndarray) -> np.ndarray:
        """Positions of the named samples.

        Raises:
            PlanError: if one is not there.
        """
        asked = place_key(shard, ordinal)
        at = np.minimum(np.searchsorted(self.key, asked), len(self.key) - 1)
        if (self.key[at] != asked).any():
            wrong = int(np.flatnonzero(self.key[at] != asked)[0])
            raise PlanError(
                f"the plan uses sample {ordinal[wrong]} of shard {shard[wrong]}, which the samples do not have; give the samples it was built from"
            )
        return at

    def in_reads(self, shard: np.ndarray, offset: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(position of each sample that is read, in reading order; number of the read that brings it).

        Raises:
            PlanError: if a read does not begin and end with a sample.
        """
        begin = shard.astype(np.int64) << _OFFSET_BITS | offset
        first = np.minimum(np.searchsorted(self.start, begin), len(self.start) - 1)
        past = np.searchsorted(self.start, begin + length)
        last = np.maximum(past - 1, 0)
        whole = (self.start[first] == begin) & (past > first) & (self.start[last] + self.length[last] == begin + length)
        if not whole.all():
            wrong = int(np.flatnonzero(~whole)[0])
            raise PlanError(
                f"the plan reads bytes {offset[wrong]}+{length[wrong]} of shard {shard[wrong]}, which are not whole samples; "
                "give the samples it was built from"
            )
        counts = past - first
        before = np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(first, counts) + np.arange(counts.sum()) - before, np.repeat(np.arange(len(counts)), counts)


def sample_places(meta: PlanMeta, samples: Sequence[Path]) -> SamplePlaces:
    """Read the places of all samples of the plan's sets: 40 bytes a sample."""
    table = read_samples(meta, samples, ["ordinal", "offset", "length"])
    columns = {name: table.column(name).to_numpy() for name in ("shard", "ordinal", "offset", "length")}
    key = place_key(columns["shard"], columns["ordinal"])
    if (np.diff(key) <= 0).any():
        order = np.argsort(key, kind="stable")
        key, columns = key[order], {name: column[order] for name, column in columns.items()}
    start = columns["shard"].astype(np.int64) << _OFFSET_BITS | columns["offset"]
    if not len(key) or (np.diff(start) <= 0).any():
        raise PlanError(
            f"{', '.join(map(str, samples))}: no samples, or some that do not lie in their tars in the order of their ordinals; "
            "make the table again"
        )
    return SamplePlaces(key=key, start=start, **columns)
