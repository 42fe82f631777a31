"""Packing: which clips share a tar, the tars, and the set folder around them."""

from __future__ import annotations

from pydantic import Field

from schemas.config import StrictConfig

__all__ = ["PackSettings"]


class PackSettings(StrictConfig):
    """Settings of the pack phase."""

    target_shard_mb: float = Field(default=256.0, gt=0)
    """Size to aim at, in millions of bytes; a shard holds at least one sample."""
    target_shard_samples: int = Field(default=4096, ge=1)
    """Samples to aim at; whichever of the two limits asks for more shards decides."""
    seed: int = Field(default=0, ge=0)
    """Of the permutation that spreads samples over shards."""
