"""Whom the watchdog names, from what the ranks' files say; and what it does not take for a hang."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training.config import WatchdogConfig
from training.control.heartbeats import Heartbeat, Pulse, read_heartbeat
from training.control.watchdog import HEARTBEATS, Seen, Watchdog, _waits_for_others, culprits, sentence


def seen(rank: int, progress: int, *, waits: bool, silent: bool = False, step: int = 5, phase: str = "reduce") -> Seen:
    beat = Heartbeat(
        rank=rank,
        progress=progress,
        step=step,
        phase=phase,
        is_first=False,
        waits_for_others=waits,
        beats=9,
        process=1,
        machine="elsewhere",
    )
    return Seen(rank=rank, beat=beat, is_silent=silent)


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([seen(0, 40, waits=True), seen(1, 39, waits=False)], [1]),
        ([seen(0, 40, waits=True), seen(1, 40, waits=False)], [1]),
        ([seen(0, 40, waits=True), seen(1, 40, waits=True), seen(2, 40, waits=False)], [2]),
        ([seen(0, 41, waits=False), seen(1, 40, waits=True)], [0]),
        ([seen(0, 40, waits=False), seen(1, 90, waits=False, silent=True)], [1]),
        ([seen(0, 40, waits=False), Seen(rank=1, beat=None, is_silent=True)], [1]),
        ([seen(0, 41, waits=True), seen(1, 40, waits=True)], [1]),
        ([seen(0, 40, waits=True), seen(1, 40, waits=True)], [0, 1]),
        ([seen(0, 39, waits=False), seen(1, 39, waits=False), seen(2, 40, waits=False)], [0, 1]),
    ],
)
def test_the_rank_that_the_others_wait_for_is_named(ranks: list[Seen], expected: list[int]) -> None:
    assert [one.rank for one in culprits(ranks)] == expected


def test_a_silent_rank_is_placed_where_the_others_wait_for_it() -> None:
    """What it wrote last is older than what it did: it took part in everything that the others have passed."""
    ranks = [seen(0, 60, waits=True, step=7), seen(1, 48, waits=False, silent=True, step=6, phase="data")]
    words = sentence(ranks, 30.0)
    assert words.startswith("nothing has moved for 30 s: rank 1 hangs in step 7, phase reduce (process 1 on elsewhere")
    assert "does not answer" in words and words.endswith("the other 1 wait in step 7, phase reduce")


def test_ranks_that_all_wait_are_said_to() -> None:
    assert "collectives that do not match" in sentence([seen(0, 40, waits=True), seen(1, 40, waits=True)], 1.0)
    assert "rank 1 never started" in sentence([seen(0, 1, waits=True), Seen(rank=1, beat=None, is_silent=True)], 1.0)


def watch(folder: Path, pulse: Pulse, seconds: float, first: float, size: int = 1) -> tuple[Watchdog, list[int]]:
    left: list[int] = []
    config = WatchdogConfig(seconds=seconds, first_step_seconds=first)
    return Watchdog(config, folder, rank=0, world_size=size, pulse=pulse, leave=left.append).start(), left


def test_a_rank_that_moves_is_left_alone_and_one_that_stands_still_is_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pulse = Pulse(tmp_path / HEARTBEATS, 0)
    watchdog, left = watch(tmp_path, pulse, 0.6, 60.0)
    pulse.at("data", 3)
    time.sleep(0.9)
    assert left == [], "the first step may take longer"
    pulse.step_done()
    for _ in range(12):
        pulse.at("forward", 4)
        time.sleep(0.1)
    assert left == [], "it moved"
    deadline = time.monotonic() + 20
    while not left and time.monotonic() < deadline:
        time.sleep(0.05)
    watchdog.stop()
    assert left == [1]
    said = capsys.readouterr().err
    assert "rank 0 hangs in step 4, phase forward" in said and "watchdog.seconds is 0.6" in said
    stacks = (tmp_path / "hangs" / "step-00000004" / "rank-0000-stacks.txt").read_text()
    assert "test_watchdog.py" in stacks
    assert read_heartbeat(tmp_path / HEARTBEATS, 0) is None, "it leaves nothing behind"


def test_a_rank_that_only_others_see_moving_is_not_waited_out(tmp_path: Path) -> None:
    """Rank 0 stands still, rank 1 does not: nothing hangs, for example while rank 1 writes a file alone."""
    pulse, other = Pulse(tmp_path / HEARTBEATS, 0), Pulse(tmp_path / HEARTBEATS, 1)
    pulse.step_done()
    watchdog, left = watch(tmp_path, pulse, 0.4, 0.4, size=2)
    for _ in range(20):
        other.at("evaluation", 1)
        other.beat(False)
        time.sleep(0.1)
    watchdog.stop()
    assert left == []
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())


def test_a_file_that_is_no_heartbeat_is_none(tmp_path: Path) -> None:
    Pulse(tmp_path, 2).beat(True)
    found = read_heartbeat(tmp_path, 2)
    assert found is not None and found.waits_for_others and found.phase == "set-up"
    (tmp_path / "rank-0002.json").write_text("{}")
    assert read_heartbeat(tmp_path, 2) is None and read_heartbeat(tmp_path, 3) is None


def test_a_file_of_an_earlier_launch_says_nothing_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed ranks leave their files; a rank that never starts must not be described by them."""
    monkeypatch.setenv("MASTER_PORT", "1")
    for rank in (1, 2):
        Pulse(tmp_path / HEARTBEATS, rank).beat(False)
    monkeypatch.setenv("MASTER_PORT", "2")
    pulse = Pulse(tmp_path / HEARTBEATS, 0)
    Pulse(tmp_path / HEARTBEATS, 2).beat(False)
    assert read_heartbeat(tmp_path / HEARTBEATS, 1) is not None
    assert read_heartbeat(tmp_path / HEARTBEATS, 1, pulse.launch) is None
    watchdog, _ = watch(tmp_path, pulse, 60.0, 60.0, size=3)
    watchdog.stop()
    assert read_heartbeat(tmp_path / HEARTBEATS, 1) is None, "rank 0 has removed it"
    assert read_heartbeat(tmp_path / HEARTBEATS, 2) is not None


