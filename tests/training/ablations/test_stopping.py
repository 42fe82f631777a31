"""A SIGTERM ends the set as it ends one run: saved, exit code 0, resumable. The runs are stand-ins that do what training does on a signal."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.ablations import runs
from training.cli import main

STAND_IN = """
import pathlib, signal, sys, time
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
output.mkdir(parents=True, exist_ok=True)
saved, stopped = output / "saved", []
if HANDLES:
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
(output / "ready").touch()
while output.parent.name == WAITS and not stopped and not saved.exists():
    time.sleep(0.01)
    if not HANDLES and (output / "again").exists():
        break
saved.touch()
if stopped:
    sys.exit(0)
line = '{"step": 0, "flow_loss": 1.0, "step_ms": 1.0, "buckets": {"33x32x48": 1}}\\n'
(output / "metrics.jsonl").write_text(line)
(output / "validation.jsonl").write_text("")
"""


@pytest.mark.parametrize("handles", [True, False], ids=["saves", "dies before it listens"])
def test_a_sigterm_ends_the_set_resumable(
    handles: bool,
    ablation_file: Callable[..., Path],
    tiny_plan: Any,
    tiny_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = tmp_path / "train.py"
    script.write_text(f"HANDLES, WAITS = {handles}, 'base-seed-1'\n{STAND_IN}")
    monkeypatch.setattr(runs, "_TRAIN", script)
    output = tmp_path / "out"
    file = ablation_file(steps=1, variants=[{"name": "one", "group": "g", "question": "q"}])
    paths = ["--config", file, "--plan", tiny_plan.folder, "--samples", tiny_set, "--output", output]
    waiting = output / "runs" / "base-seed-1" / "run"

    def stop() -> None:
        deadline = time.monotonic() + 60
        while not (waiting / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    assert main(["ablate", *map(str, paths)]) == 0
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    words = capsys.readouterr().err.splitlines()[-1]
    assert words == "stopped by SIGTERM in base-seed-1, 1 of 3 runs are done: resumable, run the same command again"
    assert not (output / "runs" / "one").exists(), "nothing was begun after it"
    (waiting / "again").touch()
    assert main(["ablate", *map(str, paths)]) == 0
    said = capsys.readouterr().err
    assert said.count("(was done)") == 1 and "3 of 3: one: flow loss 1.0000" in said


def test_a_sigterm_between_runs_begins_no_other(
    ablation_file: Callable[..., Path],
    tiny_plan: Any,
    tiny_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train_and_signal(request: runs.RunRequest) -> None:
        request.run.mkdir(parents=True)
        (request.run / "metrics.jsonl").write_text(
            '{"step": 0, "flow_loss": 1.0, "step_ms": 1.0, "buckets": {"33x32x48": 1}}\n'
        )
        (request.run / "validation.jsonl").write_text("")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runs, "_train", train_and_signal)
    file = ablation_file(steps=1, variants=[{"name": "one", "group": "g", "question": "q"}])
    paths = ["--config", file, "--plan", tiny_plan.folder, "--samples", tiny_set, "--output", tmp_path / "out"]
    assert main(["ablate", *map(str, paths)]) == 0
    said = capsys.readouterr()
    assert "stopped by SIGTERM before base-seed-1, 1 of 3 runs are done: resumable" in said.err and said.out == ""
