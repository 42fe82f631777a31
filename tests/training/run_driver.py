"""Starts training runs for the tests of continuing: real processes, forked from one that has imported torch, with SIGKILLs at exact moments.

    run_driver.py FOLDER      a line of JSON on standard input is an attempt, answered by a line with its result; what ranks say goes into FOLDER

An attempt says the arguments of `reelyard-train run`, the number of processes, and perhaps

    worker                                a Python file whose `main` is called with the arguments, in place of that command
    kill: {rank, event, pattern, count}   SIGKILL that rank at the count-th audit event of that name whose arguments match the pattern
    delay_ms                              ... so much later
    lines                                 ... of the file in the first argument, opened for appending: when this process has written so many
    alone                                 the other ranks are left to end by themselves; else they are killed with it, as with a machine
    terminate: {...}                      the same with SIGTERM to all ranks
    file_bytes: {rank: bytes}             no file of that rank may grow longer, as on a full disk

Audit events are raised by Python itself at each `open`, `os.rename`, `os.mkdir`, ... (see `sys.addaudithook`), so the program has no hook for tests.
A result is the exit code (negative: the signal) and standard error of each rank, and how many seconds they took.
"""

from __future__ import annotations

import json
import os
import re
import resource
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

ENDING_SECONDS = 60.0


def main(folder: Path) -> None:
    # What takes long to import, torch's own late imports of a first step among it.
    import torch._dynamo
    import torch.onnx  # noqa: F401
    import triton  # noqa: F401

    import training.commands.run
    import training.loop  # noqa: F401

    for line in sys.stdin:
        result = run_attempt(json.loads(line), folder)
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


def run_attempt(attempt: dict[str, Any], folder: Path) -> dict[str, Any]:
    started, count = time.monotonic(), attempt["processes"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files = [folder / f"rank{rank}" for rank in range(count)]
    children = [start(attempt, rank, port, files[rank]) for rank in range(count)]
    codes: dict[int, int] = {}
    while len(codes) < count:
        pid, status = os.waitpid(-1, os.WNOHANG)
        late = time.monotonic() - started > ENDING_SECONDS
        if pid == 0 and not late:
            time.sleep(0.005)
            continue
        if pid:
            codes[pid] = os.waitstatus_to_exitcode(status)
        if late or (codes[pid] == -signal.SIGKILL and not attempt.get("alone")):
            for other in children:
                if other not in codes:
                    os.kill(other, signal.SIGKILL)
    return {
        "codes": [codes[child] for child in children],
        "said": [path.read_text() for path in files],
        "seconds": time.monotonic() - started,
    }


def start(attempt: dict[str, Any], rank: int, port: int, said: Path) -> int:
    """Fork one rank; returns its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(attempt["processes"]))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        limit_files(attempt, rank)
        watch(attempt, rank)
        if attempt.get("worker"):
            runpy.run_path(attempt["worker"])["main"](*attempt["arguments"])
            code = 0
        else:
            from training.cli import main as command

            code = command(["run", *attempt["arguments"]])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def limit_files(attempt: dict[str, Any], rank: int) -> None:
    limit = attempt.get("file_bytes", {}).get(str(rank))
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def watch(attempt: dict[str, Any], rank: int) -> None:
    """Install the audit hook that ends this rank, if it is the one."""
    kind = next((name for name in ("kill", "terminate") if attempt.get(name)), None)
    if kind is None or attempt[kind]["rank"] != rank:
        return
    rule, number = attempt[kind], signal.SIGKILL if kind == "kill" else signal.SIGTERM
    pattern, left, lock = re.compile(rule["pattern"]), [rule["count"]], threading.Lock()

    def send() -> None:
        # SIGTERM goes to every rank: the driver's children are its own process group's, the driver itself ignores it.
        os.kill(os.getpid(), number) if kind == "kill" else os.killpg(0, number)

    def after_lines(path: Path) -> None:
        found = path.read_bytes().count(b"\n") if path.is_file() else 0
        while path.read_bytes().count(b"\n") < found + rule["lines"] if path.is_file() else True:
            time.sleep(0.001)
        time.sleep(rule.get("delay_ms", 0) / 1000)
        send()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != rule["event"] or not pattern.search(" ".join(map(str, arguments[:2]))):
            return
        if rule.get("lines") and not (isinstance(arguments[2], int) and arguments[2] & os.O_APPEND):
            return
        with lock:
            left[0] -= 1
            if left[0] != 0:
                return
        if rule.get("lines"):
            threading.Thread(target=after_lines, args=(Path(arguments[0]),), daemon=True).start()
        elif rule.get("delay_ms"):
            threading.Timer(rule["delay_ms"] / 1000, send).start()
        else:
            send()

    sys.addaudithook(hook)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    main(Path(sys.argv[1]))
