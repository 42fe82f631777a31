"""Real processes that get real signals: all ranks stop at the same step, save, and the run can be continued to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from training.checkpoints.checkpoint import checkpoint_steps
from training.cli import main
from training.metrics import read_lines

PROJECT = Path(__file__).resolve().parents[2]
Arguments = Callable[..., list[str]]
RARELY: dict[str, Any] = {"checkpoint": {"every_steps": 100, "keep": 2}}


def losses(run: Path) -> list[str]:
    return [line["loss_hex"] for line in read_lines(run / "metrics.jsonl")]


def start(arguments: Sequence[str], *more: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """As a shell would: a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "training/train.py", *arguments, *more],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def wait_until(done: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 80) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def steps_of(run: Path) -> int:
    return len(read_lines(run / "metrics.jsonl"))


@pytest.fixture
def long_plan(make_plan: Callable[..., Any], tiny_set: Path, tmp_path: Path) -> Path:
    folder = make_plan(tmp_path / "long", [tiny_set], steps=2000).folder
    assert isinstance(folder, Path)
    return folder


def check_stopped(run: Path, errors: str, name: str) -> None:
    """One message, no traceback, a checkpoint of exactly the steps done, nothing left of the heartbeats."""
    assert f"stopped by {name} after step" in errors and "resumable, run the same command again" in errors
    assert errors.count("resumable") == 1 and "Traceback" not in errors and "error:" not in errors
    assert checkpoint_steps(run) == [steps_of(run)]
    assert not (run / "heartbeats").exists()


