"""What changes under a run that is at work: a source appended to, a source removed, a disk that fills up; each has its row or its clear end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from curation.commits import QUARANTINED
from curation.status_view import read_status
from encoders.registry import fetch
from schemas.tables import SAMPLES, TABLES, read_table

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
_TMPFS_MB = 700
"""More than the preflight asks for (500 MB and the sources), little enough to be filled in a second."""


def _start(folder: Path, output: Path) -> subprocess.Popen[str]:
    settings = [f"output={output}", f"sources={json.dumps([str(folder)])}", "encode.sets=[64p]", "ray.num_cpus=2"]
    words = [word for setting in settings for word in ("--set", setting)]
    return subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "curation" / "run.py"),
            "--config",
            str(ROOT / "configs" / "curate_demo.yaml"),
            *words,
        ],
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _run(folder: Path, output: Path, when: Callable[[], bool], change: Callable[[], None]) -> tuple[int, str]:
    """The command to its end, with one change in the middle; exit code and what was said."""
    process = _start(folder, output)
    try:
        while not when():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        change()
        said, _ = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return process.returncode, said


def _rows(output: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(output / "tables" / f"{name}.parquet", TABLES[name]).to_pylist()
    return rows


@pytest.fixture
def folder(media_cases: ModuleType, tmp_path: Path) -> Path:
    """A clip that stays, one that grows, one that goes, and a photograph."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(("stays", "grows", "goes")):
        media_cases.trimmed(fetch("media.bigbuckbunny"), folder / f"{name}.mp4", seconds=3 + number / 2)
    shutil.copyfile(fetch("media.china"), folder / "china.jpg")
    return folder


def test_sources_that_change_after_they_were_hashed_are_rows_with_reasons(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"

    def change() -> None:
        with (folder / "grows.mp4").open("ab") as grows:
            grows.write(b"more")
        (folder / "goes.mp4").unlink()

    size = (folder / "grows.mp4").stat().st_size
    code, said = _run(folder, output, (output / "cache" / "hashes.json").exists, change)
    assert code == 0, said
    rows = {row["uri"].rsplit("/", 1)[1]: row for row in _rows(output, "sources")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "stays.mp4": "ok",
        "china.jpg": "ok",
        "grows.mp4": "quarantined",
        "goes.mp4": "quarantined",
    }
    written = f"was written to while the run was at work: {size} bytes when it was listed, {size + 4} now"
    assert rows["grows.mp4"]["reason"] == written
    assert rows["goes.mp4"]["reason"] == "cannot be read any more: No such file or directory"
    assert {row["uri"].rsplit("/", 1)[1] for row in _rows(output, "clips")} == {"stays.mp4", "china.jpg"}
    funnel = json.loads((output / "report" / "funnel.json").read_text())
    assert all(entry["holds"] for entry in funnel["identities"])
    assert funnel["sources"]["by_status"]["quarantined"] == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root; it did not run here")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_MB}m", "tmpfs", str(disk)], check=True, timeout=20)
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True, timeout=20)


def _fill(path: Path) -> None:
    """One file that takes all that is left."""
    with path.open("wb", buffering=0) as ballast:
        try:
            while ballast.write(bytes(1 << 20)):
                pass
        except OSError as error:
            assert error.strerror == "No space left on device", error


def test_a_disk_that_fills_up_ends_the_run_and_blames_no_source(folder: Path, small_disk: Path) -> None:
    output, ballast = small_disk / "out", small_disk / "ballast"

    def encoding() -> bool:
        status = output / ".status.json"
        return status.is_file() and (read_status(output)["work"] or {}).get("phase") == "encode"

    code, said = _run(folder, output, encoding, lambda: _fill(ballast))
    assert code == 1, said
    assert "No space left" in said and "Traceback" not in said
    records = [json.loads(path.read_text() or "{}") for path in output.rglob("record.json")]
    assert records and not [record for record in records if record.get("status") == QUARANTINED]
    ballast.unlink()
    code, said = _run(folder, output, lambda: True, lambda: None)
    assert code == 0, said
    kept = [
        row["clip_id"] for row in _rows(output, "decisions") if row["admission"] == "144p" and row["decision"] == "keep"
    ]
    packed = read_table(output / "sets" / "64p" / "samples.parquet", SAMPLES)["clip_id"].to_pylist()
    assert sorted(packed) == sorted(kept) and packed
    assert not _rows(output, "outcomes")
