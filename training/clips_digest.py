"""Which clips a step was trained on, in 62 bits: the sum of the clip ids' hashes, so that neither order nor world size matters.

It stands in every line of `metrics.jsonl`. Two runs of a plan that agree on it trained on the same clips, and plan and ledger can be held against
it. A clip that stands twice counts twice. Price: a hash of 24 characters a clip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

__all__ = ["clips_digest", "digest_number", "digest_text"]

_MASK = (1 << 62) - 1


def digest_number(clip_ids: Iterable[str]) -> int:
    """Of some clips of a step. The digest of all is the sum, modulo 2^62; a sum that wrapped as int64 serves as well."""
    return sum(int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest(), "little") for i in clip_ids) & _MASK


def digest_text(number: int) -> str:
    """16 hex digits, as the metrics have it."""
    return f"{number & _MASK:016x}"


def clips_digest(clip_ids: Iterable[str]) -> str:
    """Of all clips of a step."""
    return digest_text(digest_number(clip_ids))
