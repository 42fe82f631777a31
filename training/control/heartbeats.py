"""Where every rank is: a small file per rank in the run's folder, which the others read when nothing moves any more.

    <run>/heartbeats/rank-0003.json      progress, step, phase, beats, whether it waits for others, process, machine

Files rather than the rendezvous store: checkpoints need a folder that all ranks see anyway, a store's server hangs with the process that serves it,
and a file can be read after everybody is dead. The training thread only sets a tuple; the watchdog's thread writes it down every few seconds, so a
slow file system slows no step. Price: what a stopped process wrote is as old as its last beat. Counts are compared, never clocks of two machines:
every rank passes the same phases in the same order, so whoever has the lower count is behind.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["PHASES", "Heartbeat", "Pulse", "heartbeat_path", "launch_identity", "read_heartbeat"]

PHASES = ("set-up", "data", "forward", "backward", "reduce", "optimizer", "save", "evaluation", "end")
"""data: waiting for the loader. backward: gradients are reduced in it, with a step's last. reduce: sums of a few numbers over ranks."""


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """One rank's file."""

    rank: int
    progress: int
    """Phases that it has entered."""
    step: int
    phase: str
    is_first: bool
    """Whether the process has not finished a step yet: it sets up, compiles, warms up."""
    waits_for_others: bool
    """Whether its main thread stood in a collective at the last beat."""
    beats: int
    """Turns of its watchdog; if they stand still, the process is stopped, stuck as a whole, or gone."""
    process: int
    machine: str
    launch: str = ""
    """Of which attempt of which launcher it is."""


class Pulse:
    """This rank's place: `at` is called by the training thread, `beat` by the watchdog's. Without a folder only this process knows."""

    def __init__(self, folder: Path | None = None, rank: int = 0) -> None:
        self._place = (0, 0, PHASES[0], True)
        self._beats = 0
        self._rank = rank
        self._path = None if folder is None else heartbeat_path(folder, rank)
        self.launch = launch_identity()

    def at(self, phase: str, step: int | None = None) -> None:
        """The rank enters a phase (of a step); also called again within one to say that it goes on."""
        progress, before, _, is_first = self._place
        self._place = (progress + 1, before if step is None else step, phase, is_first)

    def step_done(self) -> None:
        """The process has finished a step."""
        self._place = (*self._place[:3], False)

    @property
    def progress(self) -> int:
        """Phases entered so far."""
        return self._place[0]

    def beat(self, waits_for_others: bool) -> Heartbeat:
        """The watchdog is alive: write down where the rank is."""
        self._beats += 1
        progress, step, phase, is_first = self._place
        beat = Heartbeat(
            rank=self._rank,
            progress=progress,
            step=step,
            phase=phase,
            is_first=is_first,
            waits_for_others=waits_for_others,
            beats=self._beats,
            process=os.getpid(),
            machine=socket.gethostname(),
            launch=self.launch,
        )
        if self._path is not None:
            with suppress(
                OSError
            ):  # a full disk must not end a run that could go on; the others will say that nothing is heard
                self._write(self._path, beat)
        return beat

    def _write(self, path: Path, beat: Heartbeat) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(beat)), encoding="utf-8")
        temporary.replace(path)

    def forget_other_launches(self) -> None:
        """Remove the files that are not of this launch; for rank 0."""
        for path in [] if self._path is None else sorted(self._path.parent.glob("rank-*.json")):
            found = _read(path)
            if found is None or found.launch != self.launch:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Take the file away: the rank has ended in order. The last one takes the folder."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            with suppress(OSError):
                self._path.parent.rmdir()


def heartbeat_path(folder: Path, rank: int) -> Path:
    """`heartbeat_path(Path("heartbeats"), 3)` is `heartbeats/rank-0003.json`."""
    return folder / f"rank-{rank:04d}.json"


def launch_identity() -> str:
    """What differs between two attempts to start the ranks, and is alike on all of one."""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    return " ".join(os.environ.get(name, "-") for name in names)


def read_heartbeat(folder: Path, rank: int, launch: str | None = None) -> Heartbeat | None:
    """A rank's file; None when there is none, or it is not one of ours, or of another launch than this one."""
    found = _read(heartbeat_path(folder, rank))
    return None if found is not None and launch not in (None, found.launch) else found


def _read(path: Path) -> Heartbeat | None:
    try:
        return Heartbeat(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
