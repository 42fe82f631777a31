"""Index files for DALI and Energon, read back here by the formats' own rules, against the bytes in the tars."""

from __future__ import annotations

import io
import itertools
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from planner.cli import app
from planner.indexing.indexer import index_set
from planner.indexing.rules import IndexRules
from schemas.command import run_command
from schemas.errors import DataError
from schemas.shards import samples_path
from schemas.tables import SAMPLES, read_table

Shards = Callable[..., list[list[tuple[str, int]]]]
NAMES = ("a-000.tar", "more/b.c.tar")


def write(path: Path, keys: list[str], *, sizes: list[int] | None = None, long: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for number, key in enumerate(keys):
            height = (sizes or [64] * len(keys))[number]
            for suffix, data in (
                ("JSON", json.dumps({"height": height, "width": 112}).encode()),
                ("jpg", bytes([number]) * (500 + number)),
            ):
                info = tarfile.TarInfo(f"{'deep/' * 30 if long else ''}{key}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An indexed set of two tars; the second sample of the first has no size that could be planned, and the names of the second are long."""
    write(tmp_path / "tars" / NAMES[0], ["x/1", "x/2", "x/3"], sizes=[64, 50, 64])
    write(tmp_path / "tars" / NAMES[1], ["y1", "y2"], long=True)
    index_set(
        [str(tmp_path / "tars" / name) for name in NAMES], tmp_path / "set", IndexRules(set_name="s", default_frames=1)
    )
    return tmp_path / "set"


def read_dali(path: Path) -> list[list[tuple[str, int, int, str]]]:
    """As DALI's loader parses it: a version, a count, then lines of four fields per member, offsets of whole blocks."""
    first, *lines = path.read_text().splitlines()
    version, count = first.split()
    assert version == "v1.2" and int(count) == len(lines) > 0
    samples = []
    for line in lines:
        words = line.split()
        assert words and len(words) % 4 == 0
        members = [(words[at], int(words[at + 1]), int(words[at + 2]), words[at + 3]) for at in range(0, len(words), 4)]
        assert all(offset % 512 == 0 for _, offset, _, _ in members)
        samples.append(members)
    return samples


def read_energon(path: Path) -> list[int]:
    data = path.read_bytes()
    return [number for (number,) in struct.iter_unpack("<Q", data)]


def test_dali_finds_every_planned_member(folder: Path) -> None:
    assert run_command(app, ["index", "--dali", str(folder)]) == 0
    tars = folder.parent / "tars"
    for tar, index, samples in ((NAMES[0], "a-000.idx", 2), (NAMES[1], "more/b.c.idx", 2)):
        found = read_dali(tars / index)
        assert len(found) == samples
        data = (tars / tar).read_bytes()
        with tarfile.open(tars / tar) as archive:
            for suffix, offset, length, name in (member for sample in found for member in sample):
                info = archive.getmember(name)
                assert (info.offset_data, info.size) == (offset, length) and name.endswith(f".{suffix}")
                stream = archive.extractfile(info)
                assert stream is not None and stream.read() == data[offset : offset + length]


def test_energon_finds_every_sample(folder: Path) -> None:
    assert run_command(app, ["index", "--energon", str(folder)]) == 0
    tars = folder.parent / "tars"
    counts = {}
    for tar in NAMES:
        bounds = read_energon(tars / f"{tar}.idx")
        counts[tar] = len(bounds) - 1
        data = (tars / tar).read_bytes()
        with tarfile.open(tars / tar) as archive:
            infos = list(archive)
            assert bounds == [info.offset for info in infos[::2]] + [archive.offset]
        for start, end in itertools.pairwise(bounds):
            with tarfile.open(fileobj=io.BytesIO(data[start:end])) as sample:
                assert len({name.rpartition(".")[0] for name in sample.getnames()}) == 1
    meta = tars / ".nv-meta"
    assert (
        json.loads((meta / ".info.json").read_text())
        == {"shard_counts": {NAMES[0]: 3, NAMES[1]: 2}}
        == {"shard_counts": counts}
    )
    assert yaml.safe_load((meta / "split.yaml").read_text()) == {
        "exclude": ["a-000.tar/x/2"],
        "split_parts": {"train": list(NAMES)},
    }
    (meta / "split.yaml").write_text("mine: true\n")
    assert run_command(app, ["index", "--energon", str(folder)]) == 0
    assert (meta / "split.yaml").read_text() == "mine: true\n"


def test_curated_sets_get_them_too(write_set: Callable[..., Path], make_shards: Shards, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", make_shards(2, 5), tars=True)
    assert run_command(app, ["index", "--energon", str(folder), "--dali", str(folder)]) == 0
    rows = [row for row in read_table(samples_path(folder), SAMPLES).to_pylist() if row["shard_index"] == 1]
    bounds = read_energon(folder / "shard-000001.tar.idx")
    assert bounds == [row["offset"] for row in rows] + [rows[-1]["offset"] + rows[-1]["length"]]
    members = read_dali(folder / "shard-000001.idx")
    assert [sample[0] for sample in members] == [
        ("latent.npy", row["members"][0]["offset"], row["members"][0]["length"], f"{row['clip_id']}.latent.npy")
        for row in rows
    ]


def test_names_that_dali_cannot_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "tars" / "a.tar", ["with space"])
    index_set([str(tmp_path / "tars")], tmp_path / "set", IndexRules(set_name="s", default_frames=1))
    assert run_command(app, ["index", "--dali", str(tmp_path / "set")]) == 1
    assert "a.tar: sample 'with space' has a name with spaces" in capsys.readouterr().err
    with pytest.raises(DataError, match="not a set folder"):
        from planner.indexing.sidecars import write_energon

        write_energon(tmp_path / "none")
