"""What a run works on: the source list with content hashes, which uri stands for which bytes, and the key of each analysis.

Built once per command and shared by the phases, so that `caption` and `encode` find the file of a clip by its content hash. Price: every command
lists and stats the sources again, so that a replaced file is noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from curation.config import CurateConfig
from curation.content_hashes import HashCache, Unreadable, hash_sources
from curation.requests import SourceRequest
from curation.sources import discover
from schemas.ids import fingerprint

__all__ = ["Inventory", "take_inventory"]


@dataclass(frozen=True)
class Inventory:
    """The sources of a run."""

    requests: Sequence[SourceRequest]
    """Readable sources, sorted by uri, with content hashes."""
    unreadable: Sequence[Unreadable]
    first_uri: dict[str, str]
    """uri to the uri that is analysed for the same bytes: the first one."""
    key_of: dict[str, str]
    """uri to the key of its analysis."""

    def by_content(self) -> dict[str, SourceRequest]:
        """Content hash to the source that is analysed for it."""
        firsts = [request for request in self.requests if self.first_uri[request.uri] == request.uri]
        return {str(request.content_hash): request for request in firsts}


def take_inventory(config: CurateConfig, analysis: str, hash_cache: Path) -> Inventory:
    """List and hash the sources.

    Args:
        analysis: fingerprint of the analyze phase.
        hash_cache: file that keeps content hashes between runs.
    """
    found, _ = discover(config.sources, cache_dir=config.cache_path)
    requests, unreadable = hash_sources(found, HashCache(hash_cache))
    first_by_content: dict[str, SourceRequest] = {}
    for request in requests:
        first_by_content.setdefault(str(request.content_hash), request)
    first = {request.uri: first_by_content[str(request.content_hash)] for request in requests}
    return Inventory(
        requests=requests,
        unreadable=unreadable,
        first_uri={uri: source.uri for uri, source in first.items()},
        key_of={uri: _analysis_key(source, analysis) for uri, source in first.items()},
    )


def _analysis_key(request: SourceRequest, analysis: str) -> str:
    """The bytes, how they are looked at, and nothing of the name: a moved file keeps its analysis."""
    return fingerprint([request.content_hash, request.kind, request.branch, analysis], length=32)
