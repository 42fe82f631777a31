"""What ends a run early, and who says so: signals that are noted rather than obeyed at once, and errors that all ranks have alike."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from schemas.errors import ReelyardError
from training.parallel import OtherRankError, World

__all__ = ["said_by_rank_0", "sigterm_noted"]


@contextmanager
def said_by_rank_0(world: World) -> Iterator[None]:
    """Around what fails on all ranks alike: rank 0 keeps the error, the others end quietly."""
    try:
        yield
    except ReelyardError as error:
        if world.rank == 0:
            raise
        raise OtherRankError("rank 0 failed alike and says why") from error


@contextmanager
def sigterm_noted() -> Iterator[list[int]]:
    """A list that a SIGTERM appends to, instead of ending the process."""
    noted: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        noted.append(number)

    previous = signal.signal(signal.SIGTERM, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGTERM, previous)
