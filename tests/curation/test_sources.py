"""Discovery: file names are data, loops end, lists carry facts, equal bytes are found, and nothing to do is said in words."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.config import CurateConfig, SourceEntry
from curation.content_hashes import HashCache, hash_sources
from curation.inventory import take_inventory
from curation.objects import Objects
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


@pytest.mark.parametrize("mark", [",", "\t"])
def test_a_text_list_may_have_columns(tmp_path: Path, mark: str) -> None:
    _folder(tmp_path / "in", [b"a, b.mp4", b"b.JPG"])
    lines = ["# films", "", mark.join(["uri", "domain", "branch", "licence"])]
    lines += [mark.join(['"in/a, b.mp4"', "street", "video_synthetic", "CC0"]), mark.join(["in/b.JPG", "", "", ""])]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    first, second = _discover(list=str(tmp_path / "list.txt"), domain="rest", licence="own")
    assert Path(first.path).name == "a, b.mp4"
    assert (first.branch, first.domain, first.licence) == ("video_synthetic", "street", "CC0")
    assert (second.branch, second.domain, second.licence) == ("image_real", "rest", "own")


def test_without_a_header_a_line_is_one_name_whatever_it_holds(tmp_path: Path) -> None:
    _folder(tmp_path, [b"a,b\t.mp4", b"\xff.mp4"])
    (tmp_path / "list.txt").write_bytes(b"a,b\t.mp4\r\n\xff.mp4\n")
    assert {os.fsencode(Path(request.path).name) for request in _discover(list=str(tmp_path / "list.txt"))} == {
        b"a,b\t.mp4",
        b"\xff.mp4",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("uri,branch,colour\na.mp4,,\n", r"line 1: columns .* unknown: \['colour'\]; correct the header"),
        ("uri,branch\n\na.mp4,video_reel\n", r"line 3, column 'branch' is 'video_reel', expected one of image_real"),
        ("uri,branch\na.mp4\n", r"line 2 has 1 columns, the header has 2 \(uri, branch\)"),
        ("# x\nuri\tdomain\n\tstreet\n", r"line 3, column 'uri' is empty"),
        ("a.mp4\nb\0.mp4\n", r"holds a zero byte"),
    ],
)
def test_a_bad_line_of_a_text_list_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UsageError, match=words):
        _discover(list=str(tmp_path / "list.txt"))


def test_what_the_bytes_are_wins_over_the_name(tmp_path: Path) -> None:
    _folder(tmp_path / "in", [b"photo.mp4"], b"\xff\xd8\xff\xe0" + b"x" * 99)
    _folder(tmp_path / "in", [b"page.mp4"], b"<!DOCTYPE html><title>404</title>")
    _folder(tmp_path / "in", [b"film.MKV"], b"\x1aE\xdf\xa3" + b"x" * 99)
    cache = tmp_path / "hashes.json"
    for _ in ("computed", "from the cache"):
        requests, unreadable = hash_sources(
            _discover(folder=str(tmp_path / "in"), origin="synthetic"), HashCache(cache)
        )
        assert {Path(one.path).name: one.branch for one in requests} == {
            "photo.mp4": "image_synthetic",
            "film.MKV": "video_synthetic",
        }
        assert [bad.reason for bad in unreadable] == ["is an HTML or XML page, not a video or image"]
    pq.write_table(pa.table({"uri": ["in/photo.mp4"], "branch": ["video_real"]}), tmp_path / "list.parquet")
    listed, contradicted = hash_sources(_discover(list=str(tmp_path / "list.parquet")), HashCache(cache))
    assert not listed and contradicted[0].reason.startswith("is listed as video_real, but its bytes are a JPEG image")


def test_objects_are_sources_by_prefix_pattern_and_list(bucket: str, s3: Any, tmp_path: Path) -> None:
    films = Objects(f"{bucket}/films")
    for name in ("a b.mp4", "deep/c.PNG", "deep/50%41.gif", "notes.txt"):
        films.write(name, name.encode())
    films.write("list.csv", b"uri,domain\ndeep/c.PNG,street\n")
    films.write("empty/", b"")
    s3.seen()
    requests, ignored = discover([SourceEntry(folder=films.url)])
    assert [line for line in s3.seen() if not line.startswith("GET")] == [] and ignored == 2
    assert [request.uri.removeprefix(f"{films.url}/") for request in requests] == [
        "a%20b.mp4",
        "deep/50%2541.gif",
        "deep/c.PNG",
    ]
    assert all(request.version and request.size_bytes for request in requests)
    cache = tmp_path / "hashes.json"
    hashed, _ = hash_sources(requests, HashCache(cache))
    assert [one.content_hash for one in hashed] == [
        hashlib.sha256(name.encode()).hexdigest() for name in ("a b.mp4", "deep/50%41.gif", "deep/c.PNG")
    ]
    s3.seen()
    assert hash_sources(requests, HashCache(cache))[0] == hashed and s3.seen() == [], "the cache answers"
    films.write("a b.mp4", b"other")
    changed, _ = hash_sources(discover([SourceEntry(folder=films.url)])[0], HashCache(cache))
    assert changed[0].content_hash == hashlib.sha256(b"other").hexdigest() and changed[1:] == hashed[1:]
    assert len(_discover(glob=f"{films.url}/**/*.gif")) == 1
    (listed,) = _discover(list=f"{films.url}/list.csv")
    assert listed.uri == f"{films.url}/deep/c.PNG" and listed.domain == "street"


def test_objects_that_cannot_be_read_are_rows_or_refusals(bucket: str, s3: Any, tmp_path: Path) -> None:
    Objects(bucket).write("films/denied.mp4", b"x")
    s3.fail({"path": "denied.mp4", "method": "GET", "status": 403, "times": 9})
    (tmp_path / "list.txt").write_text(f"{bucket}/films/gone.mp4\n{bucket}/films/denied.mp4\n")
    listed = _discover(list=str(tmp_path / "list.txt"))
    readable, unreadable = hash_sources(listed, HashCache(tmp_path / "hashes.json"))
    assert not readable
    assert [bad.reason.partition(":")[0] for bad in unreadable] == ["access is denied (403)", "is not there (404)"]
    with pytest.raises(UsageError, match="holds no object"):
        _discover(folder=f"{bucket}/none")
    with pytest.raises(UsageError, match=r"holds no object|cannot be listed: is not there"):
        _discover(folder="s3://no-such-bucket-here/films")


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
