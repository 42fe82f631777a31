"""REPA: tokens of one encoder block, through a small projector, are pulled towards stored features of a frozen teacher.

Teacher features come from the shards, already on the student's token grid (T, Y, X, C flattened row-major), so no teacher runs in training. The
projector runs in every micro-batch, with weight zero where no clip has a teacher: ranks then never differ in graph, nor in collectives. Price:
a projector pass for nothing in such micro-batches (below 1 % of a step).

Source: REPA (arXiv 2410.06940) and its public code: three-layer SiLU MLP, cosine. The paper's layer, weight and projector are not public.

Legend: B batch, L video tokens (K of them inside a route), D width, C teacher channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.errors import ConfigError
from training.routing import gather_tokens

__all__ = ["AlignmentLoss", "AlignmentProjector", "alignment_loss"]


@dataclass(frozen=True, kw_only=True)
class AlignmentLoss:
    """`total` (scalar, with gradient) sums `1 - cosine` averaged over each clip's tokens, over the `count` clips with a teacher."""

    total: Tensor
    count: int


class AlignmentProjector(nn.Module):
    """Linear, SiLU, Linear, SiLU, Linear from the network's width to the teacher's; REPA's hidden width is 2048."""

    def __init__(self, width: int, teacher_width: int, hidden: int = 2048) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.third = nn.Linear(hidden, teacher_width)

    def forward(self, tapped_BLD: Tensor) -> Tensor:
        """(B, L or K, C)."""
        hidden = F.silu(self.first(tapped_BLD.to(self.first.weight.dtype)))
        return self.third(F.silu(self.second(hidden)))


def alignment_loss(
    projected_BLC: Tensor, teacher_BLC: Tensor, has_teacher_B: Tensor, kept_BK: Tensor | None = None
) -> AlignmentLoss:
    """Cosine loss in float32 against the teacher's features at the same grid positions.

    `teacher_BLC` covers the whole grid; `kept_BK` (the network's output of that name) says where the projected tokens lie when the tap is
    routed. Rows without a teacher may hold anything. With no teacher at all the total is zero and still reaches the projector.
    """
    if kept_BK is not None:
        teacher_BLC = gather_tokens(teacher_BLC, kept_BK)
    if projected_BLC.shape != teacher_BLC.shape:
        raise ConfigError(
            f"projected tokens are {tuple(projected_BLC.shape)}, the teacher's features {tuple(teacher_BLC.shape)} (clip, token, channel); "
            "the set's teacher features must lie on the network's token grid and have the projector's width (set.json: teacher)"
        )
    count = int(has_teacher_B.sum())
    has_teacher_B = has_teacher_B.to(device=projected_BLC.device, dtype=torch.bool)
    projected = projected_BLC.float()
    # Selected before the arithmetic: a product with zero would let a NaN of an absent teacher through.
    teacher = torch.where(has_teacher_B[:, None, None], teacher_BLC.float(), torch.zeros_like(projected))
    per_clip_B = (1.0 - F.cosine_similarity(projected, teacher, dim=-1)).mean(dim=1)
    return AlignmentLoss(total=(per_clip_B * has_teacher_B).sum(), count=count)
