"""Samples tables to a corpus: one array per fact of the admitted clips, sorted by shard and position.

Row groups are hashed as they are read, polars filters, NumPy holds the columns from then on; clip ids stay in Arrow, sources and domains are
numbers. Shards of all sets share one numbering. What cannot be planned (a shard that `set.json` does not list, two samples in one place, an offset
past the end of the tar) is refused here, before any work. About 60 bytes a clip, ids included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from planner.admission import Scores, admitted_mask
from schemas.buckets import Bucket
from schemas.errors import DataError, UsageError
from schemas.hashing import read_hashed_table
from schemas.plan import AdmissionRule, PlanSet
from schemas.shards import SetInfo, read_set_info, samples_path
from schemas.tables import SAMPLES

__all__ = ["Corpus", "load_corpus", "set_folder"]

_COLUMNS = ("clip_id", "shard_index", "ordinal", "offset", "length", "frames", "height", "width", "source")


@dataclass(frozen=True)
class Corpus:
    """The admitted clips; every array has one entry per clip, ordered by (shard, ordinal)."""

    sets: tuple[PlanSet, ...]
    clip_ids: pa.Array
    shard: np.ndarray
    """Plan-wide shard index, int32."""
    ordinal: np.ndarray
    """int32."""
    offset: np.ndarray
    """int64."""
    length: np.ndarray
    """int64."""
    source: np.ndarray
    """Number of the source, int32; equal for clips of one source, whatever the set."""
    domain: np.ndarray
    """Index into `domains`, int32."""
    domains: tuple[str, ...]
    bucket: np.ndarray
    """Index into `buckets`, int32: the longest bucket of the clip."""
    buckets: tuple[Bucket, ...]
    """Native buckets, sorted."""
    clips_in_tables: int
    """Admitted or not."""
    scores_hash: str | None
    """Of the table of scores that the rules looked at."""

    @property
    def num_clips(self) -> int:
        """Admitted clips."""
        return len(self.shard)

    @property
    def num_shards(self) -> int:
        """Shards of all sets."""
        return sum(len(item.shard_names) for item in self.sets)

    def clip_id(self, index: int) -> str:
        """Id of one clip."""
        return str(self.clip_ids[index].as_py())


def set_folder(path: Path) -> Path:
    """The folder of a set that is given as its folder or as its samples.parquet."""
    return path.parent if path.suffix == ".parquet" else path


def load_corpus(
    paths: Sequence[Path],
    admission: str,
    rules: Sequence[AdmissionRule] = (),
    *,
    scores: Scores | None = None,
    domain_column: str = "domain",
    frames: Mapping[str, Sequence[int]] | None = None,
) -> Corpus:
    """Read each set (its folder or its samples.parquet) and keep the clips that are admitted at `admission` and meet all rules.

    `frames` gives the lengths at which clips of a set are planned, see `PlanConfig.frames`.

    Raises:
        UsageError: no set, or one given twice.
        DataError: a table that contradicts its set.json, or no admitted clip.
    """
    folders = [set_folder(path) for path in paths]
    if not folders or len({folder.resolve() for folder in folders}) != len(folders):
        raise UsageError(f"--samples names {[str(path) for path in paths]}; give each set once, and at least one")
    own_rules = [rule.column for rule in rules if rule.column in SAMPLES.names]
    columns = list(dict.fromkeys([*_COLUMNS, domain_column, "admissions", *own_rules]))
    infos = [read_set_info(folder) for folder in folders]
    files = [
        path if path.suffix == ".parquet" else samples_path(folder) for path, folder in zip(paths, folders, strict=True)
    ]
    found = [
        read_hashed_table(file, SAMPLES, columns, as_codes=list(dict.fromkeys(["source", domain_column])))
        for file in files
    ]
    tables, domains = _coded([table for table, _ in found], domain_column, own_rules)
    sets: list[PlanSet] = []
    facts: list[pl.DataFrame] = []
    first_shard = 0
    for table, info, file, (_, digest) in zip(tables, infos, files, found, strict=True):
        frame = _in_order(table)
        _check_set(frame, info, file)
        sets.append(
            PlanSet(
                name=info.set_name,
                samples_hash=digest,
                first_shard=first_shard,
                shard_names=tuple(shard.name for shard in info.shards),
                shard_bytes=tuple(shard.size_bytes for shard in info.shards),
            )
        )
        lengths = (frames or {}).get(info.set_name)
        facts.append(
            frame.with_columns(
                shard=pl.col("shard_index") + first_shard,
                planned_frames=pl.col("frames") if lengths is None else _planned_frames(lengths),
            )
        )
        first_shard += len(info.shards)
    _check_names(frames or {}, [info.set_name for info in infos])
    everything = facts[0] if len(facts) == 1 else pl.concat(facts)
    admitted = _admitted(everything, admission, rules, scores)
    bucket, buckets = _buckets(admitted)
    present, domain = np.unique(admitted["domain_code"].to_numpy(), return_inverse=True)
    return Corpus(
        sets=tuple(sets),
        clip_ids=_one_array(admitted["clip_id"]),
        shard=admitted["shard"].to_numpy().astype(np.int32),
        ordinal=admitted["ordinal"].to_numpy().astype(np.int32),
        offset=admitted["offset"].to_numpy().astype(np.int64),
        length=admitted["length"].to_numpy().astype(np.int64),
        source=_dense(admitted["source_code"].to_numpy()),
        domain=domain.astype(np.int32),
        domains=tuple(domains[code] for code in present.tolist()),
        bucket=bucket,
        buckets=buckets,
        clips_in_tables=len(everything),
        scores_hash=None if scores is None else scores.digest,
    )


def _coded(tables: Sequence[pa.Table], domain_column: str, keep: Sequence[str]) -> tuple[list[pl.DataFrame], list[str]]:
    """The tables with `source_code` and `domain_code`, numbers over all of them (domains in the order of their names), and the domains."""
    codes: dict[str, np.ndarray] = {}
    values: dict[str, list[str]] = {}
    for code, name in (("source_code", "source"), ("domain_code", domain_column)):
        chunks = [chunk for table in tables for chunk in table.column(name).chunks]
        whole = pa.chunked_array(chunks).unify_dictionaries().combine_chunks()
        codes[code] = whole.indices.to_numpy(zero_copy_only=False).astype(np.int32)
        values[code] = whole.dictionary.to_pylist() if name == domain_column else []
    rank = np.empty(len(values["domain_code"]), dtype=np.int32)
    order = sorted(range(len(rank)), key=lambda index: values["domain_code"][index])
    rank[order] = np.arange(len(rank), dtype=np.int32)
    codes["domain_code"] = rank[codes["domain_code"]]
    frames = []
    start = 0
    for table in tables:
        stop = start + table.num_rows
        unwanted = [name for name in dict.fromkeys(["source", domain_column]) if name not in keep]
        frame = pl.from_arrow(table.drop_columns(unwanted))
        assert isinstance(frame, pl.DataFrame)
        frames.append(frame.with_columns(**{name: pl.Series(values[start:stop]) for name, values in codes.items()}))
        start = stop
    return frames, [values["domain_code"][index] for index in order]


def _in_order(frame: pl.DataFrame) -> pl.DataFrame:
    """By (shard, ordinal); packed sets are so already, and are not copied."""
    key = _place_keys(frame)
    return frame if bool((key[1:] > key[:-1]).all()) else frame.sort("shard_index", "ordinal")


def _place_keys(frame: pl.DataFrame) -> np.ndarray:
    shard = frame["shard_index"].to_numpy().astype(np.int64)
    return (shard << 32) | frame["ordinal"].to_numpy().astype(np.int64)


def _admitted(
    everything: pl.DataFrame, admission: str, rules: Sequence[AdmissionRule], scores: Scores | None
) -> pl.DataFrame:
    at_level = everything.filter(pl.col("admissions").list.contains(admission))
    if not len(at_level):
        levels = everything["admissions"].explode().drop_nulls().unique().sort().to_list()
        raise DataError(
            f"none of {len(everything)} samples is admitted at {admission!r} (config: admission); "
            f"the samples know the levels {levels}"
        )
    admitted = at_level.filter(admitted_mask(at_level, rules, scores)) if rules else at_level
    if len(admitted):
        admitted = admitted.filter(pl.col("planned_frames").is_not_null())
        if not len(admitted):
            raise DataError(
                f"no sample that is admitted at {admission!r} has one of the lengths at which its set is planned (config: frames)"
            )
    if not len(admitted):
        raise DataError(
            f"none of {len(at_level)} samples that are admitted at {admission!r} meets the rules (config: rules): "
            + "; ".join(str(rule.model_dump(exclude_none=True)) for rule in rules)
        )
    return admitted


def _planned_frames(lengths: Sequence[int]) -> pl.Expr:
    """The longest of `lengths` that a clip has; null where it has none. One frame is for images alone."""
    own = pl.col("frames")
    found = pl.when(own == 1).then(1 if 1 in lengths else None).otherwise(None)
    for length in sorted(length for length in lengths if length > 1):
        found = pl.when(own >= length).then(length).otherwise(found)
    return found.cast(pl.Int32)


def _check_names(frames: Mapping[str, Sequence[int]], sets: Sequence[str]) -> None:
    for name in frames:
        if name not in sets:
            raise UsageError(
                f"frames.{name} (config) names a set that is not given; --samples gives {', '.join(sets)}; correct one of them"
            )


def _buckets(admitted: pl.DataFrame) -> tuple[np.ndarray, tuple[Bucket, ...]]:
    """Index of each clip's bucket, and the buckets in order."""
    sides = [admitted[name].to_numpy().astype(np.int64) for name in ("planned_frames", "height", "width")]
    key = (sides[0] << 40) | (sides[1] << 20) | sides[2]
    found, index = np.unique(key, return_inverse=True)
    mask = (1 << 20) - 1
    buckets = tuple(
        Bucket(frames, height, width)
        for frames, height, width in zip(
            (found >> 40).tolist(), ((found >> 20) & mask).tolist(), (found & mask).tolist(), strict=True
        )
    )
    return index.astype(np.int32), buckets


