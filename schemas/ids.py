"""Ids and fingerprints: functions of content, never of paths or time.

A moved file keeps its ids and a replaced file changes them. Fingerprints of configs and models are hashes of canonical JSON (sorted keys, no
spaces), so two machines agree. Price: the whole file is read once to hash it; the caller may cache by (uri, size, mtime).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, BinaryIO

__all__ = ["clip_id", "content_hash", "fingerprint"]

_CHUNK_BYTES = 1 << 20


def content_hash(stream: BinaryIO) -> str:
    """SHA-256 (hex) of everything left in `stream`, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def fingerprint(value: Any, *, length: int = 16) -> str:
    """First `length` hex digits of SHA-256 over the canonical JSON of `value`; floats by repr, keys sorted.

    `fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})`
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:length]


def clip_id(content_sha256: str, start_us: int, end_us: int) -> str:
    """Id of a clip: hash of (source content hash, start, end in microseconds), 24 hex digits (96 bits). An image is (hash, 0, 0).

    Raises:
        ValueError: if the span is negative or runs backwards.
    """
    if not 0 <= start_us <= end_us:
        raise ValueError(f"clip span [{start_us}, {end_us}] us must satisfy 0 <= start <= end")
    return hashlib.sha256(f"{content_sha256}:{start_us}:{end_us}".encode("ascii")).hexdigest()[:24]
