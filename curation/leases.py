"""One command at a time on an output that lies on an object store: a lease object, made by a conditional put and renewed while the command runs.

There is no kernel to let go of it, so a killed command leaves its lease behind. It is taken over at once when its process is known to be gone
(same host), else when it was not renewed for some minutes; both in words, and by a conditional put, so that only one of two commands gets it.
Price: the clocks of two hosts must agree to within those minutes, and a command that was asleep that long stops when it wakes without its lease.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from curation.objects import Objects
from schemas.command import say
from schemas.errors import UsageError

__all__ = ["hold_lease", "is_alive", "start_of"]

_BEAT_SECONDS = 30.0
_STALE_SECONDS = 300.0


def start_of(pid: int) -> str:
    """When a process of this host started, in the kernel's ticks; "" when there is none. A process id alone is used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def is_alive(pid: int, start: str) -> bool:
    """Whether the process of that id and start runs on this host."""
    return bool(start) and start_of(pid) == start


@contextmanager
def hold_lease(
    objects: Objects, name: str, *, beat_seconds: float = _BEAT_SECONDS, stale_seconds: float = _STALE_SECONDS
) -> Iterator[None]:
    """Hold the lease for the block; the holder's host and process are in it.

    Raises:
        UsageError: another command holds it, or took it over in the meantime.
    """
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "start": start_of(os.getpid()), "token": uuid4().hex}
    _take(objects, name, mine, stale_seconds)
    beat = _Beat(objects, name, mine, beat_seconds)
    # Not SIGINT: a command that was started in the background ignores it.
    before = signal.signal(signal.SIGUSR1, _raise_lost)
    beat.start()
    try:
        yield
    except _LostLeaseError:
        assert beat.lost is not None, "the signal is sent when it is lost"
        raise UsageError(
            f"output {objects.url}: {_holder(beat.lost)} took the lease {name} over while this command did not renew it; "
            "what is committed stays; start this command again when the other has ended"
        ) from None
    finally:
        beat.end()
        signal.signal(signal.SIGUSR1, before)


class _LostLeaseError(BaseException):
    """Raised in the main thread, through whatever handles exceptions there."""


def _raise_lost(number: int, frame: object) -> None:
    raise _LostLeaseError


def _take(objects: Objects, name: str, mine: dict[str, Any], stale_seconds: float) -> None:
    data = _bytes(mine)
    if objects.create(name, data):
        return
    facts = objects.facts(name)
    other = _read(objects, name)
    if facts is not None and other is not None:
        why = _abandoned(other, mine, stale_seconds)
        if why is None:
            raise UsageError(
                f"output {objects.url} is in use by another curation command ({_holder(other)}, seen "
                f"{time.time() - other['renewed']:.0f} s ago); wait for it to end, or give another output. A lease that is not "
                f"renewed for {stale_seconds:g} s is taken over"
            )
        say(f"lock: taking over the lease of {_holder(other)}: {why}")
        if objects.exchange(name, data, facts.version):
            return
    elif objects.create(name, data):  # it was let go of in the meantime
        return
    raise UsageError(
        f"output {objects.url}: another curation command took the lease {name} just now; wait for it to end"
    )


def _abandoned(other: dict[str, Any], mine: dict[str, Any], stale_seconds: float) -> str | None:
    """Why nobody holds a lease any more; None while somebody may."""
    if other["host"] == mine["host"] and not is_alive(other["pid"], other["start"]):
        return "that process is gone"
    silent = time.time() - other["renewed"]
    return f"it was not renewed for {silent:.0f} s" if silent > stale_seconds else None


def _holder(lease: dict[str, Any]) -> str:
    return f"process {lease['pid']} on {lease['host']}"


def _bytes(lease: dict[str, Any]) -> bytes:
    return json.dumps({**lease, "renewed": time.time()}, sort_keys=True).encode()


def _read(objects: Objects, name: str) -> dict[str, Any] | None:
    """The lease as it is now; None when there is none. A damaged one counts as abandoned."""
    try:
        value = json.loads(objects.read(name))
        return {"host": str(value["host"]), "pid": int(value["pid"]), "start": str(value["start"])} | {
            "token": str(value["token"]),
            "renewed": float(value["renewed"]),
        }
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return {"host": "?", "pid": 0, "start": "", "token": "", "renewed": 0.0}


class _Beat:
    """Renews the lease; when somebody else has it, says so and interrupts the main thread."""

    def __init__(self, objects: Objects, name: str, mine: dict[str, Any], seconds: float) -> None:
        self._objects, self._name, self._mine, self._seconds = objects, name, mine, seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.lost: dict[str, Any] | None = None

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Stop renewing, and let go if it is still ours."""
        self._end.set()
        self._thread.join()
        if self.lost is None:
            self._objects.remove([self._name])

    def _run(self) -> None:
        while not self._end.wait(self._seconds):
            try:
                now = _read(self._objects, self._name)
                if now is not None and now["token"] != self._mine["token"]:
                    self.lost = now
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                    return
                self._objects.write(self._name, _bytes(self._mine))
            except OSError as error:  # the next beat may get through; the lease lives longer than several
                say(f"lock: the lease could not be renewed ({error}); trying again in {self._seconds:g} s")
