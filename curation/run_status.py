"""What a running command says of itself: one small file in the output folder, rewritten every second, and the progress lines.

The driver knows every queue and every result, so it alone writes; `reelyard-curate status` reads the file, on any machine that sees the output,
while the command runs, after it ended and after it was killed. Price: a second of delay, and one rename a second on the output's file system.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from curation.commits import QUARANTINED
from curation.run_metrics import RunMetrics
from schemas.command import say
from schemas.files import TEMPORARY_PREFIX

__all__ = ["STATUS_FILE", "Board", "StageLoad", "process_start"]

STATUS_FILE = ".status.json"
_TICK_SECONDS = 1.0
_LINE_EVERY_SECONDS = 5.0


@dataclass(frozen=True)
class StageLoad:
    """How busy a stage is."""

    name: str
    workers: int
    running: int
    waiting: int
    done: int
    busy_seconds: float


@dataclass
class _Work:
    """The units of one phase on their way through the workers."""

    phase: str
    total: int
    total_weight: float
    skipped: int
    done: int = 0
    done_weight: float = 0.0
    quarantined: int = 0
    clips: int = 0
    video_seconds: float = 0.0
    start: float = field(default_factory=time.monotonic)
    first_ready: float | None = None
    worker_seconds: dict[str, float] = field(default_factory=dict)
    """Stage to the seconds that its ready workers were there: what its busy seconds are a share of."""
    loads: list[StageLoad] = field(default_factory=list)
    loads_at: float = field(default_factory=time.monotonic)

    def facts(self) -> dict[str, Any]:
        now = time.monotonic()
        seconds = now - self.start
        remaining = None
        if self.done_weight > 0 and self.first_ready is not None:
            remaining = (now - self.first_ready) * (self.total_weight - self.done_weight) / self.done_weight
        stages = []
        for load in self.loads:
            held = self.worker_seconds.get(load.name, 0.0)
            stages.append({**asdict(load), "busy_share": min(1.0, load.busy_seconds / held) if held > 0 else None})
        return {
            "phase": self.phase,
            "units": self.total,
            "skipped": self.skipped,
            "done": self.done,
            "quarantined": self.quarantined,
            "queue": self.total - self.done,
            "seconds": seconds,
            "clips": self.clips,
            "clips_per_second": self.clips / seconds if seconds > 0 else 0.0,
            "video_seconds": self.video_seconds,
            "video_hours_per_hour": self.video_seconds / seconds if seconds > 0 else 0.0,
            "seconds_left": remaining,
            "stages": stages,
        }


class Board:
    """State of one command. With a folder it writes the status file there; without one it only shows progress."""

    def __init__(self, folder: Path | None, *, metrics: RunMetrics | None = None) -> None:
        self._path = None if folder is None else folder / STATUS_FILE
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._work: _Work | None = None
        self._finished: list[dict[str, Any]] = []
        self._metrics = RunMetrics() if metrics is None else metrics
        self._state: dict[str, Any] = {"state": "running", "phase": None, "error": None, "phases": []}
        self._state |= {"pid": os.getpid(), "process_start": process_start(os.getpid()), "host": os.uname().nodename}

    @contextmanager
    def command(self, run: str, phases: Sequence[str]) -> Iterator[None]:
        """Write the file from here on; the last one says how the command ended."""
        self._state |= {"run": run, "started": time.time(), "phases": list(phases)}
        self._write()
        thread = threading.Thread(target=self._keep_writing, daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            self._state |= {"state": "failed", "error": f"{type(error).__name__}: {error}"}
            raise
        else:
            self._state |= {"state": "done", "phase": None}
        finally:
            self._end.set()
            thread.join()
            self._write()

    def phase(self, name: str) -> None:
        """The phase that begins now."""
        self._state["phase"] = name
        self._write()

    @contextmanager
    def work(self, what: str, units: Sequence[dict[str, Any]], *, skipped: int = 0) -> Iterator[None]:
        """Show the progress of these units for the block."""
        work = _Work(what, len(units), sum(_weight(unit) for unit in units), skipped)
        with self._lock:
            self._work = work
        end = threading.Event()
        thread = threading.Thread(target=_show, args=(work, end), daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
            with self._lock:
                self._finished.append(work.facts())
                self._work = None

    def loads(self, loads: list[StageLoad]) -> None:
        """What each stage does at this moment."""
        work = self._work
        if work is None:
            return
        with self._lock:
            now = time.monotonic()
            for load in work.loads:
                held = work.worker_seconds.get(load.name, 0.0)
                work.worker_seconds[load.name] = held + load.workers * (now - work.loads_at)
            work.loads, work.loads_at = loads, now
            if work.first_ready is None and any(load.workers for load in loads):
                work.first_ready = now
        self._metrics.loads(work.phase, loads)

    def finished(self, unit: dict[str, Any]) -> None:
        """A unit went through every stage."""
        work = self._work
        if work is None:
            return
        results = unit["results"].values()
        with self._lock:
            quarantined = any(result["status"] == QUARANTINED for result in results)
            counts = [result["counts"] for result in results if result.get("counts")]
            clips = max((count["clips"] for count in counts), default=0)
            video_seconds = max((count["video_seconds"] for count in counts), default=0.0)
            work.done += 1
            work.done_weight += _weight(unit)
            work.quarantined += quarantined
            work.clips += clips
            work.video_seconds += video_seconds
        self._metrics.unit(work.phase, quarantined=quarantined, clips=clips, video_seconds=video_seconds)

    def _keep_writing(self) -> None:
        while not self._end.wait(_TICK_SECONDS):
            self._write()

    def _write(self) -> None:
        """Written whole and renamed; not flushed to disk, since it is worth nothing after a power cut."""
        if self._path is None:
            return
        with self._lock:
            now = None if self._work is None else self._work.facts()
            value = {**self._state, "updated": time.time(), "work": now, "finished": self._finished}
            temporary = self._path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}{STATUS_FILE}")
            try:
                temporary.write_text(json.dumps(value) + "\n", encoding="utf-8")
                os.replace(temporary, self._path)
            except OSError:
                return  # a full disk: the run itself says so


def _weight(unit: dict[str, Any]) -> float:
    """How much work a unit is, for the estimate of the end: its parts' own measure, else one."""
    return float(sum(part.get("weight", 1.0) for part in unit["parts"].values()))


