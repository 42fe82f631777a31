"""Which clips share a tar, and in which order: a seeded permutation in which every stretch looks like the whole set.

A clip's place is a number in [0, 1): within its bucket, sources take turns at even distances; within the set, buckets do. So any stretch of length
x of the line holds x times the clips of each bucket, give or take one, and shards are equal stretches. Good mixing and easy plans are decided
here. Price: shards differ by a few samples in number, and one added clip moves others.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import Field

from schemas.config import StrictConfig

__all__ = ["PackSettings", "plan_shards"]

T = TypeVar("T")


class PackSettings(StrictConfig):
    """Settings of the pack phase."""

    target_shard_mb: float = Field(default=256.0, gt=0)
    """Size to aim at, in millions of bytes; a shard holds at least one sample."""
    target_shard_samples: int = Field(default=4096, ge=1)
    """Samples to aim at; whichever of the two asks for more shards decides."""
    seed: int = Field(default=0, ge=0)
    """Of the permutation that spreads samples over shards."""


def plan_shards(samples: Sequence[Mapping[str, Any]], settings: PackSettings) -> list[list[str]]:
    """Clip ids of each shard, in tar order; every clip exactly once, no shard empty. The order of `samples` does not matter.

    Args:
        samples: mappings with clip_id, bucket (any value with a str), source (content hash), size_bytes (of its members).

    Raises:
        ValueError: a clip id stands twice.
    """
    ids = [sample["clip_id"] for sample in samples]
    if len(set(ids)) != len(ids):
        repeated = next(clip for clip in sorted(ids) if ids.count(clip) > 1)
        raise ValueError(f"clip {repeated} stands twice among the samples to pack, expected each once")
    if not samples:
        return []
    size_bytes = sum(sample["size_bytes"] for sample in samples)
    num_shards = max(
        math.ceil(len(samples) / settings.target_shard_samples),
        math.ceil(size_bytes / (settings.target_shard_mb * 1e6)),
    )
    num_shards = min(max(num_shards, 1), len(samples))
    shards: list[list[str]] = [[] for _ in range(num_shards)]
    for place, clip_id in _places(samples, settings.seed):
        shards[int(place * num_shards)].append(clip_id)
    return [shard for shard in shards if shard]


def _places(samples: Sequence[Mapping[str, Any]], seed: int) -> list[tuple[float, str]]:
    """(place in [0, 1), clip id), sorted."""
    by_bucket = _grouped([(str(sample["bucket"]), (sample["source"], sample["clip_id"])) for sample in samples])
    lines = {}
    for bucket, members in by_bucket.items():
        by_source = _grouped(members)
        clips = {source: sorted(ids, key=lambda clip: _draw(seed, clip)) for source, ids in by_source.items()}
        lines[bucket] = [clip for _, clip in _interleaved(clips, seed)]
    return _interleaved(lines, seed)


def _interleaved(groups: Mapping[str, Sequence[str]], seed: int) -> list[tuple[float, str]]:
    """Spread each group evenly over [0, 1); the k-th of n members stands at (k + phase) / n, phases of the groups evenly apart."""
    order = sorted(groups, key=lambda name: _draw(seed, name))
    placed = []
    for rank, name in enumerate(order):
        phase = (rank + 0.5) / len(order)
        members = groups[name]
        placed += [((k + phase) / len(members), clip) for k, clip in enumerate(members)]
    return sorted(placed, key=lambda item: (item[0], _draw(seed, item[1])))


def _grouped(items: Sequence[tuple[str, T]]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for name, value in items:
        groups.setdefault(name, []).append(value)
    return groups


def _draw(seed: int, name: Hashable) -> bytes:
    """A fixed random number per (seed, name), as bytes to sort by."""
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
