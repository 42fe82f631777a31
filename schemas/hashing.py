"""Canonical hashes of tables: over named columns in a fixed order and type, never over Parquet bytes.

Two writers, two library versions or two row-group sizes give the same hash for the same values in the same order. Each column is cut into flat
streams (lengths, values, the positions of nulls), each stream has a running SHA-256, and the table's hash is one over all of them by name. So a
table of any size is hashed row group by row group, in the memory of one. Nulls hash as the type's zero, and by where they stand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.ids import fingerprint
from schemas.tables import check_file, checked_table

__all__ = ["TableHasher", "combine_hashes", "read_hashed_table", "table_hash"]

_LARGE_ROWS = 100_000
"""From here on the columns are hashed on two threads; the digest is the same."""


class TableHasher:
    """The hash of a table that comes in pieces; how it is cut does not matter.

    `table_hash(t)` is that of one piece. Feed columns of the same names and types each time.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._types: dict[str, str] = {}
        self._columns: dict[str, _ColumnHasher] = {}

    def update(self, table: pa.Table) -> None:
        """Feed the next rows."""
        for field in table.schema:
            kind = _type_name(field.type)
            assert self._types.setdefault(field.name, kind) == kind, "pieces of one table have the same types"
            self._columns.setdefault(field.name, _ColumnHasher())
        self._rows += table.num_rows

        def feed(name: str) -> None:
            column = table.column(name)
            for chunk in column.chunks or [pa.array([], column.type)]:
                self._columns[name].feed("", chunk)

        if table.num_rows >= _LARGE_ROWS:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(feed, table.column_names))
        else:
            for name in table.column_names:
                feed(name)

    def hexdigest(self) -> str:
        """SHA-256 (hex) of what was fed."""
        parts = [[name, kind, self._columns[name].digests()] for name, kind in self._types.items()]
        return fingerprint({"rows": self._rows, "columns": parts}, length=64)


def table_hash(table: pa.Table) -> str:
    """SHA-256 (hex) of a table's values; row order and column order matter, chunking and metadata do not."""
    hasher = TableHasher()
    hasher.update(table)
    return hasher.hexdigest()


def read_hashed_table(
    path: Path, schema: pa.Schema, columns: Sequence[str], *, as_codes: Sequence[str] = ()
) -> tuple[pa.Table, str]:
    """`columns` of a Parquet table and the hash of all of it, in one pass over its row groups.

    `as_codes` names string columns to be given as dictionaries, which for few distinct values takes a fraction of the memory.

    Raises:
        SchemaError: as `schemas.tables.read_table`.
    """
    check_file(path, schema)
    hasher = TableHasher()
    pieces = []
    with pq.ParquetFile(path) as file:
        groups = (file.read_row_group(group) for group in range(file.num_row_groups))
        for group in chain([file.schema_arrow.empty_table()], groups):
            table = checked_table(group, schema, str(path))
            hasher.update(table)
            kept = table.select(list(columns))
            for name in as_codes:
                position = kept.column_names.index(name)
                kept = kept.set_column(position, name, kept.column(name).dictionary_encode())
            pieces.append(kept)
    return pa.concat_tables(pieces).unify_dictionaries(), hasher.hexdigest()


def combine_hashes(hashes: Mapping[str, str]) -> str:
    """One SHA-256 (hex) over named hashes, independent of the mapping's order."""
    return fingerprint(dict(hashes), length=64)


class _ColumnHasher:
    """Running digests of one column's streams, by the path of the leaf within it."""

    def __init__(self) -> None:
        self._streams: dict[str, hashlib._Hash] = {}
        self._counts: dict[str, int] = {}

    def digests(self) -> dict[str, str]:
        return {name: stream.hexdigest() for name, stream in self._streams.items()}

    def feed(self, path: str, array: pa.Array) -> None:
        """Feed one array: where its nulls are, then lengths and values; lists and structs by their parts."""
        kind = array.type
        if isinstance(array, pa.ExtensionArray):
            array, kind = array.storage, array.type.storage_type
        before = self._counts.get(path, 0)
        self._counts[path] = before + len(array)
        nulls = (
            np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))
            if array.null_count
            else np.empty(0, np.int64)
        )
        self._write(f"{path}?", (nulls + before).astype("<i8"))
        if pa.types.is_struct(kind):
            for position in range(kind.num_fields):
                self.feed(f"{path}.{kind.field(position).name}", array.field(position))
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            self._write(f"{path}#", _numbers(pc.fill_null(pc.list_value_length(array), 0)).astype("<i4"))
            self.feed(f"{path}[]", array.flatten())
        elif pa.types.is_fixed_size_list(kind):
            self.feed(f"{path}[]", array.flatten())
        elif (
            pa.types.is_string(kind)
            or pa.types.is_binary(kind)
            or pa.types.is_large_string(kind)
            or pa.types.is_large_binary(kind)
        ):
            self._write(f"{path}#", _numbers(pc.fill_null(pc.binary_length(array), 0)).astype("<i4"))
            self._write_bytes(path, array)
        elif pa.types.is_boolean(kind):
            self._write(path, _numbers(pc.fill_null(array, False)).astype(np.uint8))
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
            numbers = _numbers(pc.fill_null(array, pa.scalar(0, kind)) if array.null_count else array)
            self._write(path, np.ascontiguousarray(numbers, dtype=numbers.dtype.newbyteorder("<")))
        else:
            raise TypeError(
                f"columns of type {kind} have no canonical hash; use integers, floats, booleans, strings, binary, lists or structs"
            )

    def _write(self, path: str, values: np.ndarray) -> None:
        self._streams.setdefault(path, hashlib.sha256()).update(values.view(np.uint8).data)

    def _write_bytes(self, path: str, array: pa.Array) -> None:
        stream = self._streams.setdefault(path, hashlib.sha256())
        filled = array.drop_null() if array.null_count else array
        data = filled.buffers()[2]
        if not len(filled) or data is None:
            return
        wide = pa.types.is_large_string(filled.type) or pa.types.is_large_binary(filled.type)
        offsets = np.frombuffer(filled.buffers()[1], dtype="<i8" if wide else "<i4")
        stream.update(memoryview(data)[offsets[filled.offset] : offsets[filled.offset + len(filled)]])


def _numbers(array: pa.Array) -> np.ndarray:
    return np.asarray(array.to_numpy(zero_copy_only=False))


def _type_name(kind: pa.DataType) -> str:
    """The type without the names that writers give to list items and without nullability, which Parquet readers change."""
    if pa.types.is_struct(kind):
        fields = (kind.field(position) for position in range(kind.num_fields))
        return f"struct<{', '.join(f'{field.name}: {_type_name(field.type)}' for field in fields)}>"
    if pa.types.is_fixed_size_list(kind):
        return f"list<{_type_name(kind.value_type)}>[{kind.list_size}]"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{_type_name(kind.value_type)}>"
    return str(kind)
