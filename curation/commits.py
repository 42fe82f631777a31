"""Commits: a unit of work is a folder that is renamed into place when it is whole; the rename IS the commit.

`OUT/commits/<phase>/<key>/record.json` says what the unit was, its status and its reason; the unit's files lie beside it. The key is a hash of
the inputs and of the settings and model versions of that phase only, so a rerun finds what is still valid by name and needs no database. Work
in progress lies in the same folder under `.tmp-` names; a run holds a lock on the output, so what it finds there at its start was left by a
killed one and is removed, and nothing else is. Price: one folder and two flushes per unit.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.errors import DataError, UsageError
from schemas.files import TEMPORARY_PREFIX, atomic_folder, write_json
from schemas.ids import fingerprint

__all__ = ["DONE", "QUARANTINED", "RECORD", "CommitStore", "files_of", "link_or_copy", "output_lock", "parse_record"]
__all__ += ["sweep_folder"]

RECORD = "record.json"
DONE = "done"
QUARANTINED = "quarantined"
_LOCK = ".lock"
_RETRY = "retry"
"""Group of the marks of units to be tried again."""


class CommitStore:
    """The committed units below one folder: `<root>/<group>/<key>/`. A group is a phase, or a phase and a set."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def address(self) -> str:
        """What messages and workers call the store: its folder, or its address on an object store."""
        return str(self.root)

    def address_of(self, group: str, key: str, name: str = "") -> str:
        """Address of a unit or of one of its files, as a worker anywhere understands it."""
        return f"{self.address}/{group}/{key}{f'/{name}' if name else ''}"

    def folder(self, group: str, key: str) -> Path:
        """Where the unit lies once committed, for reading."""
        return self.root / group / key

    def file(self, group: str, key: str, name: str) -> Path:
        """One file of a committed unit, for reading, where the others are not wanted."""
        return self.root / group / key / name

    def bring(self, group: str, keys: Iterable[str]) -> None:
        """Have these units near by, all at once, before they are read one by one; nothing to do for a local folder."""

    def refresh(self) -> None:
        """Forget what was seen before; nothing to do for a local folder."""

    def workplace(self, group: str, unit: str) -> Path:
        """A local folder, not made yet, from which files can be moved into the folder that `unit` hands out."""
        return self.root / group / f"{TEMPORARY_PREFIX}{os.getpid()}-{unit}"

    def is_committed(self, group: str, key: str) -> bool:
        """Whether the unit is there with every file of its record at its size; a damaged one counts as not there."""
        folder = self.root / group / key
        try:
            files = self.record(group, key)["files"]
            return all((folder / name).stat().st_size == size for name, size in files.items())
        except (DataError, FileNotFoundError):
            return False

    def record(self, group: str, key: str) -> dict[str, Any]:
        """The unit's record; DataError when it is damaged."""
        path = self.root / group / key / RECORD
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(
                f"commit record {path} cannot be read ({error}); remove {path.parent} and run again"
            ) from error
        return parse_record(text, str(path))

    def keys(self, group: str) -> list[str]:
        """Keys committed in a group, sorted."""
        folder = self.root / group
        if not folder.is_dir():
            return []
        return sorted(path.name for path in folder.iterdir() if (path / RECORD).is_file())

    @contextmanager
    def unit(self, group: str, key: str, record: dict[str, Any]) -> Iterator[Path]:
        """A temporary folder; on a clean exit `record` is written into it and it becomes the unit, on an error it is removed.

        If the unit was committed meanwhile (by a worker that outlived its driver), that one stays: equal inputs give equal bytes. A damaged
        unit of that name is removed first.
        """
        target = self.root / group / key
        if target.exists() and not self.is_committed(group, key):
            shutil.rmtree(target)
        try:
            with atomic_folder(target) as folder:
                yield folder
                write_json(folder / RECORD, {"files": files_of(folder), **record})
        except FileExistsError:
            if not self.is_committed(group, key):
                raise

    def forget(self, group: str, key: str) -> None:
        """Remove a committed unit, so that it is tried again."""
        shutil.rmtree(self.root / group / key)

    def forget_quarantined(self, group: str) -> int:
        """Remove every quarantined unit of a group; how many there were."""
        bad = [key for key in self.keys(group) if self.record(group, key)["status"] == QUARANTINED]
        for key in bad:
            self.forget(group, key)
        return len(bad)

    def mark_for_retry(self, units: Sequence[tuple[str, str]]) -> None:
        """Remember that these quarantined units are to be tried again by the next command: what was wrong may be over by then."""
        listed = [list(unit) for unit in units]
        with self.unit(_RETRY, fingerprint(listed, length=32), {"status": DONE, "reason": None, "units": listed}):
            pass

    def forget_marked(self) -> int:
        """Remove the units that an earlier command marked for retry; how many there were."""
        count = 0
        for mark in self.keys(_RETRY):
            for group, key in self.record(_RETRY, mark)["units"]:
                if self.is_committed(group, key):
                    self.forget(group, key)
                    count += 1
            self.forget(_RETRY, mark)
        return count

    def sweep(self) -> int:
        """Remove temporaries that a killed run left in any group; how many there were."""
        return sum(_sweep(folder) for folder in (self.root, *_groups(self.root)))


def parse_record(text: str, where: str) -> dict[str, Any]:
    """A unit's record from its JSON; DataError when it is damaged."""
    unit = where.rpartition("/")[0]
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"commit record {where} cannot be read ({error}); remove {unit} and run again") from error
    if not isinstance(value, dict) or value.get("status") not in (DONE, QUARANTINED):
        raise DataError(f"commit record {where} has no status {DONE} or {QUARANTINED}; remove {unit}, run again")
    if not isinstance(value.get("files"), dict):
        raise DataError(f"commit record {where} does not list its files; remove {unit}, run again")
    return value


def _groups(root: Path) -> list[Path]:
    """The folders below `root` that hold units: one or two levels down, never inside a unit."""
    first = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    second = [path for folder in first if not _is_unit(folder) for path in folder.iterdir() if path.is_dir()]
    return [path for path in (*first, *second) if not _is_unit(path)]


def _is_unit(folder: Path) -> bool:
    return (folder / RECORD).is_file() or folder.name.startswith(TEMPORARY_PREFIX)


def _sweep(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    stale = [path for path in folder.iterdir() if path.name.startswith(TEMPORARY_PREFIX)]
    for path in stale:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(stale)


def files_of(folder: Path) -> dict[str, int]:
    """Every file of the unit with its size, for `is_committed`."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }


def sweep_folder(folder: Path) -> int:
    """Remove temporaries lying directly in `folder`; the caller holds the output's lock."""
    return _sweep(folder)


@contextmanager
def output_lock(output: Path) -> Iterator[None]:
    """Hold the output folder for one command at a time; the kernel lets go when the process ends, however it ends.

    Raises:
        UsageError: another command is writing there.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / _LOCK
    with path.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            raise UsageError(
                f"output {output} is in use by another curation command (process {handle.read().strip() or 'unknown'}); "
                "wait for it to end, or give another output"
            ) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def link_or_copy(source: Path, target: Path) -> None:
    """The same bytes under a second name: a hard link where the file system allows it, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
