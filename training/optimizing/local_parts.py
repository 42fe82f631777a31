"""This rank's parts of sharded parameters as plain tensors, and plain tensors of such parts as sharded ones again.

Optimizers that treat every number alone need no other rank: on plain tensors they are spared the dispatch of sharded ones (several operations on
each of some hundred parameters), and any library's optimizer fits. Price: FSDP2 may move a parameter's memory when it is first used, so the parts
are looked up anew before each update.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = ["LocalPart", "as_sharded", "local_part"]


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part, sharing memory; a plain tensor is its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_sharded(part: Tensor, parameter: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """`part` as this rank's part of a tensor that is cut as `parameter` is, sharing memory; of the parameter's shape, or of one with as many rows."""
    if not isinstance(parameter, DTensor):
        return part
    size = torch.Size(parameter.shape if shape is None else shape)
    stride = torch.empty(size, device="meta").stride()
    return DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, run_check=False, shape=size, stride=stride
    )


class LocalPart:
    """One parameter with the plain stand-in that an optimizer is given."""

    def __init__(self, name: str, parameter: nn.Parameter) -> None:
        self.name = name
        self.parameter = parameter
        with torch.no_grad():
            self.plain = nn.Parameter(local_part(parameter.detach()))

    @torch.no_grad()
    def refresh(self) -> None:
        """Let the stand-in be where the parameter's memory is now, with this step's gradient: zero where autograd left none."""
        self.plain.data = local_part(self.parameter.detach())
        gradient = self.parameter.grad
        self.plain.grad = torch.zeros_like(self.plain) if gradient is None else local_part(gradient)

    def clear(self) -> None:
        """Let go of the gradient."""
        self.plain.grad = self.parameter.grad = None
