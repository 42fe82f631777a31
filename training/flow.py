"""Rectified flow: the straight path from data to noise, its velocity, the time density, the loss and the Euler schedule.

    x_s = (1 - s) x0 + s eps        v = eps - x0        s = 0 data, s = 1 noise        model input timestep = 1000 s

The time density is a map of one uniform number per clip (inverse CDF), so a draw is reproducible and monotone in that number. The loss is
returned as a sum over clips with its count: dividing is left to whoever knows the number of clips of the whole step. Loss weights are flat, as
reported for the paper (arXiv 2604.16503). Its training density and shift are not public: both are settings.

Legend: B batch, C channels, T latent frames, Y/X latent rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from schemas.errors import ConfigError

__all__ = [
    "TIMESTEP_SCALE",
    "FlowLoss",
    "TimeDensity",
    "euler_schedule",
    "euler_step",
    "flow_loss",
    "interpolate",
    "model_input",
    "resolution_shift",
    "sample_sigma",
    "shift_sigma",
    "timestep_of",
    "velocity_target",
]

TIMESTEP_SCALE = 1000.0
"""The network is told 1000 s."""

TimeDensity = Literal["uniform", "logit_normal"]


@dataclass(frozen=True, kw_only=True)
class FlowLoss:
    """Squared error of a micro-batch: `total` (scalar, with gradient) sums the per-clip means, over `count` clips."""

    total: Tensor
    count: int
    per_clip_B: Tensor
    """Mean squared error of each clip, detached, for logging."""


def interpolate(clean_BCTYX: Tensor, noise_BCTYX: Tensor, sigma_B: Tensor) -> Tensor:
    """`(1 - s) x0 + s eps`, exactly x0 at s = 0 and exactly eps at s = 1."""
    sigma = _per_clip(sigma_B, clean_BCTYX)
    return (1.0 - sigma) * clean_BCTYX + sigma * noise_BCTYX


def velocity_target(clean_BCTYX: Tensor, noise_BCTYX: Tensor) -> Tensor:
    """`eps - x0`, the derivative of the path in s."""
    return noise_BCTYX - clean_BCTYX


def timestep_of(sigma_B: Tensor) -> Tensor:
    """The network's timestep, float32 in [0, 1000]."""
    return (sigma_B * TIMESTEP_SCALE).to(torch.float32)


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """`k s / (1 + (k - 1) s)`: more weight near noise for k > 1; 0 and 1 stay (Esser et al. 2024, arXiv 2403.03206, eq. 23)."""
    if shift <= 0.0:
        raise ConfigError(f"flow shift is {shift}, expected a number above 0; 1 leaves the times as they are")
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)


def resolution_shift(num_tokens: int, *, base_tokens: int, base_shift: float = 1.0) -> float:
    """The shift that keeps the uncertainty of a larger latent: `base_shift * sqrt(tokens / base tokens)` (the same source)."""
    return base_shift * math.sqrt(num_tokens / base_tokens)


def sample_sigma(
    uniform_B: Tensor, *, density: TimeDensity = "logit_normal", mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> Tensor:
    """Map uniforms in [0, 1) to float64 times s in [0, 1], monotone in each.

    `uniform` is the identity, `logit_normal` is `sigmoid(mean + std z)` with z the normal quantile; then `shift_sigma`.
    """
    uniform_B = uniform_B.to(torch.float64)
    if density == "uniform":
        sigma_B = uniform_B
    elif density == "logit_normal":
        if std <= 0.0:
            raise ConfigError(f"logit_normal std is {std}, expected a number above 0")
        sigma_B = torch.sigmoid(mean + std * torch.special.ndtri(uniform_B))
    else:
        raise ConfigError(f"time density is {density!r}, expected 'uniform' or 'logit_normal'")
    return shift_sigma(sigma_B, shift)


def flow_loss(velocity_BCTYX: Tensor, clean_BCTYX: Tensor, noise_BCTYX: Tensor) -> FlowLoss:
    """Squared error of the velocity in float32: averaged over each clip's elements, summed over the clips."""
    target_BCTYX = velocity_target(clean_BCTYX.float(), noise_BCTYX.float())
    per_clip_B = (velocity_BCTYX.float() - target_BCTYX).square().flatten(1).mean(dim=1)
    return FlowLoss(total=per_clip_B.sum(), count=per_clip_B.numel(), per_clip_B=per_clip_B.detach())


def model_input(noisy_BCTYX: Tensor, clean_BCTYX: Tensor, first_frame_given_B: Tensor) -> Tensor:
    """Channels `[noisy C | condition C | mask 1]` of the network's input.

    Where `first_frame_given_B`, the condition is the clean latent in frame 0 and zero after, the mask is 1 in frame 0. Otherwise, and
    for a single frame always, both are zero. Of `clean_BCTYX` frame 0 alone is read: one frame is enough, and it may be blurred.
    """
    condition = torch.zeros_like(noisy_BCTYX)
    mask = torch.zeros_like(noisy_BCTYX[:, :1])
    if noisy_BCTYX.shape[2] > 1:
        given = first_frame_given_B.to(noisy_BCTYX.device).view(-1, 1, 1, 1)
        condition[:, :, 0] = torch.where(given, clean_BCTYX[:, :, 0].to(noisy_BCTYX.dtype), condition[:, :, 0])
        mask[:, :, 0] = given.to(mask.dtype)
    return torch.cat([noisy_BCTYX, condition, mask], dim=1)


def euler_schedule(num_steps: int, shift: float = 1.0) -> Tensor:
    """`num_steps + 1` float64 times from 1 down to exactly 0, evenly spaced before the shift (as diffusers' Motif pipeline)."""
    if num_steps < 1:
        raise ConfigError(f"number of sampling steps is {num_steps}, expected at least 1")
    return shift_sigma(torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64), shift)


def euler_step(noisy_BCTYX: Tensor, velocity_BCTYX: Tensor, sigma: float, next_sigma: float) -> Tensor:
    """One step along the velocity from time `sigma` to `next_sigma`."""
    return noisy_BCTYX + (next_sigma - sigma) * velocity_BCTYX


def _per_clip(sigma_B: Tensor, like_BCTYX: Tensor) -> Tensor:
    """Times as (B, 1, 1, 1, 1), on the device and in the type of the latents."""
    return sigma_B.to(device=like_BCTYX.device, dtype=like_BCTYX.dtype).view(-1, 1, 1, 1, 1)
