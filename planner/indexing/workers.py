"""Many tars at once: processes for files, threads for objects.

A header of a file costs more Python than disk, so that threads only get in each other's way; a range of an object costs a round trip, for which
a thread can wait. Scans come back in the order of the tars, whoever was first. Price: processes take about a second to start, so few tars are read
right here.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
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
_FEW_TARS = 16
"""Local tars below which no processes are started."""
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
    pool: Executor
    if is_remote(tars[0][1].address):
        pool, chunk = ThreadPoolExecutor(workers or _REQUESTS_AT_ONCE), 1
    else:
        count = min(workers or os.cpu_count() or 1, len(tars))
        if count == 1 or (workers is None and len(tars) < _FEW_TARS):
            yield from map(scan, tars)
            return
        pool, chunk = ProcessPoolExecutor(count, get_context("spawn"), initializer=_leave_interrupts), _TARS_PER_MESSAGE
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
