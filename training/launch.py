"""Which process of how many this is, and a small launcher for the processes of one machine.

torchrun works too and is what clusters use; it prints a traceback of its own when a rank ends with an error that was already explained. This one
passes on the exit code and says nothing. It imports no torch, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from schemas.errors import UsageError

__all__ = ["launch_local", "launch_variable", "launched_rank", "launched_world_size"]

_GRACE_SECONDS = 20.0


def launched_rank() -> int:
    """This process's rank as the launcher says, 0 without one."""
    return launch_variable("RANK", 0)


def launched_world_size() -> int:
    """The number of processes as the launcher says, 1 without one."""
    return launch_variable("WORLD_SIZE", 1)


def launch_variable(name: str, default: int) -> int:
    """A number that the launcher put into the environment: torchrun's RANK, WORLD_SIZE, LOCAL_RANK."""
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UsageError(f"environment variable {name} is {text!r}, expected a number as torchrun sets it")
    return int(text)


def launch_local(count: int, arguments: Sequence[str]) -> int:
    """Run `training/train.py` with `arguments` as `count` processes and return the exit code: the first that is not 0, else 0.

    A SIGTERM is passed on to all (each finishes its step and saves). When one fails the others get 20 seconds to end, then are killed.
    """
    script = str(Path(__file__).resolve().parent / "train.py")
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
    # As torchrun: without it each process would take every core.
    shared["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    processes = [
        subprocess.Popen(
            [sys.executable, script, *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]

    def pass_on(number: int, _: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        return _wait_for_all(processes)
    finally:
        signal.signal(signal.SIGTERM, previous)
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def _wait_for_all(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    deadline = None
    while True:
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code]
        if None not in codes:
            return _exit_code(failed[0]) if failed else 0
        if failed and deadline is None:
            deadline = time.monotonic() + _GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            return _exit_code(failed[0])
        time.sleep(0.05)


def _exit_code(code: int) -> int:
    """As a shell reports it: a process ended by signal n is 128 + n."""
    return 128 - code if code < 0 else code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
