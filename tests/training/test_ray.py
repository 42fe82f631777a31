"""Training on Ray: as a job on one node, and as one actor per rank, of which one is killed. A real head with token authentication."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from training.checkpoints.checkpoint import checkpoint_steps
from training.metrics import read_lines

PROJECT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).parent / "ray"
Arguments = Callable[..., list[str]]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Head:
    """A running head: its two addresses, and a home with the token."""

    gcs: str
    jobs: str
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = {"PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        return kept | path | {"HOME": str(self.home), "RAY_AUTH_MODE": "token"}

    def job(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(RAY), "job", words[0], "--address", self.jobs, *words[1:]]
        return subprocess.run(command, cwd=PROJECT, env=self.environment, capture_output=True, text=True, timeout=200)


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with tempfile.TemporaryDirectory(prefix="rt", ignore_cleanup_errors=True) as name:
        home = Path(name)
        gcs, client, dashboard, agent = free_ports(4)
        head = Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", home)
        made = subprocess.run(
            [str(RAY), "get-auth-token", "--generate"], env=head.environment, capture_output=True, timeout=60
        )
        assert made.returncode == 0, made.stderr
        command = [str(RAY), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"]
        command += ["--node-ip-address=127.0.0.1", f"--port={gcs}", f"--ray-client-server-port={client}"]
        command += ["--include-dashboard=true", f"--dashboard-port={dashboard}"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--temp-dir={home / 'r'}"]
        command += ["--object-store-memory=100000000"]
        log = home / "start.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, env=head.environment, stdout=stream, stderr=stream, start_new_session=True
            )
        try:
            deadline = time.monotonic() + 90
            while b"Ray runtime started" not in log.read_bytes():
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield head
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def losses(run: Path) -> list[str]:
    return [line["loss_hex"] for line in read_lines(run / "metrics.jsonl")]


def wait_for_steps(run: Path, steps: int, alive: Callable[[], bool] = lambda: True) -> int:
    deadline = time.monotonic() + 150
    while (done := len(read_lines(run / "metrics.jsonl"))) < steps:
        assert time.monotonic() < deadline and alive(), "waited too long"
        time.sleep(0.02)
    return done


def test_a_killed_actor_makes_all_ranks_start_again_and_the_losses_are_the_same(
    head: Head, two_rank_run: Path, run_arguments: Arguments, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = run_arguments(
        run, "--ray", "--processes", "2", "--max-restarts", "1", checkpoint={"every_steps": 2, "keep": 2}
    )
    process = subprocess.Popen(
        [sys.executable, "training/train.py", *arguments],
        cwd=PROJECT,
        env=head.environment | {"RAY_ADDRESS": head.gcs},
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


def _is_actor(cmdline: Path, head: Head) -> bool:
    """A worker of Ray that holds a rank: its title, and below it a training process."""
    try:
        if b"ray::RankHost" not in cmdline.read_bytes():
            return False
        pid = cmdline.parent.name
        return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text().strip())
    except OSError:
        return False


def test_a_job_is_stopped_in_order_and_a_relative_output_is_refused(
    head: Head, tiny_set: Path, make_plan: Callable[..., Any], run_arguments: Arguments, tmp_path: Path
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
