"""Tools that follow a run, behind one interface, and none of them able to take the run down.

The first error of a tool is said in one warning, and the tool is left out from then on: a full quota or a lost network must not end a
training run of weeks. Price: what comes after is only in `metrics.jsonl`, from which all of it can be drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from schemas.command import say

__all__ = ["Sample", "Sink", "Sinks", "never_fatal"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Videos of one evaluation."""

    sheet: Path
    """PNG: a row of frames for each video."""
    videos: tuple[tuple[Path, str], ...]
    """(MP4, prompt)."""


class Sink(Protocol):
    """One tool; steps are 0-based, and what was measured after `n` steps belongs to step `n - 1`."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Named numbers of a step."""

    def sample(self, step: int, sample: Sample) -> None:
        """Videos made after a step."""

    def flush(self) -> None:
        """What was given is not lost with the process, as far as the tool can see to that."""

    def close(self) -> None:
        """The run ends."""


class Sinks:
    """Several tools as one."""

    def __init__(self, openers: Mapping[str, Callable[[], Sink]]) -> None:
        self._sinks: dict[str, Sink] = {}
        for name, opened in openers.items():
            self._guarded(name, lambda name=name, opened=opened: self._sinks.__setitem__(name, opened()))  # type: ignore[misc]

    def __bool__(self) -> bool:
        return bool(self._sinks)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """See `Sink`."""
        self._each(lambda sink: sink.numbers(step, values))

    def sample(self, step: int, sample: Sample) -> None:
        """See `Sink`."""
        self._each(lambda sink: sink.sample(step, sample))

    def flush(self) -> None:
        """See `Sink`."""
        self._each(lambda sink: sink.flush())

    def close(self) -> None:
        """See `Sink`; afterwards there are none."""
        self._each(lambda sink: sink.close())
        self._sinks.clear()

    def _each(self, what: Callable[[Sink], Any]) -> None:
        for name, sink in list(self._sinks.items()):
            self._guarded(name, lambda sink=sink: what(sink))  # type: ignore[misc]

    def _guarded(self, name: str, what: Callable[[], Any]) -> None:
        worked = False
        with never_fatal(name, "the run goes on without it, metrics.jsonl has everything"):
            what()
            worked = True
        if not worked:
            self._sinks.pop(name, None)


@contextmanager
def never_fatal(name: str, consequence: str) -> Iterator[None]:
    """Around what must not end a run, whatever it raises: one warning instead, with what follows from it."""
    try:
        yield
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        say(f"warning: {name} gave up ({type(error).__name__}: {first}); {consequence}")
