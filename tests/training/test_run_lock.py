"""One run at a time in a folder: a second one is refused in words, the first one's death lets go, and `doctor` says who is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from training.cli import main
from training.control import run_lock
from training.control.run_lock import LOCK_NAME, holder_of

Arguments = Callable[..., list[str]]
PROJECT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
import torch
from training.control.run_lock import run_held
from training.parallel import open_world
with open_world(torch.device("cpu")) as world, run_held(Path(sys.argv[1]), world):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs in `tmp_path / "run"`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_and_changes_nothing(
    tmp_path: Path,
    holder: subprocess.Popen[str],
    run_arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run_lock, "_WAIT_SECONDS", 0.3)
    run = tmp_path / "run"
    assert main(["run", *run_arguments(run)]) == 2
    said = capsys.readouterr().err
    assert f"another run is writing to {run}: process {holder.pid} on " in said and "Traceback" not in said
    assert [path.name for path in run.iterdir()] == [LOCK_NAME]
    assert main(["doctor", *run_arguments(run)]) == 1
    assert f"process {holder.pid}" in capsys.readouterr().out.replace("\n", " ")


def test_a_killed_run_lets_go(tmp_path: Path, holder: subprocess.Popen[str], run_arguments: Arguments) -> None:
    os.kill(holder.pid, signal.SIGKILL)  # and the run waits until the kernel has noticed
    run = tmp_path / "run"
    assert main(["run", *run_arguments(run, steps=2)]) == 0
    assert holder_of(run) is None and holder_of(tmp_path) is None


def test_a_file_system_without_locks_is_said(
    tmp_path: Path,
    run_arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def none(_: int) -> bool:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(run_lock, "_try", none)
    assert main(["run", *run_arguments(tmp_path / "run", steps=1)]) == 0
    assert "without locks (Operation not supported)" in capsys.readouterr().err
