"""Where a run's results lie: a local folder, or a prefix of an object store that is worked on through a folder near by.

Phases write and read below `folder` either way; on an object store a file is copied near before it is read (`near`) and put in place after it was
written (`publish`), and a set is published with its tars copied inside the store and `set.json` last. For a local output these cost
nothing. Price of the far one: the copies of a command are made anew by the next, so that no stale one is ever read.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import uuid4

from curation.commits import CommitStore, link_or_copy, output_lock, sweep_folder
from curation.config import CurateConfig
from curation.leases import hold_lease
from curation.near import near_folder
from curation.object_commits import ObjectCommits
from curation.objects import Objects, is_url
from schemas.files import TEMPORARY_PREFIX, flush_to_disk
from schemas.ids import fingerprint

__all__ = ["FolderPlace", "ObjectPlace", "Place", "SetFolder", "open_place", "status_folder"]

_SWEPT = ("", "tables", "sets", "report")
_ATTEMPTS = f"{TEMPORARY_PREFIX}attempts"
_PROBE = b"x" * 4096


class SetFolder(ABC):
    """A set that is being put together: its small files are written into `folder`, its tars are committed ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def add(self, store: CommitStore, group: str, key: str, file: str, name: str) -> None:
        """A committed unit's file becomes the set's file `name`."""


class Place(ABC):
    """The output of a run."""

    address: str
    """What messages call it."""
    folder: Path
    """Local folder of its files, or of their copies."""
    logs: Path
    """Local folder of the workers' logs, on each node."""

    @abstractmethod
    def commits(self, name: str) -> CommitStore:
        """The commit store in a folder of the output."""

    @abstractmethod
    def near(self, name: str) -> Path:
        """Local path of a file; the file is there if it exists."""

    @abstractmethod
    def sizes(self, name: str) -> dict[str, int]:
        """Name to size of the files directly in a folder."""

    @abstractmethod
    def publish(self, *names: str) -> None:
        """Put files or folders that were written below `folder` in place."""

    @abstractmethod
    def new_set(self, name: str) -> AbstractContextManager[SetFolder]:
        """A set that takes the place of the one at `name` when the block ends well."""

    @abstractmethod
    def attempts(self, run: str) -> str:
        """Address of the counts of attempts of one run, as workers understand it."""

    @abstractmethod
    def forget_attempts(self, run: str) -> None:
        """Remove them."""

    @abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Hold the output for one command at a time; UsageError when another has it."""

    @abstractmethod
    def sweep(self) -> int:
        """Remove what a killed run left half-written outside the commits; how many files."""

    @abstractmethod
    def probe(self) -> None:
        """A real write, read and removal; OSError when one of them is refused."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.near(name).is_file()

    @abstractmethod
    def close(self) -> None:
        """Remove local copies."""


def status_folder(config: CurateConfig) -> Path:
    """Local folder of what a command on this output says of itself: the output, or, for an object store, a folder of the driver's node."""
    if is_url(config.output):
        return config.near_path / "runs" / fingerprint([config.output_address], length=12)
    return config.output_path


def open_place(config: CurateConfig) -> Place:
    """The output that a config names."""
    if is_url(config.output):
        return ObjectPlace(config.output, config.near_path, status_folder(config) / "logs")
    return FolderPlace(config.output_path)


class _LinkedSet(SetFolder):
    def add(self, store: CommitStore, group: str, key: str, file: str, name: str) -> None:
        link_or_copy(store.file(group, key, file), self.folder / name)


