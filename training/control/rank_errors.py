"""An error that a rank meets before it has met the others: said once on each machine, and its exit code tells the launcher whether to try again.

Most such errors every rank finds alike, so the first rank of each machine speaks: `error: ...` on rank 0, `error: rank 8 on node-1: ...`
elsewhere. The others look for a mark that it leaves in the machine's temporary folder. If none comes within seconds they speak themselves: a set
that is mounted on one machine only, a device that one rank lacks. Price: a file of no bytes per machine and error, removed by whoever comes an
hour later.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

from schemas.command import say
from schemas.errors import ReelyardError
from training.control.launch import is_launched_by_us, launch_variable, launched_rank
from training.control.restarts import GIVES_UP, is_met_again

__all__ = ["restarts_so_far", "said_on_each_machine", "tells_launcher"]

_OTHERS_SECONDS = 3.0
_STALE_SECONDS = 3600.0
_PREFIX = "reelyard-said-"


@contextmanager
def tells_launcher() -> Iterator[None]:
    """Around all of a rank: where another try would meet the same error, the exit code says so to a launcher of ours."""
    try:
        yield
    except ReelyardError as error:
        if is_launched_by_us() and error.exit_code == 1 and is_met_again(error):
            error.exit_code = GIVES_UP
        raise


@contextmanager
def said_on_each_machine(wait_seconds: float = _OTHERS_SECONDS) -> Iterator[None]:
    """Around what ranks do before they meet: rank 0 keeps the error, the others say it if nobody of their machine has, and end."""
    try:
        yield
    except ReelyardError as error:
        rank, mark = launched_rank(), _mark_of(str(error))
        # On Ray every rank is the first of its actor, so there all but rank 0 wait.
        if rank != 0 and (is_launched_by_us() or launch_variable("LOCAL_RANK", rank) != 0):
            _wait_for(mark, wait_seconds)
        is_first = _made(mark)
        if rank == 0:
            raise
        if is_first:
            say(f"error: rank {rank} on {socket.gethostname()}: {error}")
        code = GIVES_UP if is_launched_by_us() and error.exit_code == 1 and is_met_again(error) else error.exit_code
        raise typer.Exit(code) from error


def restarts_so_far() -> int:
    """How often torchrun has started this rank again."""
    return launch_variable("TORCHELASTIC_RESTART_COUNT", 0)


def _mark_of(words: str) -> Path:
    """Of this error in this attempt of this launch: our launchers take a new port each time, elsewhere the ranks of a machine have one parent."""
    attempt = (0 if is_launched_by_us() else os.getppid(), os.environ.get("MASTER_PORT", ""), restarts_so_far(), words)
    return Path(tempfile.gettempdir()) / f"{_PREFIX}{hashlib.sha256(repr(attempt).encode()).hexdigest()[:24]}"


def _made(mark: Path) -> bool:
    """Whether this rank is the first to leave the mark; so too where none can be left."""
    now = time.time()
    with suppress(OSError):
        for old in mark.parent.glob(f"{_PREFIX}*"):
            if old.stat().st_mtime < now - _STALE_SECONDS:
                old.unlink()
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def _wait_for(mark: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
