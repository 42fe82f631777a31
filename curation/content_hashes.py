"""Content hashes of sources, kept by (uri, size, time of change or etag), and what their first bytes say they are.

Equal bytes are analysed once and a moved file keeps its analysis, so the driver wants the hash before anything else. What the bytes are wins over
what the name says: a JPEG named .mp4 is an image; an HTML page named .mp4 is a row with that reason. Price: the driver reads each new source
once to hash it, and a worker reads it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from curation.file_kinds import HEAD_BYTES, FileKind, kind_of_bytes
from curation.objects import Objects, explain, is_url
from curation.requests import SourceRequest
from schemas.files import write_json

__all__ = ["HashCache", "Unreadable", "fetch_and_hash", "hash_sources", "state_of_file"]

_FILE_THREADS = 4
_OBJECT_THREADS = 16
_BLOCK = 1 << 20
_OBJECT_BLOCK = 1 << 24
_Known = tuple[str, FileKind | None]
"""SHA-256 (hex), and what the first bytes say."""


@dataclass(frozen=True)
class Unreadable:
    """A source whose bytes could not be read, or are neither video nor image: it becomes a failed row."""

    request: SourceRequest
    reason: str


class HashCache:
    """Content hash and what the first bytes say, by (uri, size, version), in one JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[object]] = {}
        self._changed = not path.is_file()
        if path.is_file():
            try:
                self._known = json.loads(path.read_text(encoding="utf-8"))
            except json.JSONDecodeError:
                self._known = {}  # a cache: what cannot be read is computed again

    def get(self, uri: str, size_bytes: int, version: str) -> _Known | None:
        """What is known of the source, if it is as it was."""
        entry = self._known.get(uri)
        if entry is None or len(entry) != 4 or entry[:2] != [size_bytes, version]:
            return None
        return str(entry[2]), None if entry[3] is None else FileKind(*entry[3])  # type: ignore[misc]

    def put(self, uri: str, size_bytes: int, version: str, known: _Known) -> None:
        self._known[uri] = [size_bytes, version, *known]
        self._changed = True

    def save(self) -> bool:
        """Write the file when something is new; whether it was written."""
        if self._changed:
            write_json(self._path, self._known)
        changed, self._changed = self._changed, False
        return changed


def state_of_file(path: str) -> tuple[int, str]:
    """(size, version) of a local file; OSError when it is not there."""
    status = os.stat(path)
    return status.st_size, str(status.st_mtime_ns)


def hash_sources(requests: Iterable[SourceRequest], cache: HashCache) -> tuple[list[SourceRequest], list[Unreadable]]:
    """Requests with content hash, size and version, in order, and those that cannot be read; the cache is saved."""
    requests = list(requests)
    far = any(is_url(request.path) for request in requests)
    with ThreadPoolExecutor(_OBJECT_THREADS if far else _FILE_THREADS) as pool:
        results = list(pool.map(lambda request: _hashed(request, cache), requests))
    cache.save()
    readable = [result for result in results if isinstance(result, SourceRequest)]
    return readable, [result for result in results if isinstance(result, Unreadable)]


def _hashed(request: SourceRequest, cache: HashCache) -> SourceRequest | Unreadable:
    try:
        size, version = _state(request)
        known = cache.get(request.uri, size, version)
        if known is None:
            known = _digest(_blocks(request.path, size))
            cache.put(request.uri, size, version, known)
    except _NoFileError as error:
        return Unreadable(request, str(error))
    except OSError as error:
        said = explain(error) if is_url(request.path) else f"cannot be read: {error.strerror}"
        return Unreadable(request, said)
    return _judged(replace(request, content_hash=known[0], size_bytes=size, version=version), known[1])


class _NoFileError(Exception):
    """There is something of that name, but it has no bytes to hash."""


def _state(request: SourceRequest) -> tuple[int, str]:
    """(size, version) of a source now; of an object, as its listing said."""
    if not is_url(request.path):
        if not stat.S_ISREG(os.stat(request.path).st_mode):
            raise _NoFileError("not a regular file")
        return state_of_file(request.path)
    if request.version:
        return request.size_bytes, request.version
    folder, _, name = request.path.rpartition("/")
    facts = Objects(folder).facts(name)
    if facts is None:
        raise _NoFileError("is not there (404)")
    return facts.size_bytes, facts.version


def _blocks(location: str, size_bytes: int) -> Iterator[bytes]:
    if not is_url(location):
        with open(location, "rb") as stream:
            while block := stream.read(_BLOCK):
                yield block
        return
    folder, _, name = location.rpartition("/")
    objects = Objects(folder)
    for start in range(0, size_bytes, _OBJECT_BLOCK):
        yield objects.read(name, start, min(start + _OBJECT_BLOCK, size_bytes))


def _digest(blocks: Iterator[bytes]) -> _Known:
    digest, head = hashlib.sha256(), b""
    for block in blocks:
        digest.update(block)
        head = head or block[:HEAD_BYTES]
    return digest.hexdigest(), kind_of_bytes(head)


def _judged(request: SourceRequest, found: FileKind | None) -> SourceRequest | Unreadable:
    """The request with the kind that the bytes show; unreadable when they are neither, or contradict a branch that a list states."""
    if found is None or found.kind == request.kind:
        return request
    if found.kind == "other":
        return Unreadable(request, f"is {found.what}, not a video or image")
    if request.branch_stated:
        return Unreadable(request, f"is listed as {request.branch}, but its bytes are {found.what}; correct the list")
    return replace(request, kind=found.kind, branch=f"{found.kind}_{request.branch.partition('_')[2]}")


def fetch_and_hash(request: SourceRequest, target: Path) -> str:
    """Copy an object's bytes to a local file, block by block, and return their SHA-256 (hex)."""
    digest = hashlib.sha256()
    with target.open("wb") as stream:
        for block in _blocks(request.path, request.size_bytes):
            digest.update(block)
            stream.write(block)
    return digest.hexdigest()
