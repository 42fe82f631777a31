"""Canonical hashes of tables: over named columns in a fixed order and type, never over Parquet bytes.

Two writers, two library versions or two row-group sizes give the same hash for the same values in the same order. Each column is hashed as
its name, its Arrow type, its validity and its values (offsets for variable lengths), after combining chunks and dropping slices. Price: the
whole table in memory; the planner hashes lane by lane.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.ids import fingerprint

__all__ = ["combine_hashes", "table_hash"]


def table_hash(table: pa.Table) -> str:
    """SHA-256 (hex) of a table's values; row order and column order matter, chunking and metadata do not."""
    digest = hashlib.sha256()
    digest.update(f"rows={table.num_rows}".encode())
    for name in table.column_names:
        column = table.column(name)
        digest.update(f"\x00{name}\x00{_type_name(column.type)}\x00".encode())
        _hash_array(digest, pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type))
    return digest.hexdigest()


def combine_hashes(hashes: Mapping[str, str]) -> str:
    """One SHA-256 (hex) over named hashes, independent of the mapping's order."""
    return fingerprint(dict(hashes), length=64)


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


def _hash_array(digest: hashlib._Hash, array: pa.Array) -> None:
    """Feed one array: validity as bytes, then values; lists and structs by their parts. Nulls hash as the type's zero."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        array, kind = array.storage, array.type.storage_type
    valid = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=np.uint8)
    digest.update(valid.tobytes())
    if pa.types.is_struct(kind):
        for position in range(kind.num_fields):
            digest.update(kind.field(position).name.encode())
            _hash_array(digest, array.field(position))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        digest.update(np.asarray(lengths.to_numpy(zero_copy_only=False), dtype="<i8").tobytes())
        _hash_array(digest, array.flatten())
    elif pa.types.is_fixed_size_list(kind):
        _hash_array(digest, array.flatten())
    elif (
        pa.types.is_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_large_binary(kind)
    ):
        _hash_bytes(digest, array)
    elif pa.types.is_boolean(kind):
        digest.update(np.asarray(pc.fill_null(array, False).to_numpy(zero_copy_only=False), dtype=np.uint8).tobytes())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = pc.fill_null(array, pa.scalar(0, kind)) if array.null_count else array
        numbers = values.to_numpy(zero_copy_only=False)
        digest.update(np.ascontiguousarray(numbers, dtype=numbers.dtype.newbyteorder("<")).tobytes())
    else:
        raise TypeError(
            f"columns of type {kind} have no canonical hash; use integers, floats, booleans, strings, binary, lists or structs"
        )


def _hash_bytes(digest: hashlib._Hash, array: pa.Array) -> None:
    wide = array.cast(pa.large_binary())
    lengths = pc.fill_null(pc.binary_length(wide), 0)
    digest.update(np.asarray(lengths.to_numpy(zero_copy_only=False), dtype="<i8").tobytes())
    offsets = np.frombuffer(wide.buffers()[1], dtype="<i8")[wide.offset : wide.offset + len(wide) + 1]
    data = wide.buffers()[2]
    if len(wide) == 0 or data is None:
        return
    if wide.null_count == 0:
        digest.update(memoryview(data)[offsets[0] : offsets[-1]])
        return
    for value in wide.drop_null():
        digest.update(value.as_buffer())
