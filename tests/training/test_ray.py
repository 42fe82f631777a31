"""Training on Ray: as a job on one node, and as one actor per rank, of which one is killed. A real head with token authentication."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.token_head import TokenHead, token_head
from training.checkpoints.checkpoint import checkpoint_steps
from training.metrics import read_lines

PROJECT = Path(__file__).resolve().parents[2]
Arguments = Callable[..., list[str]]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def head() -> Iterator[TokenHead]:
    with token_head(OMP_NUM_THREADS="1") as running:
        yield running


def losses(run: Path) -> list[str]:
    return [line["loss_hex"] for line in read_lines(run / "metrics.jsonl")]


def wait_for_steps(run: Path, steps: int, alive: Callable[[], bool] = lambda: True) -> int:
    deadline = time.monotonic() + 150
    while (done := len(read_lines(run / "metrics.jsonl"))) < steps:
        assert time.monotonic() < deadline and alive(), "waited too long"
        time.sleep(0.02)
    return done


def test_a_killed_actor_makes_all_ranks_start_again_and_the_losses_are_the_same(
    head: TokenHead, two_rank_run: Path, run_arguments: Arguments, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = run_arguments(
        run, "--ray", "--processes", "2", "--max-restarts", "1", checkpoint={"every_steps": 2, "keep": 2}
    )
    process = subprocess.Popen(
        [sys.executable, "training/train.py", *arguments],
        cwd=PROJECT,
        env=head.environment() | {"RAY_ADDRESS": head.gcs, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    done = wait_for_steps(run, 3, lambda: process.poll() is None)
    assert done < 10, "too late to test anything"
    actors = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if _is_actor(path, head)]
    assert len(actors) == 2
    os.kill(actors[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "starting again from the last checkpoint (restart 1 of 1)" in said
    assert losses(run) == losses(two_rank_run)
    assert checkpoint_steps(run)[-1] == 10


def _is_actor(cmdline: Path, head: TokenHead) -> bool:
    """A worker of Ray that holds a rank: its title, and below it a training process."""
    try:
        if b"ray::RankHost" not in cmdline.read_bytes():
            return False
        pid = cmdline.parent.name
        return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text().strip())
    except OSError:
        return False


def test_a_job_is_stopped_in_order_and_a_relative_output_is_refused(
    head: TokenHead, tiny_set: Path, make_plan: Callable[..., Any], run_arguments: Arguments, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path / "plan", [tiny_set], steps=2000).folder
    run = tmp_path / "run"
    arguments = run_arguments(run, plan=plan, checkpoint={"every_steps": 1000, "keep": 1})
    relative = [*arguments[:-1], "run"] if arguments[-2] == "--output" else arguments
    submit = ["--working-dir", ".", "--", "python", "training/train.py"]
    refused = head.job("submit", *submit, *relative)
    text = refused.stdout + refused.stderr
    assert refused.returncode != 0 and "--output run is a relative path" in text and "temporary copy" in text
    assert "Traceback" not in text.replace("Traceback (most recent call last) in job", "")
    wait = ["--runtime-env-json", '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}']
    begun = head.job("submit", "--no-wait", "--submission-id", "training", *wait, *submit, *arguments)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    wait_for_steps(run, 1)
    stopped = head.job("stop", "training")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    logs = head.job("logs", "training")
    assert "stopped by SIGTERM after step" in logs.stdout and "resumable" in logs.stdout, logs.stdout
    assert checkpoint_steps(run) == [len(read_lines(run / "metrics.jsonl"))]
