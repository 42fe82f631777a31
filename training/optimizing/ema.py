"""Running averages of the weights, sharded as the weights are: float32, one DTensor per parameter, updated in place without communication.

In step n (0-based) the decay is `min(decay, (1 + n) / (10 + n))`, so that the start is forgotten in a short run as well: a function of the
step, no state of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.optimizing.local_parts import local_part

__all__ = ["WeightAverages", "decay_at"]


def decay_at(decay: float, step: int) -> float:
    """How much of the average stays in a step: `decay_at(0.9999, 0) == 0.1`."""
    return min(decay, (1 + step) / (10 + step))


class WeightAverages:
    """Averages of named parameters, one set for each decay."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decays: Sequence[float]) -> None:
        self._parameters = list(parameters.values())
        self.averages: dict[float, dict[str, Tensor]] = {
            decay: {name: parameter.detach().clone() for name, parameter in parameters.items()} for decay in decays
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move every average towards the weights that the step left."""
        for decay, averages in self.averages.items():
            torch._foreach_lerp_(
                [local_part(average) for average in averages.values()],
                [local_part(parameter.detach()) for parameter in self._parameters],
                1.0 - decay_at(decay, step),
            )

    @contextmanager
    def swapped_in(self, decay: float) -> Iterator[None]:
        """The parameters hold this decay's averages, and the averages the parameters, until the end; then the very same bits as before.

        One tensor at a time is copied, so no second set of weights is needed. Neither may be changed meanwhile.
        """
        self._swap(decay)
        try:
            yield
        finally:
            self._swap(decay)

    @torch.no_grad()
    def _swap(self, decay: float) -> None:
        for parameter, average in zip(self._parameters, self.averages[decay].values(), strict=True):
            mine, other = local_part(parameter.detach()), local_part(average)
            kept = mine.clone()
            mine.copy_(other)
            other.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """`ema_<decay>/<name>`: the averages themselves, to be saved or loaded into."""
        return {
            f"ema_{decay}/{name}": average
            for decay, averages in self.averages.items()
            for name, average in averages.items()
        }