class FolderPlace(Place):
    """A local folder: everything is where it is, atomic by rename."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = str(folder)
        self.logs = folder / "logs"

    def commits(self, name: str) -> CommitStore:
        return CommitStore(self.folder / name)

    def near(self, name: str) -> Path:
        return self.folder / name

    def sizes(self, name: str) -> dict[str, int]:
        folder = self.folder / name
        paths = folder.iterdir() if folder.is_dir() else ()
        return {path.name: path.stat().st_size for path in paths if path.is_file()}

    def publish(self, *names: str) -> None:
        pass

    @contextmanager
    def new_set(self, name: str) -> Iterator[SetFolder]:
        target = self.folder / name
        temporary = target.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{target.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield _LinkedSet(temporary)
        _replace(temporary, target)

    def attempts(self, run: str) -> str:
        return str(self.folder / _ATTEMPTS / run)

    def forget_attempts(self, run: str) -> None:
        shutil.rmtree(self.attempts(run), ignore_errors=True)

    def lock(self) -> AbstractContextManager[None]:
        return output_lock(self.folder)

    def sweep(self) -> int:
        return sum(sweep_folder(self.folder / name) for name in _SWEPT)

    def probe(self) -> None:
        path = self.folder / f"{TEMPORARY_PREFIX}preflight-{uuid4().hex[:8]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_PROBE)
        path.unlink()

    def close(self) -> None:
        pass


class _CopiedSet(SetFolder):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.copies: dict[str, tuple[CommitStore, str]] = {}

    def add(self, store: CommitStore, group: str, key: str, file: str, name: str) -> None:
        self.copies[name] = (store, f"{group}/{key}/{file}")


class ObjectPlace(Place):
    """A prefix of an object store; `near` is this node's folder for copies, shared by all commands."""

    def __init__(self, url: str, near: Path, logs: Path) -> None:
        self.objects = Objects(url)
        self.address = self.objects.url
        self.folder = near_folder(near) / "output"
        self.logs = logs
        self._near: set[str] = set()
        """Files whose local copy is what lies far, or that were looked for and are not there."""

    def commits(self, name: str) -> CommitStore:
        return ObjectCommits(f"{self.address}/{name}", self.folder / name)

    def near(self, name: str) -> Path:
        path = self.folder / name
        if name not in self._near:
            try:
                self.objects.fetch({name: path})
            except FileNotFoundError:
                path.unlink(missing_ok=True)
            self._near.add(name)
        return path

    def sizes(self, name: str) -> dict[str, int]:
        found = self.objects.listing(name)
        names = {full.removeprefix(f"{name}/"): facts.size_bytes for full, facts in found.items()}
        return {short: size for short, size in names.items() if "/" not in short}

    def publish(self, *names: str) -> None:
        files: dict[str, Path] = {}
        for name in names:
            path = self.folder / name
            inside = sorted(path.rglob("*")) if path.is_dir() else [path]
            files |= {one.relative_to(self.folder).as_posix(): one for one in inside if one.is_file()}
        self.objects.upload(files)
        self._near |= set(files)

    @contextmanager
    def new_set(self, name: str) -> Iterator[SetFolder]:
        """`set.json` goes first and comes last, so a set that is half replaced has none and is refused by its readers."""
        temporary = self.folder / f"{TEMPORARY_PREFIX}{uuid4().hex[:8]}"
        temporary.mkdir(parents=True)
        new = _CopiedSet(temporary)
        yield new
        before = self.objects.listing(name)
        self.objects.remove(one for one in before if one == f"{name}/set.json")
        for file, (store, source) in new.copies.items():
            assert isinstance(store, ObjectCommits)
            self.objects.copy(f"{store.address.removeprefix(f'{self.address}/')}/{source}", f"{name}/{file}")
        written = {f"{name}/{path.name}": path for path in sorted(temporary.iterdir())}
        last = written.pop(f"{name}/set.json")
        self.objects.upload(written)
        self.objects.upload({f"{name}/set.json": last})
        self.objects.remove(
            set(before) - set(written) - {f"{name}/{file}" for file in new.copies} - {f"{name}/set.json"}
        )
        shutil.rmtree(temporary, ignore_errors=True)
        self._near = {one for one in self._near if not one.startswith(f"{name}/")}

    def attempts(self, run: str) -> str:
        return f"{self.address}/{_ATTEMPTS}/{run}"

    def forget_attempts(self, run: str) -> None:
        self.objects.remove(self.objects.listing(f"{_ATTEMPTS}/{run}"))

    def lock(self) -> AbstractContextManager[None]:
        return hold_lease(self.objects, ".lock")

    def sweep(self) -> int:
        left = self.objects.listing(_ATTEMPTS)
        self.objects.remove(left)
        return len(left)

    def probe(self) -> None:
        name = f"{TEMPORARY_PREFIX}preflight-{uuid4().hex[:8]}"
        self.objects.write(name, _PROBE)
        try:
            if self.objects.read(name) != _PROBE:
                raise OSError("what was written came back as other bytes")
        finally:
            self.objects.remove([name])

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _replace(temporary: Path, folder: Path) -> None:
    """Rename a whole folder into the place of another; a kill between the renames is mended by the next run."""
    for path in temporary.iterdir():
        flush_to_disk(path)
    flush_to_disk(temporary)
    old = folder.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-old-{folder.name}"
    if folder.exists():
        os.rename(folder, old)
    os.rename(temporary, folder)
    flush_to_disk(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
