"""Which sources there are: folders, globs, lists and registry media, here or on an object store, become requests, one per uri.

File names are data: they travel as percent-encoded URIs (not every name is UTF-8) and never reach a shell or an option parser. A prefix of an
object store is listed in pages, with size and version of each object. Price: the driver holds the whole list, and stats every local file.
"""

from __future__ import annotations

import glob as globbing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from curation.addresses import is_url, path_of_uri, uri_of_location, uri_of_path
from curation.config import SourceEntry
from curation.file_kinds import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, kind_of_suffix
from curation.objects import ObjectFacts, Objects, explain, split_url
from curation.requests import SourceRequest
from curation.source_lists import read_list
from encoders.registry import Registry
from schemas.errors import UsageError

__all__ = ["IMAGE_EXTENSIONS", "VIDEO_EXTENSIONS", "discover", "path_of_uri", "uri_of_path"]


@dataclass(frozen=True)
class _Place:
    """One thing that an entry names."""

    location: str
    """Local path or object address."""
    own: dict[str, str] = field(default_factory=dict)
    """Columns of its own, from a list or the registry."""
    facts: ObjectFacts | None = None
    """What the listing of an object store said."""


def discover(entries: Sequence[SourceEntry], *, cache_dir: Path | None = None) -> tuple[list[SourceRequest], int]:
    """Requests sorted by uri, without content hashes, and how many other files lay beside them; the first entry to name a uri wins.

    Raises:
        UsageError: a folder or list that is not there, a pattern that matches nothing, or no sources at all.
    """
    found: dict[str, SourceRequest] = {}
    ignored = 0
    for entry in entries:
        for place in _places(entry, cache_dir):
            request = _request(entry, place)
            if request is None:
                ignored += 1
            else:
                found.setdefault(request.uri, request)
    if not found:
        where = "; ".join(_describe(entry) for entry in entries)
        raise UsageError(
            f"no sources: {where} {'holds' if len(entries) == 1 else 'hold'} no video or image file "
            f"({ignored} other files seen; extensions known: {' '.join(sorted(VIDEO_EXTENSIONS | IMAGE_EXTENSIONS))}). "
            "Put files there, or correct `sources` in the config"
        )
    return [found[uri] for uri in sorted(found)], ignored


def _describe(entry: SourceEntry) -> str:
    return next(
        f"{name} {getattr(entry, name)!r}" for name in ("folder", "glob", "list", "media") if getattr(entry, name)
    )


def _places(entry: SourceEntry, cache_dir: Path | None) -> Iterator[_Place]:
    """Everything an entry names."""
    if entry.folder is not None:
        if is_url(entry.folder):
            yield from _objects(entry.folder, entry.folder)
        else:
            yield from map(_Place, _walk(path_of_uri(os.path.expanduser(entry.folder)), entry.folder))
    elif entry.glob is not None:
        yield from _matching(entry.glob)
    elif entry.list is not None:
        text = os.path.expanduser(entry.list)
        yield from (_Place(*found) for found in read_list(text if is_url(text) else path_of_uri(text)))
    else:
        yield from _media(entry.media, Registry(cache_dir=cache_dir))


def _objects(url: str, given: str, pattern: str | None = None) -> Iterator[_Place]:
    """Objects below a prefix, or those that a pattern below it matches."""
    objects = Objects(url)
    try:
        found = objects.listing() if pattern is None else objects.matching(pattern)
    except FileNotFoundError:
        found = {}
    except OSError as error:
        raise UsageError(f"sources: {given!r} cannot be listed: {explain(error)}") from error
    if not found:
        raise UsageError(f"sources: {given!r} holds no object; check it with `aws s3 ls`, and the endpoint and account")
    yield from (_Place(f"{objects.url}/{name}", facts=facts) for name, facts in found.items())


def _matching(pattern: str) -> Iterator[_Place]:
    if is_url(pattern):
        bucket, key = split_url(pattern)
        yield from _objects(bucket, pattern, key)
        return
    paths = sorted(globbing.glob(os.path.expanduser(pattern), recursive=True))
    if not paths:
        raise UsageError(f"sources: glob {pattern!r} matches nothing; quote it, and check it with `ls`")
    yield from (_Place(path) for path in paths if os.path.isfile(path))


def _media(names: Sequence[str], registry: Registry) -> Iterator[_Place]:
    """Files of registry entries, with the licence that the registry states for them."""
    registry.fetch_many(names)
    for name in names:
        entry = registry.entry(name)
        for file in entry.files:
            yield _Place(str(registry.folder(name) / file.name), {"licence": entry.licence_weights})


def _walk(folder: str, given: str) -> Iterator[str]:
    """Files below `folder`, following links to folders but entering no folder twice (links may form loops)."""
    if not os.path.isdir(folder):
        state = "is a file, not a folder" if os.path.exists(folder) else "does not exist"
        raise UsageError(f"sources: folder {given!r} {state} (looked at {folder}); give an existing folder")
    seen: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            status = os.stat(current)
            names = sorted(os.listdir(current))
        except OSError as error:
            raise UsageError(
                f"sources: folder {current!r} cannot be listed ({error.strerror}); correct its permissions"
            ) from error
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in names:
            path = os.path.join(current, name)
            if os.path.isdir(path):
                pending.append(path)
            else:
                yield path


def _request(entry: SourceEntry, place: _Place) -> SourceRequest | None:
    """The request for one file; None when its extension is not known and nobody listed it by name."""
    location, own = place.location, place.own
    extension = os.path.splitext(location)[1].lower()
    kind: str | None = kind_of_suffix(extension)
    if kind is None:
        if entry.list is None:
            return None
        kind = own.get("branch", "video").partition("_")[0]
    branch = own.get("branch", f"{kind}_{entry.origin}")
    if not branch.startswith(kind):
        raise UsageError(
            f"sources: {location!r} is listed as branch {branch!r}, but {extension!r} is a {kind} file; correct the list"
        )
    size, version = 0, ""
    if place.facts is not None:
        size, version = place.facts.size_bytes, place.facts.version
    elif not is_url(location):
        try:
            size = os.stat(location).st_size
        except OSError:
            size = 0
    return SourceRequest(
        uri=uri_of_location(location),
        path=location if is_url(location) else os.path.abspath(location),
        content_hash=None,
        size_bytes=size,
        kind=kind,
        branch=branch,
        domain=own.get("domain", entry.domain),
        licence=own.get("licence") or entry.licence,
        version=version,
        branch_stated="branch" in own,
    )
