"""Seconds per phase and per unit, in a table of their own: no other table holds a clock, so equal inputs give equal tables.

Rows are appended run by run. Price: the file is read and written whole, once per run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from schemas.tables import named_schema, read_table, table_from_rows, write_table

__all__ = ["TIMINGS", "Stopwatch"]

TIMINGS = named_schema(
    "timings",
    1,
    [
        ("run", pa.string()),  # start of the command, UTC
        ("phase", pa.string()),
        ("stage", pa.string()),  # "" in the row of the whole phase
        ("unit", pa.string()),  # "" in the row of the whole phase
        ("status", pa.string()),  # done | quarantined; "phase" in the row of the whole phase
        ("attempts", pa.int32()),
        ("units_done", pa.int32()),
        ("units_skipped", pa.int32()),
        ("seconds", pa.float64()),
    ],
)


class Stopwatch:
    """Collects the timings of one command."""

    def __init__(self) -> None:
        self.run = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.seconds_by_phase: dict[str, float] = {}
        self._counts = {"done": 0, "skipped": 0}
        self._rows: list[dict[str, Any]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[dict[str, int]]:
        """Time a phase; the body fills in `done` and `skipped`."""
        counts = self._counts = {"done": 0, "skipped": 0}
        start = time.monotonic()
        yield counts
        seconds = time.monotonic() - start
        self.seconds_by_phase[name] = self.seconds_by_phase.get(name, 0.0) + seconds
        self._add(name, "", "", "phase", 0, counts["done"], counts["skipped"], seconds)

    @property
    def skipped(self) -> int:
        """Units of the phase at hand that an earlier run did."""
        return self._counts["skipped"]

    def units(self, phase: str, finished: Sequence[dict[str, Any]]) -> None:
        """Add the results of units that came back from the workers."""
        for unit in finished:
            for stage, result in unit["results"].items():
                name = unit["parts"][stage]["unit"]
                self._add(phase, stage, name, result["status"], result["attempts"], 1, 0, result["seconds"])

    def table(self) -> pa.Table:
        """TIMINGS of this command so far."""
        return table_from_rows(TIMINGS, self._rows)

    def save(self, path: Path) -> None:
        """Append this command's rows to the table at `path`."""
        table = self.table()
        if path.is_file():
            table = pa.concat_tables([read_table(path, TIMINGS), table])
        write_table(path, table, TIMINGS)

    def _add(
        self, phase: str, stage: str, unit: str, status: str, attempts: int, done: int, skipped: int, seconds: float
    ) -> None:
        values = (self.run, phase, stage, unit, status, attempts, done, skipped, seconds)
        self._rows.append(dict(zip(TIMINGS.names, values, strict=True)))
