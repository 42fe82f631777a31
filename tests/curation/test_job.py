"""`ray job submit` on a head with token authentication: the command of the README, a call without the token, a relative output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from curation.ray_head import free_ports
from encoders.registry import default_cache_dir, fetch

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).parent / "ray"


@dataclass(frozen=True)
class Head:
    """A running head and how to talk to it."""

    address: str
    home: Path

    def environment(self, *, token: bool = True) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = {"PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"}
        if not token:
            return kept | path | {"HOME": str(self.home / "nobody")}
        return (
            kept | path | {"HOME": str(self.home), "RAY_AUTH_MODE": "token"}
        )  # `ray job submit` sends none without it

    def submit(self, *overrides: str, token: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(RAY), "job", "submit", "--address", self.address, "--working-dir", ".", "--"]
        command += ["python", "curation/run.py", "--config", "configs/curate_demo.yaml"]
        command += [word for override in overrides for word in ("--set", override)]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment(token=token), capture_output=True, text=True, timeout=200
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray get-auth-token --generate`, then `ray start --head`, in a home of its own; ended by its own process id."""
    with tempfile.TemporaryDirectory(prefix="rj", ignore_cleanup_errors=True) as name:
        home = Path(name)
        gcs, client, dashboard, agent = free_ports(4)
        head = Head(f"http://127.0.0.1:{dashboard}", home)
        (home / "nobody").mkdir()
        made = subprocess.run(
            [str(RAY), "get-auth-token", "--generate"], env=head.environment(), capture_output=True, timeout=60
        )
        assert made.returncode == 0 and (home / ".ray" / "auth_token").read_text().strip()
        command = [str(RAY), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"]
        command += ["--node-ip-address=127.0.0.1", f"--port={gcs}", f"--ray-client-server-port={client}"]
        command += ["--include-dashboard=true", f"--dashboard-port={dashboard}"]
        command += [
            f"--dashboard-agent-listen-port={agent}",
            f"--temp-dir={home / 'r'}",
            "--object-store-memory=100000000",
        ]
        log = home / "start.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, env=head.environment(), stdout=stream, stderr=stream, start_new_session=True
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


@pytest.mark.timeout(300)
def test_the_documented_job_succeeds(head: Head, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "china.jpg").write_bytes(fetch("media.china").read_bytes())
    output = tmp_path / "out"
    done = head.submit(f"output={output}", f"sources=[{source}]", f"models.cache_dir={default_cache_dir()}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (output / "sets" / "64p" / "set.json").is_file()
    assert "Traceback" not in done.stdout


def test_a_relative_output_is_refused_in_words(head: Head) -> None:
    done = head.submit("output=somewhere")
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert "output: 'somewhere' is a relative path" in text and "temporary copy" in text and "--set output=/" in text
    assert "Traceback" not in text


def test_a_call_without_the_token_is_refused(head: Head, tmp_path: Path) -> None:
    done = head.submit(f"output={tmp_path}", token=False)
    assert done.returncode != 0
    assert "401" in done.stdout + done.stderr or "authent" in (done.stdout + done.stderr).lower()
    assert not list(tmp_path.iterdir())
