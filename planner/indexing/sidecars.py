"""Index files beside the tars of a set, so that other loaders read it at random: DALI's `.idx`, Energon's `.tar.idx` and `.nv-meta`.

Both are written from the set's tables, for curated and indexed sets alike; no tar is opened.

* DALI (`readers.webdataset(index_paths=...)`), text: `v1.2 SAMPLES`, then a line per sample of `SUFFIX OFFSET BYTES NAME` for each member, with the
  offsets of the data. It has the samples that can be planned. Fields are parted by spaces, so names with spaces are refused.
* Energon, binary: unsigned little-endian 64-bit offsets of every sample's first header, and of the end. A sample is what lies between two of
  them, so samples that were left out have to be there; `split.yaml` excludes them by name. `index.sqlite`, which Energon needs for access by name,
  is left to `energon prepare`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from planner.indexing.places import is_remote, open_store, store_call
from planner.indexing.rows import INDEX, index_path
from schemas.command import progress
from schemas.errors import DataError, UsageError
from schemas.files import write_bytes
from schemas.shards import SetInfo, read_set_info, samples_path, shard_address
from schemas.tables import SAMPLES, read_table

__all__ = ["dali_index", "energon_index", "write_dali", "write_energon"]

_NV_META = ".nv-meta"


def write_dali(set_folder: Path) -> list[str]:
    """Write `.idx` beside each tar (`a.tar`: `a.idx`) and return where they are. A tar none of whose samples were kept gets none.

    Raises:
        DataError: a name that the format cannot hold.
    """
    info = read_set_info(set_folder)
    columns = ["clip_id", "shard_index", "members"]
    table = read_table(samples_path(set_folder), SAMPLES, columns=columns)
    keys = _keys(set_folder, info)
    written = []
    for number, part in progress(list(enumerate(_by_shard(table, info))), what="writing indexes for DALI"):
        if part.num_rows:
            name = info.shards[number].name
            clips = part.column("clip_id").to_pylist()
            data = dali_index([keys.get(clip, clip) for clip in clips], part.column("members").to_pylist(), name)
            written.append(_put(shard_address(set_folder, info, f"{name.removesuffix('.tar')}.idx"), data))
    return written


def dali_index(keys: list[str], members: list[list[dict[str, Any]]], tar: str) -> bytes:
    """One tar's index: `dali_index(["a"], [[{"name": "npy", "offset": 512, "length": 9}]], "x.tar") == b"v1.2 1\\nnpy 512 9 a.npy\\n"`."""
    lines = [f"v1.2 {len(keys)}"]
    for key, own in zip(keys, members, strict=True):
        if any(character.isspace() for character in key) or any(
            not item["name"] or " " in item["name"] for item in own
        ):
            raise DataError(
                f"{tar}: sample {key!r} has a name with spaces or a member without a suffix, which DALI's index cannot hold; "
                "rename its members, or let DALI read the tars without an index"
            )
        lines.append(" ".join(f"{item['name']} {item['offset']} {item['length']} {key}.{item['name']}" for item in own))
    return ("\n".join(lines) + "\n").encode()


def write_energon(set_folder: Path) -> list[str]:
    """Write `.tar.idx` beside each tar, and `.nv-meta` in the folder of the tars; returns where they are.

    `split.yaml` and `dataset.yaml` are the user's to edit, so they are written only where there are none.
    """
    info = read_set_info(set_folder)
    if info.origin == "indexed":
        table = read_table(index_path(set_folder), INDEX)
    else:
        table = read_table(samples_path(set_folder), SAMPLES, columns=["shard_index", "offset", "length"])
    written = []
    counts: dict[str, int] = {}
    for number, part in progress(list(enumerate(_by_shard(table, info))), what="writing indexes for Energon"):
        name = info.shards[number].name
        if part.num_rows:
            counts[name] = part.num_rows
            offsets = part.column("offset").to_numpy()
            data = energon_index(offsets, int(offsets[-1]) + part.column("length")[-1].as_py())
            written.append(_put(shard_address(set_folder, info, f"{name}.idx"), data))
    split = {"exclude": _left_out(table, info), "split_parts": {"train": list(counts)}}
    crude = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
    files = {
        ".info.json": json.dumps({"shard_counts": counts}, indent=2),
        "split.yaml": yaml.safe_dump(split),
        "dataset.yaml": yaml.safe_dump(crude, sort_keys=False),
    }
    for file, text in files.items():
        address = shard_address(set_folder, info, f"{_NV_META}/{file}")
        if file == ".info.json" or not _exists(address):
            written.append(_put(address, text.encode()))
    return written


def energon_index(offsets: np.ndarray, end: int) -> bytes:
    """One tar's index: 8 bytes per sample, and 8 for the end."""
    return np.append(offsets.astype("<u8"), np.array([end], "<u8")).tobytes()


def _by_shard(table: pa.Table, info: SetInfo) -> Iterator[pa.Table]:
    """The rows of each shard; the tables are sorted by shard."""
    edges = np.searchsorted(table.column("shard_index").to_numpy(), np.arange(len(info.shards) + 1))
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        yield table.slice(first, last - first)


def _keys(set_folder: Path, info: SetInfo) -> dict[str, str]:
    """Clip id to the key in the tar; empty for curated sets, where they are the same."""
    if info.origin != "indexed":
        return {}
    table = read_table(index_path(set_folder), INDEX, columns=["clip_id", "key"])
    return dict(zip(table.column("clip_id").to_pylist(), table.column("key").to_pylist(), strict=True))


def _left_out(table: pa.Table, info: SetInfo) -> list[str]:
    if "left_out" not in table.column_names:
        return []
    dropped = table.filter(table.column("clip_id").is_null())
    names = [info.shards[number].name for number in dropped.column("shard_index").to_pylist()]
    return [f"{name}/{key}" for name, key in zip(names, dropped.column("key").to_pylist(), strict=True)]


def _exists(address: str) -> bool:
    if not is_remote(address):
        return Path(address).exists()
    store, path = open_store(address)
    return bool(store_call(address, lambda: store.exists(path)))


def _put(address: str, data: bytes) -> str:
    if not is_remote(address):
        write_bytes(Path(address), data)
    elif address.startswith(("http://", "https://")):
        raise UsageError(
            f"index files lie beside the tars, and {address} cannot be written over HTTP; copy the tars to a folder or bucket"
        )
    else:
        store, path = open_store(address)
        store_call(address, lambda: store.pipe_file(path, data))
    return address
