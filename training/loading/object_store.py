"""Byte ranges of objects (`s3://`, `gs://`, whatever fsspec knows), straight into given memory: bounded tries, then a named error, never a hang.

A range is asked for in parts. S3 bodies are streamed, so that a transfer that breaks off goes on at the byte it had reached; other stores are asked
for the part again, half as large. A try ends after `timeout_seconds`; one that brought less than 64 KiB counts, and after `tries` of them in a row,
with doubled waits between, the range is given up. Reading can be called off from another thread. What is missing is a FileNotFoundError, what
ends early a short count: damage of a shard, for the caller to judge. Everything else is a ServiceError: the store's, not the clip's.

Credentials and endpoint come from the environment (`AWS_*`, `AWS_ENDPOINT_URL`) or the machine's role. Price: fsspec hands over bytes, so what comes
from a store is copied once more than what comes from a file.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from schemas.errors import PreflightError, ServiceError, UsageError

__all__ = ["PART_BYTES", "ObjectStore", "ReadingStoppedError", "StoreSettings", "is_url"]

PART_BYTES = 8 << 20
"""Of one request; stores whose bodies are not streamed hold as much for each reader."""
_PIECE_BYTES = 256 << 10
_PROGRESS_BYTES = 64 << 10
_GRACE_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 15.0
_EXTRAS = {"s3": "pip install 'reelyard[s3]'", "gs": "pip install 'reelyard[gs]'"}


class ReadingStoppedError(Exception):
    """The reader was closed while it waited for a store."""


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """Patience with an object store."""

    timeout_seconds: float = 30.0
    """Of one try."""
    tries: int = 6
    """In a row that bring next to nothing, before a read is given up."""
    back_off_seconds: float = 0.5
    """Before the second try; doubled before each further one, up to 15 seconds."""


def is_url(address: str) -> bool:
    """Whether an address is one of a store: `is_url("s3://bucket/a")`, and not `is_url("/a")` or `is_url("file:///a")`."""
    scheme, mark, _ = address.partition("://")
    return bool(mark) and scheme != "file"


class ObjectStore:
    """Stores by scheme, connected on first use. Any thread may read; `close` ends all of it."""

    def __init__(self, settings: StoreSettings | None = None) -> None:
        self.settings = settings or StoreSettings()
        self._systems: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._running: set[Future[Any]] = set()

    def __enter__(self) -> ObjectStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Call off what is running; later reads raise ReadingStoppedError."""
        with self._lock:
            self._closed.set()
            running = list(self._running)
        for future in running:
            future.cancel()

    def read(self, address: str) -> bytes:
        """A whole small object.

        Raises:
            FileNotFoundError: there is none.
            ServiceError: the store failed.
        """
        system, path = self._system(address)
        parts: list[bytes] = []

        def once(_: int) -> int:
            parts[:] = [self._call(system, "cat_file", path)]
            return 0

        self._patiently(address, once)
        return bytes(parts[0])

    def sizes(self, folder: str) -> dict[str, int]:
        """Address to bytes of the objects right below a folder, by one listing; none when there is no such folder."""
        system, path = self._system(folder)
        found: dict[str, int] = {}

        def once(_: int) -> int:
            for facts in self._call(system, "ls", path, detail=True):
                if facts.get("type") != "directory" and facts.get("size") is not None:
                    found[f"{folder}/{str(facts['name']).rpartition('/')[2]}"] = int(facts["size"])
            return 0

        try:
            self._patiently(folder, once)
        except FileNotFoundError:
            return {}
        return found

    def read_into(self, address: str, offset: int, pieces: Sequence[memoryview]) -> int:
        """Fill `pieces` one after another from `offset` on; how many bytes there were, fewer where the object ends.

        Raises:
            FileNotFoundError: there is no such object.
            ServiceError: the store failed, or was too slow.
            ReadingStoppedError: `close` was called.
        """
        system, path = self._system(address)
        target = _Target(pieces)
        stream = _stream_s3 if hasattr(system, "_call_s3") else None
        part = PART_BYTES
        ended = False

        def once(failures: int) -> int:
            nonlocal part, ended
            part = max(_PROGRESS_BYTES, PART_BYTES >> failures)
            before = target.filled
            stop = min(target.size, before + part)
            try:
                if stream is not None:
                    ended = self._await(system, stream(system, path, offset, stop, target))
                else:
                    data = self._call(system, "cat_file", path, start=offset + before, end=offset + stop)
                    target.write(data)
                    ended = len(data) == 0
            except Exception as error:
                if not _is_past_the_end(error):
                    raise
                ended = True
            return target.filled - before

        while target.filled < target.size and not ended:
            self._patiently(address, once, progress=lambda: target.filled)
        return target.filled

    def _patiently(self, address: str, once: Callable[[int], int], progress: Callable[[], int] = lambda: 0) -> None:
        """`once`, tried again with back-off; it is told how many tries in a row have failed."""
        settings, failures = self.settings, 0
        while True:
            before = progress()
            try:
                once(failures)
                return
            except (FileNotFoundError, ReadingStoppedError):
                raise
            except PermissionError as error:
                raise ServiceError(_sentence(address, error, 1)) from error
            except Exception as error:  # the clients have classes of their own, which derive from nothing narrower
                if isinstance(error, CancelledError) and self._closed.is_set():
                    raise ReadingStoppedError(address) from error
                if "Credentials" in type(error).__name__:
                    raise ServiceError(_sentence(address, error, 1)) from error
                failures = 1 if progress() - before >= _PROGRESS_BYTES else failures + 1
                if failures >= settings.tries:
                    raise ServiceError(_sentence(address, error, failures)) from error
            wait = min(_LONGEST_WAIT_SECONDS, settings.back_off_seconds * 2 ** (failures - 1))
            if self._closed.wait(wait):
                raise ReadingStoppedError(address)

    def _call(self, system: Any, name: str, *arguments: Any, **options: Any) -> Any:
        """A method of a file system within the time of one try."""
        if system.async_impl:
            return self._await(system, getattr(system, f"_{name}")(*arguments, **options))
        future: Future[Any] = Future()

        def work() -> None:
            try:
                future.set_result(getattr(system, name)(*arguments, **options))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=work, name="object-store-call", daemon=True).start()
        return self._result(future)

    def _await(self, system: Any, coroutine: Any) -> Any:
        """A coroutine's result on the file system's own loop, cancelled when its time is over."""
        timed = asyncio.wait_for(coroutine, self.settings.timeout_seconds)
        return self._result(asyncio.run_coroutine_threadsafe(timed, system.loop))

    def _result(self, future: Future[Any]) -> Any:
        with self._lock:
            self._running.add(future)
        try:
            if self._closed.is_set():
                future.cancel()
            deadline = time.monotonic() + self.settings.timeout_seconds + _GRACE_SECONDS
            while True:
                try:
                    return future.result(timeout=0.2)
                except FutureTimeoutError:
                    if future.done():
                        raise
                    if self._closed.is_set():
                        raise ReadingStoppedError from None
                    if time.monotonic() > deadline:
                        future.cancel()
                        raise
        finally:
            with self._lock:
                self._running.discard(future)

    def _system(self, address: str) -> tuple[Any, str]:
        scheme = address.partition("://")[0]
        with self._lock:
            if scheme not in self._systems:
                self._systems[scheme] = _connect(scheme, self.settings)
            system = self._systems[scheme]
        return system, str(system._strip_protocol(address))


