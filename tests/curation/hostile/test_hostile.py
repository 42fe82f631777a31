"""One curation run over every hostile input: each source has one row with its fate, nothing is lost, and the sums are checked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from curation.sources import uri_of_path
from schemas.tables import ADMISSIONS, SAMPLES, TABLES, read_table

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.timeout(900)


def _run(folder: Path, output: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    settings = [f"output={output}", f"sources={json.dumps([str(folder)])}", "pack.target_shard_samples=16", *overrides]
    words = [word for setting in settings for word in ("--set", setting)]
    config = ROOT / "configs" / "curate_demo.yaml"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, str(ROOT / "curation" / "run.py"), "--config", str(config), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=840,
    )


@pytest.fixture(scope="module")
def output(hostile_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("hostile_run") / "out"
    done = _run(hostile_folder, output)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def _rows(output: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(output / "tables" / f"{name}.parquet", TABLES[name]).to_pylist()
    return rows


def test_there_are_forty_hostile_inputs_and_more(hostile_cases: ModuleType) -> None:
    names = [case.file_name for case in hostile_cases.CASES]
    assert len(names) == len(set(names)) >= 40


def test_every_input_has_one_row_with_its_fate(output: Path, hostile_folder: Path, hostile_cases: ModuleType) -> None:
    rows = {row["uri"]: row for row in _rows(output, "sources")}
    clips = Counter(row["uri"] for row in _rows(output, "clips"))
    wrong = []
    for case in hostile_cases.CASES:
        uri = uri_of_path(os.path.join(os.fsencode(hostile_folder), case.file_name))
        row = rows.pop(uri, None)
        if row is None:
            wrong.append(f"{case.name!r}: no row")
            continue
        analysed = row["same_content_as"] or uri
        told = f"{case.name!r}: {row['status']}, {row['reason']}, {clips[analysed]} clips"
        fits = row["status"] in case.status.split("|") and row["kind"] == case.kind
        fits &= bool(re.search(case.reason, row["reason"] or "")) and (row["status"] == "ok") == (row["reason"] is None)
        fits &= case.clips is None or case.clips == (clips[analysed] > 0)
        if not fits:
            wrong.append(f"{told}; expected {case.status}, {case.reason!r}, clips: {case.clips}")
    assert not wrong, "\n".join(wrong)
    assert not rows, "the link that leads back to the folder gives no second name to anything"


def test_nothing_is_lost_between_the_tables(output: Path) -> None:
    clips = {row["clip_id"] for row in _rows(output, "clips")}
    decisions = _rows(output, "decisions")
    assert Counter(row["clip_id"] for row in decisions) == dict.fromkeys(clips, len(ADMISSIONS))
    kept = {row["clip_id"] for row in decisions if row["admission"] == "144p" and row["decision"] == "keep"}
    packed = read_table(output / "sets" / "64p" / "samples.parquet", SAMPLES)["clip_id"].to_pylist()
    failed = {row["clip_id"] for row in _rows(output, "outcomes")}
    assert sorted(packed) == sorted(kept - failed) and packed
    funnel = json.loads((output / "report" / "funnel.json").read_text())
    assert all(entry["holds"] for entry in funnel["identities"]) and len(funnel["identities"]) == 7


def test_a_reason_never_names_the_folder(output: Path, hostile_folder: Path) -> None:
    for row in _rows(output, "sources"):
        assert str(hostile_folder) not in (row["reason"] or "")


def test_markup_in_a_name_stays_text_in_the_report(output: Path) -> None:
    html = (output / "report" / "index.html").read_text(encoding="utf-8")
    assert "markup<script>" not in html
    assert "%3Cb%3Emarkup" in html or "&lt;b&gt;markup" in html


def test_a_source_that_takes_for_ever_is_quarantined_with_the_limit(media_cases: ModuleType, tmp_path: Path) -> None:
    """Ten minutes of pictures against a limit of twenty seconds; the photograph beside it is delivered."""
    import ffmpeg

    from encoders.registry import fetch

    folder = tmp_path / "in"
    folder.mkdir()
    noise = ffmpeg.input("testsrc=size=320x240:rate=24:duration=600", f="lavfi").video
    media_cases.encode(noise, folder / "endless.mp4", preset="ultrafast", crf=45)
    (folder / "china.jpg").write_bytes(Path(fetch("media.china")).read_bytes())
    limits = ("sandbox.timeout_s=20", "sandbox.timeout_s_per_mb=0", "sandbox.attempts=1")
    done = _run(folder, tmp_path / "out", *limits, "encode.sets=[64p]")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["uri"].rsplit("/", 1)[1]: row for row in _rows(tmp_path / "out", "sources")}
    assert rows["china.jpg"]["status"] == "ok"
    assert (rows["endless.mp4"]["status"], rows["endless.mp4"]["reason"]) == ("quarantined", "timed out after 20 s")


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    """A file system mounted read-only; without root a folder of /proc, which takes no files either."""
    if os.geteuid() != 0:
        yield Path("/proc/reelyard")
        return
    folder = tmp_path / "read only"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)], check=True, timeout=20)
    try:
        yield folder / "out"
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=20)


def test_an_output_that_cannot_be_written_is_refused_before_the_start(hostile_folder: Path, unwritable: Path) -> None:
    done = _run(hostile_folder, unwritable)
    assert done.returncode == 1
    assert str(unwritable) in done.stderr and "cannot be written" in done.stderr
    assert os.geteuid() != 0 or "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_disk_that_is_too_small_is_refused_with_numbers(hostile_folder: Path, tmp_path: Path) -> None:
    """A real file system of 3 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root; it did not run here")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], check=True, timeout=20)
    try:
        done = _run(hostile_folder, small / "out")
    finally:
        subprocess.run(["umount", str(small)], check=True, timeout=20)
    assert done.returncode == 1
    assert re.search(r"disk: 0\.00 GB free in .*, about 0\.\d+ GB needed", done.stderr), done.stderr
