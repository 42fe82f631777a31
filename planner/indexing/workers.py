"""Many tars at once: processes for files, threads for objects.

A header of a file costs more Python than disk, so that threads only get in each other's way; a range of an object costs a round trip, for which
a thread can wait. Scans come back in the order of the tars, whoever was first. Price: processes take a second or more to start, so tars are read
right here until it is clear that there is work for more.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context

from planner.indexing.places import TarPlace, is_remote
from planner.indexing.rules import IndexRules
from planner.indexing.scanning import TarScan, scan_tar
from schemas.command import progress
from schemas.errors import ReelyardError

__all__ = ["scan_tars"]

NamedTar = tuple[str, TarPlace]
"""Path below the set's location, and the tar."""

_REQUESTS_AT_ONCE = 32
_LOOK_SECONDS = 1.0
"""Tars are read here for so long before it is judged whether processes pay."""
_START_SECONDS = 5.0
"""What processes must save: more than they take to start on a busy machine."""
_TARS_PER_MESSAGE = 4


def scan_tars(tars: Sequence[NamedTar], rules: IndexRules, workers: int | None = None) -> Iterator[TarScan]:
    """The scans, in the order of the tars.

    Raises:
        DataError: a tar cannot be read at all.
    """
    if not tars:
        return
    yield from progress(_scans(tars, rules, workers), what="reading headers of tars", total=len(tars))


def _scans(tars: Sequence[NamedTar], rules: IndexRules, workers: int | None) -> Iterator[TarScan]:
    scan = partial(_scan, rules=rules)
    if is_remote(tars[0][1].address):
        yield from _ended(ThreadPoolExecutor(workers or _REQUESTS_AT_ONCE), scan, tars, 1)
        return
    count = min(workers or os.cpu_count() or 1, len(tars))
    here = 0
    begin = time.monotonic()
    while here < len(tars) and (
        count == 1 or (workers is None and not _pays(time.monotonic() - begin, here, len(tars), count))
    ):
        yield scan(tars[here])
        here += 1
    if here < len(tars):
        pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_leave_interrupts)
        yield from _ended(pool, scan, tars[here:], _TARS_PER_MESSAGE)


def _pays(seconds: float, done: int, total: int, processes: int) -> bool:
    """Whether processes would save more than they take to start, going by the tars so far."""
    return (
        done > 0 and seconds > _LOOK_SECONDS and seconds / done * (total - done) * (1 - 1 / processes) > _START_SECONDS
    )


def _ended(
    pool: Executor, scan: Callable[[NamedTar], TarScan], tars: Sequence[NamedTar], chunk: int
) -> Iterator[TarScan]:
    """Scans by a pool that ends with them, whatever happens."""
    try:
        yield from pool.map(scan, tars, chunksize=chunk)
    except BrokenProcessPool as error:
        raise ReelyardError(
            f"a process that read tars ended by itself ({error}), perhaps for want of memory; index again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _scan(tar: NamedTar, *, rules: IndexRules) -> TarScan:
    return scan_tar(tar[1], tar[0], rules)


def _leave_interrupts() -> None:
    """Ctrl-C is for the process that the user started; it ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
