"""Rows of samples.parquet and index.parquet, column by column: a list per column, no dictionary per row.

index.parquet stands beside the samples of an indexed set and has a row for every sample of every tar, left out or not: which key a clip id is,
where the bytes of a left-out sample lie, and why it was left out. Price: the keys are stored a second time, as ids and as text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from planner.indexing.rules import IndexRules, SampleFacts
from schemas.tables import MEMBER, SAMPLES, named_schema

__all__ = ["INDEX", "RowWriter", "clip_id_of", "index_path", "with_shard_numbers"]

INDEX = named_schema(
    "index",
    1,
    [
        ("shard_index", pa.int32()),  # into set.json's `shards`
        ("position", pa.int32()),  # of the sample among all samples of its tar
        ("offset", pa.int64()),  # first byte of the sample's first tar header
        ("length", pa.int64()),  # up to the next sample's first header
        ("key", pa.string()),  # as webdataset's __key__
        pa.field("clip_id", pa.string(), nullable=True),  # null when it was left out
        pa.field("left_out", pa.string(), nullable=True),  # the reason
    ],
)

_PLAIN = {
    "domain": "",
    "subject": "",
    "style": "",
    "start_us": 0,
    "text_tokens_long": 0,
    "text_tokens_short": 0,
    "text_tokens_first": 0,
}
"""Columns that are often not given, and what stands there then."""


def index_path(set_folder: Path) -> Path:
    """Where an indexed set's table of keys lies."""
    return set_folder / "index.parquet"


def clip_id_of(tar_name: str, key: str) -> str:
    """Id of a foreign sample: hash of the tar's name and the sample's key, 24 hex digits, as ids of clips are."""
    return hashlib.sha256(f"{tar_name}\0{key}".encode()).hexdigest()[:24]


_NOTHING_GIVEN = tuple(_PLAIN.values())
_FACTS = ("clip_id", "offset", "length", "frames", "height", "width", "branch", "source")


class RowWriter:
    """Collects the rows of one tar. Ordinals count the samples that are kept, positions all."""

    def __init__(self, tar_name: str, rules: IndexRules) -> None:
        self._tar_name = tar_name
        self._rules = rules
        self._index: list[tuple[Any, ...]] = []
        self._rows: list[tuple[Any, ...]] = []
        self._latents: list[int] = []
        self._ends = [0]
        self._names: list[str] = []
        self._offsets: list[int] = []
        self._lengths: list[int] = []

    def leave_out(self, key: str, place: tuple[int, int, int], reason: str) -> None:
        """A sample that cannot be planned; `place` is (position, offset, length)."""
        self._index.append((*place, key.encode("utf-8", "backslashreplace").decode(), None, reason))

    def add(
        self, key: str, place: tuple[int, int, int], facts: SampleFacts, members: tuple[list[str], list[int], list[int]]
    ) -> None:
        """A sample; `members` are names without the key, offsets of the data, and lengths."""
        clip = clip_id_of(self._tar_name, key)
        self._index.append((*place, key, clip, None))
        given = facts.columns
        branch = given.get("branch") or ("video_real" if facts.frames + facts.shortened > 1 else "image_real")
        known = (clip, place[1], place[2], facts.frames, facts.height, facts.width, branch, given.get("source", clip))
        others = [given.get(name, plain) for name, plain in _PLAIN.items()] if given else _NOTHING_GIVEN
        self._rows.append((*known, *others))
        self._latents.extend(facts.latent_shape)
        names, offsets, lengths = members
        self._names.extend(names)
        self._offsets.extend(offsets)
        self._lengths.extend(lengths)
        self._ends.append(len(self._names))

    def index(self) -> pa.Table:
        """The rows so far for index.parquet."""
        columns = _columns(self._index, INDEX.names[1:])
        return _table(INDEX, {**columns, "shard_index": np.zeros(len(self._index), np.int32)})

    def samples(self) -> pa.Table:
        """The rows so far for samples.parquet; crc32 is null, as no data was read."""
        count, total = len(self._rows), len(self._names)
        members = pa.StructArray.from_arrays(
            [
                pa.array(self._names, pa.string()),
                pa.array(self._offsets, pa.int64()),
                pa.array(self._lengths, pa.int64()),
                pa.nulls(total, pa.uint32()),
            ],
            fields=list(MEMBER),
        )
        levels = list(self._rules.admissions)
        shape = SAMPLES.field("latent_shape").type
        computed: dict[str, Any] = {
            "set": pa.repeat(self._rules.set_name, count),
            "shard_index": np.zeros(count, np.int32),
            "ordinal": np.arange(count, dtype=np.int32),
            "members": pa.ListArray.from_arrays(pa.array(self._ends, pa.int32()), members),
            "latent_shape": pa.FixedSizeListArray.from_arrays(pa.array(self._latents, pa.int32()), type=shape),
            "admissions": pa.ListArray.from_arrays(
                pa.array(np.arange(count + 1, dtype=np.int32) * len(levels)), pa.array(levels * count, pa.string())
            ),
            "has_teacher": np.zeros(count, dtype=bool),
        }
        return _table(SAMPLES, {**_columns(self._rows, (*_FACTS, *_PLAIN)), **computed})


def with_shard_numbers(table: pa.Table, numbers: Sequence[int], counts: Sequence[int]) -> pa.Table:
    """`table` with its shard_index set to each number for as many rows as its count."""
    column = pa.array(np.repeat(np.asarray(numbers, np.int32), np.asarray(counts, np.int64)))
    return table.set_column(table.column_names.index("shard_index"), table.schema.field("shard_index"), column)


def _columns(rows: Sequence[tuple[Any, ...]], names: Sequence[str]) -> dict[str, Sequence[Any]]:
    return dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {name: () for name in names}


def _table(schema: pa.Schema, columns: dict[str, Any]) -> pa.Table:
    arrays = []
    for column in schema:
        values = columns[column.name]
        arrays.append(values if isinstance(values, pa.Array) else pa.array(values, column.type))
    return pa.Table.from_arrays(arrays, schema=schema)
