"""A persistent child process that does what can crash, hang or eat memory in native code, watched by its parent.

Requests and answers are JSON lines over pipes; results are files. The parent polls: past the deadline, or above the memory limit, the child's
whole process group is killed and the next call starts a new one. So a decoder that segfaults costs one item, never the Ray worker. Models are
loaded once per child, before the clock of an item starts. Price: one start-up (imports and models) per worker and after each crash.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.errors import ReelyardError

__all__ = ["ItemFailureError", "Sandbox", "WorkerStopError"]

_POLL_SECONDS = 0.1
_START_SECONDS = 300.0
_START_TRIES = 3
_MEBIBYTE = 1 << 20


class ItemFailureError(Exception):
    """This item failed: crash, deadline, memory or an exception. The text is the reason that goes into a table."""


class _KilledError(ItemFailureError):
    """The child was ended by a signal."""


class WorkerStopError(ReelyardError):
    """No item can succeed (weights gone, disk full): the phase must stop, and nothing may be blamed on the item."""


class Sandbox:
    """One child running `curation.child` with the jobs of one module; `call` never outlives its deadline."""

    def __init__(
        self,
        *,
        jobs: str,
        log: Path,
        memory_mb: int,
        python_path: Sequence[str] = (),
        load_seconds: float = _START_SECONDS,
    ) -> None:
        self._jobs = jobs
        self._log = log
        self._memory_bytes = memory_mb * _MEBIBYTE
        self._python_path = [*python_path, str(Path(__file__).resolve().parents[1])]
        self._load_seconds = load_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._loaded: set[str] = set()
        self._buffer = b""

    def call(self, job: str, setup: dict[str, Any], arguments: dict[str, Any], *, timeout_s: float) -> Any:
        """Run `job` on one item and return its answer (JSON).

        Args:
            setup: what `load` of the job gets (settings, cache folder); a child loads each distinct one once.

        Raises:
            ItemFailureError: with the reason, one line.
            WorkerStopError: the job said that no item can succeed.
        """
        self._prepare(job, setup)
        return self._ask({"do": "run", "job": job, "setup": setup, "arguments": arguments}, timeout_s)

    def _prepare(self, job: str, setup: dict[str, Any]) -> None:
        """A child with the models of the job; one that is killed meanwhile (by the kernel, for memory, or by a person) is started again."""
        token = json.dumps([job, setup], sort_keys=True)
        for tries_left in reversed(range(_START_TRIES)):
            problem = "a worker process could not start"
            try:
                if self._process is None:
                    self._start()
                if token not in self._loaded:
                    problem = f"the models of {job!r} could not be loaded"
                    self._ask({"do": "load", "job": job, "setup": setup}, self._load_seconds)
                    self._loaded.add(token)
                return
            except ItemFailureError as failure:
                if tries_left == 0 or not isinstance(failure, _KilledError):
                    raise WorkerStopError(f"{problem}: {failure} (log: {self._log})") from failure

    def close(self) -> None:
        """End the child, at once."""
        process, self._process = self._process, None
        self._loaded.clear()
        self._buffer = b""
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _start(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(self._python_path),
            # one thread per child: the pool is the parallelism, and the thread count decides rounding
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "curation.child", self._jobs, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self._read(_START_SECONDS)

    def _ask(self, request: dict[str, Any], timeout_s: float) -> Any:
        process = self._process
        assert process is not None and process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            self._died(process)
        answer = self._read(timeout_s)
        if answer["ok"]:
            return answer["value"]
        if answer["stop"]:
            raise WorkerStopError(answer["reason"])
        raise ItemFailureError(answer["reason"])

    def _read(self, timeout_s: float) -> Any:
        """The next answer line; kills the child past the deadline or above the memory limit."""
        process = self._process
        assert process is not None and process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([process.stdout], [], [], _POLL_SECONDS)
            if ready:
                piece = os.read(process.stdout.fileno(), 1 << 16)
                if not piece:
                    self._died(process)
                self._buffer += piece
                continue
            if time.monotonic() > deadline:
                self.close()
                raise ItemFailureError(f"timed out after {timeout_s:g} s")
            used = _resident_bytes(process.pid)
            if used > self._memory_bytes:
                self.close()
                raise ItemFailureError(f"needed more than {self._memory_bytes // _MEBIBYTE} MiB of memory")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _died(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        self.close()
        if code < 0:
            raise _KilledError(f"worker killed by {signal.Signals(-code).name}")
        raise ItemFailureError(f"worker ended with exit code {code}")


def _resident_bytes(pid: int) -> int:
    """Resident memory of a process, bytes; 0 when it is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
