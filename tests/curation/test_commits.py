"""Commits: whole or not there, found by name, swept only where they are ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from curation.commits import DONE, QUARANTINED, CommitStore, link_or_copy, output_lock
from schemas.errors import DataError, UsageError

ROOT = Path(__file__).resolve().parents[2]


def _commit(store: CommitStore, key: str, *, status: str = DONE, text: str = "x") -> None:
    with store.unit("analyze", key, {"status": status, "reason": None}) as folder:
        (folder / "a.txt").write_text(text)


def test_a_unit_is_there_with_its_files_and_record(tmp_path: Path) -> None:
    store = CommitStore(tmp_path)
    assert not store.is_committed("analyze", "k")
    _commit(store, "k")
    assert store.record("analyze", "k") == {"files": {"a.txt": 1}, "status": DONE, "reason": None}
    assert store.keys("analyze") == ["k"] and store.keys("other") == []


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    store = CommitStore(tmp_path)
    with pytest.raises(RuntimeError), store.unit("analyze", "k", {"status": DONE}) as folder:
        (folder / "a.txt").write_text("x")
        raise RuntimeError
    assert list((tmp_path / "analyze").iterdir()) == []


def test_a_unit_that_was_committed_meanwhile_stays(tmp_path: Path) -> None:
    store = CommitStore(tmp_path)
    with store.unit("analyze", "k", {"status": DONE}) as folder:
        (folder / "a.txt").write_text("second")
        _commit(store, "k", text="first")
    assert (store.folder("analyze", "k") / "a.txt").read_text() == "first"
    assert store.sweep() == 0


def test_the_sweep_removes_temporaries_and_nothing_else(tmp_path: Path) -> None:
    store = CommitStore(tmp_path)
    _commit(store, "k")
    (tmp_path / "latents" / "64p" / ".tmp-1-x").mkdir(parents=True)
    (tmp_path / "latents" / "64p" / ".tmp-1-x" / "half").write_text("x")
    (tmp_path / "analyze" / ".tmp-2-y").write_text("x")
    (tmp_path / "analyze" / "k" / ".tmp-inside-a-unit").write_text("belongs to the unit")
    (tmp_path / "analyze" / "mine.txt").write_text("x")
    assert store.sweep() == 2
    assert sorted(path.name for path in (tmp_path / "analyze").iterdir()) == ["k", "mine.txt"]
    assert (tmp_path / "analyze" / "k" / ".tmp-inside-a-unit").exists()


def test_quarantined_units_can_be_forgotten(tmp_path: Path) -> None:
    store = CommitStore(tmp_path)
    _commit(store, "good")
    _commit(store, "bad", status=QUARANTINED)
    assert store.forget_quarantined("analyze") == 1
    assert store.keys("analyze") == ["good"]


def test_units_marked_for_retry_are_forgotten_once(tmp_path: Path) -> None:
    store = CommitStore(tmp_path)
    _commit(store, "bad", status=QUARANTINED)
    _commit(store, "gone", status=QUARANTINED)
    store.mark_for_retry([("analyze", "gone"), ("analyze", "never committed")])
    assert store.forget_marked() == 1 and store.keys("analyze") == ["bad"]
    assert store.forget_marked() == 0 and store.keys("retry") == []


@pytest.mark.parametrize("damage", ["cut", "removed", "record"])
def test_a_damaged_unit_does_not_count_and_is_written_again(tmp_path: Path, damage: str) -> None:
    store = CommitStore(tmp_path)
    _commit(store, "k")
    assert store.is_committed("analyze", "k")
    path = tmp_path / "analyze" / "k" / ("record.json" if damage == "record" else "a.txt")
    if damage == "removed":
        path.unlink()
    else:
        os.truncate(path, 0)
    assert not store.is_committed("analyze", "k")
    _commit(store, "k")
    assert store.is_committed("analyze", "k") and (tmp_path / "analyze" / "k" / "a.txt").read_text() == "x"


@pytest.mark.parametrize("text", ["{", '"text"', '{"status": "half"}', '{"status": "done"}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    store = CommitStore(tmp_path)
    _commit(store, "k")
    (tmp_path / "analyze" / "k" / "record.json").write_text(text)
    with pytest.raises(DataError, match=r"record\.json"):
        store.record("analyze", "k")


def test_one_command_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from curation.commits import output_lock\n"
        "with output_lock(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        words = rf"in use by another curation command \(process {other.pid}\)"
        with pytest.raises(UsageError, match=words), output_lock(tmp_path):
            pass
        other.kill()
    with output_lock(tmp_path):
        pass


def test_links_share_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert os.path.samefile(tmp_path / "a", tmp_path / "b")
