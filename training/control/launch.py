"""Which process of how many this is, and a small launcher for the processes of one machine.

torchrun works too and is what clusters use; it prints a traceback of its own when a rank ends with an error that was already explained. This one
passes on the exit code and says nothing but which process was killed. Its processes stand in a process group of their own: Ctrl-C reaches the
launcher alone, which passes it on once. They start with SIGTERM and SIGINT held back until they can note them, and die with the launcher, also when
it is killed. It imports no torch, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from schemas.command import say
from schemas.errors import UsageError
from training.control.restarts import GIVES_UP, may_restart
from training.control.stop_signals import STOP_SIGNALS, handling

__all__ = [
    "TRAIN_SCRIPT",
    "exit_code",
    "free_port",
    "held_back_signals",
    "is_launched_by_us",
    "launch_local",
    "launch_variable",
    "launched_rank",
    "launched_world_size",
    "rank_environment",
    "tie_to_launcher",
    "wait_for_ranks",
]

TRAIN_SCRIPT = Path(__file__).resolve().parents[1] / "train.py"
_GRACE_SECONDS = 20.0
_TIE = "REELYARD_LAUNCHER"
_OURS = "REELYARD_LAUNCHED"
_PR_SET_PDEATHSIG = 1


def launched_rank() -> int:
    """This process's rank as the launcher says, 0 without one."""
    return launch_variable("RANK", 0)


def launched_world_size() -> int:
    """The number of processes as the launcher says, 1 without one."""
    return launch_variable("WORLD_SIZE", 1)


def is_launched_by_us() -> bool:
    """Whether one of our launchers started this rank, which understands `restarts.GIVES_UP`."""
    return _OURS in os.environ


def launch_variable(name: str, default: int) -> int:
    """A number that the launcher put into the environment: torchrun's RANK, WORLD_SIZE, LOCAL_RANK."""
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UsageError(f"environment variable {name} is {text!r}, expected a number as torchrun sets it")
    return int(text)


def launch_local(count: int, arguments: Sequence[str], *, output: Path, max_restarts: int = 0) -> int:
    """Run `training/train.py` with `arguments` as `count` processes and return the exit code: the first that is not 0, else 0.

    A signal is passed on to all (each finishes its step and saves). When one fails the others get 20 seconds to end, then are killed. What may
    help is started again from the last checkpoint, up to `max_restarts` times: see `training.control.restarts`.
    """
    processes = _Processes()
    with handling(processes.note, signal.SIGHUP):
        for restart in range(max_restarts + 1):
            started = time.time()
            code = processes.run(count, arguments)
            if processes.was_stopped or restart == max_restarts or not may_restart(code, output, started):
                break
            say(
                f"starting all {count} processes again from the last checkpoint (restart {restart + 1} of {max_restarts})"
            )
    return exit_code(code)


def rank_environment(rank: int, world_size: int, local_rank: int, address: str, port: int) -> dict[str, str]:
    """The environment of a rank's process: torchrun's variables, one thread unless told otherwise, and the tie to this process."""
    return {
        **os.environ,
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        # As torchrun: without it each process would take every core.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        _OURS: "1",
        _TIE: str(os.getpid()),
    }


def tie_to_launcher() -> None:
    """In a process that one of our launchers started: the kernel kills it when the launcher dies (Linux; elsewhere nothing)."""
    launcher = os.environ.pop(_TIE, None)
    if launcher is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):  # it died before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def held_back_signals() -> Iterator[None]:
    """Processes that are started in the block get SIGTERM and SIGINT only once they are ready to note them (`signals_noted`)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def how_it_ended(rank: int, process: int, code: int) -> str | None:
    """Words for a process that could not say itself why it ended; None for one that could."""
    if code >= 0:
        return None
    return f"rank {rank} (process {process}) was killed by {signal.Signals(-code).name}"


def exit_code(code: int) -> int:
    """What a launcher ends with: as a shell, 128 + n for a process ended by signal n; 1 where a rank gave up."""
    return 1 if code == GIVES_UP else 128 - code if code < 0 else code


def wait_for_ranks(
    exit_codes: Callable[[], Sequence[int | None]], process_ids: Sequence[int], *, every_seconds: float
) -> int:
    """Until all ranks have ended, or some seconds after the first that failed: the exit code of the attempt.

    The code that counts is of a process that was killed, if there is one, since the others fail because of it; that is said.
    """
    deadline, code = None, 0
    while True:
        codes = exit_codes()
        failed = [(rank, found) for rank, found in enumerate(codes) if found]
        if failed and deadline is None:
            deadline = time.monotonic() + _GRACE_SECONDS
            killed = [(rank, found) for rank, found in failed if found < 0]
            for rank, found in killed:
                say(f"error: {how_it_ended(rank, process_ids[rank], found)}")
            code = (killed or failed)[0][1]
        if None not in codes or (deadline is not None and time.monotonic() > deadline):
            return outcome(code, codes)
        time.sleep(every_seconds)


def outcome(first: int, codes: Sequence[int | None]) -> int:
    """What an attempt came to: that of the rank that counts, unless one says that another try is of no use."""
    return GIVES_UP if GIVES_UP in codes else first


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port that is free on this machine now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@dataclass
class _Processes:
    """The processes of one attempt after the other, and the signals that they are to get."""

    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    noted: list[int] = field(default_factory=list)
    passed_on: int = 0
    is_starting: bool = False

    @property
    def was_stopped(self) -> bool:
        return bool(self.noted)

    def note(self, number: int, _: FrameType | None) -> None:
        self.noted.append(signal.SIGTERM if number == signal.SIGHUP else number)
        if not self.is_starting:
            self._pass_on()

    def _pass_on(self) -> None:
        while self.passed_on < len(self.noted):
            self.passed_on += 1
            for process in self.running:
                process.send_signal(self.noted[self.passed_on - 1])

    def run(self, count: int, arguments: Sequence[str]) -> int:
        self.is_starting = True  # from here on a signal waits for the new processes
        if self.noted:
            say(
                f"stopped by {signal.Signals(self.noted[0]).name} before all was started again: resumable, run the same command again"
            )
            return 0
        port = free_port()
        with held_back_signals():
            self.running = [
                self._start(rank_environment(rank, count, rank, "127.0.0.1", port), arguments) for rank in range(count)
            ]
        self.is_starting = False
        self._pass_on()
        try:
            ids = [process.pid for process in self.running]
            return wait_for_ranks(lambda: [process.poll() for process in self.running], ids, every_seconds=0.05)
        finally:
            for process in self.running:
                if process.poll() is None:
                    process.kill()
                process.wait()

    def _start(self, environment: Mapping[str, str], arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(TRAIN_SCRIPT), *arguments], env=environment, stdin=subprocess.DEVNULL, process_group=0
        )
