"""The run's `metrics.jsonl` as this command needs it: some lines whole, or a few numbers of all.

A long run's file is large, so lines outside the asked-for steps are told by their first key and not parsed. Keys beyond those used here may come and
go. Price: the file is read from its beginning each time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.errors import DataError

__all__ = ["step_lines", "trained_steps"]

_STEP = re.compile(r'\{"step": (\d+)')


def step_lines(run: Path, first: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
    """The lines of steps `first` up to `stop` (None: all), as they stand in the file. A last line that a kill cut off is left out.

    Raises:
        DataError: when a line is not JSON.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as stream:
        for number, text in enumerate(stream, start=1):
            if not text.endswith("\n"):
                return
            known = _STEP.match(text)
            if known is not None and not first <= int(known[1]) < (int(known[1]) + 1 if stop is None else stop):
                continue
            try:
                line = json.loads(text)
            except ValueError as error:
                raise DataError(f"{path}: line {number} is not JSON ({error}); was it edited?") from error
            if first <= line["step"] and (stop is None or line["step"] < stop):
                yield line


def trained_steps(run: Path) -> set[int]:
    """The steps that metrics.jsonl has a line of."""
    return {line["step"] for line in step_lines(run)}
