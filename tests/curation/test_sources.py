"""Discovery: file names are data, loops end, lists carry facts, equal bytes are found, and nothing to do is said in words."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.config import CurateConfig, SourceEntry
from curation.content_hashes import HashCache, hash_sources
from curation.inventory import take_inventory
from curation.requests import SourceRequest
from curation.sources import discover, path_of_uri, uri_of_path
from schemas.errors import UsageError

AWKWARD = [
    b"-rf.mp4",
    b"a b.mp4",
    b"new\nline.mp4",
    b"quote'\"`$(x).mp4",
    b"\xff\xfe.mp4",
    "häß 日本.mp4".encode(),
    b"50%41.mp4",
]


def _folder(path: Path, names: list[bytes], data: bytes = b"") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        with open(os.path.join(os.fsencode(path), name), "wb") as stream:
            stream.write(data or name)
    return path


def _discover(**entry: object) -> list[SourceRequest]:
    return discover([SourceEntry.model_validate(entry)])[0]


@given(st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name))
def test_every_path_survives_its_uri(name: bytes) -> None:
    path = os.path.abspath(os.fsdecode(b"/folder/" + name))
    uri = uri_of_path(path)
    assert uri.isascii() and "\n" not in uri and path_of_uri(uri) == path


def test_awkward_names_are_all_found_and_readable(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in", AWKWARD)
    requests, unreadable = hash_sources(_discover(folder=str(folder)), HashCache(tmp_path / "hashes.json"))
    assert len(requests) == len(AWKWARD) and not unreadable
    assert [request.uri for request in requests] == sorted(request.uri for request in requests)
    again = [SourceRequest.from_json(request.to_json()) for request in requests]
    assert again == requests


def test_folders_are_searched_through_links_once(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in", [b"a.mp4", b"b.PNG", b"notes.txt"])
    _folder(folder / "deep" / "er", [b"c.webm"])
    (folder / "deep" / "loop").symlink_to(folder)
    (folder / "broken.mp4").symlink_to(folder / "nowhere")
    requests, ignored = discover([SourceEntry(folder=str(folder))])
    assert sorted(Path(request.path).name for request in requests) == ["a.mp4", "b.PNG", "broken.mp4", "c.webm"]
    assert ignored == 1
    assert {Path(request.path).name: request.branch for request in requests}["b.PNG"] == "image_real"
    _, unreadable = hash_sources(requests, HashCache(tmp_path / "hashes.json"))
    assert [bad.reason for bad in unreadable] == ["cannot be read: No such file or directory"]


def test_a_bare_string_is_a_folder_a_glob_or_a_list(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in", [b"a.mp4", b"b.mp4"])
    (tmp_path / "list.txt").write_text(f"# two\nin/a.mp4\n\n{uri_of_path(folder / 'b.mp4')}\n")
    for text in (str(folder), f"{tmp_path}/**/*.mp4", str(tmp_path / "list.txt")):
        config = CurateConfig(output="out", sources=(text,))  # type: ignore[arg-type]
        assert len(discover(config.sources)[0]) == 2, text


def test_a_parquet_list_gives_branch_domain_and_licence(tmp_path: Path) -> None:
    _folder(tmp_path / "in", [b"a.mp4", b"b.jpg"])
    table = pa.table(
        {
            "uri": ["in/a.mp4", "in/b.jpg"],
            "branch": ["video_synthetic", None],
            "domain": ["street", None],
            "licence": ["CC0", None],
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    first, second = _discover(list=str(tmp_path / "list.parquet"), domain="rest", licence="own")
    assert (first.branch, first.domain, first.licence) == ("video_synthetic", "street", "CC0")
    assert (second.branch, second.domain, second.licence) == ("image_real", "rest", "own")


def test_media_of_the_registry_carry_their_licence() -> None:
    (request,) = _discover(media=("media.chelsea",))
    assert request.kind == "image" and request.licence


def test_the_first_entry_to_name_a_uri_wins(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in", [b"a.mp4"])
    entries = [SourceEntry(folder=str(folder), domain="one"), SourceEntry(folder=str(folder), domain="two")]
    assert [request.domain for request in discover(entries)[0]] == ["one"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: {"folder": str(path / "none")}, "does not exist"),
        (lambda path: {"folder": str(path / "file.txt")}, "is a file, not a folder"),
        (lambda path: {"folder": str(path / "empty")}, "holds no video or image file"),
        (lambda path: {"glob": str(path / "*.mp4")}, "matches nothing"),
        (lambda path: {"list": str(path / "none.parquet")}, "does not exist"),
        (lambda path: {"list": str(path / "ftp.txt")}, "scheme 'ftp'"),
        (lambda path: {"list": str(path / "bad.parquet")}, "not readable Parquet"),
    ],
)
def test_nothing_to_do_is_said_in_words(tmp_path: Path, make: object, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "bad.parquet").write_text("x")
    (tmp_path / "ftp.txt").write_text("ftp://host/a.mp4\n")
    with pytest.raises(UsageError, match=words):
        _discover(**make(tmp_path))  # type: ignore[operator]


def test_a_branch_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    _folder(tmp_path, [b"a.mp4"])
    pq.write_table(pa.table({"uri": ["a.mp4"], "branch": ["image_real"]}), tmp_path / "list.parquet")
    with pytest.raises(UsageError, match="image_real"):
        _discover(list=str(tmp_path / "list.parquet"))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"uri": ["a.mp4", None]}, r"list\.parquet': row 2 \(the first is 1\), column 'uri' is None .*expected text"),
        ({"uri": ["a.mp4", " "]}, r"row 2 .*column 'uri' is empty"),
        ({"uri": ["a.mp4", "b\0.mp4"]}, r"list\.parquet': .*holds a zero byte"),
        ({"uri": [1, 2]}, r"row 1 .*column 'uri' is 1 \(int\), expected text"),
        ({"uri": ["a.mp4", "a.mp4"], "domain": [None, 7]}, r"row 2 .*column 'domain' is 7 \(int\), expected text"),
        ({"uri": ["a.mp4"], "licence": [b"CC0"]}, r"row 1 .*column 'licence' is b'CC0' \(bytes\)"),
        (
            {"uri": ["a.mp4"], "branch": ["video_reel"]},
            r"row 1 .*column 'branch' is 'video_reel', expected one of image_real",
        ),
    ],
)
def test_a_bad_cell_of_a_parquet_list_is_named(tmp_path: Path, columns: dict[str, list[object]], words: str) -> None:
    _folder(tmp_path, [b"a.mp4"])
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    with pytest.raises(UsageError, match=words):
        _discover(list=str(tmp_path / "list.parquet"))


def test_hashes_are_read_from_the_cache_until_the_file_changes(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in", [b"a.mp4"])
    path, cache = folder / "a.mp4", tmp_path / "hashes.json"
    (before,), _ = hash_sources(_discover(folder=str(folder)), HashCache(cache))
    status = path.stat()
    path.write_bytes(b"b.mp4")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (same,), _ = hash_sources(_discover(folder=str(folder)), HashCache(cache))
    assert same.content_hash == before.content_hash, "same size and time: the cache answers"
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    (changed,), _ = hash_sources(_discover(folder=str(folder)), HashCache(cache))
    assert changed.content_hash != before.content_hash
    cache.write_text("{ damaged")
    (again,), _ = hash_sources(_discover(folder=str(folder)), HashCache(cache))
    assert again.content_hash == changed.content_hash


def test_equal_bytes_are_analysed_once_under_the_first_uri(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in", [b"b.mp4", b"a.mp4"], b"same")
    _folder(folder, [b"c.mp4"], b"other")
    config = CurateConfig(output="out", sources=(str(folder),))  # type: ignore[arg-type]
    inventory = take_inventory(config, "fingerprint", tmp_path / "hashes.json")
    first = {Path(path_of_uri(uri)).name: Path(path_of_uri(to)).name for uri, to in inventory.first_uri.items()}
    assert first == {"a.mp4": "a.mp4", "b.mp4": "a.mp4", "c.mp4": "c.mp4"}
    assert len(inventory.by_content()) == 2 and len(set(inventory.key_of.values())) == 2
    moved = CurateConfig(output="out", sources=(str((tmp_path / "in").rename(tmp_path / "moved")),))  # type: ignore[arg-type]
    again = take_inventory(moved, "fingerprint", tmp_path / "hashes.json")
    assert set(again.key_of.values()) == set(inventory.key_of.values()), "a moved file keeps its analysis"
    other = take_inventory(moved, "another fingerprint", tmp_path / "hashes.json")
    assert not set(other.key_of.values()) & set(inventory.key_of.values())
