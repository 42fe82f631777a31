"""Where a packed set lies: a folder of this machine, or an address of an object store (`s3://bucket/sets/144p`).

The two are told apart once, here. Of a remote set `set.json` and the samples table are copied to a temporary folder, read and checked as local
ones, and the copy is removed; shards stay where they are and are read by ranges. Price: a remote samples table is fetched anew by each process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from schemas.errors import DataError
from schemas.shards import SetInfo, read_set_info, samples_path, shard_address
from schemas.tables import SAMPLES, read_table
from training.loading.object_store import ObjectStore, is_url

__all__ = ["OpenedSet", "SetPlace", "absolute_place", "open_set", "place_of", "read_set_file", "shard_sizes"]

SetPlace = Path | str
"""Folder, or URL of an object store."""


@dataclass(frozen=True, kw_only=True)
class OpenedSet:
    """A set's own words, and its samples table."""

    place: SetPlace
    info: SetInfo
    samples: pa.Table

    def shard_address(self, name: str) -> str:
        """Path or URL of one of its tars."""
        if self.info.location is None and isinstance(self.place, str):
            return f"{self.place}/{name}"
        return shard_address(Path(self.place), self.info, name)


def place_of(text: Path | str) -> SetPlace:
    """A path where it can be one: `place_of("sets/a")` and `place_of("file:///sets/a")` are; `place_of("s3://bucket/a/")` is `"s3://bucket/a"`."""
    if isinstance(text, Path):
        return text
    return text.rstrip("/") if is_url(text) else Path(text.removeprefix("file://"))


def absolute_place(place: SetPlace) -> str:
    """As it is written down: a folder from the root on, an address as it is."""
    return str(place.resolve()) if isinstance(place, Path) else place


def open_set(place: SetPlace) -> OpenedSet:
    """Read `set.json` and `samples.parquet`.

    Raises:
        DataError: if there is no set, or not one that this version reads.
        ServiceError: if the object store fails.
    """
    if isinstance(place, Path):
        return OpenedSet(place=place, info=read_set_info(place), samples=read_table(samples_path(place), SAMPLES))
    with tempfile.TemporaryDirectory(prefix="reelyard-set-") as name:
        copy = Path(name)
        for target in (copy / "set.json", samples_path(copy)):
            target.write_bytes(read_set_file(place, target.name))
        try:
            return OpenedSet(place=place, info=read_set_info(copy), samples=read_table(samples_path(copy), SAMPLES))
        except DataError as error:
            raise type(error)(str(error).replace(name, place)) from error


def read_set_file(place: SetPlace, name: str) -> bytes:
    """A small file of a set, whole; DataError when it is not there."""
    try:
        if isinstance(place, Path):
            return (place / name).read_bytes()
        with ObjectStore() as store:
            return store.read(f"{place}/{name}")
    except FileNotFoundError as error:
        raise DataError(
            f"{place} is not a set folder: {name} is missing; give the folder that `reelyard-curate` packed"
        ) from error


def shard_sizes(addresses: Sequence[str]) -> Mapping[str, int]:
    """Address to bytes of the tars that are there; one listing for all objects of a folder."""
    found = {}
    for address in addresses:
        if not is_url(address) and Path(address).is_file():
            found[address] = Path(address).stat().st_size
    remote = {address.rpartition("/")[0] for address in addresses if is_url(address)}
    if remote:
        with ObjectStore() as store:
            for folder in sorted(remote):
                found |= store.sizes(folder)
    return found
