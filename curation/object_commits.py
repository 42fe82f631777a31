"""Commits on an object store: a unit's files are put under their final keys, and then its record; the record is the commit.

Nothing is renamed there, so a unit without a record is what a killed worker left: it does not count, and is removed or put again. A worker writes
a unit near by and uploads it; the driver copies near what it reads, once per command, and knows what is committed from one listing of a group
and the records in it. Price: a driver holds the records of the units that it asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from curation.commits import RECORD, CommitStore, files_of, parse_record
from curation.objects import ObjectFacts, Objects, is_url
from schemas.errors import DataError
from schemas.files import TEMPORARY_PREFIX

__all__ = ["ObjectCommits", "open_commits"]


def open_commits(address: str, near: Path, *, one_by_one: bool = False) -> CommitStore:
    """The commit store at a local folder or an object address.

    Args:
        near: local folder for copies, used for an object address only.
        one_by_one: ask for single units, as a worker does; else whole groups are listed, as a driver does that wants them all.
    """
    return ObjectCommits(address, near, one_by_one=one_by_one) if is_url(address) else CommitStore(Path(address))


class ObjectCommits(CommitStore):
    """The committed units below one address of an object store; `root` is the local folder of their copies."""

    def __init__(self, address: str, near: Path, *, one_by_one: bool = False) -> None:
        super().__init__(near)
        self._one_by_one = one_by_one
        self.objects = Objects(address)
        self._guard = threading.RLock()
        self._records: dict[tuple[str, str], dict[str, Any]] = {}
        """Of the units that are known to be there, whole."""
        self._listed: set[str] = set()
        """Groups that were listed since the last `refresh`."""

    @property
    def address(self) -> str:
        return self.objects.url

    def is_committed(self, group: str, key: str) -> bool:
        """As the group was listed first; one by one, as it is now."""
        with self._guard:
            if self._one_by_one:
                return self._is_whole(group, key, self.objects.listing(f"{group}/{key}"))
            if group not in self._listed:
                self._list(group)
            return (group, key) in self._records

    def refresh(self) -> None:
        with self._guard:
            self._listed.clear()

    def record(self, group: str, key: str) -> dict[str, Any]:
        with self._guard:
            known = self._records.get((group, key))
        if known is not None:
            return known
        name = f"{group}/{key}/{RECORD}"
        try:
            return parse_record(self.objects.read(name).decode("utf-8"), f"{self.address}/{name}")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"commit record {self.address}/{name} cannot be read ({error}); remove {self.address}/{group}/{key} and run again"
            ) from error

    def keys(self, group: str) -> list[str]:
        prefix = f"{group}/"
        names = (name.removeprefix(prefix).split("/") for name in self.objects.listing(group))
        return sorted(parts[0] for parts in names if parts[1:] == [RECORD])

    def folder(self, group: str, key: str) -> Path:
        """Where a copy of the unit lies; it is made when there is none."""
        self.bring(group, [key])
        return self.root / group / key

    def file(self, group: str, key: str, name: str) -> Path:
        path = self.root / group / f"{key}.files" / name
        if not path.is_file():
            self.objects.fetch({f"{group}/{key}/{name}": path})
        return path

    def bring(self, group: str, keys: Iterable[str]) -> None:
        missing = [key for key in dict.fromkeys(keys) if not (self.root / group / key).is_dir()]
        temporary = self._temporary(group)
        try:
            wanted = {key: [*self.record(group, key)["files"], RECORD] for key in missing}
            names = ((key, name) for key, names in wanted.items() for name in names)
            self.objects.fetch({f"{group}/{key}/{name}": temporary / key / name for key, name in names})
            for key in missing:
                os.rename(temporary / key, self.root / group / key)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def workplace(self, group: str, unit: str) -> Path:
        return self._temporary(group)

    @contextmanager
    def unit(self, group: str, key: str, record: dict[str, Any]) -> Iterator[Path]:
        folder = self._temporary(group)
        folder.mkdir(parents=True)
        try:
            yield folder
            there = self.objects.listing(f"{group}/{key}")
            if not self._is_whole(group, key, there):
                self.objects.remove(there)
                files = files_of(folder)
                self.objects.upload({f"{group}/{key}/{name}": folder / name for name in files})
                text = json.dumps(
                    {"files": files, **record}, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False
                )
                self.objects.write(f"{group}/{key}/{RECORD}", (text + "\n").encode())
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def forget(self, group: str, key: str) -> None:
        with self._guard:
            self._records.pop((group, key), None)
        self.objects.remove([f"{group}/{key}/{RECORD}"])
        self.objects.remove(self.objects.listing(f"{group}/{key}"))
        for copy in (self.root / group / key, self.root / group / f"{key}.files"):
            shutil.rmtree(copy, ignore_errors=True)

    def sweep(self) -> int:
        """Remove the files of units that have no record; how many units there were."""
        names = [name for name in self.objects.listing() if "/" in name]
        whole = {name.removesuffix(f"/{RECORD}") for name in names if name.endswith(f"/{RECORD}")}
        left = [name for name in names if not any(part in whole for part in _folders(name))]
        self.objects.remove(left)
        return len({name.rpartition("/")[0] for name in left})

    def _temporary(self, group: str) -> Path:
        return self.root / group / f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid4().hex[:12]}"

    def _list(self, group: str) -> None:
        """Read the records of a group that are not known yet, and keep those whose files are all there at their size."""
        found = self.objects.listing(group)
        keys = {name.removeprefix(f"{group}/").split("/")[0] for name in found if name.endswith(f"/{RECORD}")}
        unknown = [key for key in sorted(keys) if (group, key) not in self._records]
        texts = self.objects.read_many(f"{group}/{key}/{RECORD}" for key in unknown)
        for key in unknown:
            with suppress(DataError, UnicodeDecodeError, KeyError):  # a damaged record: the unit counts as not there
                text = texts[f"{group}/{key}/{RECORD}"].decode("utf-8")
                record = parse_record(text, f"{self.address}/{group}/{key}/{RECORD}")
                if _has_files(record, f"{group}/{key}", found):
                    self._records[group, key] = record
        self._listed.add(group)

    def _is_whole(self, group: str, key: str, there: dict[str, ObjectFacts]) -> bool:
        if f"{group}/{key}/{RECORD}" not in there:
            return False
        try:
            return _has_files(self.record(group, key), f"{group}/{key}", there)
        except DataError:
            return False


def _has_files(record: dict[str, Any], prefix: str, there: dict[str, ObjectFacts]) -> bool:
    facts = {name: there.get(f"{prefix}/{name}") for name in record["files"]}
    return all(fact is not None and fact.size_bytes == record["files"][name] for name, fact in facts.items())


def _folders(name: str) -> Iterator[str]:
    """Every folder that a name lies in."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name
