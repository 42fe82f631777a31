"""One run at a time in a folder: rank 0 holds a lock on it from before it changes anything there until it ends.

The kernel lets go of it with the process, however that dies, so nothing is left to be cleared away. A scheduler that starts a job again before
the first one is gone, or the same command given twice, would otherwise mix two runs in one folder without a word. Price: a file system without
locks (some network ones) is used as it is, and says so.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.command import say
from schemas.errors import ReelyardError, UsageError
from training.parallel import World

__all__ = ["LOCK_NAME", "holder_of", "run_held"]

LOCK_NAME = ".lock"
_WAIT_SECONDS = 10.0
"""For a process that was killed a moment ago."""
_HELD = (errno.EAGAIN, errno.EACCES)


@contextmanager
def run_held(output: Path, world: World) -> Iterator[None]:
    """Around all that a run does in its folder; every rank calls it.

    Raises:
        UsageError: on rank 0, if another process holds the folder; OtherRankError on the others.
    """
    descriptor = -1
    with world.failing_together():
        if world.rank == 0:
            descriptor = _held(output)
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def holder_of(output: Path) -> str | None:
    """Who holds the folder, in words; None when nobody does. OSError where the file system knows no locks."""
    path = output / LOCK_NAME
    if not path.is_file():
        return None
    descriptor = os.open(path, os.O_RDWR)
    try:
        return None if _try(descriptor) else _named(path)
    finally:
        os.close(descriptor)


def _held(output: Path) -> int:
    """The descriptor that holds the lock; -1 where there are none."""
    path = output / LOCK_NAME
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ReelyardError(f"{path} cannot be written ({error.strerror}); give an --output that can be") from error
    try:
        deadline = time.monotonic() + _WAIT_SECONDS
        while not _try(descriptor):
            if time.monotonic() > deadline:
                raise UsageError(
                    f"another run is writing to {output}: {_named(path)}; stop it, or give another --output (it would go on from this one's "
                    "checkpoints when it is gone)"
                )
            time.sleep(0.1)
    except OSError as error:
        say(
            f"note: {output} is on a file system without locks ({error.strerror}); nothing keeps a second run out of it"
        )
        os.close(descriptor)
        return -1
    except UsageError:
        os.close(descriptor)
        raise
    os.truncate(descriptor, 0)
    os.write(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
    return descriptor


def _try(descriptor: int) -> bool:
    """Whether the lock is ours now."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise
    return True


def _named(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that has not said its name"