@pytest.mark.parametrize(("stands_in", "waits"), [("torch/distributed/c10d.py", True), ("training/writer.py", False)])
def test_a_rank_waits_for_others_if_the_thread_that_saves_does(stands_in: str, waits: bool) -> None:
    """The main thread waits for its checkpoint's thread alike on every rank; only that thread knows who is late."""
    begun = threading.Event()
    # a wait whose innermost frame of Python is in a file of that name
    spins = compile(
        "def spin(begun, over):\n    begun.set()\n    while not over.flag:\n        pass\n", f"/x/{stands_in}", "exec"
    )
    waiting = compile(
        "def finish(future):\n    return future.result()\n", "/x/training/checkpoints/run_saves.py", "exec"
    )
    names: dict[str, Any] = {}
    exec(spins, names)
    exec(waiting, names)
    stop = SimpleNamespace(flag=False)
    with ThreadPoolExecutor(1, thread_name_prefix="checkpoint") as saving:
        future = saving.submit(names["spin"], begun, stop)
        main = threading.Thread(target=names["finish"], args=(future,))
        main.start()
        try:
            assert begun.wait(10)
            deadline = time.monotonic() + 5
            while _waits_for_others(main.ident) != waits and time.monotonic() < deadline:
                time.sleep(0.01)
            assert _waits_for_others(main.ident) is waits
        finally:
            stop.flag = True
            main.join()


def test_a_rank_whose_device_is_not_done_waits_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from training.train_step import fetched_from_device

    found: list[bool] = []

    class Values:
        def tolist(self) -> list[float]:
            watcher = threading.Thread(target=lambda: found.append(_is_fetching()))
            watcher.start()
            watcher.join()
            return [1.0]

    def _is_fetching() -> bool:
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        while frame.f_code.co_name != "fetched_from_device":  # on a device the wait is inside torch, below this frame
            assert frame.f_back is not None
            frame = frame.f_back
        monkeypatch.setattr(sys, "_current_frames", lambda: {7: frame})
        return _waits_for_others(7)

    assert fetched_from_device(Values()) == [1.0]  # type: ignore[arg-type]
    assert found == [True]
