"""Samples tables to a corpus: one array per fact of the admitted clips, sorted by shard and position.

polars filters and joins, NumPy holds the columns from then on. Shards of all sets share one numbering. What cannot be planned (a shard that
`set.json` does not list, two samples in one place, an offset past the end of the tar) is refused here, before any work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from schemas.buckets import Bucket
from schemas.errors import DataError, UsageError
from schemas.hashing import table_hash
from schemas.plan import PlanSet
from schemas.shards import SetInfo, read_set_info, samples_path
from schemas.tables import SAMPLES, read_table

__all__ = ["Corpus", "load_corpus"]

_COLUMNS = [
    "clip_id",
    "shard_index",
    "ordinal",
    "offset",
    "length",
    "frames",
    "height",
    "width",
    "source",
    "admissions",
]


@dataclass(frozen=True)
class Corpus:
    """The admitted clips; every array has one entry per clip, ordered by (shard, ordinal)."""

    sets: tuple[PlanSet, ...]
    clip_id: list[str]
    shard: np.ndarray
    """Plan-wide shard index, int32."""
    ordinal: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    source: np.ndarray
    """Number of the source; equal for clips of one source, whatever the set."""
    bucket: np.ndarray
    """Index into `buckets`: the longest bucket of the clip."""
    buckets: tuple[Bucket, ...]
    """Native buckets, sorted."""
    clips_in_tables: int
    """Admitted or not."""

    @property
    def num_clips(self) -> int:
        """Admitted clips."""
        return len(self.clip_id)

    @property
    def num_shards(self) -> int:
        """Shards of all sets."""
        return sum(len(item.shard_names) for item in self.sets)


def load_corpus(paths: Sequence[Path], admission: str) -> Corpus:
    """Read each set (its folder or its samples.parquet) and keep the clips admitted at `admission`.

    Raises:
        UsageError: no set, or one given twice.
        DataError: a table that contradicts its set.json, or no admitted clip.
    """
    folders = [path.parent if path.suffix == ".parquet" else path for path in paths]
    if not folders or len({folder.resolve() for folder in folders}) != len(folders):
        raise UsageError(f"--samples names {[str(path) for path in paths]}; give each set once, and at least one")
    sets: list[PlanSet] = []
    frames: list[pl.DataFrame] = []
    first_shard = 0
    for path, folder in zip(paths, folders, strict=True):
        info = read_set_info(folder)
        table_path = path if path.suffix == ".parquet" else samples_path(folder)
        table = read_table(table_path, SAMPLES)
        frame = pl.from_arrow(table.select(_COLUMNS))
        assert isinstance(frame, pl.DataFrame)
        _check_set(frame, info, table_path)
        sets.append(
            PlanSet(
                name=info.set_name,
                samples_hash=table_hash(table),
                first_shard=first_shard,
                shard_names=tuple(shard.name for shard in info.shards),
                shard_bytes=tuple(shard.size_bytes for shard in info.shards),
            )
        )
        frames.append(frame.with_columns(shard=pl.col("shard_index") + first_shard))
        first_shard += len(info.shards)
    return _corpus(tuple(sets), pl.concat(frames), admission)


def _corpus(sets: tuple[PlanSet, ...], everything: pl.DataFrame, admission: str) -> Corpus:
    admitted = everything.filter(pl.col("admissions").list.contains(admission)).sort("shard", "ordinal")
    if not len(admitted):
        levels = everything["admissions"].explode().drop_nulls().unique().sort().to_list()
        raise DataError(
            f"none of {len(everything)} samples is admitted at {admission!r} (config: admission); "
            f"the samples know the levels {levels}"
        )
    shapes = admitted.select("frames", "height", "width").unique().sort("frames", "height", "width")
    buckets = tuple(Bucket(*row) for row in shapes.rows())
    numbered = admitted.join(
        shapes.with_row_index("bucket"), on=["frames", "height", "width"], how="left", maintain_order="left"
    )
    return Corpus(
        sets=sets,
        clip_id=numbered["clip_id"].to_list(),
        shard=numbered["shard"].to_numpy().astype(np.int32),
        ordinal=numbered["ordinal"].to_numpy().astype(np.int32),
        offset=numbered["offset"].to_numpy().astype(np.int64),
        length=numbered["length"].to_numpy().astype(np.int64),
        source=numbered["source"].rank("dense").to_numpy().astype(np.int64),
        bucket=numbered["bucket"].to_numpy().astype(np.int32),
        buckets=buckets,
        clips_in_tables=len(everything),
    )


def _check_set(frame: pl.DataFrame, info: SetInfo, path: Path) -> None:
    """Refuse a table that does not describe the tars of its set."""
    shards = len(info.shards)
    outside = frame.filter((pl.col("shard_index") < 0) | (pl.col("shard_index") >= shards))
    if len(outside):
        raise DataError(
            f"{path}: {len(outside)} samples name shard_index {outside['shard_index'][0]} and the like, but set.json lists "
            f"{shards} shards; the table and set.json are not of one set, pack it again"
        )
    for key in (["clip_id"], ["shard_index", "ordinal"]):
        doubles = len(frame) - len(frame.select(key).unique())
        if doubles:
            raise DataError(
                f"{path}: {doubles} samples repeat a {' and '.join(key)}; each must be unique, pack the set again"
            )
    placed = frame.sort("shard_index", "ordinal").with_columns(
        start=pl.col("offset"), end=pl.col("offset") + pl.col("length")
    )
    after = placed.with_columns(before=pl.col("end").shift(1).over("shard_index").fill_null(0))
    wrong = after.filter((pl.col("length") <= 0) | (pl.col("start") < pl.col("before")))
    if len(wrong):
        row = wrong.row(0, named=True)
        raise DataError(
            f"{path}: sample {row['ordinal']} of shard {row['shard_index']} spans bytes [{row['start']}, {row['end']}), "
            f"before the end of the one in front of it ({row['before']}); pack the set again"
        )
    sizes = pl.DataFrame(
        {"shard_index": range(shards), "size": [shard.size_bytes for shard in info.shards]},
        schema={"shard_index": pl.Int32, "size": pl.Int64},
    )
    past = after.join(sizes, on="shard_index").filter(pl.col("end") > pl.col("size"))
    if len(past):
        row = past.row(0, named=True)
        raise DataError(
            f"{path}: sample {row['ordinal']} of shard {row['shard_index']} ends at byte {row['end']}, the tar has {row['size']} "
            "by set.json; the table and set.json are not of one set, pack it again"
        )
