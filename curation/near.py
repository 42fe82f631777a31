"""What a worker has near by while it works: copies of a source and of committed units that lie on an object store, gone after the unit.

The parent of the sandbox copies, before the clock of the unit starts, so the child knows local files only. A source is hashed while it is copied,
and must be what the driver listed; a local one must have kept its size and time until the work is done. One that did not is a quarantined row
that the next command tries again. Price: disk for one source, or one tar's members, per worker.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from curation.content_hashes import fetch_and_hash, state_of_file
from curation.leases import is_alive, start_of
from curation.objects import Objects, explain, is_url
from curation.requests import SourceRequest
from curation.sandbox import ItemFailureError

__all__ = ["SourceChangedError", "bring_near", "check_unchanged", "default_near", "near_folder", "sweep_dead"]


_PLAIN_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")
"""Kept, because a demuxer may look at it: a source gives the same tables from wherever it came."""


class SourceChangedError(ItemFailureError):
    """A source is not, or no longer, what was listed; another command may find it well."""


def default_near(folder: Path | None = None) -> Path:
    """This user's folder for copies, of no other use, in the given folder or the system's temporary one."""
    return (folder or Path(tempfile.gettempdir())) / f"reelyard-{os.getuid()}"


def near_folder(root: Path) -> Path:
    """This process's own folder below the scratch folder of a node; what processes that ended left there is removed."""
    sweep_dead(root)
    return root / f"{os.getpid()}-{start_of(os.getpid())}"


def sweep_dead(root: Path) -> None:
    """Remove the folders of processes of this host that have ended."""
    for path in root.iterdir() if root.is_dir() else ():
        found = re.fullmatch(r"(\d+)-(\d+)", path.name)
        if found and not is_alive(int(found[1]), found[2]):
            shutil.rmtree(path, ignore_errors=True)


def bring_near(arguments: dict[str, Any], output: str, folder: Path) -> dict[str, Any]:
    """`arguments` with local paths in the place of a source's address and of addresses below `output`.

    Raises:
        SourceChangedError: the source is gone, denied, or other bytes than those that were listed.
    """
    result: dict[str, Any] = _with_sources(arguments, folder)
    if is_url(output):
        _copy(Objects(output), sorted(set(_addresses(result, f"{output}/"))), folder)
        result = _replaced(result, f"{output}/", folder)
    return result


def check_unchanged(arguments: dict[str, Any]) -> None:
    """SourceChangedError when the local source of a unit has another size or time than when it was hashed."""
    if "request" not in arguments:
        return
    request = SourceRequest.from_json(arguments["request"])
    if is_url(request.uri) or not request.version:
        return
    try:
        size, version = state_of_file(request.path)
    except OSError as error:
        raise SourceChangedError(f"cannot be read any more: {error.strerror}") from error
    if (size, version) != (request.size_bytes, request.version):
        raise SourceChangedError(
            f"was written to while the run was at work: {request.size_bytes} bytes when it was listed, {size} now"
        )


def _with_sources(value: Any, folder: Path) -> Any:
    """`value` with the copy's path in every `request`, and in the `path` beside it if there is one."""
    if isinstance(value, list):
        return [_with_sources(inner, folder) for inner in value]
    if not isinstance(value, dict):
        return value
    result = {key: _with_sources(inner, folder) for key, inner in value.items()}
    if "request" in result:
        request = _near_source(SourceRequest.from_json(result["request"]), folder)
        result["request"] = request.to_json()
        if "path" in result:
            result["path"] = request.path
    return result


def _near_source(request: SourceRequest, folder: Path) -> SourceRequest:
    if not is_url(request.path):
        return request
    suffix = os.path.splitext(request.path)[1]
    target = folder / str(request.content_hash) / f"source{suffix if _PLAIN_SUFFIX.fullmatch(suffix) else ''}"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = fetch_and_hash(request, target)
    except OSError as error:
        raise SourceChangedError(_why(request, error)) from error
    parent, _, name = request.path.rpartition("/")
    facts = Objects(parent).facts(name)
    if found != request.content_hash or facts is None or facts.version != request.version:
        raise SourceChangedError(_why(request, None))
    return replace(request, path=str(target))


def _why(request: SourceRequest, error: OSError | None) -> str:
    """What became of an object that could not be copied whole."""
    parent, _, name = request.path.rpartition("/")
    try:
        facts = Objects(parent).facts(name)
    except OSError:
        facts = None
    if facts is not None and facts.version != request.version:
        return f"was written to while the run was at work: {request.size_bytes} bytes when it was listed, {facts.size_bytes} now"
    return "arrived with other bytes than those that were listed" if error is None else explain(error)


def _addresses(value: Any, prefix: str) -> Iterator[str]:
    """Every text in nested arguments that is an address below the output."""
    if isinstance(value, str):
        if value.startswith(prefix):
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _addresses(inner, prefix)
    elif isinstance(value, list):
        for inner in value:
            yield from _addresses(inner, prefix)


def _replaced(value: Any, prefix: str, folder: Path) -> Any:
    if isinstance(value, str):
        return str(folder / value.removeprefix(prefix)) if value.startswith(prefix) else value
    if isinstance(value, dict):
        return {key: _replaced(inner, prefix, folder) for key, inner in value.items()}
    return [_replaced(inner, prefix, folder) for inner in value] if isinstance(value, list) else value


def _copy(output: Objects, addresses: list[str], folder: Path) -> None:
    """Files by their address; an address without a suffix is a unit's, and all its files are copied."""
    names = [address.removeprefix(f"{output.url}/") for address in addresses]
    files = [name for name in names if "." in name.rpartition("/")[2]]
    for name in names:
        if name not in files:
            files += output.listing(name)
    output.fetch({name: folder / name for name in files})
