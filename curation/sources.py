"""Which sources there are: folders, globs, lists and registry media become requests, one per uri, and equal bytes are found.

File names are data: they travel as percent-encoded `file://` URIs (not every name is UTF-8) and never reach a shell or an option parser. Content
hashes are cached by (uri, size, mtime). Price: the driver stats every file, and reads each new one once to hash it.
"""

from __future__ import annotations

import glob as globbing
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

from curation.config import SourceEntry
from curation.requests import SourceRequest
from encoders.registry import Registry
from schemas.errors import UsageError
from schemas.files import write_json
from schemas.ids import content_hash
from schemas.tables import BRANCHES

__all__ = [
    "IMAGE_EXTENSIONS",
    "VIDEO_EXTENSIONS",
    "HashCache",
    "Unreadable",
    "discover",
    "hash_sources",
    "path_of_uri",
    "uri_of_path",
]

VIDEO_EXTENSIONS = frozenset(
    (
        ".mp4",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".m4v",
        ".mpg",
        ".mpeg",
        ".ts",
        ".m2ts",
        ".mts",
        ".flv",
        ".wmv",
        ".ogv",
        ".3gp",
    )
)
IMAGE_EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))
_HASH_THREADS = 4
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True)
class Unreadable:
    """A source whose bytes could not be read: it becomes a failed row."""

    request: SourceRequest
    reason: str


def uri_of_path(path: str | os.PathLike[str]) -> str:
    """`file://` URI of a path, every byte that is not unreserved percent-encoded."""
    return "file://" + quote_from_bytes(os.path.abspath(os.fsencode(path)))


def path_of_uri(text: str) -> str:
    """Local path of a `file://` URI or of a plain path; UsageError for any other scheme."""
    scheme = _SCHEME.match(text)
    if scheme is None:
        return os.path.abspath(text)
    if scheme[1].lower() != "file":
        raise UsageError(
            f"source {text!r}: scheme {scheme[1]!r} is not one that this version reads; expected a local path or file://, "
            "so copy or mount the sources first"
        )
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise UsageError(
            f"source {text!r}: expected file:///absolute/path with every special character percent-encoded"
        )
    return os.fsdecode(unquote_to_bytes(parts.path))


def discover(entries: Sequence[SourceEntry], *, cache_dir: Path | None = None) -> tuple[list[SourceRequest], int]:
    """Requests sorted by uri, without content hashes, and how many other files lay beside them; the first entry to name a uri wins.

    Raises:
        UsageError: a folder or list that is not there, a pattern that matches nothing, or no sources at all.
    """
    found: dict[str, SourceRequest] = {}
    ignored = 0
    for entry in entries:
        for path, own in _places(entry, cache_dir):
            request = _request(entry, path, own)
            if request is None:
                ignored += 1
            else:
                found.setdefault(request.uri, request)
    if not found:
        where = "; ".join(_describe(entry) for entry in entries)
        raise UsageError(
            f"no sources: {where} {'holds' if len(entries) == 1 else 'hold'} no video or image file "
            f"({ignored} other files seen; extensions known: {' '.join(sorted(VIDEO_EXTENSIONS | IMAGE_EXTENSIONS))}). "
            "Put files there, or correct `sources` in the config"
        )
    return [found[uri] for uri in sorted(found)], ignored


def _describe(entry: SourceEntry) -> str:
    return next(
        f"{name} {getattr(entry, name)!r}" for name in ("folder", "glob", "list", "media") if getattr(entry, name)
    )


def _places(entry: SourceEntry, cache_dir: Path | None) -> Iterator[tuple[str, dict[str, str]]]:
    """(path, own columns) of everything an entry names."""
    if entry.folder is not None:
        yield from ((path, {}) for path in _walk(path_of_uri(os.path.expanduser(entry.folder)), entry.folder))
    elif entry.glob is not None:
        paths = sorted(globbing.glob(os.path.expanduser(entry.glob), recursive=True))
        if not paths:
            raise UsageError(f"sources: glob {entry.glob!r} matches nothing; quote it, and check it with `ls`")
        yield from ((path, {}) for path in paths if os.path.isfile(path))
    elif entry.list is not None:
        yield from _read_list(Path(path_of_uri(os.path.expanduser(entry.list))))
    else:
        yield from _media(entry.media, Registry(cache_dir=cache_dir))


def _media(names: Sequence[str], registry: Registry) -> Iterator[tuple[str, dict[str, str]]]:
    """Files of registry entries, with the licence that the registry states for them."""
    registry.fetch_many(names)
    for name in names:
        entry = registry.entry(name)
        for file in entry.files:
            yield str(registry.folder(name) / file.name), {"licence": entry.licence_weights}


def _walk(folder: str, given: str) -> Iterator[str]:
    """Files below `folder`, following links to folders but entering no folder twice (links may form loops)."""
    if not os.path.isdir(folder):
        state = "is a file, not a folder" if os.path.exists(folder) else "does not exist"
        raise UsageError(f"sources: folder {given!r} {state} (looked at {folder}); give an existing folder")
    seen: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            status = os.stat(current)
            names = sorted(os.listdir(current))
        except OSError as error:
            raise UsageError(
                f"sources: folder {current!r} cannot be listed ({error.strerror}); correct its permissions"
            ) from error
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in names:
            path = os.path.join(current, name)
            if os.path.isdir(path):
                pending.append(path)
            else:
                yield path


