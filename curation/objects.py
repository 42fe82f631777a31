"""Objects below one address of an object store (`s3://`, `gs://`), by name: read, write, create, list, copy, remove, many at a time.

The only module that knows fsspec. An object appears whole under its final key or not at all (single puts and completed multipart uploads are
atomic; a failed multipart upload is aborted), so nothing is renamed. Listings come in pages with size and version (etag or generation), so no
object is asked for by itself. The client retries server errors and timeouts; reading goes on retrying for some seconds more. Credentials and
endpoint come from the environment (`AWS_*`, `AWS_ENDPOINT_URL`) or the machine's role, and go nowhere else. Price: a request per object.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from schemas.errors import PreflightError

__all__ = ["SCHEMES", "ObjectFacts", "Objects", "explain", "forget_clients", "is_url", "patiently", "split_url"]

SCHEMES = {"s3": "s3fs", "gs": "gcsfs"}
"""Scheme to the package that fsspec needs for it, which is also the name of our extra without its `fs`."""
_REFUSED_PUTS = ("PreconditionFailed", "ConditionalRequestConflict", "pre-condition", "conflicting conditional")
"""How stores say that the condition of a put did not hold."""
_BACK_OFF_SECONDS = (0.5, 2.0, 8.0)

T = TypeVar("T")


@dataclass(frozen=True)
class ObjectFacts:
    """What a listing says of an object."""

    size_bytes: int
    version: str
    """Etag, generation or time of change: another one means other bytes."""


def is_url(address: str) -> bool:
    """Whether an address is one of an object store; paths and `file://` are not.

    >>> is_url("s3://bucket/films"), is_url("/films"), is_url("file:///films")
    (True, False, False)
    """
    scheme, mark, _ = address.partition("://")
    return bool(mark) and scheme.lower() in SCHEMES


def split_url(url: str) -> tuple[str, str]:
    """(`s3://bucket`, key) of an address.

    >>> split_url("s3://bucket/films/a.mp4")
    ('s3://bucket', 'films/a.mp4')
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme.lower()}://{bucket}", key


@cache
def _file_system(scheme: str) -> Any:
    """One client per process and scheme; listings are never kept, because other processes write."""
    import fsspec

    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        package = SCHEMES[scheme]
        raise PreflightError(
            f"addresses of {scheme}:// need the package {package}, which is not here ({error}); "
            f"install it with `pip install 'reelyard[{scheme}]'`"
        ) from error


def forget_clients() -> None:
    """Connect anew, for a process whose environment names another endpoint or account now; public because a client is kept as long as the process."""
    _file_system.cache_clear()


