"""The ledger of replaced clips, `<run>/ledger/lane-0003.jsonl`, written by the rank that runs the lane; a line is a `loader.Substitution`.

A line that cannot be written is kept and tried again with the next one, at each save and at the end. A save flushes the ledger to the disk before
the checkpoint is begun, so that a checkpoint never knows of a step whose replaced clips a loss of power could take away. Price: an fsync for each
lane that had one since the last save, in the training thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from schemas.command import say
from training.loader import Substitution
from training.metrics import LineFile

__all__ = ["Ledger"]


class Ledger:
    """Of one rank."""

    def __init__(self, run: Path) -> None:
        self._folder = run / "ledger"
        self._files: dict[int, LineFile] = {}
        self._waiting: dict[int, list[dict[str, Any]]] = {}
        """By lane, in order: what is not in the file yet."""
        self._unflushed: set[int] = set()

    def append(self, substitutions: Iterable[Substitution]) -> None:
        """Record replaced clips, each with its lane."""
        for substitution in substitutions:
            self._waiting.setdefault(substitution.lane, []).append(dataclasses.asdict(substitution))
        self._write()

    def flush(self) -> None:
        """To the disk, as far as it can be written."""
        self._write()
        self._unflushed = {lane for lane in self._unflushed if not self._files[lane].flush()}

    def close(self) -> None:
        """The end; says how many lines could never be written."""
        self.flush()
        for file in self._files.values():
            file.close()
        lost = sum(map(len, self._waiting.values()))
        if lost:
            say(
                f"warning: {lost} replaced clips are not in {self._folder}, which could not be written; metrics.jsonl counts them"
            )

    def _write(self) -> None:
        for lane in list(self._waiting):
            file = self._files.setdefault(lane, LineFile(self._folder / f"lane-{lane:04d}.jsonl"))
            if file.append(self._waiting[lane]):
                del self._waiting[lane]
                self._unflushed.add(lane)
