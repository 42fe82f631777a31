"""The whole run with its sources and its output on an S3 server: killed, continued, the same bytes as a local run, and then nothing to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest

from curation.objects import Objects
from encoders.registry import fetch

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]
_WITH_ADDRESSES = ("sources", "clips")


def _command(output: str, source: str, scratch: Path) -> list[str]:
    settings = [
        f"output={output}",
        f"sources={json.dumps([source])}",
        "pack.target_shard_samples=2",
        f"scratch={scratch}",
    ]
    overrides = [word for setting in settings for word in ("--set", setting)]
    config = ROOT / "configs" / "curate_demo.yaml"
    return [sys.executable, str(ROOT / "curation" / "run.py"), "--config", str(config), *overrides]


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    return kept | more


def test_a_killed_run_on_s3_ends_with_the_bytes_of_a_local_one(
    bucket: str, s3: Any, tmp_path: Path, media_cases: ModuleType
) -> None:
    films, scratch = tmp_path / "films", tmp_path / "scratch"
    films.mkdir()
    media_cases.trimmed(fetch("media.bigbuckbunny"), films / "bunny.mp4", seconds=3)
    shutil.copyfile(fetch("media.chelsea"), films / "chelsea.png")
    shutil.copyfile(fetch("media.china"), films / "china.jpg")
    shutil.copyfile(films / "china.jpg", films / "same as china.jpg")
    (films / "page.mp4").write_bytes(b"<!DOCTYPE html><title>404</title>")
    local = tmp_path / "local"
    _run(_command(str(local), str(films), scratch), _environment())
    assert not scratch.exists(), "a local run works where its output is"

    Objects(f"{bucket}/films").upload({path.name: path for path in films.iterdir()})
    output, environment = Objects(f"{bucket}/run"), _environment(**s3.environment)
    command = _command(output.url, f"{bucket}/films", scratch)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while not any(name.endswith("/record.json") for name in output.listing("commits/analyze")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    said = _run(command, environment)
    assert "lock: taking over the lease" in said and f"report     {output.url}/report/index.html" in said
    _assert_equal(output, local, tmp_path / "copy", {films.as_uri(): f"{bucket}/films"})
    assert not [name for name in output.listing() if ".tmp-" in name or name == ".lock"]

    s3.seen()
    said = _run(command, environment)
    assert "ray:" not in said
    changed = {line.rpartition("/run/")[2] for line in s3.seen() if line.startswith(("PUT", "POST", "DELETE"))}
    assert not [name for name in changed if name.startswith(("commits", "cache", "sets/64p"))], changed
    left = [path.relative_to(scratch).parts[1] for path in scratch.rglob("*") if path.is_file()]
    assert set(left) == {"runs"}, "logs and status stay on the node, copies do not"


def _assert_equal(output: Objects, local: Path, copy: Path, moved: dict[str, str]) -> None:
    """Every table and every file of the sets; addresses of sources apart."""
    names = [name for folder in ("tables", "sets") for name in sorted(output.listing(folder))]
    here = [path.relative_to(local).as_posix() for folder in ("tables", "sets") for path in (local / folder).rglob("*")]
    assert sorted(names) == sorted(name for name in here if (local / name).is_file())
    output.fetch({name: copy / name for name in names})
    for name in names:
        if Path(name).stem in _WITH_ADDRESSES and name.startswith("tables/"):
            found, expected = (pq.read_table(path / name).to_pylist() for path in (copy, local))
            (old, new), *_ = moved.items()
            for row in expected:
                for column in ("uri", "same_content_as"):
                    if row.get(column) is not None:
                        row[column] = row[column].replace(old, new)
            assert found == expected, name
        else:
            assert (copy / name).read_bytes() == (local / name).read_bytes(), name
