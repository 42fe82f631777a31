"""Files that are never half-written: a temporary name beside the target, flushed to disk, then renamed.

A reader sees the old file or the new one, nothing between. Temporary names start with `.tmp-` and carry the process id, so that a later run
can remove exactly its own leftovers.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from schemas.errors import ReelyardError

__all__ = [
    "TEMPORARY_PREFIX",
    "atomic_folder",
    "atomic_path",
    "flush_to_disk",
    "said_if_unwritten",
    "write_bytes",
    "write_json",
]

TEMPORARY_PREFIX = ".tmp-"


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder entry."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(target: Path) -> Path:
    return target.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid4().hex[:8]}-{target.name}"


@contextmanager
def said_if_unwritten(target: Path) -> Iterator[None]:
    """Around the writing of `target`: a full disk or missing permission becomes a ReelyardError that names it."""
    try:
        yield
    except OSError as error:
        raise ReelyardError(
            f"{target} cannot be written ({error.strerror or error}); free some space or set its permissions, then run the same command again"
        ) from error


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary file path; on a clean exit it is flushed and renamed to `target`, on an error removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target)
    try:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, target)
        flush_to_disk(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder; on a clean exit its files are flushed and it is renamed to `target`.

    Raises:
        FileExistsError: at the end, if `target` exists by then and is not an empty folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target)
    temporary.mkdir()
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            flush_to_disk(path)
        flush_to_disk(temporary)
        try:
            os.rename(temporary, target)
        except OSError as error:
            raise FileExistsError(f"{target} exists already; give another folder or remove it first") from error
        flush_to_disk(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(target: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_json(target: Path, value: Any) -> None:
    """Write JSON atomically: sorted keys, two spaces, a final newline; NaN is refused."""
    write_bytes(
        target, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
    )
