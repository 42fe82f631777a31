"""Mistakes that ranks find before they meet: said on every machine, once, and not tried again where that is of no use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from schemas.errors import ConfigError, DataError, PlanError, ReelyardError, ServiceError, ShardError
from training.cli import main
from training.control import launch
from training.control.launch import launch_local
from training.control.rank_errors import said_on_each_machine
from training.control.ray_launch import RayRequest, _Ranks
from training.control.restarts import GIVES_UP, is_met_again, refuse_repeated_step

PROJECT = Path(__file__).resolve().parents[2]
Arguments = Callable[..., list[str]]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's temporary folder."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def fail_as(rank: int, local: int, words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of a rank that meets an error while it prepares; -1 when the error is kept."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local))
    try:
        with said_on_each_machine(0.2):
            raise DataError(words)
    except DataError:
        return -1
    except typer.Exit as request:
        return request.exit_code


def test_each_machine_says_a_common_error_once_and_every_rank_its_own(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_as(4, 0, "set a is missing", monkeypatch) == 1
    assert capsys.readouterr().err == f"error: rank 4 on {socket.gethostname()}: set a is missing\n"
    assert fail_as(5, 1, "set a is missing", monkeypatch) == 1
    assert capsys.readouterr().err == ""
    assert fail_as(6, 2, "no such device", monkeypatch) == 1
    assert f"rank 6 on {socket.gethostname()}: no such device" in capsys.readouterr().err


def test_rank_0_keeps_its_error_and_its_neighbour_is_quiet(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_as(0, 0, "set a is missing", monkeypatch) == -1
    assert fail_as(1, 1, "set a is missing", monkeypatch) == 1
    assert capsys.readouterr().err == ""


def test_which_errors_another_try_would_meet_again() -> None:
    assert all(is_met_again(kind("")) for kind in (PlanError, DataError, ConfigError))
    assert not any(is_met_again(kind("")) for kind in (ReelyardError, ServiceError, ShardError))


def script_of(tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for `train.py`; each start leaves a line in the file that is returned."""
    starts, script = tmp_path / "starts", tmp_path / "train.py"
    script.write_text(
        f"import os, signal, sys, time\nwith open({str(starts)!r}, 'a') as stream:\n    stream.write(os.environ['RANK'] + '\\n')\n{code}\n"
    )
    monkeypatch.setattr(launch, "TRAIN_SCRIPT", script)
    return starts


def test_a_rank_that_gives_up_is_not_started_again_and_one_that_fails_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = script_of(tmp_path, f"sys.exit({GIVES_UP} if os.environ['RANK'] == '1' else 1)", monkeypatch)
    assert launch_local(2, [], output=tmp_path, max_restarts=3) == 1
    assert len(starts.read_text().split()) == 2
    assert "another try would meet the same error" in capsys.readouterr().err
    starts = script_of(tmp_path, "sys.exit(1)", monkeypatch)
    starts.unlink()
    assert launch_local(1, [], output=tmp_path, max_restarts=2) == 1
    assert len(starts.read_text().split()) == 3


