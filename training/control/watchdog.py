"""The watchdog: a thread per rank that ends a run in which nothing moves any more, and says which rank it hangs on, at which step and in which phase.

One rank that hangs makes all others wait in a collective, so every rank stands still and no collective can ask who. Each watchdog therefore writes
its rank's heartbeat, and reads the others' once its own rank has stood still for half of the limit. When all stand still for the limit, every rank
writes its stacks and ends with exit code 1, and the first rank that still answers names the culprit, by these rules in this order:

    1. ranks whose watchdog does not beat: the process is stopped, stuck outside Python, or gone with its machine
    2. of the ranks that are furthest behind, those that do not wait in a collective
    3. any that do not wait in a collective
    4. those furthest behind: all wait, so their collectives do not match

If Python as a whole is stuck in this process, the thread cannot run either: then faulthandler's own thread, which needs no Python, writes the
stacks and ends the process, at twice the limit. Time in which the watchdog itself did not run (a suspended job) does not count up to there; a process
that was stopped for more than twice the limit is ended as it goes on, because that thread's clock went on. Price: one small file written per rank
every few seconds; and a rank that works for longer than the limit without passing a phase is taken for one that hangs.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from schemas.command import say
from schemas.files import write_json
from training.config import WatchdogConfig
from training.control.heartbeats import Heartbeat, Pulse, read_heartbeat

__all__ = ["HANGS", "HEARTBEATS", "Seen", "Watchdog", "culprits", "sentence"]

HEARTBEATS, HANGS = "heartbeats", "hangs"
_EXIT_CODE = 1
_OTHERS_SECONDS = 3.0
"""How long the rank that speaks waits for the others' stacks, and half of what they wait for it."""
_TORCH = f"{os.sep}torch{os.sep}"
_WAITING_IN = (f"torch{os.sep}distributed{os.sep}", f"training{os.sep}parallel.py")
_LIBRARY_WAITS = (f"{os.sep}threading.py", f"{os.sep}futures{os.sep}_base.py")
_SAVES, _SAVING_THREAD = os.path.join("training", "checkpoints", "run_saves.py"), "checkpoint"
_STEP, _FETCHES = f"training{os.sep}train_step.py", "fetched_from_device"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A rank as another one sees it."""

    rank: int
    beat: Heartbeat | None
    """None: it never wrote one."""
    is_silent: bool
    """Whether its watchdog has not beaten for a while."""


def culprits(ranks: Sequence[Seen]) -> list[Seen]:
    """The ranks that the others wait for, by the rules of this module; `ranks` all stand still."""
    silent = [one for one in ranks if one.beat is None or one.is_silent]
    if silent:
        return silent
    progress = {one.rank: one.beat.progress for one in ranks if one.beat is not None}
    behind = [one for one in ranks if progress[one.rank] == min(progress.values())]
    at_work = [one for one in ranks if one.beat is not None and not one.beat.waits_for_others]
    return [one for one in behind if one in at_work] or at_work or behind


def sentence(ranks: Sequence[Seen], seconds: float) -> str:
    """Who hangs, where, and what the others do, in words."""
    guilty = culprits(ranks)
    others = [one.beat for one in ranks if one not in guilty and one.beat is not None]
    parts = [_of_one(one, others) for one in guilty[:8]] + ([f"and {len(guilty) - 8} more"] if len(guilty) > 8 else [])
    waiting = ""
    if others:
        ahead = max(others, key=lambda beat: beat.progress)
        waiting = f"; the other {len(others)} wait in step {ahead.step}, phase {ahead.phase}"
    elif len(guilty) > 1:
        waiting = "; all of them wait in collectives that do not match" if _all_wait(guilty) else ""
    return f"nothing has moved for {seconds:g} s: " + ", ".join(parts) + waiting


def _all_wait(ranks: Sequence[Seen]) -> bool:
    return all(one.beat is not None and one.beat.waits_for_others for one in ranks)


def _of_one(one: Seen, others: Sequence[Heartbeat]) -> str:
    if one.beat is None:
        return f"rank {one.rank} never started"
    where = f"process {one.beat.process} on {one.beat.machine}"
    if not one.is_silent:
        return f"rank {one.rank} hangs in step {one.beat.step}, phase {one.beat.phase} ({where})"
    step, phase = one.beat.step, one.beat.phase
    # It took part in every agreement that the others have passed, and was last heard of before.
    if others and (last := min(others, key=lambda beat: beat.progress)).progress > one.beat.progress:
        step, phase = last.step, last.phase
    return f"rank {one.rank} hangs in step {step}, phase {phase} ({where}, which {_state_of(one.beat)})"


def _state_of(beat: Heartbeat) -> str:
    """What the kernel says of a silent process, if it is one of this machine."""
    with suppress(OSError):
        if beat.machine == os.uname().nodename:
            status = Path(f"/proc/{beat.process}/status").read_text(encoding="utf-8", errors="replace")
            state = next((line for line in status.splitlines() if line.startswith("State:")), "")
            return f"does not answer: {' '.join(state.split()[2:]).strip('()')}"
    return "does not answer: stopped, or gone"


class Watchdog:
    """Started by every rank before it meets the others; ends with `stop`."""

    def __init__(
        self,
        config: WatchdogConfig,
        run: Path,
        *,
        rank: int,
        world_size: int,
        pulse: Pulse,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._config = config
        self._run = run
        self._rank = rank
        self._size = world_size
        self._pulse = pulse
        self._leave = leave
        self._ended = threading.Event()
        self._main = threading.main_thread().ident
        self._interval = min(10.0, max(0.05, min(config.seconds, config.first_step_seconds) / 20))
        self._others: dict[int, _Changes] = {}
        self._stacks = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> Watchdog:
        """Begin to beat and to watch; what a killed attempt left behind says nothing of this one."""
        if self._rank == 0:
            self._pulse.forget_other_launches()
        self._thread.start()
        return self

    def stop(self) -> None:
        """The run has ended in order."""
        self._ended.set()
        self._thread.join(_OTHERS_SECONDS)
        faulthandler.cancel_dump_traceback_later()
        self._pulse.close()

    def _watch(self) -> None:
        mine, turn = _Changes(), time.monotonic()
        while not self._ended.wait(self._interval):
            now = time.monotonic()
            if now - turn > 10 * self._interval + 1.0:  # this process was stopped, or the machine suspended
                mine, self._others = _Changes(), {}
            turn = now
            beat = self._pulse.beat(_waits_for_others(self._main))
            limit = self._limit(beat)
            faulthandler.dump_traceback_later(2 * limit, exit=True, file=2)
            if mine.still_s(beat.progress, now) < limit / 2:
                self._others = {}
                continue
            ranks = [self._see(rank, beat, limit, now) for rank in range(self._size)]
            if mine.still_s(beat.progress, now) >= limit and all(ranks):
                self._end([one for one in ranks if one is not None], limit)
                return

    def _limit(self, beat: Heartbeat) -> float:
        return self._config.first_step_seconds if beat.is_first else self._config.seconds

    def _see(self, rank: int, mine: Heartbeat, limit: float, now: float) -> Seen | None:
        """A rank that has stood still while it was looked at; None for one that moves, or was not looked at long enough."""
        if rank == self._rank:
            return Seen(rank=rank, beat=mine, is_silent=False)
        changes = self._others.setdefault(rank, _Changes())
        beat = read_heartbeat(self._run / HEARTBEATS, rank, self._pulse.launch)
        still = changes.still_s(-1 if beat is None else beat.progress, now)
        silent = changes.silent_s(-1 if beat is None else beat.beats, now)
        enough = limit / 2 - 2 * self._interval
        return Seen(rank=rank, beat=beat, is_silent=silent > limit / 4 + self._interval) if still >= enough else None

    def _end(self, ranks: Sequence[Seen], limit: float) -> None:
        """Write this rank's stacks; speak, or wait for the one who does; leave."""
        if self._ended.is_set():
            return
        found = ranks[self._rank].beat
        assert found is not None
        folder = self._run / HANGS / f"step-{max(one.beat.step for one in ranks if one.beat is not None):08d}"
        report = folder / "report.json"
        answering = [one.rank for one in ranks if one.beat is not None and not one.is_silent]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _stacks_path(folder, self._rank).open("w", encoding="utf-8") as stream:
                stream.write(f"rank {self._rank}, step {found.step}, phase {found.phase}, process {found.process}\n\n")
                stream.flush()
                faulthandler.dump_traceback(stream, all_threads=True)
            if self._rank == answering[0]:
                _wait_for([_stacks_path(folder, rank) for rank in answering], _OTHERS_SECONDS)
                self._speak(ranks, limit, folder, report)
            else:
                _wait_for([report], 2 * _OTHERS_SECONDS)
        except OSError as error:
            say(f"error: {sentence(ranks, limit)}; {folder} cannot be written ({error.strerror})")
        finally:
            self._leave(_EXIT_CODE)

    def _speak(self, ranks: Sequence[Seen], limit: float, folder: Path, report: Path) -> None:
        key = "watchdog.first_step_seconds" if ranks[self._rank].beat.is_first else "watchdog.seconds"  # type: ignore[union-attr]
        words = sentence(ranks, limit)
        guilty = [one.rank for one in culprits(ranks)]
        facts = {
            "what": words,
            "hanging_ranks": guilty,
            "limit": {"key": key, "seconds": limit},
            "ranks": [
                {"rank": one.rank, "is_silent": one.is_silent, **({} if one.beat is None else asdict(one.beat))}
                for one in ranks
            ],
        }
        write_json(report, facts)
        say(
            f"error: {words} ({key} is {limit:g}).\nStacks of every rank that answers are in {folder}; "
            "all ranks end now: run the same command again to continue from the last checkpoint"
        )


