"""Where tars are: paths, URLs, globs and braces to a list of tars with their sizes and stamps.

A stamp is what tells that a tar is no longer the one that was indexed: size and time of change of a file, size and etag (or time of change) of an
object. Local files go through `os`, everything else through fsspec, imported only then. One listing serves all objects of a folder or glob.
"""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from itertools import product
from typing import Any, TypeVar

from schemas.errors import DataError, PreflightError, ServiceError, UsageError

__all__ = [
    "TarPlace",
    "common_location",
    "expand_braces",
    "find_place",
    "find_tars",
    "forget_stores",
    "is_remote",
    "open_store",
    "store_call",
]

T = TypeVar("T")

_INFO_THREADS = 32
_BACK_OFF_SECONDS = (0.2, 1.0, 4.0)
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "fsspec", "s3fs")
_EXTRAS = {"s3": "pip install 'reelyard[s3]'", "gs": "pip install 'reelyard[gs]'"}
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class TarPlace:
    """A tar and its stamp."""

    address: str
    """Path or URL."""
    size_bytes: int
    modified_ns: int | None
    """Nanoseconds since 1970, or null where it is not known."""
    etag: str | None
    """Of an object; null for files."""


def is_remote(address: str) -> bool:
    """Whether an address is a URL other than `file://`.

    `is_remote("s3://bucket/a.tar")`, and not `is_remote("/data/a.tar")`.
    """
    scheme, mark, _ = address.partition("://")
    return bool(mark) and scheme != "file"


def expand_braces(text: str) -> list[str]:
    """`expand_braces("a-{00..02}.tar") == ["a-00.tar", "a-01.tar", "a-02.tar"]`; `{x,y}` works as well, several times over."""
    parts = _BRACES.split(text)
    choices: list[Sequence[str]] = []
    for position, part in enumerate(parts):
        numbers = _NUMBERS.fullmatch(part) if position % 2 else None
        if numbers is not None:
            first, last = numbers.groups()
            choices.append([f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)])
        elif position % 2 and "," in part:
            choices.append(part.split(","))
        else:
            choices.append([f"{{{part}}}" if position % 2 else part])
    return ["".join(choice) for choice in product(*choices)]


def find_tars(inputs: Sequence[str]) -> list[TarPlace]:
    """Every tar that the inputs name, once, sorted by address: a tar, a folder (its `*.tar`), a glob or braces, as paths or URLs.

    Raises:
        UsageError: nothing is given, or an input names no tar.
        DataError: a server does not say how large an object is.
    """
    if not inputs:
        raise UsageError(
            "no tars are given; name tars, folders or globs: reelyard-plan index 'tars/*.tar' --output sets/theirs"
        )
    found: dict[str, TarPlace] = {}
    for text in inputs:
        places = list(_remote_tars(text) if is_remote(text) else _local_tars(text.removeprefix("file://")))
        if not places:
            raise UsageError(
                f"{text!r} names no tar; give tars, a folder that holds *.tar, or a glob, as paths or URLs"
            )
        found |= {place.address: place for place in places}
    return [found[address] for address in sorted(found)]


def find_place(address: str) -> TarPlace | None:
    """The tar at an address as it is now, or None if there is none."""
    if not is_remote(address):
        try:
            return _local_place(address)
        except (FileNotFoundError, NotADirectoryError):
            return None
    store, path = open_store(address)
    try:
        return _remote_place(address, store_call(address, lambda: store.info(path)))
    except FileNotFoundError:
        return None


def common_location(places: Sequence[TarPlace]) -> tuple[str, list[str]]:
    """The deepest folder or URL that holds all tars, and each tar's path below it.

    Raises:
        UsageError: there is no such folder, because they lie in different stores.
    """
    folders = [place.address.rpartition("/")[0] for place in places]
    kinds = {"/".join(folder.split("/")[:3]) if is_remote(folder) else "this machine" for folder in folders}
    if len(kinds) > 1:
        raise UsageError(
            f"the tars lie in {len(kinds)} places ({', '.join(sorted(kinds)[:3])}), a set lies in one; index them to a set each, "
            "a plan can read several"
        )
    shared = folders[0].split("/")
    for folder in folders[1:]:
        parts = folder.split("/")
        same = next((at for at, pair in enumerate(zip(shared, parts, strict=False)) if pair[0] != pair[1]), None)
        shared = shared[: min(len(shared), len(parts)) if same is None else same]
    location = "/".join(shared) or "/"
    skip = len("/".join(shared)) + 1
    return location, [place.address[skip:] for place in places]


