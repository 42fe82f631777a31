"""A real Ray head with token authentication, in a home of its own, for tests that submit jobs to it or run actors on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from curation.ray_head import free_ports

__all__ = ["RAY", "TokenHead", "token_head"]

RAY = Path(sys.executable).parent / "ray"
_PROJECT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class TokenHead:
    """A running head: its two addresses, and a home with the token."""

    gcs: str
    jobs: str
    home: Path

    def environment(self, *, token: bool = True) -> dict[str, str]:
        """Of a process that talks to it; without `token`, of one that has none."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = {"PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"}
        if not token:
            return kept | path | {"HOME": str(self.home / "nobody")}
        # `ray job submit` sends no token without the mode
        return kept | path | {"HOME": str(self.home), "RAY_AUTH_MODE": "token"}

    def job(self, *words: str, token: bool = True) -> subprocess.CompletedProcess[str]:
        """`ray job WORDS` from the project's folder."""
        return subprocess.run(
            [str(RAY), "job", words[0], "--address", self.jobs, *words[1:]],
            cwd=_PROJECT,
            env=self.environment(token=token),
            capture_output=True,
            text=True,
            timeout=200,
        )


@contextmanager
def token_head(**variables: str) -> Iterator[TokenHead]:
    """`ray get-auth-token --generate`, then `ray start --head` with two CPUs; ended by its own process id.

    `variables` are of the head's environment, and so of its workers'.
    """
    with tempfile.TemporaryDirectory(prefix="rh", ignore_cleanup_errors=True) as name:  # short: sockets lie below it
        home = Path(name)
        (home / "nobody").mkdir()
        gcs, client, dashboard, agent = free_ports(4)
        head = TokenHead(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", home)
        environment = head.environment() | variables
        made = subprocess.run(
            [str(RAY), "get-auth-token", "--generate"], env=environment, capture_output=True, timeout=60
        )
        assert made.returncode == 0 and (home / ".ray" / "auth_token").read_text().strip(), made.stderr
        command = [
            *(str(RAY), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"),
            *("--node-ip-address=127.0.0.1", f"--port={gcs}", f"--ray-client-server-port={client}"),
            *("--include-dashboard=true", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
            *(f"--temp-dir={home / 'r'}", "--object-store-memory=100000000"),
        ]
        log = home / "start.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)
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
