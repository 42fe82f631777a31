"""The whole run through its command, on a small real input: what it leaves behind, reruns, and two kills that change nothing."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from curation.cli import main
from curation.timings import TIMINGS
from encoders.registry import fetch
from schemas.tables import TABLES, read_table

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, media_cases: ModuleType) -> Path:
    """A video of one shot, two photographs, a byte-identical copy of one, and a file that is no video."""
    folder = tmp_path_factory.mktemp("sources")
    media_cases.trimmed(fetch("media.bigbuckbunny"), folder / "bunny.mp4", seconds=3)
    shutil.copyfile(fetch("media.chelsea"), folder / "chelsea.png")
    shutil.copyfile(fetch("media.china"), folder / "china.jpg")
    shutil.copyfile(folder / "china.jpg", folder / "same as china.jpg")
    (folder / "no video.mp4").write_bytes(b"this is text\n" * 99)
    return folder


def _command(source: Path, output: Path, *more: str) -> list[str]:
    settings = [f"output={output}", f"sources={json.dumps([str(source)])}", "pack.target_shard_samples=2"]
    overrides = [word for setting in settings for word in ("--set", setting)]
    config = ROOT / "configs" / "curate_demo.yaml"
    return [sys.executable, str(ROOT / "curation" / "run.py"), "--config", str(config), *overrides, *more]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def _run(source: Path, output: Path, *more: str) -> str:
    """Run to the end and return what it said."""
    done = subprocess.run(
        _command(source, output, *more), env=_environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def reference(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("reference") / "out"
    said = _run(source, output)
    assert f"report     {output / 'report' / 'index.html'}" in said
    return output


def _table(output: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(output / "tables" / f"{name}.parquet", TABLES[name]).to_pylist()
    return rows


def _digests(output: Path) -> dict[str, str]:
    """SHA-256 of every table and of everything in the sets."""
    files = [path for folder in ("tables", "sets") for path in sorted((output / folder).rglob("*")) if path.is_file()]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_source_has_one_row_with_its_fate(reference: Path) -> None:
    rows = {row["uri"].rsplit("/", 1)[1]: row for row in _table(reference, "sources")}
    assert set(rows) == {"bunny.mp4", "chelsea.png", "china.jpg", "no%20video.mp4", "same%20as%20china.jpg"}
    assert rows["no%20video.mp4"]["status"] == "failed" and rows["no%20video.mp4"]["reason"]
    assert rows["same%20as%20china.jpg"]["same_content_as"] == rows["china.jpg"]["uri"]
    assert {row["status"] for name, row in rows.items() if name != "no%20video.mp4"} == {"ok"}


def test_kept_clips_are_packed_and_everything_adds_up(reference: Path) -> None:
    funnel = json.loads((reference / "report" / "funnel.json").read_text())
    assert all(identity["holds"] for identity in funnel["identities"])
    packed = funnel["sets"]["64p"]
    assert packed["packed"] == packed["kept"] == 3 and packed["shards"] == 2
    assert _table(reference, "outcomes") == []


def test_plain_webdataset_reads_the_tars(reference: Path) -> None:
    import webdataset

    tars = [str(path) for path in sorted((reference / "sets" / "64p").glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves closing its files to the collector
        samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode())
        gc.collect()
    assert len(samples) == 3
    for sample in samples:
        assert sample["latent.npy"].dtype == np.float16 and sample["latent.npy"].ndim == 4
        assert sample["text_long.npy"].shape[1] == 384
        assert sample["json"]["clip_id"] == sample["__key__"] and sample["json"]["caption_long"]


def test_timings_are_in_a_table_of_their_own(reference: Path) -> None:
    rows = read_table(reference / "timings.parquet", TIMINGS).to_pylist()
    whole = {row["phase"]: row["seconds"] for row in rows if row["status"] == "phase"}
    assert set(whole) == {"analyze", "match", "decide", "caption", "encode", "pack", "report"}
    assert sum(row["stage"] == "analyze" for row in rows) == 4


def test_a_rerun_does_nothing_and_starts_no_ray(source: Path, reference: Path) -> None:
    before = _digests(reference)
    said = _run(source, reference)
    assert "ray:" not in said and _digests(reference) == before


def test_a_changed_threshold_runs_decide_alone(source: Path, reference: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(reference, output)
    said = _run(source, output, "--phase", "decide", "--set", "decide.levels.144p.max_luma=17")
    assert "ray:" not in said
    reasons = {row["decision"] for row in _table(output, "decisions") if row["admission"] == "144p"}
    assert reasons == {"too_bright"}
    assert "were not packed from these decisions" in _run(source, output, "--phase", "report")


def test_deciding_again_needs_no_sources(reference: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(reference, output)
    before = _digests(output)
    config = str(ROOT / "configs" / "curate_demo.yaml")
    places = ["--set", f"output={output}", "--set", f"sources={json.dumps([str(tmp_path / 'gone')])}"]
    assert main(["decide", "--config", config, *places]) == 0
    assert main(["report", "--config", config, *places]) == 0
    assert main(["run", "--phase", "match", "--config", config, *places]) == 0
    assert _digests(output) == before


def _killed(command: list[str], ready: Callable[[], bool], *, group: bool) -> None:
    """Start the command, wait until `ready`, and kill it with SIGKILL, alone or with its whole process group."""
    with subprocess.Popen(
        command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 200
        while not ready():
            assert process.poll() is None, f"ended with {process.returncode} before it could be killed"
            assert time.monotonic() < deadline, "never got so far"
            time.sleep(0.01)
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def test_a_killed_run_continues_to_the_same_bytes(source: Path, reference: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = _command(source, output)
    analyses, latents = output / "commits" / "analyze", output / "cache" / "latents" / "64p"

    def units(folder: Path) -> list[str]:
        return [path.name for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []

    _killed(command, lambda: len(units(analyses)) >= 1, group=False)
    kept = units(analyses)
    _killed(command, lambda: len(units(latents)) >= 1, group=True)
    assert set(kept) <= set(units(analyses))
    said = _run(source, output)
    assert not re.search(r"^analyze: \d+ units", said, re.MULTILINE), "everything was analysed before the second kill"
    assert _digests(output) == _digests(reference)
    assert not [path for path in output.rglob(".tmp-*") if path.name != ".tmp-attempts"]
