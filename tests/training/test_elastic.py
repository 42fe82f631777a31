"""Ranks that die: the run starts again by itself from the last checkpoint, and its losses are those of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import PlanError
from training.checkpoints.checkpoint import checkpoint_steps
from training.control.restarts import may_restart, ranks_for, world_sizes
from training.metrics import read_lines

PROJECT = Path(__file__).resolve().parents[2]
Arguments = Callable[..., list[str]]
OFTEN: dict[str, Any] = {"checkpoint": {"every_steps": 2, "keep": 2}}


def losses(run: Path) -> list[str]:
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(len(lines)))
    return [line["loss_hex"] for line in lines]


def steps_of(run: Path) -> int:
    return len(read_lines(run / "metrics.jsonl"))


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=PROJECT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_one_after(run: Path, process: subprocess.Popen[str], step: int) -> int:
    """SIGKILL the last of the process's children once `step` steps are done; how many were."""
    deadline = time.monotonic() + 90
    while steps_of(run) < step:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.005)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    return steps_of(run)


TORCHRUN = [
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node=2",
    "--max-restarts=1",
    "training/train.py",
]


@pytest.mark.parametrize("launcher", ["torchrun", "ours"])
def test_a_killed_rank_makes_all_start_again_from_the_last_checkpoint(
    launcher: str, two_rank_run: Path, run_arguments: Arguments, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = run_arguments(run, **OFTEN)
    ours = ["training/train.py", *arguments, "--processes", "2", "--max-restarts", "1"]
    process = start(ours if launcher == "ours" else [*TORCHRUN, *arguments])
    done = kill_one_after(run, process, 3)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert done < 10, "the kill came too late to test anything"
    assert losses(run) == losses(two_rank_run)
    assert errors.count("training 1") == 2 and "from the start" in errors and "checkpoints/step-0000000" in errors
    if launcher == "ours":
        assert "was killed by SIGKILL" in errors and "restart 1 of 1" in errors
        assert "Traceback" not in errors


def test_a_killed_launcher_takes_its_ranks_with_it(
    tiny_set: Path, make_plan: Callable[..., Any], run_arguments: Arguments, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path / "plan", [tiny_set], steps=500).folder
    run = tmp_path / "run"
    process = start(["training/train.py", *run_arguments(run, plan=plan, **OFTEN), "--processes", "2"])
    deadline = time.monotonic() + 90
    while steps_of(run) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ranks = children(process.pid)
    process.kill()
    process.communicate()
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        assert time.monotonic() < deadline + 30, "a rank outlived its launcher"
        time.sleep(0.02)


def test_two_ranks_are_continued_by_one_of_three_that_torchrun_started(
    two_rank_run: Path, run_arguments: Arguments, tmp_path: Path
) -> None:
    """A plan of two lanes: three ranks cannot share it, two can; then one rank alone goes on, within rounding."""
    run = tmp_path / "run"
    three = [*TORCHRUN[:3], "--nproc-per-node=3", "training/train.py"]
    process = start([*three, *run_arguments(run, "--elastic", steps=5, **OFTEN)])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "3 ranks cannot share the plan's lanes equally: 2 train, 1 wait" in errors
    assert losses(run) == losses(two_rank_run)[:5]
    process = start(["training/train.py", *run_arguments(run, **OFTEN)])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "world_size: was 2, is 1" in errors
    whole = [line["loss"] for line in read_lines(two_rank_run / "metrics.jsonl")]
    mine = [line["loss"] for line in read_lines(run / "metrics.jsonl")]
    assert mine == pytest.approx(whole, rel=1e-6)
    digests = [[line["clips_digest"] for line in read_lines(one / "metrics.jsonl")] for one in (run, two_rank_run)]
    assert digests[0] == digests[1]
    assert checkpoint_steps(run)[-1] == 10


def test_what_is_started_again(tmp_path: Path) -> None:
    assert not may_restart(0, tmp_path, 0.0) and not may_restart(2, tmp_path, 0.0)
    assert may_restart(1, tmp_path, 0.0) and may_restart(137, tmp_path, 0.0)
    dump = tmp_path / "dumps" / "step-00000003" / "dump.json"
    dump.parent.mkdir(parents=True)
    dump.write_text("{}")
    assert not may_restart(1, tmp_path, time.time() - 5), "it would meet the same numbers"
    assert may_restart(1, tmp_path, time.time() + 60), "an older dump says nothing of this attempt"


def test_numbers_of_ranks_divide_the_lanes() -> None:
    assert [ranks_for(64, most) for most in (1, 31, 56, 64, 500)] == [1, 16, 32, 64, 64]
    assert world_sizes(12, 2, 8) == [6, 4, 3, 2]
    with pytest.raises(PlanError, match=r"5 to 5|5 processes cannot share a plan of 8 lanes .* \(1, 2, 4, 8\)"):
        world_sizes(8, 5, 5)


def test_a_wrong_configuration_is_not_tried_again(
    run_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.cli import main

    arguments = run_arguments(tmp_path / "run", "--set", "optimizer.learning_rate=1", "--max-restarts", "3")
    assert main(["run", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("error:") == 1 and "restart" not in said
