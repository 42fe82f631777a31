"""SIGTERM and SIGINT as a wish to stop: noted, and obeyed between two steps, where all ranks can stop alike.

    signal              what happens
    SIGTERM, SIGINT     the step is finished, a checkpoint saved, the run ends with exit code 0 and can be continued
    another SIGTERM     nothing more: launchers send it twice
    another SIGINT      the process ends at once, with exit code 130; the last checkpoint is complete, because none is written in place

A wait for data may take for ever, so it alone is broken off: within `StopSignals.waiting` a signal raises `StopWhileWaitingError`. No torch is
imported here: signals are noted from the first moment of a command, while everything else is still being loaded. Price: a step must end before a
stop takes effect; where steps are longer than a launcher's grace, the launcher kills and the steps since the last checkpoint are done again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["STOP_SIGNALS", "StopSignals", "StopWhileWaitingError", "handling", "signals_noted"]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AGAIN_EXIT_CODE = 128 + signal.SIGINT


class StopWhileWaitingError(Exception):
    """A signal came while this rank waited for something that may never come."""


class StopSignals:
    """The signals that came; true once there is one."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._waiting = False

    def __bool__(self) -> bool:
        return bool(self._numbers)

    @property
    def name(self) -> str:
        """The first signal's name, `a signal` where only another rank has one."""
        return signal.Signals(self._numbers[0]).name if self._numbers else "a signal"

    def note(self, number: int) -> None:
        """Take a signal; see the module for what follows."""
        again = number == signal.SIGINT and signal.SIGINT in self._numbers
        self._numbers.append(number)
        if again:
            _leave_at_once()
        if self._waiting:
            self._waiting = False
            raise StopWhileWaitingError

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that a signal ends with StopWhileWaitingError, be it there already; nothing else may be lost with it."""
        self._waiting = True
        try:
            if self._numbers:
                raise StopWhileWaitingError
            yield
        finally:
            self._waiting = False


@contextmanager
def signals_noted(signals: StopSignals | None = None) -> Iterator[StopSignals]:
    """Note signals for the block instead of ending the process; only in a process's main thread, elsewhere nothing is noted.

    Blocks may lie in one another: the inner one takes the outer one's signals, if it is given them.
    """
    signals = StopSignals() if signals is None else signals
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def note(number: int, _: FrameType | None) -> None:
        signals.note(number)

    with handling(note):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # a launcher of ours held them back until now
        yield signals


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None], *more: signal.Signals) -> Iterator[None]:
    """`handler` for SIGTERM, SIGINT and `more`, as long as the block runs."""
    previous = {number: signal.signal(number, handler) for number in (*STOP_SIGNALS, *more)}
    try:
        yield
    finally:
        for number, handler_before in previous.items():
            signal.signal(number, handler_before)


def _leave_at_once() -> None:
    """No clean-up: a thread may hang, and what is half-written has a temporary name."""
    os.write(2, b"interrupted again: ended at once; the last checkpoint is complete, run the same command again\n")
    sys.stdout.flush()
    os._exit(_AGAIN_EXIT_CODE)
