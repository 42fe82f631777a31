"""How each side of `loader.py` is timed: a process per side, a fork per request, the same clock, the page cache emptied before each timing.

A side gives an iterator of batches; what it costs to get the first one is start-up and shown apart. The clock of a peer runs from its first batch to
its last, and the first one's samples are not counted; ours starts earlier, when it begins to read, so that reading ahead is no head start. This file
runs in both environments, so it imports only NumPy.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np

__all__ = [
    "Batch",
    "cool",
    "first_batch",
    "keep_cool",
    "raw_seconds",
    "serve",
    "throughput",
    "waits",
    "whole_throughput",
]

Batch = tuple[int, Any]
"""(samples, what the consumer gets)."""
MOST_RESIDENT = 0.02
"""Share of the files that may stay in the page cache of a cold timing."""
RAW_BYTES = 4 << 20
"""Of one raw read; larger ones were not faster."""


def cool(files: Iterable[str | os.PathLike[str]]) -> None:
    """Empty the page cache of these files; what was just written is flushed first, since dirty pages stay, as do those that somebody maps."""
    paths = list(files)
    _drop(paths)
    if (share := _resident_share(paths)) > MOST_RESIDENT:
        raise RuntimeError(
            f"{share:.0%} of {paths[0]} and its like stay in the page cache: the timing would not be cold"
        )


def _drop(paths: Iterable[str | os.PathLike[str]]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _resident_share(paths: Sequence[str | os.PathLike[str]]) -> float:
    """Share of the files' pages that are in memory."""
    libc, resident, pages = ctypes.CDLL(None, use_errno=True), 0, 0
    for path in paths:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            view = np.frombuffer(mapped, np.uint8)
            found = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
            place, size = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(view))
            if libc.mincore(place, size, ctypes.c_void_p(found.ctypes.data)):
                raise OSError(ctypes.get_errno(), "mincore failed", str(path))
            resident += int((found & 1).sum())
            pages += len(found)
            del view
    return resident / pages


def keep_cool(files: list[str], every_s: float) -> None:
    """Empty the page cache of the files again and again, until the parent is gone; for a process of its own, so that nobody waits for it."""
    parent = os.getppid()
    while os.getppid() == parent:
        _drop(files)
        time.sleep(every_s)


def raw_seconds(files: Sequence[str | os.PathLike[str]], threads: int = 1) -> float:
    """Of reading each file from first to last byte with `preadv` into one buffer per thread; the files are dealt to the threads."""
    workers = [threading.Thread(target=_read_raw, args=(files[index::threads],)) for index in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


def _read_raw(files: Sequence[str | os.PathLike[str]]) -> None:
    buffer = mmap.mmap(-1, RAW_BYTES)
    for path in files:
        descriptor, offset = os.open(path, os.O_RDONLY), 0
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while count := os.preadv(descriptor, [buffer], offset):
            offset += count
        os.close(descriptor)


def throughput(batches: Callable[[], Iterable[Batch]]) -> dict[str, float]:
    """Start-up in seconds, then samples and seconds without the first batch."""
    start = time.perf_counter()
    iterator = iter(batches())
    next(iterator)
    first = time.perf_counter()
    samples = sum(count for count, _ in iterator)
    return {"startup_s": first - start, "samples": samples, "seconds": time.perf_counter() - first}


def whole_throughput(opened: Callable[[], Iterable[Batch]]) -> dict[str, float]:
    """For a side that reads far ahead, and would have much of the set by its first batch: all samples, and all seconds but those of opening."""
    start = time.perf_counter()
    batches = opened()
    reading = time.perf_counter()
    iterator = iter(batches)
    samples, _ = next(iterator)
    first = time.perf_counter()
    samples += sum(count for count, _ in iterator)
    return {"startup_s": first - start, "samples": samples, "seconds": time.perf_counter() - reading}


def waits(batches: Callable[[], Iterable[Batch]], *, steps: int, step_s: float, busy: bool) -> list[float]:
    """Milliseconds that a consumer waits for each batch but the first, when its own work takes `step_s`: sleeping, or keeping a core busy."""
    iterator, found = iter(batches()), []
    next(iterator)
    while len(found) < steps:
        _work(step_s, busy=busy)
        start = time.perf_counter()
        if next(iterator, None) is None:
            break
        found.append((time.perf_counter() - start) * 1000)
    return found


def first_batch(batches: Callable[[], Iterable[Batch]]) -> dict[str, float]:
    """Seconds to the first batch, bytes that the process read by then, tars and chunks that it opened."""
    opened: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith((".tar", ".mds", ".bin")):
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    before, start = _bytes_read(), time.perf_counter()
    next(iter(batches()))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": _bytes_read() - before, "opened": len(opened)}


def serve(handlers: dict[str, Callable[..., Any]]) -> None:
    """Answer requests, one JSON object a line, until the input ends; whatever else prints goes to standard error.

    Each request is answered by a fork: packages are imported already, and no file mapping, cache or thread of an earlier request is there.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _answer(handlers, json.loads(line), answers)
        if os.waitpid(child, 0)[1]:
            raise SystemExit(f"no answer to {line}")


def _answer(handlers: dict[str, Callable[..., Any]], request: dict[str, Any], answers: TextIO) -> NoReturn:
    status = 1
    try:
        answers.write(json.dumps(handlers[request.pop("do")](**request)) + "\n")
        answers.flush()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _work(seconds: float, *, busy: bool) -> None:
    if not busy:
        time.sleep(seconds)
        return
    end, left = time.perf_counter() + seconds, np.full((128, 128), 0.5, np.float32)
    while time.perf_counter() < end:
        left @ left


def _bytes_read() -> int:
    """What this process has asked the kernel to read, page cache or not."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(lines[0].split()[1])


if __name__ == "__main__":
    keep_cool(sys.argv[2:], float(sys.argv[1]))
