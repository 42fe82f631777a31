"""Tars in an object store and behind a web server: ranges alone are read, changed objects alone again, and what servers say becomes a sentence."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest

from planner.indexing.indexer import index_set
from planner.indexing.places import forget_stores
from planner.indexing.rows import index_path
from planner.indexing.rules import IndexRules
from planner.indexing.sidecars import write_dali, write_energon
from planner.stamps import changed_shards
from schemas.errors import DataError, ServiceError, UsageError
from schemas.hashing import table_hash
from schemas.shards import samples_path
from schemas.tables import SAMPLES, read_table

RULES = IndexRules(set_name="theirs")
S3_SERVER = Path(__file__).parents[2] / "curation" / "s3_server.py"


def tar_bytes(first: int, count: int = 4, payload: int = 200_000) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number in range(first, first + count):
            for suffix, data in (("npy", bytes(payload)), ("json", b'{"frames": 33, "height": 64, "width": 112}')):
                info = tarfile.TarInfo(f"{number:05d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("s3_server", S3_SERVER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("s3_server", module)
    spec.loader.exec_module(module)
    with module.serve() as running:
        yield running


class Bucket:
    """A new bucket, and what was asked of it."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.name = f"test-{uuid4().hex[:12]}"
        self._store = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
        self._store.mkdir(self.name)

    def put(self, key: str, data: bytes) -> None:
        self._store.pipe_file(f"{self.name}/{key}", data)

    def get(self, key: str) -> bytes:
        return bytes(self._store.cat_file(f"{self.name}/{key}"))

    def delete(self, key: str) -> None:
        self._store.rm_file(f"{self.name}/{key}")

    def read(self) -> list[str]:
        """Tars of which ranges were read since the last call, one entry per request."""
        return [
            text.rpartition("/")[2]
            for text in self._server.seen()
            if text.startswith(f"GET /{self.name}/") and text.endswith(".tar")
        ]


