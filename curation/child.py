"""The child side of `curation.sandbox`: reads one JSON request per line, runs the job, answers with one JSON line.

    python -m curation.child JOBS_MODULE PARENT_PID

The jobs module has `JOBS`, a mapping of names to `Job(load, run)`. Standard output belongs to the protocol, so whatever a library prints goes to
standard error (the worker's log). The child ends with its parent, also when the parent is killed. Price: a job's answer must be plain JSON.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from schemas.errors import ConfigError, ModelMissingError, PreflightError, ServiceError

__all__ = ["Job", "die_with_parent", "main"]

_PR_SET_PDEATHSIG = 1
_STOP_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Job:
    """A kind of work: `load(setup)` gives the models, once; `run(setup, models, arguments)` does one item and returns plain JSON."""

    load: Callable[[dict[str, Any]], Any]
    run: Callable[[dict[str, Any], Any, dict[str, Any]], Any]


def die_with_parent(number: int = signal.SIGKILL, *, parent: int | None = None) -> None:
    """Ask the kernel (Linux) to signal this process when its parent ends; survives exec.

    With `parent`, a parent that ended before the call is noticed too.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Serve requests until standard input ends."""
    module, parent = sys.argv[1:] if arguments is None else arguments
    die_with_parent(parent=int(parent))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    jobs: Mapping[str, Job] = importlib.import_module(module).JOBS
    _send(answers, {"ok": True, "value": "ready"})
    loaded: dict[str, Any] = {}
    for line in sys.stdin.buffer:
        _send(answers, _serve(jobs, loaded, json.loads(line)))


def _serve(jobs: Mapping[str, Job], loaded: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """One request to one answer; every exception becomes a reason, since the parent turns it into a row."""
    job = jobs[request["job"]]
    token = json.dumps([request["job"], request["setup"]], sort_keys=True)
    try:
        if request["do"] == "load":
            loaded[token] = job.load(request["setup"])
            return {"ok": True, "value": None}
        return {"ok": True, "value": job.run(request["setup"], loaded[token], request["arguments"])}
    except Exception as error:
        traceback.print_exc()
        return {"ok": False, "stop": _nothing_can_succeed(error), "reason": _one_line(error)}


def _nothing_can_succeed(error: Exception) -> bool:
    if isinstance(error, (ModelMissingError, ConfigError, PreflightError, ServiceError)):
        return True
    return isinstance(error, OSError) and error.errno in _STOP_ERRNOS


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _send(stream: IO[bytes], answer: dict[str, Any]) -> None:
    data = memoryview(json.dumps(answer).encode("ascii") + b"\n")
    while data:
        data = data[stream.write(data) :]


if __name__ == "__main__":
    main()