def _show(work: _Work, end: threading.Event) -> None:
    """A bar on a terminal, else a plain line every few seconds and at the end."""
    if sys.stderr.isatty():
        text = TextColumn("{task.fields[rate]}")
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), text, console=Console(stderr=True)
        ) as bar:
            task = bar.add_task(work.phase, total=work.total, rate="")
            while not end.wait(_TICK_SECONDS / 4):
                bar.update(task, completed=work.done, rate=progress_text(work.facts()))
            bar.update(task, completed=work.done, rate="")
        return
    last = time.monotonic()
    while not end.wait(_TICK_SECONDS / 4):
        if time.monotonic() - last >= _LINE_EVERY_SECONDS:
            last = time.monotonic()
            say(f"{work.phase}: {work.done} of {work.total}{progress_text(work.facts())}")
    say(f"{work.phase}: {work.done} done")


def progress_text(facts: dict[str, Any]) -> str:
    """Rates and the time left, for the end of a progress line.

    >>> progress_text({"clips_per_second": 3.0, "video_hours_per_hour": 1.5, "seconds_left": 120.0})
    ', 3.0 clips/s, 1.5 video hours/h, about 2 min left'
    """
    text = ""
    if facts["clips_per_second"] > 0:
        text += f", {facts['clips_per_second']:.1f} clips/s"
    if facts["video_hours_per_hour"] > 0:
        text += f", {facts['video_hours_per_hour']:.1f} video hours/h"
    if facts["seconds_left"] is not None:
        text += f", about {duration_text(facts['seconds_left'])} left"
    return text


def duration_text(seconds: float) -> str:
    """
    >>> duration_text(45.2), duration_text(600), duration_text(9000)
    ('45 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def process_start(pid: int) -> int | None:
    """Kernel's start time of a process (clock ticks after boot): with the id it names a process for good; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])
