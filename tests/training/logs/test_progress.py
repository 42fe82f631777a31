"""A bar on a real terminal, lines elsewhere, both with the time that is left."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from training.logs.progress import RunProgress, duration_words

PROJECT = Path(__file__).resolve().parents[3]
LINE = {"step": 3, "loss": 1.25, "grad_norm": 0.5, "step_ms": 80.0, "data_wait_ms": 0.1, "tokens_per_s": 1000.0}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(8.2, "8 s"), (59.6, "1 min 00 s"), (750, "12 min 30 s"), (4000, "1 h 06 min"), (259_200, "3.0 days")],
)
def test_durations_read_as_words(seconds: float, words: str) -> None:
    assert duration_words(seconds) == words


def test_lines_come_seldom_and_say_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import training.logs.progress as progress

    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    shown = RunProgress(stop_step=10)
    shown.show(LINE, 60.0, always=False)
    assert capsys.readouterr().err == ""
    now[0] += 6
    shown.show(LINE, 61.0, always=False)
    assert "step 4 of 10: loss 1.2500" in (said := capsys.readouterr().err) and said.endswith(", 1 min 01 s left\n")
    shown.show(LINE, None, always=True)
    assert "left" not in capsys.readouterr().err
    shown.close()


def test_a_terminal_shows_a_bar(tmp_path: Path, run_arguments: Callable[..., list[str]]) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "training/train.py", *run_arguments(tmp_path / "run", steps=6)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "TERM": "xterm"}
    process = subprocess.Popen(command, cwd=PROJECT, stderr=theirs, stdout=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "━" in text and "6/6" in text and re.search(r"\d+ ms +data wait \d", text) and re.search(r"\d s left", text)
    assert "6 steps done" in text and "step 6 of 6: loss" not in text, "a bar instead of lines"