@pytest.fixture
def bucket(server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    forget_stores()
    made = Bucket(server)
    for number in range(3):
        made.put(f"tars/a-{number}.tar", tar_bytes(100 * number))
    made.read()
    yield made
    server.fail()
    forget_stores()


def test_objects_are_read_by_ranges_and_changed_ones_again(bucket: Bucket, tmp_path: Path) -> None:
    address, output = f"s3://{bucket.name}/tars", tmp_path / "set"
    first = index_set([address], output, RULES)
    assert first.info.location == address and [shard.name for shard in first.info.shards] == [
        "a-0.tar",
        "a-1.tar",
        "a-2.tar",
    ]
    assert all(shard.etag and shard.modified_ns for shard in first.info.shards)
    total = sum(shard.size_bytes for shard in first.info.shards)
    requests = bucket.read()
    assert len(requests) == first.requests and first.bytes_read < total / 2

    (tmp_path / "tars").mkdir()
    for number in range(3):
        (tmp_path / "tars" / f"a-{number}.tar").write_bytes(tar_bytes(100 * number))
    local = index_set([str(tmp_path / "tars")], tmp_path / "local", RULES)
    assert local.report == first.report
    assert table_hash(read_table(samples_path(output), SAMPLES)) == table_hash(
        read_table(samples_path(tmp_path / "local"), SAMPLES)
    )

    assert index_set([f"{address}/a-*.tar"], output, RULES).tars_unchanged == 3
    assert changed_shards(output, first.info) == []
    assert bucket.read() == []

    bucket.put("tars/a-1.tar", tar_bytes(500, count=5))
    bucket.put("tars/a-2.tar", tar_bytes(600))
    messages = changed_shards(output, first.info)
    assert (
        len(messages) == 2
        and messages[0].startswith(f"{address}/a-1.tar has changed: ")
        and "index it again" in messages[0]
    )
    assert f"bytes, set.json says {first.info.shards[1].size_bytes}" in messages[0] and "etag" in messages[1]
    assert bucket.read() == []
    again = index_set([f"{address}/a-{{0..2}}.tar"], output, RULES)
    assert (again.tars_read, again.tars_unchanged) == (2, 1)
    assert set(bucket.read()) == {"a-1.tar", "a-2.tar"}

    bucket.delete("tars/a-0.tar")
    assert "a-0.tar is gone" in changed_shards(output, again.info)[0]
    with pytest.raises(UsageError, match=r"a-0.tar is not there"):
        index_set([f"{address}/a-{{0..2}}.tar"], output, RULES)


def test_index_files_go_beside_the_objects(bucket: Bucket, tmp_path: Path) -> None:
    index_set([f"s3://{bucket.name}/tars"], tmp_path / "set", RULES)
    assert write_dali(tmp_path / "set")[0] == f"s3://{bucket.name}/tars/a-0.idx"
    assert bucket.get("tars/a-0.idx").startswith(b"v1.2 4\nnpy 512 200000 00000.npy json ")
    write_energon(tmp_path / "set")
    assert len(bucket.get("tars/a-0.tar.idx")) == 8 * 5
    assert json.loads(bucket.get("tars/.nv-meta/.info.json"))["shard_counts"]["a-2.tar"] == 4


def test_what_a_store_says_becomes_a_sentence(bucket: Bucket, server: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names no tar"):
        index_set([f"s3://{bucket.name}/nothing"], tmp_path / "set", RULES)
    server.fail({"path": "a-1.tar", "method": "GET", "status": 403, "times": 99})
    with pytest.raises(ServiceError, match=r"a-1.tar cannot be read .* credentials"):
        index_set([f"s3://{bucket.name}/tars"], tmp_path / "set", RULES)
    assert not index_path(tmp_path / "set").exists()


class WebServer(ThreadingHTTPServer):
    """Serves tars by name, with ranges and etags or without."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tars: dict[str, bytes] = {}
        self.ranges = True
        self.etags = True
        self.failures = 0
        """Of the next requests, as many get an error."""
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: WebServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        data = self.server.tars.get(self.path.rpartition("/")[2])
        if data is None:
            self.send_error(404)
            return
        if self.command == "GET" and self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
            return
        asked = self.headers.get("Range") if self.server.ranges else None
        part = data
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1]
        self.server.asked.append(f"{self.command} {self.path}")
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if self.server.etags:
            self.send_header("ETag", f'"{hash(data):x}"')
        self.end_headers()
        if body:
            self.wfile.write(part)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        running.tars = {f"a-{number}.tar": tar_bytes(100 * number) for number in range(2)}
        yield running
        running.shutdown()
        thread.join()
    forget_stores()


def test_a_web_server(web: WebServer, tmp_path: Path) -> None:
    inputs = [f"{web.url}/tars/a-{{0..1}}.tar"]
    first = index_set(inputs, tmp_path / "set", RULES)
    assert first.report.kept == 8 and first.info.location == f"{web.url}/tars"
    assert first.bytes_read < sum(map(len, web.tars.values())) / 2
    web.asked.clear()
    assert index_set(inputs, tmp_path / "set", RULES).tars_unchanged == 2
    assert not any(text.startswith("GET") for text in web.asked)
    web.tars["a-1.tar"] = tar_bytes(700)
    assert index_set(inputs, tmp_path / "set", RULES).tars_read == 1
    with pytest.raises(UsageError, match="cannot be written over HTTP"):
        write_dali(tmp_path / "set")


def test_a_server_that_fails_once_is_asked_again(web: WebServer, tmp_path: Path) -> None:
    web.failures = 1
    assert index_set([f"{web.url}/a-0.tar"], tmp_path / "set", RULES).report.kept == 4


def test_without_etags_nothing_counts_as_unchanged(web: WebServer, tmp_path: Path) -> None:
    web.etags = False
    inputs = [f"{web.url}/a-0.tar"]
    index_set(inputs, tmp_path / "set", RULES)
    assert index_set(inputs, tmp_path / "set", RULES).tars_read == 1


def test_a_server_without_ranges_is_refused(web: WebServer, tmp_path: Path) -> None:
    web.ranges = False
    with pytest.raises(DataError, match="does not give ranges"):
        index_set([f"{web.url}/a-0.tar"], tmp_path / "set", RULES)
    with pytest.raises(UsageError, match="is not there"):
        index_set([f"{web.url}/b.tar"], tmp_path / "set", RULES)


def test_one_set_lies_in_one_place(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(tar_bytes(0))
    with pytest.raises(UsageError, match="the tars lie in 2 places"):
        index_set([f"{web.url}/a-0.tar", str(tmp_path / "b.tar")], tmp_path / "set", RULES)