@cache
def _store(scheme: str) -> Any:
    """One client per scheme; listings are not kept, because what changes must be seen."""
    import fsspec

    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        hint = _EXTRAS.get(scheme, "pip install 'fsspec[http]'")
        raise PreflightError(f"addresses of {scheme}:// need a package that is not here ({error}); {hint}") from error
    except ValueError as error:
        raise UsageError(
            f"addresses of {scheme}:// are not known ({error}); give paths, s3://, gs:// or https://"
        ) from error


def open_store(address: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path within it."""
    scheme = address.partition("://")[0]
    store = _store(scheme)
    return store, str(store._strip_protocol(address))


def store_call(address: str, call: Callable[[], T]) -> T:
    """The call's result, tried again with back-off where the network or the server fails; a missing object stays a FileNotFoundError.

    Raises:
        ServiceError: the store refused, or did not answer after several tries.
    """
    for seconds in (*_BACK_OFF_SECONDS, None):
        try:
            return call()
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise ServiceError(_sentence(address, error)) from error
        except Exception as error:
            if not isinstance(error, OSError | RuntimeError | ValueError) and not _is_of_a_client(error):
                raise
            if seconds is None:
                raise ServiceError(_sentence(address, error)) from error
            time.sleep(seconds)
    raise AssertionError("the last try returns or raises")


def _is_of_a_client(error: Exception) -> bool:
    """Whether an error has a class of the stores' clients, which derive from nothing narrower than Exception."""
    return type(error).__module__.split(".")[0] in _CLIENTS


def _sentence(address: str, error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return f"{address} cannot be read ({type(error).__name__}: {said}); check the address, the network and the credentials in the environment"


def _local_tars(text: str) -> Iterator[TarPlace]:
    for pattern in [text] if os.path.exists(text) else expand_braces(text):
        if os.path.isdir(pattern):
            paths = sorted(glob.glob(os.path.join(glob.escape(pattern), "*.tar")))
        elif os.path.exists(pattern):
            paths = [pattern]
        else:
            paths = sorted(glob.glob(pattern, recursive=True))
            if not paths:
                raise UsageError(
                    f"{pattern!r} names no tar; give tars, a folder that holds *.tar, or a glob, as paths or URLs"
                )
        yield from (_local_place(os.path.abspath(path)) for path in paths if os.path.isfile(path))


def _local_place(path: str) -> TarPlace:
    facts = os.stat(path)
    return TarPlace(path, facts.st_size, facts.st_mtime_ns, None)


def _remote_tars(text: str) -> Iterator[TarPlace]:
    single: list[str] = []
    for pattern in expand_braces(text):
        if pattern.endswith(".tar") and not glob.has_magic(pattern):
            single.append(pattern)
            continue
        store, path = open_store(pattern if glob.has_magic(pattern) else f"{pattern.rstrip('/')}/*.tar")
        listed = store_call(pattern, partial(store.glob, path, detail=True))
        for key, facts in listed.items():
            address = str(store.unstrip_protocol(key))
            if facts.get("size") is None:
                single.append(address)
            elif facts.get("type") != "directory":
                yield _remote_place(address, facts)
    with ThreadPoolExecutor(_INFO_THREADS) as pool:
        for address, place in zip(single, pool.map(find_place, single), strict=True):
            if place is None:
                raise UsageError(f"{address} is not there; correct the address, or leave it out")
            yield place


def _remote_place(address: str, facts: Mapping[str, Any]) -> TarPlace:
    if facts.get("size") is None:
        raise DataError(
            f"{address}: the server does not say how large it is, so that no range can be read; copy it to a folder or bucket"
        )
    etag = next((str(facts[name]) for name in ("ETag", "etag", "md5Hash", "Content-MD5") if facts.get(name)), None)
    changed = next(
        (facts[name] for name in ("LastModified", "updated", "mtime", "Last-Modified") if facts.get(name)), None
    )
    return TarPlace(address, int(facts["size"]), _nanoseconds(changed), etag)


def _nanoseconds(changed: Any) -> int | None:
    """A time as stores give it (datetime, ISO text, HTTP date) in nanoseconds since 1970."""
    if isinstance(changed, str):
        try:
            changed = datetime.fromisoformat(changed)
        except ValueError:
            try:
                changed = parsedate_to_datetime(changed)
            except ValueError:
                return None
    if not isinstance(changed, datetime):
        return None
    aware = changed if changed.tzinfo else changed.replace(tzinfo=UTC)
    return round(aware.timestamp()) * 1_000_000_000


def forget_stores() -> None:
    """Connect anew, for a process whose environment names another endpoint or account now."""
    _store.cache_clear()
