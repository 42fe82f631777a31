"""REPA: tokens of one encoder block, through a small projector, are pulled towards the features of a frozen teacher.

One projector per teacher: videos and images of a step may have different teachers, and clips may have none. Each projector sees the clips of its own
teacher alone, in every micro-batch, if need be no clip at all: a pass over zero clips still joins the graph, and its gradients are zeros. So ranks
never differ in graph, nor in collectives, whichever clips they have. Price: while alignment is configured every projector's gradients are reduced,
used or not.

Source: REPA (arXiv 2410.06940) and its public code: three-layer SiLU MLP, cosine. The paper's layer, weight and projector are not public.

Legend: B batch, N clips of one teacher, L video tokens (K of them inside a route), D width, C teacher channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.errors import ConfigError
from training.dit.routing import gather_tokens

__all__ = ["AlignmentLoss", "AlignmentProjector", "TeacherFeatures", "alignment_loss"]


@dataclass(frozen=True, kw_only=True)
class TeacherFeatures:
    """What one teacher says of a micro-batch; N may be 0."""

    rows_N: Tensor
    """Positions of its clips in the micro-batch, int64, rising."""
    features_NLC: Tensor
    """On the whole token grid (row-major over T, Y, X), in the order of `rows_N`."""

    @property
    def num_clips(self) -> int:
        """N."""
        return self.rows_N.shape[0]

    def to(self, device: torch.device) -> TeacherFeatures:
        """The same on a device."""
        rows_N, features_NLC = (each.to(device, non_blocking=True) for each in (self.rows_N, self.features_NLC))
        return TeacherFeatures(rows_N=rows_N, features_NLC=features_NLC)

    def pinned(self) -> TeacherFeatures:
        """The same in page-locked memory."""
        return TeacherFeatures(rows_N=self.rows_N.pin_memory(), features_NLC=self.features_NLC.pin_memory())


@dataclass(frozen=True, kw_only=True)
class AlignmentLoss:
    """`total` (scalar, with gradient) sums `1 - cosine` averaged over each clip's tokens, over `count` clips."""

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
    projector: AlignmentProjector, tapped_BLD: Tensor, teacher: TeacherFeatures, kept_BK: Tensor | None = None
) -> AlignmentLoss:
    """Cosine loss in float32 of one teacher's clips, against the features at the same grid positions.

    `kept_BK` (the network's output of that name) says where the tapped tokens lie when the tap is routed. With no clip the total is zero and
    still reaches the projector and the tapped tokens.
    """
    features_NLC = teacher.features_NLC
    if kept_BK is not None:
        features_NLC = gather_tokens(features_NLC, kept_BK[teacher.rows_N])
    projected_NLC = projector(tapped_BLD[teacher.rows_N]).float()
    if projected_NLC.shape != features_NLC.shape:
        raise ConfigError(
            f"projected tokens are {tuple(projected_NLC.shape)}, the teacher's features {tuple(features_NLC.shape)} (clip, token, channel); "
            "the set's teacher features must lie on the network's token grid and have the projector's width (set.json: teacher_width)"
        )
    per_clip_N = (1.0 - F.cosine_similarity(projected_NLC, features_NLC.float(), dim=-1)).mean(dim=1)
    return AlignmentLoss(total=per_clip_N.sum(), count=teacher.num_clips)