def test_ranks_of_one_machine_on_ray_say_it_once(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is the first of its own actor there."""
    monkeypatch.setenv("REELYARD_LAUNCHED", "1")
    monkeypatch.setenv("MASTER_PORT", "4711")
    parents = iter((10, 11, 12))
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    assert [fail_as(rank, 0, "set a is missing", monkeypatch) for rank in (3, 4, 5)] == [GIVES_UP] * 3
    assert capsys.readouterr().err.count("error:") == 1


def test_a_set_that_one_machine_does_not_see_is_said_there_with_the_code_for_it(
    run_arguments: Arguments, tmp_path: Path
) -> None:
    """Rank 1 alone, as on a machine where the disk is not mounted; it fails before it looks for the others."""
    arguments = run_arguments(tmp_path / "run", samples=tmp_path / "away")
    rank = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "REELYARD_LAUNCHED": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "training/train.py", *arguments],
        cwd=PROJECT,
        env={**os.environ, **rank},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"error: rank 1 on {socket.gethostname()}: " in done.stderr and "away" in done.stderr
    assert done.stderr.count("error:") == 1 and done.returncode == GIVES_UP


def test_a_signal_between_two_attempts_is_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = script_of(tmp_path, "sys.exit(1)", monkeypatch)

    def late(code: int, output: Path, started: float) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    monkeypatch.setattr(launch, "may_restart", late)
    assert launch_local(1, [], output=tmp_path, max_restarts=3) == 0
    assert len(starts.read_text().split()) == 1
    assert "stopped by SIGTERM before all was started again: resumable" in capsys.readouterr().err


class FullCluster:
    """As much of Ray as placing needs; there is never room, and the third look brings a signal."""

    def __init__(self) -> None:
        self.util, self.exceptions = self, SimpleNamespace(RayError=OSError)
        self.looks, self.groups = 0, 0
        self.ranks: Any = None

    def placement_group(self, bundles: list[Any], strategy: str) -> FullCluster:
        self.groups += 1
        return self

    def remove_placement_group(self, group: FullCluster) -> None:
        self.groups -= 1

    def wait(self, timeout_seconds: float) -> bool:
        assert timeout_seconds <= 1.0, "a signal is noticed within a second"
        self.looks += 1
        if self.looks == 3:
            self.ranks.note(signal.SIGINT, None)
        return False


def test_a_signal_while_ray_has_no_room_ends_as_resumable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = RayRequest(
        lanes=4,
        processes=4,
        min_processes=1,
        cpus_per_process=1.0,
        gpus_per_process=None,
        arguments=[],
        output=tmp_path,
        max_restarts=0,
    )
    cluster = FullCluster()
    cluster.ranks = _Ranks(cluster, request, {"CPU": 1.0})
    assert cluster.ranks.run() == 0
    assert (cluster.looks, cluster.groups) == (3, 0)
    said = capsys.readouterr().err
    assert "stopped by SIGINT before the ranks were started: resumable" in said and "no room" not in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--min-processes", "2"], "--min-processes 2 was given without --ray"),
        (["--cpus-per-process", "2"], "--cpus-per-process 2 was given without --ray"),
        (["--gpus-per-process", "0.5", "--processes", "2"], "--gpus-per-process 0.5 was given without --ray"),
        (["--elastic", "--processes", "2"], "--elastic is for ranks that torchrun starts"),
        (["--elastic", "--ray"], "--elastic is for ranks that torchrun starts"),
    ],
)
def test_options_that_nothing_would_read_are_refused(
    flags: list[str], words: str, run_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *run_arguments(tmp_path / "run"), *flags]) == 2
    assert words in capsys.readouterr().err


def test_a_restarted_rank_refuses_to_repeat_a_step_that_left_a_dump(tmp_path: Path) -> None:
    folder = tmp_path / "dumps" / "step-00000003"
    folder.mkdir(parents=True)
    (folder / "dump.json").write_text(json.dumps({"step": 3, "plan_hash": "p", "config": {"seed": 1}}))
    with pytest.raises(ReelyardError, match=r"restarted at step 2, but step 3 would meet the same numbers"):
        refuse_repeated_step(tmp_path, {"seed": 1}, "p", 2)
    refuse_repeated_step(tmp_path, {"seed": 1}, "p", 4)
    refuse_repeated_step(tmp_path, {"seed": 2}, "p", 2)
    refuse_repeated_step(tmp_path, {"seed": 1}, "q", 2)
    shutil.copytree(folder, tmp_path / "dumps" / "step-00000001")
    (tmp_path / "dumps" / "step-00000001" / "dump.json").write_text("half a fi")
    refuse_repeated_step(tmp_path, {"seed": 1}, "p", 4)
