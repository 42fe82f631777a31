"""`reelyard-plan index` on real tars: what webdataset sees is what the set lists; changed tars alone are read again; nothing wrong goes unsaid."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from planner.cli import app
from planner.indexing.indexer import IndexOutcome, index_set
from planner.indexing.report import ERRORS, REPORT
from planner.indexing.rows import INDEX, index_path
from planner.indexing.rules import IndexRules
from schemas.command import run_command
from schemas.errors import DataError, UsageError
from schemas.hashing import table_hash
from schemas.shards import read_set_info, samples_path, shard_address
from schemas.tables import ADMISSIONS, SAMPLES, read_table

REPOSITORY = Path(__file__).parents[3]
SIZES = {1: (64, 112), 9: (64, 112), 17: (64, 112), 31: (112, 64)}
RULES = IndexRules(set_name="theirs", keys={"domain": "topic", "source": "video"})


def write_tar(path: Path, first: int, count: int = 12, **changes: Any) -> Path:
    """A tar as webdataset writes it, of clips with latents; `changes` replaces members of the first clip, null removes one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(first, first + count):
            frames = list(SIZES)[number % 4]
            height, width = SIZES[frames]
            latent = io.BytesIO()
            np.save(latent, np.full((frames, 4, height // 8, width // 8), number, np.float16))
            record = {
                "frames": 4 * (frames - 1) + 1,
                "height": height,
                "width": width,
                "topic": f"t{number % 3}",
                "video": f"v{number // 2}",
            }
            sample = {
                "__key__": f"clips/{number:05d}",
                "latent.npy": latent.getvalue(),
                "txt": b"a clip",
                "json": json.dumps(record).encode(),
            }
            if number == first:
                sample |= {name.replace("_", "."): value for name, value in changes.items()}
            writer.write({name: value for name, value in sample.items() if value is not None})
    return path


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    for number in range(3):
        write_tar(tmp_path / "tars" / f"a-{number:03d}.tar", 100 * number)
    return tmp_path / "tars"


def tables(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return read_table(samples_path(folder), SAMPLES).to_pylist(), read_table(index_path(folder), INDEX).to_pylist()


def hashes(folder: Path) -> tuple[str, str]:
    return table_hash(read_table(samples_path(folder), SAMPLES)), table_hash(read_table(index_path(folder), INDEX))


def indexed(tars: Path, output: Path, **options: Any) -> IndexOutcome:
    return index_set([str(tars)], output, options.pop("rules", RULES), **options)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset 1.0 leaves the tar to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_set_lists_what_webdataset_iterates(tars: Path, tmp_path: Path) -> None:
    outcome = indexed(tars, tmp_path / "set")
    rows, index = tables(tmp_path / "set")
    info = read_set_info(tmp_path / "set")
    urls = [shard_address(tmp_path / "set", info, shard.name) for shard in info.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [row["key"] for row in index] == [sample["__key__"] for sample in samples]
    assert [row["clip_id"] for row in index] == [row["clip_id"] for row in rows]
    assert len(rows) == len({row["clip_id"] for row in rows}) == 36 == outcome.report.kept
    assert info.origin == "indexed" and info.location == str(tars)
    for row, sample in zip(rows, samples, strict=True):
        path = Path(urls[row["shard_index"]])
        data = path.read_bytes()
        assert len(row["clip_id"]) == 24
        assert {item["name"]: data[item["offset"] : item["offset"] + item["length"]] for item in row["members"]} == {
            name: value for name, value in sample.items() if not name.startswith("__")
        }
        assert {item["crc32"] for item in row["members"]} == {None}
        record = json.loads(sample["json"])
        assert (row["frames"], row["height"], row["width"]) == (record["frames"], record["height"], record["width"])
        assert (row["domain"], row["source"]) == (record["topic"], record["video"])
        assert row["branch"] == ("image_real" if record["frames"] == 1 else "video_real")
        assert tuple(row["admissions"]) == ADMISSIONS and not row["has_teacher"]
        alone = io.BytesIO(data[row["offset"] : row["offset"] + row["length"]] + bytes(1024))
        with tarfile.open(fileobj=alone) as archive:
            assert len(archive.getnames()) == 3
    for shard in range(3):
        own = [row for row in rows if row["shard_index"] == shard]
        assert [row["ordinal"] for row in own] == list(range(12))
        assert all(row["offset"] + row["length"] == after["offset"] for row, after in itertools.pairwise(own))


def test_three_ways_to_a_size_give_the_same_rows(tars: Path, tmp_path: Path) -> None:
    indexed(tars, tmp_path / "json")
    indexed(tars, tmp_path / "npy", rules=IndexRules(set_name="theirs", json_member=None, npy_member="latent.npy"))
    facts = ["clip_id", "offset", "length", "frames", "height", "width"]
    by_json, by_npy = (read_table(samples_path(tmp_path / name), SAMPLES) for name in ("json", "npy"))
    assert by_json.select(facts).equals(by_npy.select(facts))
    assert by_npy.column("latent_shape")[3].as_py() == [31, 4, 14, 8]


def test_few_bytes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tars" / "big.tar"
    write_tar(path, 0, bin=os.urandom(1 << 20))
    for number in range(1, 8):
        write_tar(tmp_path / "tars" / f"big-{number}.tar", 100 * number, bin=os.urandom(1 << 20))
    outcome = indexed(tmp_path / "tars", tmp_path / "set")
    total = sum(shard.size_bytes for shard in outcome.info.shards)
    headers = sum(tar.members for tar in outcome.report.tars)
    assert outcome.bytes_read < 6000 * headers < total / 4


def test_no_byte_is_read_twice(tars: Path, tmp_path: Path) -> None:
    """Tars of small members are read through, whole at most."""
    outcome = indexed(tars, tmp_path / "set")
    assert outcome.bytes_read <= sum(shard.size_bytes for shard in outcome.info.shards)


def test_only_changed_tars_are_read_again(tars: Path, tmp_path: Path) -> None:
    output = tmp_path / "set"
    first = indexed(tars, output)
    assert (first.tars_read, first.tars_unchanged) == (3, 0)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.iterdir()}
    again = indexed(tars, output)
    assert (again.tars_read, again.tars_unchanged, again.requests, again.bytes_read) == (0, 3, 0, 0)
    assert before == {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.iterdir()}

    old_rows, _ = tables(output)
    write_tar(tars / "a-001.tar", 500, count=4)
    write_tar(tars / "a-000b.tar", 700, count=2)
    (tars / "a-002.tar").unlink()
    third = indexed(tars, output)
    assert (third.tars_read, third.tars_unchanged, third.tars_gone) == (2, 1, 1)
    rows, _ = tables(output)
    assert [row for row in rows if row["shard_index"] == 0] == [row for row in old_rows if row["shard_index"] == 0]
    assert [shard.name for shard in third.info.shards] == ["a-000.tar", "a-000b.tar", "a-001.tar"]
    indexed(tars, tmp_path / "afresh")
    for name in (REPORT, "set.json"):
        assert json.loads((output / name).read_text()) == json.loads((tmp_path / "afresh" / name).read_text())
    assert hashes(output) == hashes(tmp_path / "afresh")


def test_a_touched_tar_and_other_rules_are_read_again(tars: Path, tmp_path: Path) -> None:
    output = tmp_path / "set"
    indexed(tars, output)
    os.utime(tars / "a-001.tar", ns=(1, 1))
    assert indexed(tars, output).tars_read == 1
    other = indexed(tars, output, rules=IndexRules(set_name="theirs"))
    assert other.tars_read == 3 and "rules" in str(other.reread_because)


def test_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process; two from the start; and one that calls for others once it has read a tar."""
    for number in range(6):
        write_tar(tmp_path / "tars" / f"{number}.tar", 10 * number, count=5)
    for name, workers in (("one", 1), ("two", 2)):
        indexed(tmp_path / "tars", tmp_path / name, workers=workers)
    monkeypatch.setattr("planner.indexing.workers._LOOK_SECONDS", 0.0)
    monkeypatch.setattr("planner.indexing.workers._START_SECONDS", 0.0)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    indexed(tmp_path / "tars", tmp_path / "later")
    for name in ("two", "later"):
        assert hashes(tmp_path / "one") == hashes(tmp_path / name)
        assert (tmp_path / "one" / REPORT).read_text() == (tmp_path / name / REPORT).read_text()


def test_what_is_left_out_is_counted_with_its_reason(tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    write_tar(tars / "a.tar", 0, json=b"{}")
    write_tar(tars / "b.tar", 100, json=b'{"frames": 33, "height": 50, "width": 112}')
    write_tar(tars / "c.tar", 200, json=b'{"frames": 50, "height": 64, "width": 112}')
    outcome = indexed(tars, tmp_path / "set")
    report = json.loads((tmp_path / "set" / REPORT).read_text())
    assert report["left_out"] == {"a side is no multiple of 16": 1, "no frames, height and width were found": 1}
    assert [(tar["samples"], tar["kept"], tar["shortened"]) for tar in report["tars"]] == [
        (12, 11, 0),
        (12, 11, 0),
        (12, 12, 1),
    ]
    assert report["tars"][1]["left_out"][0]["first"] == "clips/00100: 112x50"
    rows, index = tables(tmp_path / "set")
    assert [row["left_out"] is None for row in index[:2]] == [False, True]
    assert [row["ordinal"] for row in rows[:2]] == [0, 1] and rows[0]["offset"] == index[1]["offset"]
    assert [shard.num_samples for shard in outcome.info.shards] == [11, 11, 12]


def test_a_damaged_tar_refuses_the_set(tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "set"
    cut = (tars / "a-001.tar").read_bytes()
    (tars / "a-001.tar").write_bytes(cut[: len(cut) // 2])
    changed = bytearray((tars / "a-002.tar").read_bytes())
    changed[0] ^= 1
    (tars / "a-002.tar").write_bytes(changed)
    assert run_command(app, ["index", str(tars), "--output", str(output)]) == 1
    said = capsys.readouterr().err
    assert "2 errors" in said and "a-002.tar, byte 0: no tar header" in said and "--skip-damaged" in said
    errors = json.loads((output / ERRORS).read_text())["errors"]
    assert [error["tar"] for error in errors] == ["a-001.tar", "a-002.tar"]
    assert "the file at" in errors[0]["reason"] or "the file ends at" in errors[0]["reason"]
    assert not (output / "set.json").exists()

    kept = indexed(tars, output, skip_damaged=True)
    assert not (output / ERRORS).exists()
    half = kept.report.tars[1]
    assert half.damaged is not None and 2 < half.kept < 12 and half.samples == half.kept + 1
    assert kept.report.tars[2].kept == 0 and kept.report.left_out == {half.left_out[0].reason: 1}
    whole = indexed(tars, tmp_path / "other", skip_damaged=True)
    assert whole.report == kept.report
    with pytest.raises(DataError, match="2 errors in the tars"):
        indexed(tars, output)


def test_keys_that_stand_twice_are_errors(tars: Path, tmp_path: Path) -> None:
    write_tar(tars / "b.tar", 5, count=2)
    with pytest.raises(DataError) as caught:
        indexed(tars, tmp_path / "set")
    assert "key 'clips/00005' stands in 2 tars: a-000.tar (byte " in str(caught.value) and "--keys-per-tar" in str(
        caught.value
    )
    assert indexed(tars, tmp_path / "set", keys_per_tar=True).report.kept == 38

    with tarfile.open(tars / "b.tar", "w") as archive:
        for name in ("x.txt", "y.txt", "x.json"):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(DataError, match=r"b.tar, byte 1024: key 'x' stands at byte 0 and again, apart, at byte 1024"):
        indexed(tars, tmp_path / "set", keys_per_tar=True, skip_damaged=True)


def test_strange_members_belong_to_no_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name in (
            "__meta__/x.json",
            "d/",
            "d/a.json",
            "d/._a.json",
            "d/a.JPG",
            "README",
            "d/b.json",
            "d/b.jpg",
            "d/\udcff.json",
        ):
            info = tarfile.TarInfo(name)
            data = b'{"height": 64, "width": 112}' if name.endswith("json") else b""
            info.size = len(data)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            archive.addfile(info, io.BytesIO(data))
    outcome = indexed(path, tmp_path / "set", rules=IndexRules(set_name="s", default_frames=1))
    rows, index = tables(tmp_path / "set")
    assert [row["key"] for row in index] == ["d/a", "d/b", "d/\\udcff"]
    assert [[item["name"] for item in row["members"]] for row in rows] == [["json", "JPG"], ["json", "jpg"]]
    assert rows[0]["offset"] + rows[0]["length"] == rows[1]["offset"]
    (tar,) = outcome.report.tars
    assert tar.ignored == 4 and tar.left_out[0].reason == "its name is not UTF-8"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_something_behind_the_end_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tars = tmp_path / "tars"
    write_tar(tars / "a.tar", 0)
    with (tars / "a.tar").open("ab") as stream:
        stream.write(write_tar(tmp_path / "b.tar", 100).read_bytes())
    assert run_command(app, ["index", str(tars), "--output", str(tmp_path / "set")]) == 0
    assert "1 tars go on behind their end (a.tar" in capsys.readouterr().out
    assert len(list(webdataset.WebDataset(str(tars / "a.tar"), shardshuffle=False))) == 12


def test_beside_the_tars_and_in_folders(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = indexed(tars, tars)
    assert beside.info.location is None and shard_address(tars, beside.info, "a-000.tar") == str(tars / "a-000.tar")
    assert indexed(tars, tars).tars_unchanged == 3
    write_tar(tmp_path / "more" / "b.tar", 900)
    both = index_set([str(tars / "a-{000..001}.tar"), str(tmp_path / "more")], tmp_path / "set", RULES)
    assert both.info.location == str(tmp_path)
    assert [shard.name for shard in both.info.shards] == ["more/b.tar", "tars/a-000.tar", "tars/a-001.tar"]
    monkeypatch.chdir(tmp_path)
    assert index_set(["tars/a-00[01].tar", "more/*.tar", "more/b.tar"], tmp_path / "set", RULES).tars_unchanged == 3


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], "no tars are given"),
        (["nowhere/*.tar"], "names no tar"),
        (["{tmp}"], "names no tar"),
        (["{tmp}/none.tar"], "names no tar"),
    ],
)
def test_inputs_that_name_nothing(inputs: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        index_set([text.replace("{tmp}", str(tmp_path)) for text in inputs], tmp_path / "set", RULES)


def test_a_curated_set_is_never_overwritten(
    tars: Path, tmp_path: Path, write_set: Callable[..., Path], make_shards: Callable[..., list[list[tuple[str, int]]]]
) -> None:
    curated = write_set(tmp_path / "curated", make_shards(1, 4))
    before = (curated / "set.json").read_bytes()
    with pytest.raises(UsageError, match="reelyard-curate packed"):
        indexed(tars, curated)
    assert (curated / "set.json").read_bytes() == before


def test_no_size_anywhere_says_what_to_give(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"none of 36 samples .* 36 because no frames, height and width were found .* --npy"
    ):
        indexed(tars, tmp_path / "set", rules=IndexRules(set_name="s", height_key="tallness"))
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["index", "x"], "--output is missing"),
        (["index", "x", "--output", "o", "--key", "domain"], "COLUMN=PATH"),
        (["index", "x", "--output", "o", "--key", "colour=c"], "no such column"),
        (["index", "x", "--output", "o", "--admission", "8k"], "8k"),
        (["index", "x", "--dali", "o"], "take a set folder"),
    ],
)
def test_usage_errors(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(app, arguments) == 2
    assert words in capsys.readouterr().err


def read_headers(path: Path) -> Iterator[tarfile.TarInfo]:
    with tarfile.open(path) as archive:
        yield from archive


def test_index_build_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Foreign tars to a proved plan through the command line, in a process of its own for the first step."""
    for number in range(4):
        write_tar(tmp_path / "tars" / f"{number}.tar", 1000 * number, count=40)
    folder, plan = tmp_path / "set", tmp_path / "plan"
    command = [
        sys.executable,
        "-c",
        "from planner.cli import main; main()",
        "index",
        str(tmp_path / "tars"),
        "--output",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    assert "samples    160: 160 kept, 0 left out" in done.stdout and "reading headers of tars" in done.stderr
    settings = ["--set", "anneal_steps=100"]
    config = str(REPOSITORY / "configs" / "plan_demo.yaml")
    assert (
        run_command(app, ["build", "--samples", str(folder), "--config", config, "--output", str(plan), *settings]) == 0
    )
    assert run_command(app, ["verify", str(plan), "--samples", str(folder)]) == 0
    assert "BROKEN" not in capsys.readouterr().out
