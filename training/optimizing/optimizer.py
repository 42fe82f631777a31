"""The optimizer of a run: whose gradients it takes, their norm, and one update. Weights and state are float32 shards.

Each parameter is given to one rule (`update_rules`, `muon`) by its name. The rate is set before each step, so there is no scheduler state. Gradients
that autograd did not touch count as zero: every parameter then has the same number of updates, and the whole state is a few tensors per parameter
and one integer. The norm of the whole gradient is summed by the caller with its other numbers, in one exchange between
ranks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from training.optimizing.local_parts import LocalPart
from training.optimizing.muon import Muon
from training.optimizing.optimizer_config import OptimizerConfig
from training.optimizing.parameter_groups import fused_parts, named_trained, takes_muon
from training.optimizing.update_rules import AdamW, AdamW8bit, UpdateRule, fits_eight_bits

__all__ = ["StepOptimizer", "build_optimizer"]

_CLIP_EPS = 1e-6
"""As in `torch.nn.utils.clip_grad_norm_`."""


class StepOptimizer:
    """Rules for all trained parameters; in each step `collect`, `squared_norm`, then `update`."""

    def __init__(self, parts: list[LocalPart], rules: list[UpdateRule], clip_norm: float) -> None:
        self._parts = parts
        self._rules = rules
        self._clip_norm = clip_norm

    def collect(self) -> None:
        """Take over the gradients of the step, zero where there is none."""
        for part in self._parts:
            part.refresh()

    @torch.no_grad()
    def squared_norm(self) -> Tensor:
        """Sum of squares of this rank's part of the gradient, a float64 of no axes on its device."""
        norms = torch._foreach_norm(self._gradients(), 2, dtype=torch.float64)
        return torch.stack(norms).square().sum()

    @torch.no_grad()
    def update(self, norm: float, rate: float) -> None:
        """Scale the gradient down if its global `norm` is above the limit, change the weights, let go of the gradients."""
        scale = self._clip_norm / (norm + _CLIP_EPS)
        if scale < 1.0:
            torch._foreach_mul_(self._gradients(), scale)
        for rule in self._rules:
            rule.update(rate)
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Let go of the step's gradients, used or not."""
        for part in self._parts:
            part.clear()

    def step_alone(self, rate: float) -> float:
        """`collect` and `update` where there is one rank; the norm."""
        self.collect()
        norm = math.sqrt(float(self.squared_norm()))
        self.update(norm, rate)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, to be saved or loaded into; see `training.optimizing.update_rules` for the names."""
        return {name: tensor for rule in self._rules for name, tensor in rule.tensors().items()}

    def set_updates_done(self, updates: int) -> None:
        """Say how many updates the loaded state has seen (Adam's bias correction)."""
        for rule in self._rules:
            rule.set_updates_done(updates)

    def _gradients(self) -> list[Tensor]:
        return [part.plain.grad for part in self._parts if part.plain.grad is not None]


def build_optimizer(network: nn.Module, config: OptimizerConfig) -> StepOptimizer:
    """The configured optimizer with its (zero) state made, of the parameters that are trained."""
    parts = [LocalPart(name, parameter) for name, parameter in named_trained(network).items()]
    special: list[LocalPart] = []
    rules: list[UpdateRule] = []
    if config.name == "adamw8bit":
        special = [part for part in parts if fits_eight_bits(part.parameter.shape)]
        rules.append(AdamW8bit(special, config))
    elif config.name == "muon":
        special = [part for part in parts if takes_muon(part.name, part.parameter.ndim)]
        rules.append(Muon(special, config, fused_parts(network)))
    taken = {part.name for part in special}
    others = [part for part in parts if part.name not in taken]
    if others:
        rules.append(AdamW(others, config))
    return StepOptimizer(parts, rules, config.clip_norm)
