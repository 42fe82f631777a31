"""Changed tars are found by size and time alone, with numbers; sets without stamps are compared by size."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from planner.indexing.indexer import index_set
from planner.indexing.rules import IndexRules
from planner.stamps import changed_shards
from schemas.shards import SetInfo, read_set_info

Shards = Callable[..., list[list[tuple[str, int]]]]


@pytest.fixture
def indexed(tmp_path: Path) -> tuple[Path, SetInfo]:
    for name in ("a", "b", "c"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo(f"{name}_64x112.jpg"))
    rules = IndexRules(set_name="s", json_member=None, regex=r"_(?P<height>\d+)x(?P<width>\d+)", default_frames=1)
    return tmp_path / "set", index_set([str(tmp_path)], tmp_path / "set", rules).info


def test_unchanged_tars_give_no_message(indexed: tuple[Path, SetInfo]) -> None:
    assert changed_shards(*indexed) == []


def test_size_time_and_absence(indexed: tuple[Path, SetInfo], tmp_path: Path) -> None:
    folder, info = indexed
    with (tmp_path / "a.tar").open("ab") as stream:
        stream.write(bytes(512))
    os.utime(tmp_path / "b.tar", ns=(0, 1_700_000_000_000_000_001))
    (tmp_path / "c.tar").unlink()
    first, second, third = changed_shards(folder, info)
    assert first == f"{tmp_path}/a.tar has changed: 10752 bytes, set.json says 10240; index it again"
    assert "b.tar has changed: last changed 2023-11-14 22:13:20.000000001 UTC, set.json says 20" in second
    assert third == f"{tmp_path}/c.tar is gone; set.json lists it with 10240 bytes: index it again"


def test_a_set_whose_tars_are_elsewhere_gives_no_message(indexed: tuple[Path, SetInfo], tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.tar").unlink()
    assert changed_shards(*indexed) == []


def test_curated_sets_of_before_are_compared_by_size(
    write_set: Callable[..., Path], make_shards: Shards, tmp_path: Path
) -> None:
    folder = write_set(tmp_path / "curated", make_shards(2, 3), tars=True)
    written = json.loads((folder / "set.json").read_text())
    for values in (written, *written["shards"]):
        for name in ("origin", "location", "modified_ns", "etag"):
            values.pop(name, None)
    (folder / "set.json").write_text(json.dumps(written))
    info = read_set_info(folder)
    assert (info.origin, info.location, info.shards[0].modified_ns) == ("curated", None, None)
    os.utime(folder / "shard-000000.tar", ns=(0, 1))
    assert changed_shards(folder, info) == []
    with (folder / "shard-000001.tar").open("ab") as stream:
        stream.write(b"x")
    (message,) = changed_shards(folder, info)
    assert "shard-000001.tar has changed" in message and message.endswith("copy the set again, or pack it again")
