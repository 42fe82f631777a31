"""3-D rotary positions of the video tokens.

Channel pairs (2i, 2i+1) of a head are rotated by position x theta^(-2i/axis width), the head being split into a T, a Y and an X part; positions
are integers from 0. Text and image tokens have no position: where they lie beside video, their rows of the table turn by nothing. The table is
made on each forward (float64 angles, float32 table) rather than kept as a buffer: it depends on the bucket, and a network without buffers is
simpler to build on the meta device and to shard. A rotation is one complex product, a quarter of the time of the same in real numbers
(`benchmarks/step.py`); graph compilers know no complex numbers and get the real formula.

Legend: B batch, L video tokens (K of them inside a route), H heads, A head width, P = A/2 rotated pairs; a table's last axis is (cosine, sine).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from training.layout import ContextLayout

__all__ = ["Rope", "apply_rope", "gather_rope", "join_rope", "rope_table"]


class Rope(NamedTuple):
    """Tables for one count of video tokens; a tuple, because FSDP2 looks for tensors in containers it knows."""

    video: Tensor
    """(1 or B, L, P, 2)."""
    joined: Tensor
    """The same for video and context as the layout joins them."""


def rope_table(
    grid_TYX: tuple[int, int, int], axes: tuple[int, int, int], theta: float, device: torch.device
) -> Tensor:
    """Cosines and sines for every token of a (T, Y, X) grid in row-major order, float32 of shape (1, T*Y*X, sum(axes)/2, 2)."""
    positions = torch.meshgrid(
        *(torch.arange(size, dtype=torch.float64, device=device) for size in grid_TYX), indexing="ij"
    )
    angles_LP = torch.cat(
        [
            torch.outer(
                position.reshape(-1),
                theta ** (-torch.arange(0, axis, 2, dtype=torch.float64, device=device) / axis),
            )
            for position, axis in zip(positions, axes, strict=True)
        ],
        dim=1,
    )
    return torch.stack([angles_LP.cos(), angles_LP.sin()], dim=-1).to(torch.float32)[None]


def gather_rope(table_1LP2: Tensor, kept_BK: Tensor) -> Tensor:
    """The rows of the kept tokens, (B, K, P, 2)."""
    return table_1LP2[0][kept_BK]


def join_rope(video: Tensor, context: Tensor, layout: ContextLayout) -> Rope:
    """Tables for video of these positions beside context tokens (of which only the number is looked at), which have none."""
    still = torch.ones_like(video[:1, :1]) * torch.tensor([1.0, 0.0], device=video.device)
    if layout.packing is None:
        context_table = still.expand(video.shape[0], context.shape[1], -1, -1)
        return Rope(video, torch.cat([video, context_table], dim=1))
    batch = len(layout.packing.lengths)
    return Rope(video, layout.join(video.expand(batch, -1, -1, -1), still[0].expand(context.shape[0], -1, -1)))


def apply_rope(heads: Tensor, table: Tensor) -> Tensor:
    """Rotate each interleaved channel pair of heads (..., H, A) by a table (..., P, 2), in float32; the result has the type of the input."""
    pairs, turns = heads.float().unflatten(-1, (-1, 2)), table[..., None, :, :]
    if torch.compiler.is_compiling():
        (even, odd), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)
        rotated = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns))
    return rotated.flatten(-2).to(heads.dtype)