def explain(error: BaseException) -> str:
    """One line of words for what an object store said."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return f"is not there (404): {text}"
    if "NoCredentials" in type(error).__name__ or "Unable to locate credentials" in text:
        return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
    if isinstance(error, PermissionError):
        return f"access is denied (403): {text}"
    return f"{type(error).__name__}: {text}"


def patiently(call: Callable[[], T]) -> T:
    """The call's result, tried again with back-off when the store or the network fails; what is missing or denied is not tried again."""
    for seconds in _BACK_OFF_SECONDS:
        try:
            return call()
        except (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except OSError:
            time.sleep(seconds)
        except Exception as error:  # the clients' own classes, which are no OSError
            if "Credentials" in type(error).__name__:
                raise PermissionError(explain(error)) from error
            time.sleep(seconds)
    return call()


class Objects:
    """The objects whose keys start with the address and a slash."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        bucket, key = split_url(self.url)
        scheme, _, name = bucket.partition("://")
        self._scheme = scheme
        self._root = f"{name}/{key}".rstrip("/")
        self._small: dict[str, Any] = {"max_concurrency": 1} if scheme == "s3" else {}
        """Read by one request, without asking for the size first."""

    @property
    def _fs(self) -> Any:
        return _file_system(self._scheme)

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """All bytes, or those from `start` up to `end`; FileNotFoundError when there is no such object."""
        return bytes(patiently(lambda: self._fs.cat_file(self._key(name), start=start, end=end, **self._small)))

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """Name to bytes of the objects that exist."""
        keys = {self._key(name): name for name in names}
        found = patiently(lambda: self._fs.cat(list(keys), on_error="return", **self._small)) if keys else {}
        result: dict[str, bytes] = {}
        for key, value in found.items():
            if isinstance(value, bytes):
                result[keys[key]] = value
            elif not isinstance(value, FileNotFoundError):
                raise value
        return result

    def write(self, name: str, data: bytes) -> None:
        """Put an object in place, whole."""
        patiently(lambda: self._fs.pipe_file(self._key(name), data))

    def create(self, name: str, data: bytes) -> bool:
        """Put an object in place unless there is one; whether it was this call that did."""
        return self._put_if(name, data, mode="create")

    def exchange(self, name: str, data: bytes, version: str) -> bool:
        """Put an object in the place of another if that one still has this version; whether it did."""
        if self._scheme == "s3":
            return self._put_if(name, data, IfMatch=version)
        facts = self.facts(name)
        if facts is None or facts.version != version:
            return False
        self.remove([name])
        return self.create(name, data)

    def _put_if(self, name: str, data: bytes, **condition: Any) -> bool:
        try:
            self._fs.pipe_file(self._key(name), data, **condition)
        except (FileExistsError, FileNotFoundError):
            return False
        except OSError as error:
            if any(word in str(error) for word in _REFUSED_PUTS):
                return False
            raise
        return True

    def facts(self, name: str) -> ObjectFacts | None:
        """Size and version; None when there is no such object."""
        try:
            return _facts(patiently(lambda: self._fs.info(self._key(name))))
        except FileNotFoundError:
            return None

    def listing(self, below: str = "") -> dict[str, ObjectFacts]:
        """Name to facts of every object below a folder, at any depth; keys that end in a slash are left out."""
        start = self._key(below)
        found = patiently(lambda: self._fs.find(start, detail=True))
        prefix = f"{self._root}/"
        return {
            key[len(prefix) :]: _facts(info)
            for key, info in sorted(found.items())
            if key.startswith(prefix) and info["type"] == "file" and not key.endswith("/")
        }

    def matching(self, pattern: str) -> dict[str, ObjectFacts]:
        """Name to facts of the objects whose name matches a glob pattern."""
        found = patiently(lambda: self._fs.glob(self._key(pattern), detail=True))
        prefix = f"{self._root}/"
        return {
            key[len(prefix) :]: _facts(info)
            for key, info in sorted(found.items())
            if info["type"] == "file" and not key.endswith("/")
        }

    def upload(self, files: Mapping[str, Path]) -> None:
        """Put local files in place, several at a time, in no particular order."""
        if files:
            paths, keys = [str(path) for path in files.values()], [self._key(name) for name in files]
            patiently(lambda: self._fs.put(paths, keys))

    def fetch(self, files: Mapping[str, Path]) -> None:
        """Copy objects to local files, several at a time; FileNotFoundError when one is not there."""
        if files:
            for path in files.values():
                path.parent.mkdir(parents=True, exist_ok=True)
            keys, paths = [self._key(name) for name in files], [str(path) for path in files.values()]
            patiently(lambda: self._fs.get(keys, paths))

    def copy(self, name: str, to: str) -> None:
        """A second object with the same bytes; they do not pass through this machine."""
        patiently(lambda: self._fs.copy(self._key(name), self._key(to)))

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; one that is not there is no error."""
        keys = [self._key(name) for name in names]
        if keys:
            patiently(lambda: self._fs.rm(keys))


def _facts(info: Mapping[str, Any]) -> ObjectFacts:
    version = info.get("ETag") or info.get("etag") or info.get("generation") or info.get("LastModified") or ""
    return ObjectFacts(int(info["size"] or 0), str(version).strip('"'))
