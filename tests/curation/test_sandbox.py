"""The sandbox: what crashes, hangs, eats memory or raises in the child costs that item only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curation.sandbox import ItemFailureError, Sandbox, WorkerStopError

HERE = Path(__file__).parent
SETUP = {"name": "models"}


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    box = Sandbox(jobs="worker_jobs", log=tmp_path / "log", memory_mb=300, python_path=[str(HERE)])
    yield box
    box.close()


def _call(box: Sandbox, behaviour: str, timeout_s: float = 30.0, **more: object) -> dict[str, object]:
    answer = box.call("analyze", SETUP, {"behaviour": behaviour, **more}, timeout_s=timeout_s)
    assert isinstance(answer, dict)
    return answer


def test_one_child_serves_many_items_and_loads_once(sandbox: Sandbox) -> None:
    first, second = _call(sandbox, "fine"), _call(sandbox, "print")
    assert first["pid"] == second["pid"] != os.getpid()
    assert first["models"] == {"loaded": "models"}


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("crash", "worker killed by SIGSEGV"),
        ("exit", "worker ended with exit code 7"),
        ("raise", "ValueError: no such thing"),
    ],
)
def test_a_failure_has_a_reason_and_the_next_item_succeeds(sandbox: Sandbox, behaviour: str, reason: str) -> None:
    with pytest.raises(ItemFailureError, match=reason):
        _call(sandbox, behaviour)
    assert _call(sandbox, "fine")["behaviour"] == "fine"


def test_a_hanging_item_is_killed_at_its_deadline(sandbox: Sandbox) -> None:
    pid = _call(sandbox, "fine")["pid"]
    with pytest.raises(ItemFailureError, match=r"timed out after 0\.5 s"):
        _call(sandbox, "hang", timeout_s=0.5)
    assert not Path(f"/proc/{pid}").exists()
    assert _call(sandbox, "fine")["pid"] != pid


def test_an_item_above_the_memory_limit_is_killed(sandbox: Sandbox) -> None:
    with pytest.raises(ItemFailureError, match="needed more than 300 MiB of memory"):
        _call(sandbox, "memory", mib=400)


def test_a_full_disk_stops_the_phase_and_blames_no_item(sandbox: Sandbox) -> None:
    with pytest.raises(WorkerStopError, match="No space left"):
        _call(sandbox, "disk full")


def test_models_that_do_not_load_stop_the_phase(sandbox: Sandbox) -> None:
    with pytest.raises(WorkerStopError, match="weights are of another kind"):
        sandbox.call("analyze", {"broken": True}, {"behaviour": "fine"}, timeout_s=10)


def test_a_child_that_is_killed_while_loading_is_started_again_but_not_for_ever(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    setup = {"killed_while_loading": str(tmp_path / "once"), "times": 3}
    assert sandbox.call("analyze", setup, {"behaviour": "fine"}, timeout_s=10)["behaviour"] == "fine"
    with pytest.raises(WorkerStopError, match=r"models of 'analyze' could not be loaded: worker killed by SIGKILL"):
        sandbox.call("analyze", {"killed_while_loading": str(tmp_path / "ever"), "times": 99}, {}, timeout_s=10)
    assert (tmp_path / "once").read_text() == (tmp_path / "ever").read_text() == "..."


def test_jobs_that_do_not_import_stop_the_phase(tmp_path: Path) -> None:
    box = Sandbox(jobs="no_such_module_at_all", log=tmp_path / "log", memory_mb=300)
    with pytest.raises(WorkerStopError, match="could not start: worker ended with exit code 1"):
        _call(box, "fine")
    assert "no_such_module_at_all" in (tmp_path / "log").read_text()


def test_a_killed_parent_takes_its_child_with_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from curation.sandbox import Sandbox\n"
        "box = Sandbox(jobs='worker_jobs', log=Path(sys.argv[2]), memory_mb=300, python_path=[sys.argv[1]])\n"
        "print(box.call('analyze', {}, {'behaviour': 'fine'}, timeout_s=30)['pid'], flush=True)\n"
        "box.call('analyze', {}, {'behaviour': 'hang'}, timeout_s=600)\n"
    )
    arguments = [sys.executable, "-c", program, str(HERE), str(tmp_path / "log")]
    with subprocess.Popen(arguments, cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    """Running, and not a zombie that nobody has waited for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
