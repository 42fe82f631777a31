"""Commits on an object store: the record comes last and is the commit, what has none is swept, and copies are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curation.commits import DONE, QUARANTINED, RECORD, CommitStore
from curation.object_commits import ObjectCommits, open_commits
from schemas.errors import DataError


@pytest.fixture
def store(bucket: str, tmp_path: Path) -> ObjectCommits:
    made = open_commits(f"{bucket}/run/commits", tmp_path / "near")
    assert isinstance(made, ObjectCommits)
    return made


def _commit(store: CommitStore, key: str, *, group: str = "analyze", status: str = DONE, text: str = "x") -> None:
    with store.unit(group, key, {"status": status, "reason": None}) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "deep").mkdir()
        (folder / "deep" / "b.txt").write_text(text)


def _again(store: ObjectCommits, path: Path) -> ObjectCommits:
    """As the next command sees it."""
    return ObjectCommits(store.address, path)


def test_a_unit_is_there_with_its_record_last(store: ObjectCommits, s3: Any, tmp_path: Path) -> None:
    assert not store.is_committed("analyze", "k")
    s3.seen()
    _commit(store, "k")
    puts = [line.rpartition("/")[2] for line in s3.seen() if line.startswith("PUT")]
    assert puts[-1] == RECORD and sorted(puts) == ["a.txt", "b.txt", RECORD]
    store.refresh()
    assert store.is_committed("analyze", "k") and store.keys("analyze") == ["k"]
    local = CommitStore(tmp_path / "local")
    _commit(local, "k")
    for name in ("a.txt", "deep/b.txt", RECORD):
        assert (store.folder("analyze", "k") / name).read_bytes() == (local.folder("analyze", "k") / name).read_bytes()
    assert store.file("analyze", "k", "a.txt").read_text() == "x"
    assert not [path for path in store.root.rglob(".tmp-*")]


def test_an_error_inside_leaves_nothing(store: ObjectCommits) -> None:
    with pytest.raises(RuntimeError), store.unit("analyze", "k", {"status": DONE}) as folder:
        (folder / "a.txt").write_text("x")
        raise RuntimeError
    assert store.objects.listing() == {} and not [path for path in store.root.rglob("*") if path.is_file()]


def test_a_unit_that_was_committed_meanwhile_stays(store: ObjectCommits) -> None:
    with store.unit("analyze", "k", {"status": DONE}) as folder:
        (folder / "a.txt").write_text("second")
        _commit(store, "k", text="first")
    assert store.file("analyze", "k", "a.txt").read_text() == "first"


def test_many_units_are_listed_and_brought_together(store: ObjectCommits, s3: Any, tmp_path: Path) -> None:
    keys = [f"k{number}" for number in range(6)]
    for key in keys:
        _commit(store, key, group="latents/64p")
    later = _again(store, tmp_path / "later")
    s3.seen()
    assert all(later.is_committed("latents/64p", key) for key in keys) and not later.is_committed("latents/64p", "none")
    seen = s3.seen()
    assert len(seen) == 1 + len(keys), "one page, and each record"
    later.bring("latents/64p", keys)
    s3.seen()
    assert all((later.folder("latents/64p", key) / "a.txt").is_file() for key in keys) and s3.seen() == []


def test_what_a_killed_worker_left_is_swept_and_nothing_else(store: ObjectCommits, tmp_path: Path) -> None:
    _commit(store, "k")
    store.objects.write("analyze/half/a.txt", b"x")
    store.objects.write("latents/64p/half/latent.npy", b"x")
    store.objects.write("hashes.json", b"{}")
    assert store.sweep() == 2
    names = {"hashes.json", "analyze/k/a.txt", "analyze/k/deep/b.txt", f"analyze/k/{RECORD}"}
    assert set(store.objects.listing()) == names and store.sweep() == 0


@pytest.mark.parametrize("damage", ["cut", "removed", "record"])
def test_a_damaged_unit_does_not_count_and_is_written_again(store: ObjectCommits, tmp_path: Path, damage: str) -> None:
    _commit(store, "k")
    if damage == "removed":
        store.objects.remove(["analyze/k/a.txt"])
    else:
        store.objects.write(f"analyze/k/{RECORD if damage == 'record' else 'a.txt'}", b"")
    later = _again(store, tmp_path / "later")
    assert not later.is_committed("analyze", "k")
    if damage == "record":
        with pytest.raises(DataError, match=r"s3://.*record\.json"):
            later.record("analyze", "k")
    _commit(later, "k", text="y")
    later.refresh()
    assert later.is_committed("analyze", "k") and later.file("analyze", "k", "a.txt").read_text() == "y"


def test_quarantined_and_marked_units_can_be_forgotten(store: ObjectCommits, tmp_path: Path) -> None:
    _commit(store, "good")
    _commit(store, "bad", status=QUARANTINED)
    _commit(store, "gone", status=QUARANTINED)
    store.mark_for_retry([("analyze", "gone")])
    later = _again(store, tmp_path / "later")
    assert later.forget_marked() == 1 and later.keys("analyze") == ["bad", "good"] and later.keys("retry") == []
    assert later.forget_quarantined("analyze") == 1 and later.keys("analyze") == ["good"]
    assert not later.is_committed("analyze", "bad")
