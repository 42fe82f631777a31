"""What the three command lines share: errors to exit codes, plain messages, and progress that suits the output.

`run_command` is the only place that turns exceptions into exit codes: 0 done, 1 failed, 2 usage; a ReelyardError prints its message and no
traceback, anything else is a defect and keeps its traceback. Progress is a bar on a terminal and a plain line every few seconds elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from schemas.errors import ReelyardError

__all__ = ["progress", "run_command", "say"]

T = TypeVar("T")
_LINE_EVERY_SECONDS = 5.0


def say(text: str) -> None:
    """One line for the user, on standard error, at once; standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def run_command(app: Callable[..., Any], arguments: Sequence[str] | None = None) -> int:
    """Run a typer app (or any callable taking `args`) and return the exit code.

    >>> run_command(lambda args, standalone_mode: None, [])
    0
    """
    try:
        result = app(args=list(sys.argv[1:] if arguments is None else arguments), standalone_mode=True)
    except ReelyardError as error:
        say(f"error: {error}")
        return error.exit_code
    except SystemExit as request:
        return request.code if isinstance(request.code, int) else int(request.code is not None)
    return result if isinstance(result, int) else 0


def progress(items: Iterable[T], *, what: str, total: int | None = None, is_part: bool = False) -> Iterator[T]:
    """Yield `items`, showing how far along `what` is: a bar on a terminal, else a plain line every 5 seconds and at the end.

    A part of something that has a progress of its own (`is_part`) leaves no bar behind, and no line if it took less than 5 seconds.
    """
    if total is None and isinstance(items, Sequence):
        total = len(items)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, description=what, total=total, console=Console(stderr=True), transient=is_part)
        return
    last = time.monotonic()
    count, said = 0, False
    for count, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last >= _LINE_EVERY_SECONDS:
            last, said = time.monotonic(), True
            say(f"{what}: {count}{'' if total is None else f' of {total}'}")
    if said or not is_part:
        say(f"{what}: {count} done")
