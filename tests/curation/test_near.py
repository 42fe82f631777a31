"""What a worker copies near: whole and checked by hash, or a reason; and a local source that changes while it is read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from curation.config import SourceEntry
from curation.content_hashes import HashCache, hash_sources
from curation.leases import start_of
from curation.near import SourceChangedError, bring_near, check_unchanged, near_folder
from curation.objects import Objects
from curation.requests import SourceRequest
from curation.sources import discover

FILM = b"\x1aE\xdf\xa3" + bytes(range(256)) * 300


@pytest.fixture
def request_(bucket: str, tmp_path: Path) -> SourceRequest:
    """A source on the server, listed and hashed."""
    Objects(bucket).write("films/a b.mkv", FILM)
    found, _ = discover([SourceEntry(folder=f"{bucket}/films")])
    (request,), unreadable = hash_sources(found, HashCache(tmp_path / "hashes.json"))
    assert not unreadable and request.content_hash == hashlib.sha256(FILM).hexdigest()
    return request


def _near(request: SourceRequest, folder: Path) -> SourceRequest:
    return SourceRequest.from_json(bring_near({"request": request.to_json()}, "/out", folder)["request"])


def test_a_source_is_copied_near_and_its_uri_stays(request_: SourceRequest, s3: Any, tmp_path: Path) -> None:
    s3.fail({"path": "a b.mkv", "method": "GET", "status": 503, "times": 3})
    near = _near(request_, tmp_path / "copies")
    assert Path(near.path).read_bytes() == FILM and near.path.endswith(".mkv")
    assert (near.uri, near.content_hash) == (request_.uri, request_.content_hash) and "a%20b.mkv" in near.uri


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("removed", r"is not there \(404\)"),
        ("denied", r"access is denied \(403\)"),
        ("longer", r"was written to while the run was at work: \d+ bytes when it was listed, \d+ now"),
        ("shorter", r"was written to while the run was at work: \d+ bytes when it was listed, 9 now"),
    ],
)
def test_a_source_that_changed_gives_the_reason(
    request_: SourceRequest, s3: Any, bucket: str, tmp_path: Path, change: str, words: str
) -> None:
    films = Objects(f"{bucket}/films")
    if change == "removed":
        films.remove(["a b.mkv"])
    elif change == "denied":
        s3.fail({"path": "a b.mkv", "method": "GET", "status": 403, "times": 9})
    else:
        films.write("a b.mkv", FILM + b"more" if change == "longer" else FILM[:9])
    with pytest.raises(SourceChangedError, match=words):
        _near(request_, tmp_path / "copies")


def test_addresses_below_the_output_become_paths(bucket: str, tmp_path: Path) -> None:
    output = Objects(f"{bucket}/run")
    for name in ("commits/analyze/k/clips.parquet", "commits/analyze/k/record.json", "cache/text/u/c.npy", "other"):
        output.write(name, name.encode())
    arguments = {
        "analysis": f"{output.url}/commits/analyze/k",
        "entries": [{"members": {"text.npy": f"{output.url}/cache/text/u/c.npy"}, "caption": "s3://elsewhere/x"}],
        "clip_ids": ["a"],
    }
    near = bring_near(arguments, output.url, tmp_path)
    assert (Path(near["analysis"]) / "clips.parquet").read_bytes() == b"commits/analyze/k/clips.parquet"
    (entry,) = near["entries"]
    assert Path(entry["members"]["text.npy"]).read_bytes() == b"cache/text/u/c.npy"
    assert entry["caption"] == "s3://elsewhere/x" and near["clip_ids"] == ["a"]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3
    assert bring_near(arguments, "/local", tmp_path) == arguments


def test_a_local_source_that_grows_or_vanishes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "films" / "a.mkv"
    path.parent.mkdir()
    path.write_bytes(FILM)
    found, _ = discover([SourceEntry(folder=str(path.parent))])
    (request,), _ = hash_sources(found, HashCache(tmp_path / "hashes.json"))
    check_unchanged({"request": request.to_json()})
    with path.open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(SourceChangedError, match=rf"{len(FILM)} bytes when it was listed, {len(FILM) + 4} now"):
        check_unchanged({"request": request.to_json()})
    path.unlink()
    with pytest.raises(SourceChangedError, match="cannot be read any more: No such file"):
        check_unchanged({"request": request.to_json()})


def test_folders_of_dead_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    names = (f"{1 << 22}-5", f"1-{start_of(1)}", "runs", "1-2-3")
    for name in names:
        (tmp_path / name).mkdir()
    mine = near_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:]} and mine.parent == tmp_path