def _dense(codes: np.ndarray) -> np.ndarray:
    """Numbers 0, 1, ... in the order in which the codes first come, so that they do not depend on how the text was encoded."""
    values, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    rank = np.empty(len(values), dtype=np.int32)
    rank[np.argsort(first)] = np.arange(len(values), dtype=np.int32)
    return rank[inverse]


def _one_array(column: pl.Series) -> pa.Array:
    array = column.to_arrow()
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _check_set(frame: pl.DataFrame, info: SetInfo, path: Path) -> None:
    """Refuse a table (in order) that does not describe the tars of its set."""
    shards = len(info.shards)
    shard = frame["shard_index"].to_numpy()
    outside = np.flatnonzero((shard < 0) | (shard >= shards))
    if len(outside):
        raise DataError(
            f"{path}: {len(outside)} samples name shard_index {shard[outside[0]]} and the like, but set.json lists "
            f"{shards} shards; the table and set.json are not of one set, pack it again"
        )
    repeated = {
        "clip_id": len(frame) - frame["clip_id"].n_unique(),
        "shard_index and ordinal": int((np.diff(_place_keys(frame)) == 0).sum()),
    }
    for key, doubles in repeated.items():
        if doubles:
            raise DataError(f"{path}: {doubles} samples repeat a {key}; each must be unique, pack the set again")
    ordinal, start, length = (frame[name].to_numpy() for name in ("ordinal", "offset", "length"))
    end = start + length
    before = np.zeros(len(frame), dtype=np.int64)
    before[1:] = np.where(shard[1:] == shard[:-1], end[:-1], 0)
    wrong = np.flatnonzero((length <= 0) | (start < before))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{path}: sample {ordinal[row]} of shard {shard[row]} spans bytes [{start[row]}, {end[row]}), "
            f"before the end of the one in front of it ({before[row]}); pack the set again"
        )
    size = np.array([item.size_bytes for item in info.shards], dtype=np.int64)
    past = np.flatnonzero(end > size[shard])
    if len(past):
        row = int(past[0])
        raise DataError(
            f"{path}: sample {ordinal[row]} of shard {shard[row]} ends at byte {end[row]}, the tar has {size[shard[row]]} "
            "by set.json; the table and set.json are not of one set, pack it again"
        )
