"""3-D rotary positions of the video tokens.

Channel pairs (2i, 2i+1) of a head are rotated by position x theta^(-2i/axis width), the head being split into a T, a Y and an X part; positions
are integers from 0. Text and image tokens have no position. The table is made on each forward (float64 angles, float32 table) rather than
kept as a buffer: it depends on the bucket, and a network without buffers is simpler to build on the meta device and to shard. A rotation is one
complex product where complex numbers are to be had: one pass over memory instead of several. Graph compilers know none and get the real formula.

Legend: B batch, L video tokens (K of them inside a route), H heads, A head width, P = A/2 rotated pairs; a table's last axis is (cosine, sine).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["apply_rope", "gather_rope", "rope_table"]


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


def apply_rope(heads_BLHA: Tensor, table_BLP2: Tensor) -> Tensor:
    """Rotate each interleaved channel pair by a table (1 or B, L, P, 2), in float32; the result has the type of the input."""
    pairs, turns = heads_BLHA.float().unflatten(-1, (-1, 2)), table_BLP2[:, :, None]
    if torch.compiler.is_compiling():
        (even, odd), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)
        rotated = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns))
    return rotated.flatten(-2).to(heads_BLHA.dtype)