class _Changes:
    """Since when two counts have not changed, by this process's clock."""

    def __init__(self) -> None:
        self._progress: tuple[int, float] | None = None
        self._beats: tuple[int, float] | None = None

    def still_s(self, progress: int, now: float) -> float:
        """Seconds since progress changed, or was first seen."""
        if self._progress is None or self._progress[0] != progress:
            self._progress = (progress, now)
        return now - self._progress[1]

    def silent_s(self, beats: int, now: float) -> float:
        """The same of beats."""
        if self._beats is None or self._beats[0] != beats:
            self._beats = (beats, now)
        return now - self._beats[1]


def _waits_for_others(main: int | None) -> bool:
    """Whether the main thread waits for other ranks: in a collective, for a device that may be in one, or for its checkpoint's thread that is."""
    frames = sys._current_frames()
    frame = frames.get(main or 0)
    if frame is not None and frame.f_code.co_name == _FETCHES and frame.f_code.co_filename.endswith(_STEP):
        return True
    if _stands_in_collective(frame):
        return True
    while frame is not None and frame.f_code.co_filename.endswith(_LIBRARY_WAITS):
        frame = frame.f_back
    if frame is None or not frame.f_code.co_filename.endswith(_SAVES):
        return False
    saving = [thread.ident for thread in threading.enumerate() if thread.name.startswith(_SAVING_THREAD)]
    return any(_stands_in_collective(frames.get(ident or 0)) for ident in saving)


def _stands_in_collective(frame: FrameType | None) -> bool:
    """Of a thread's innermost frames, those inside torch, one is in torch.distributed or in our own sums."""
    while frame is not None:
        file = frame.f_code.co_filename
        if any(part in file for part in _WAITING_IN):
            return True
        if _TORCH not in file:
            return False
        frame = frame.f_back
    return False


def _stacks_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:04d}-stacks.txt"


def _wait_for(paths: Sequence[Path], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not all(path.is_file() for path in paths):
        time.sleep(0.05)