class _Target:
    """Memory to fill, and how far it is filled."""

    def __init__(self, pieces: Sequence[memoryview]) -> None:
        self._pieces = list(pieces)
        self.size = sum(map(len, pieces))
        self.filled = 0
        self._index = self._at = 0

    def write(self, data: bytes) -> None:
        """Append; what is more than fits is left out."""
        view = memoryview(data)[: self.size - self.filled]
        self.filled += len(view)
        while view:
            piece = self._pieces[self._index]
            count = min(len(view), len(piece) - self._at)
            piece[self._at : self._at + count] = view[:count]
            view, self._at = view[count:], self._at + count
            if self._at == len(piece):
                self._index, self._at = self._index + 1, 0


async def _stream_s3(system: Any, path: str, offset: int, stop: int, target: _Target) -> bool:
    """Stream one part from where the target is filled up to `stop`; whether the object ended before."""
    bucket, key, _ = system.split_path(path)
    start = target.filled
    answer = await system._call_s3(
        "get_object", Bucket=bucket, Key=key, Range=f"bytes={offset + start}-{offset + stop - 1}"
    )
    body = answer["Body"]
    try:
        while target.filled < stop and (data := await body.read(_PIECE_BYTES)):
            target.write(data)
    finally:
        body.close()
    if target.filled < min(stop, start + int(answer["ContentLength"])):
        raise OSError(f"the body broke off after {target.filled - start} of {answer['ContentLength']} bytes")
    return target.filled < stop


def _connect(scheme: str, settings: StoreSettings) -> Any:
    """One client; it neither keeps listings nor tries again by itself."""
    import fsspec

    options: dict[str, Any] = {}
    if scheme == "s3":
        timeouts = {"connect_timeout": settings.timeout_seconds, "read_timeout": settings.timeout_seconds}
        options["config_kwargs"] = {**timeouts, "retries": {"max_attempts": 0}}
    try:
        system = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **options)
    except ImportError as error:
        hint = _EXTRAS.get(scheme, "pip install 'fsspec[http]'")
        raise PreflightError(f"addresses of {scheme}:// need a package that is not here ({error}); {hint}") from error
    except ValueError as error:
        raise UsageError(f"addresses of {scheme}:// are not known ({error}); give a folder, s3:// or gs://") from error
    if hasattr(system, "retries"):
        system.retries = 1
    return system


def _is_past_the_end(error: BaseException) -> bool:
    """Whether a store says that a range begins behind the object's end."""
    text = f"{error} {error.__cause__ or ''}"
    return "InvalidRange" in text or "not satisfiable" in text.lower()


def _sentence(address: str, error: BaseException, tries: int) -> str:
    said = " ".join(str(error).split())
    kind = "no answer in time" if isinstance(error, TimeoutError | FutureTimeoutError) else type(error).__name__
    return (
        f"{address} cannot be read, tried {tries} times in a row ({kind}{': ' if said else ''}{said}); "
        "check the address, the network, and the credentials in the environment (AWS_*), then run the same command again"
    )