def _read_list(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    if not path.is_file():
        raise UsageError(f"sources: list {str(path)!r} does not exist; give a text or Parquet file")
    if path.suffix == ".parquet":
        yield from _read_parquet_list(path)
        return
    for line in path.read_bytes().split(b"\n"):
        text = os.fsdecode(line.rstrip(b"\r"))
        if text.strip() and not text.startswith("#"):
            yield _from_list(text, path), {}


def _from_list(text: str, path: Path) -> str:
    """Relative paths in a list are relative to the list."""
    if "\0" in text:
        raise UsageError(
            f"sources: list {str(path)!r}: {text!r} holds a zero byte, which no path has; correct the list"
        )
    return path_of_uri(text if _SCHEME.match(text) or os.path.isabs(text) else os.path.join(path.parent, text))


def _read_parquet_list(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        table.validate(full=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"sources: list {str(path)!r} is not readable Parquet ({error})") from error
    if "uri" not in table.column_names:
        raise UsageError(f"sources: list {str(path)!r} has columns {table.column_names}, expected one named 'uri'")
    known = [name for name in ("branch", "domain", "licence") if name in table.column_names]
    for number, row in enumerate(table.select(["uri", *known]).to_pylist(), start=1):
        for name, value in row.items():
            _check_cell(name, value, f"sources: list {str(path)!r}: row {number} (the first is 1), column {name!r}")
        yield _from_list(row["uri"], path), {name: row[name] for name in known if row[name] is not None}


def _check_cell(name: str, value: object, where: str) -> None:
    """UsageError unless the value is text that its column can hold; only `uri` may not be null."""
    if value is None and name != "uri":
        return
    if not isinstance(value, str):
        raise UsageError(f"{where} is {value!r} ({type(value).__name__}), expected text; correct the list")
    if name == "uri" and not value.strip():
        raise UsageError(f"{where} is empty, expected a path or file:// URI; correct the list")
    if name == "branch" and value not in BRANCHES:
        raise UsageError(f"{where} is {value!r}, expected one of {', '.join(BRANCHES)}, or null; correct the list")


def _request(entry: SourceEntry, path: str, own: dict[str, str]) -> SourceRequest | None:
    """The request for one file; None when its extension is not known and nobody listed it by name."""
    extension = os.path.splitext(path)[1].lower()
    if extension in VIDEO_EXTENSIONS:
        kind = "video"
    elif extension in IMAGE_EXTENSIONS:
        kind = "image"
    elif entry.list is not None:
        kind = own.get("branch", "video").partition("_")[0]
    else:
        return None
    branch = own.get("branch", f"{kind}_{entry.origin}")
    if not branch.startswith(kind):
        raise UsageError(
            f"sources: {path!r} is listed as branch {branch!r}, but {extension!r} is a {kind} file; correct the list"
        )
    try:
        size = os.stat(path).st_size
    except OSError:
        size = 0
    return SourceRequest(
        uri=uri_of_path(path),
        path=os.path.abspath(path),
        content_hash=None,
        size_bytes=size,
        kind=kind,
        branch=branch,
        domain=own.get("domain", entry.domain),
        licence=own.get("licence") or entry.licence,
    )


class HashCache:
    """Content hashes by (uri, size, mtime), in one JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[object]] = {}
        if path.is_file():
            try:
                self._known = json.loads(path.read_text(encoding="utf-8"))
            except json.JSONDecodeError:
                self._known = {}  # a cache: what cannot be read is computed again

    def get(self, uri: str, status: os.stat_result) -> str | None:
        entry = self._known.get(uri)
        return str(entry[2]) if entry and entry[:2] == [status.st_size, status.st_mtime_ns] else None

    def put(self, uri: str, status: os.stat_result, value: str) -> None:
        self._known[uri] = [status.st_size, status.st_mtime_ns, value]

    def save(self) -> None:
        write_json(self._path, self._known)


def hash_sources(requests: Iterable[SourceRequest], cache: HashCache) -> tuple[list[SourceRequest], list[Unreadable]]:
    """Requests with content hash and size, in order, and those that cannot be read; the cache is saved."""

    def one(request: SourceRequest) -> SourceRequest | Unreadable:
        try:
            status = os.stat(request.path)
            if not stat.S_ISREG(status.st_mode):
                return Unreadable(request, "not a regular file")
            known = cache.get(request.uri, status)
            if known is None:
                with open(request.path, "rb") as stream:
                    known = content_hash(stream)
                cache.put(request.uri, status, known)
        except OSError as error:
            return Unreadable(request, f"cannot be read: {error.strerror}")
        return replace(request, content_hash=known, size_bytes=status.st_size)

    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        results = list(pool.map(one, requests))
    cache.save()
    readable = [result for result in results if isinstance(result, SourceRequest)]
    return readable, [result for result in results if isinstance(result, Unreadable)]
