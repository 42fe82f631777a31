"""TREAD token routing: in training, a run of blocks sees only some of the video tokens; the others pass by unchanged.

One route (first block, last block inclusive, dropped share); context tokens are never dropped. The kept tokens of a clip are a sorted random
subset, a pure function of (seed, step, clip id), and their number depends on the token count alone, so that a bucket keeps its shape. Sorting
keeps memory access forward and costs nothing in law. Price: the subset is drawn on the host, 70 ns a token (8 ms for the largest 720p clip).

Source: TREAD (arXiv 2501.04765); the inclusive end, the share's meaning and `max(1, round(...))` as in Motif's public code. Motif's own
first block, last block and share are not public.

Legend: B batch, L video tokens, K kept tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from schemas.errors import ConfigError
from schemas.model_shape import ModelShape
from training.randomness import stream

__all__ = ["Route", "RouteSpec", "gather_tokens", "scatter_tokens"]


@dataclass(frozen=True, kw_only=True)
class RouteSpec:
    """Which blocks are routed and how much is dropped; blocks are numbered dual, then single, then decoder."""

    start: int
    """First block that sees the kept tokens only."""
    end: int
    """Last such block (inclusive)."""
    drop_ratio: float
    """Share of the video tokens that is dropped, 0 <= ratio < 1."""

    def validated(self, shape: ModelShape) -> RouteSpec:
        """This route, if it fits the network; else ConfigError. A route lies in the encoder or in the decoder, never across."""
        if not 0 <= self.start <= self.end < shape.total_blocks:
            raise ConfigError(
                f"route: blocks {self.start} to {self.end} (inclusive), expected 0 <= start <= end <= {shape.total_blocks - 1}"
            )
        if self.start < shape.encoder_blocks <= self.end:
            raise ConfigError(
                f"route: blocks {self.start} to {self.end} cross from the encoder (0 to {shape.encoder_blocks - 1}) into the "
                f"decoder; end it at {shape.encoder_blocks - 1}, or start it at {shape.encoder_blocks}"
            )
        if not 0.0 <= self.drop_ratio < 1.0:
            raise ConfigError(f"route: drop_ratio is {self.drop_ratio}, expected 0 <= ratio < 1")
        return self

    def num_kept(self, num_tokens: int) -> int:
        """`max(1, round(L (1 - ratio)))`."""
        return max(1, round(num_tokens * (1 - self.drop_ratio)))

    def for_clips(self, *, seed: int, step: int, clip_ids: Sequence[str], num_tokens: int) -> Route:
        """Draw the kept tokens of each clip of a micro-batch."""
        keep = self.num_kept(num_tokens)
        kept = [
            np.sort(stream(seed, step, clip_id, "route").permutation(num_tokens)[:keep]).astype(np.int64)
            for clip_id in clip_ids
        ]
        return Route(start=self.start, end=self.end, kept_BK=torch.from_numpy(np.stack(kept)))


@dataclass(frozen=True, kw_only=True)
class Route:
    """A route with the kept tokens of one micro-batch; what the network's forward takes."""

    start: int
    end: int
    kept_BK: Tensor
    """Sorted int64 positions in the token grid (row-major over T, Y, X)."""

    def covers(self, block: int) -> bool:
        """Whether this block sees the kept tokens only."""
        return self.start <= block <= self.end


def gather_tokens(tokens_BLD: Tensor, kept_BK: Tensor) -> Tensor:
    """The kept tokens, (B, K, D)."""
    return tokens_BLD.gather(1, kept_BK[:, :, None].expand(-1, -1, tokens_BLD.shape[2]))


def scatter_tokens(tokens_BLD: Tensor, kept_BK: Tensor, processed_BKD: Tensor) -> Tensor:
    """`tokens_BLD` with the kept positions replaced; the input is left as it was."""
    index = kept_BK[:, :, None].expand(-1, -1, tokens_BLD.shape[2])
    return tokens_BLD.scatter(1, index, processed_BKD.to(tokens_BLD.dtype))