def test_ctrl_c_with_two_processes_stops_both_once(
    long_plan: Path, two_rank_run: Path, run_arguments: Arguments, tmp_path: Path
) -> None:
    """The terminal sends SIGINT to the launcher's whole process group."""
    run = tmp_path / "run"
    process = start(run_arguments(run, plan=long_plan, **RARELY), "--processes", "2")
    wait_until(lambda: steps_of(run) > 1, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    check_stopped(run, errors, "SIGINT")


HELD_IN_A_STEP = """
import os, sys, importlib.abc
class Patch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "training.train_step":
            sys.meta_path.remove(self)
            import pathlib, time
            from training.optimizing.optimizer import StepOptimizer
            from training.control.stop_signals import StopSignals
            update, note, calls, marks = StepOptimizer.update, StopSignals.note, [], pathlib.Path(os.environ["MARKS"])
            def held(self, norm, rate):
                calls.append(rate)
                if len(calls) == 3:
                    (marks / ("held-" + os.environ["RANK"])).touch()
                    while True:
                        time.sleep(0.01)
                return update(self, norm, rate)
            def noted(self, number):
                note(self, number)
                (marks / ("noted-" + os.environ["RANK"])).touch()
            StepOptimizer.update, StopSignals.note = held, noted
        return None
sys.meta_path.insert(0, Patch())
"""


def test_a_second_ctrl_c_ends_at_once_and_leaves_the_last_checkpoint_good(
    long_plan: Path, run_arguments: Arguments, tmp_path: Path, site: Callable[[str], dict[str, str]]
) -> None:
    """Both ranks are held in their third step, where the first one is noted and cannot be obeyed."""
    run, marks = tmp_path / "run", tmp_path / "marks"
    marks.mkdir()
    arguments = run_arguments(run, plan=long_plan, checkpoint={"every_steps": 1, "keep": 2})
    process = start(arguments, "--processes", "2", environment={**site(HELD_IN_A_STEP), "MARKS": str(marks)})
    try:
        for mark in ("held", "noted"):
            wait_until(lambda mark=mark: len(list(marks.glob(f"{mark}-*"))) == 2, process)  # type: ignore[misc]
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "interrupted again: ended at once" in errors and "Traceback" not in errors
    saved = checkpoint_steps(run)[-1]
    assert saved in (1, 2)
    assert main(["run", *run_arguments(run, plan=long_plan, steps=saved + 1, **RARELY)]) == 0
    assert steps_of(run) == saved + 1


def test_a_signal_to_one_rank_stops_all_of_them_and_the_run_continues_to_the_same_bits(
    two_rank_run: Path, run_arguments: Arguments, tmp_path: Path, start_training: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    process = start_training(*run_arguments(run, **RARELY), processes=2)
    wait_until(lambda: steps_of(run) > 0, process)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "resumable" in errors and "Traceback" not in errors
    done = steps_of(run)
    assert checkpoint_steps(run) == [done] and done < 10
    assert main(["run", *run_arguments(run, **RARELY), "--processes", "2"]) == 0
    assert losses(run) == losses(two_rank_run)


@pytest.fixture
def endless_set(tiny_set: Path, tmp_path: Path) -> Path:
    """The set with a FIFO that nobody writes to in place of its last shard, which lane 1 reads: the loader's open never comes back."""
    folder = tmp_path / "set"
    folder.mkdir()
    for path in tiny_set.iterdir():
        (folder / path.name).symlink_to(path)
    shard = sorted(folder.glob("*.tar"))[-1]
    shard.unlink()
    os.mkfifo(shard)
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Environment of a process that runs some code before anything else."""

    def write(code: str) -> dict[str, str]:
        folder = tmp_path / "site"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(code)
        return {"PYTHONPATH": str(folder)}

    return write


FIFO_IS_A_FILE = """
import pathlib
_is_file = pathlib.Path.is_file
pathlib.Path.is_file = lambda self: _is_file(self) or self.is_fifo()
"""


def wait_until_still(run: Path, process: subprocess.Popen[str]) -> None:
    wait_until(lambda: (run / "run.json").is_file(), process)
    before = -1
    while before != steps_of(run):
        before = steps_of(run)
        time.sleep(1.0)


def test_a_signal_while_waiting_for_data_stops_there(
    endless_set: Path, run_arguments: Arguments, tmp_path: Path, site: Callable[[str], dict[str, str]]
) -> None:
    run = tmp_path / "run"
    process = start(run_arguments(run, samples=endless_set, **RARELY), environment=site(FIFO_IS_A_FILE))
    wait_until_still(run, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    if steps_of(run):
        check_stopped(run, errors, "SIGTERM")
    else:
        assert "stopped by SIGTERM before the first step: resumable" in errors


WATCHED: dict[str, Any] = {"watchdog": {"seconds": 2.0, "first_step_seconds": 60.0}, **RARELY}


def hang_report(run: Path, errors: str) -> dict[str, Any]:
    """One voice, no traceback on the terminal, the report and the stacks of whoever answers."""
    assert errors.count("nothing has moved for 2 s") == 1, errors
    assert "Traceback" not in errors
    (path,) = run.glob("hangs/step-*/report.json")
    report = json.loads(path.read_text())
    assert isinstance(report, dict) and report["limit"] == {"key": "watchdog.seconds", "seconds": 2.0}
    return report


@pytest.mark.slow  # the launcher gives a stopped process 20 seconds
def test_a_stopped_process_is_named_and_all_end(long_plan: Path, run_arguments: Arguments, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run_arguments(run, plan=long_plan, **WATCHED), "--processes", "2")
    wait_until(lambda: steps_of(run) > 1, process)
    children = [int(one) for one in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(children[1], signal.SIGSTOP)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    report = hang_report(run, errors)
    assert report["hanging_ranks"] == [1]
    assert f"process {children[1]}" in errors and "does not answer: stopped" in errors
    assert f"rank 1 hangs in step {steps_of(run)}," in errors or f"rank 1 hangs in step {steps_of(run) - 1}," in errors
    assert "the other 1 wait in step" in errors
    assert [path.name for path in run.glob("hangs/*/rank-*")] == ["rank-0000-stacks.txt"]
    assert not Path(f"/proc/{children[1]}").exists()


def test_a_rank_whose_data_never_comes_is_named_with_its_phase(
    endless_set: Path, run_arguments: Arguments, tmp_path: Path, site: Callable[[str], dict[str, str]]
) -> None:
    run = tmp_path / "run"
    environment = site(FIFO_IS_A_FILE)
    arguments = run_arguments(
        run, samples=endless_set, **{**WATCHED, "watchdog": {"seconds": 2.0, "first_step_seconds": 8.0}}
    )
    process = start(arguments, "--processes", "2", environment=environment)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 1, errors
    assert "rank 1 hangs in step" in errors and ", phase data (process" in errors, errors
    assert "the other 1 wait in step" in errors
    (stacks,) = run.glob("hangs/*/rank-0001-stacks.txt")
    assert "shard_files.py" in stacks.read_text(), "the thread that reads is in it"


ENDLESS_LOOP = """
import os, sys, importlib.abc
class Patch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "training.train_step" and os.environ.get("RANK") == "1":
            sys.meta_path.remove(self)
            from training.optimizing.optimizer import StepOptimizer
            update, calls = StepOptimizer.update, []
            def endless(self, norm, rate):
                calls.append(rate)
                while len(calls) == 3:
                    pass
                return update(self, norm, rate)
            StepOptimizer.update = endless
        return None
sys.meta_path.insert(0, Patch())
"""


def test_a_rank_in_an_endless_loop_is_named_with_step_and_phase_and_its_stack_shows_where(
    long_plan: Path, run_arguments: Arguments, tmp_path: Path, site: Callable[[str], dict[str, str]]
) -> None:
    run = tmp_path / "run"
    process = start(run_arguments(run, plan=long_plan, **WATCHED), "--processes", "2", environment=site(ENDLESS_LOOP))
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 1, errors
    report = hang_report(run, errors)
    assert report["hanging_ranks"] == [1]
    assert (
        "rank 1 hangs in step 2, phase optimizer" in errors and "the other 1 wait in step 2, phase optimizer" in errors
    )
    assert steps_of(run) in (2, 3), "rank 0 may have written the step that rank 1 did not finish"
    (stacks,) = run.glob("hangs/*/rank-0001-stacks.txt")
    assert "in endless" in stacks.read_text()
