"""Muon on sharded matrices: momentum stays cut, each matrix is gathered once a step, and `torch.optim.Muon` makes it orthogonal.

Every rank of a group gathers every matrix in the same order, whether it holds rows of it or not, so none waits for a rank that has nothing to say.
Given sharded tensors, torch's Muon would gather three times in each of its five iterations. Queries, keys and values lie in one weight and are made
orthogonal each by itself. Price: all ranks of a group do the same products, about 4 r^2 c multiply-adds per iteration of a matrix with r rows and c
columns (r <= c); a step of many clips hides them, one of few does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from training.optimizing.local_parts import LocalPart, as_sharded
from training.optimizing.optimizer_config import OptimizerConfig
from training.optimizing.parameter_groups import decays

__all__ = ["Muon", "orthogonal_update"]


class Muon:
    """Nesterov momentum, made orthogonal and scaled to the size of AdamW's updates; weight decay is decoupled."""

    def __init__(self, parts: Sequence[LocalPart], config: OptimizerConfig, fused: Mapping[nn.Parameter, int]) -> None:
        self._parts = list(parts)
        self._config = config
        self._num_matrices = {part.name: fused.get(part.parameter, 1) for part in self._parts}
        self._momentum = {part.name: torch.zeros_like(part.plain).detach() for part in self._parts}

    @torch.no_grad()
    def update(self, rate: float) -> None:
        momentum = self._config.momentum
        for part in self._parts:
            gradient, average = part.plain.grad, self._momentum[part.name]
            assert gradient is not None
            average.lerp_(gradient, 1.0 - momentum)
            # Orthogonalisation is done in bfloat16, so nothing is lost by sending that.
            mine = gradient.lerp(average, momentum).to(torch.bfloat16)
            whole = _whole(mine, part.parameter).float()
            pieces = whole.chunk(self._num_matrices[part.name])
            change = _mine(torch.cat([orthogonal_update(piece, rate) for piece in pieces]), part.parameter)
            if decays(part.name, part.parameter.ndim):
                part.plain.mul_(1.0 - rate * self._config.weight_decay)
            part.plain.add_(change)

    def tensors(self) -> dict[str, Tensor]:
        return {f"momentum/{part.name}": as_sharded(self._momentum[part.name], part.parameter) for part in self._parts}

    def set_updates_done(self, updates: int) -> None:
        """Muon corrects no bias, so it counts nothing."""


def orthogonal_update(matrix: Tensor, rate: float) -> Tensor:
    """What Muon adds to a matrix whose (momentum of the) gradient is `matrix`, without weight decay: torch's own, given a matrix of zeros."""
    with torch.enable_grad():
        zeros = nn.Parameter(torch.zeros_like(matrix))
    zeros.grad = matrix
    torch.optim.Muon(
        [zeros], lr=rate, weight_decay=0.0, momentum=0.0, nesterov=False, adjust_lr_fn="match_rms_adamw"
    ).step()
    return zeros.detach()


def _whole(part: Tensor, parameter: Tensor) -> Tensor:
    sharded = as_sharded(part, parameter)
    return sharded.full_tensor() if isinstance(sharded, DTensor) else sharded


def _mine(whole: Tensor, parameter: Tensor) -> Tensor:
    """This rank's rows of a matrix that every rank has; nothing is sent."""
    if not isinstance(parameter, DTensor):
        return whole
    everywhere = [Replicate()] * parameter.device_mesh.ndim
    given = DTensor.from_local(whole, parameter.device_mesh, everywhere, run_check=False)
    return given.redistribute(placements=parameter.placements).to_local()
