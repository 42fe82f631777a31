"""AdamW on sharded float32 weights, with a learning rate that is a function of the step.

The rate is set before each step, so there is no scheduler state. Gradients that autograd did not touch count as zero: every parameter then has
the same number of updates and the optimizer's whole state is two tensors per parameter and one integer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from schemas.errors import ReelyardError
from training.config import OptimizerConfig

__all__ = [
    "NonFiniteGradientError",
    "build_optimizer",
    "learning_rate",
    "optimizer_tensors",
    "set_updates_done",
    "take_step",
]


class NonFiniteGradientError(ReelyardError):
    """The norm of a step's gradient is not a finite number; gradients and weights are as they were."""

    def __init__(self, step: int, norm: float) -> None:
        super().__init__(
            f"step {step}: the gradient norm is {norm}, expected a finite number; the weights were left as they were. "
            "Continue from the last checkpoint with a lower optimizer.lr or clip_norm (--allow-change names what you change)"
        )
        self.norm = norm


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """Rate of a 0-based step: `lr (step + 1) / warmup_steps` up to `lr`, then `lr`, or falling to `lr final_ratio` at `decay_steps`."""
    if step + 1 < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.decay_steps is None:
        return config.lr
    share = min(1.0, max(0, step - config.warmup_steps) / (config.decay_steps - config.warmup_steps))
    left = 1.0 - share if config.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * share))
    return config.lr * (config.final_ratio + (1.0 - config.final_ratio) * left)


def build_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with its (zero) state made, of the parameters that are trained; weight decay on weights of two or more axes only."""
    parameters = _trained(network)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, eps=config.eps, foreach=True
    )
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def take_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int
) -> tuple[float, float]:
    """Clip, update, clear the gradients; (gradient norm before clipping, learning rate).

    Raises:
        NonFiniteGradientError: on every rank, before anything is changed, if the norm is not finite.
    """
    parameters = _trained(network)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    total = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
    if not math.isfinite(norm):
        raise NonFiniteGradientError(step, norm)
    nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, total, foreach=True)
    rate = learning_rate(config, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, rate


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """The state's tensors as `exp_avg/<name>` and `exp_avg_sq/<name>`; they are the optimizer's own, to be saved or loaded into."""
    return {
        f"{kind}/{name}": optimizer.state[parameter][kind]
        for kind in ("exp_avg", "exp_avg_sq")
        for parameter, name in names.items()
        if parameter in optimizer.state
    }


def set_updates_done(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """Tell the optimizer how many updates its loaded state has seen (Adam's bias correction)."""
    for state in optimizer.state.values():
        state["step"].fill_(float(updates))


def _trained(network: nn.Module) -> list[nn.Parameter]:
    """Those that are not frozen."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
