"""What a worker is told about one source: where it lies, what it is, and the facts of the source list that go into every row.

A request crosses process borders as JSON, so it holds plain values only. `path` is a local file, or an object's address, which a worker
replaces by a copy near by; file names that are not UTF-8 travel as surrogate escapes, which JSON keeps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from schemas.errors import DataError
from schemas.tables import BRANCHES

__all__ = ["SOURCE_KINDS", "SourceRequest"]

SOURCE_KINDS = ("video", "image")


@dataclass(frozen=True)
class SourceRequest:
    """One source file to analyse or to encode."""

    uri: str
    """Percent-encoded; the key of the sources table."""
    path: str
    """Local path of the bytes, or the address of an object, unencoded; a worker fetches that first."""
    content_hash: str | None
    """SHA-256 (hex); None: the worker hashes the file."""
    size_bytes: int
    kind: str
    """One of `SOURCE_KINDS`."""
    branch: str
    domain: str
    licence: str
    version: str = ""
    """Time of change, etag or generation when it was hashed: another one means that it was changed since. "" where not known."""
    branch_stated: bool = False
    """Whether a list gave the branch; else it comes from what the file is."""

    def __post_init__(self) -> None:
        if self.kind not in SOURCE_KINDS:
            raise DataError(f"source {self.uri}: kind {self.kind!r}, expected one of {', '.join(SOURCE_KINDS)}")
        if self.branch not in BRANCHES:
            raise DataError(f"source {self.uri}: branch {self.branch!r}, expected one of {', '.join(BRANCHES)}")

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SourceRequest:
        """Inverse of `to_json`; DataError when keys are missing or unknown."""
        names = {field.name for field in fields(cls)}
        if set(value) != names:
            raise DataError(
                f"a source request lacks {sorted(names - set(value))} and has unknown {sorted(set(value) - names)}; "
                "both sides of the pipe must run the same version"
            )
        return cls(**value)
