"""Noise to latents: the schedule, a velocity or two a step, guidance, the solver.

The noise of a clip is a function of its seed and the size alone, so prompts can be compared on the same noise. The null text's velocity is a
pass of its own rather than more clips in the same pass: it needs no more memory than training, and where no text of a pass is
padded no mask is needed, so that flash attention runs. Price: two launches of every kernel, which only small networks notice. The latent and all
arithmetic of the steps are float32, whatever the network computes in.

Legend: B clips, C channels, T latent frames, Y/X latent rows and columns, E text tokens, I image tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from training import randomness
from training.batch import pad_texts
from training.config import TrainConfig
from training.dit.model import MotifVideoDiT
from training.flow import euler_schedule, model_input, timestep_of
from training.low_pass import low_pass
from training.sampler_config import LatentSize, SamplerConfig
from training.sampling.guidance import build_guidance
from training.sampling.solvers import build_solver

__all__ = ["Conditions", "Velocity", "sample_as_trained", "sample_latents", "velocity_of"]


class Velocity(Protocol):
    """A network's velocity, in any float type; `latent_BCTYX` has all input channels."""

    def __call__(
        self,
        latent_BCTYX: Tensor,
        timestep_B: Tensor,
        text_BED: Tensor,
        text_mask_BE: Tensor | None,
        image_BID: Tensor | None,
        /,
    ) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the clips of one batch are to show."""

    texts: Sequence[np.ndarray]
    """Encoder states of each clip's prompt, (tokens, width)."""
    null_text_ED: np.ndarray
    """Of the null text, or of the negative prompt."""
    first_frame_BCYX: Tensor | None = None
    """Latents of the given first frames; None is text to video."""
    image_BID: Tensor | None = None
    """Image tokens of the given first frames; None for none."""


@torch.no_grad()
def sample_latents(
    velocity: Velocity,
    conditions: Conditions,
    size: LatentSize,
    sampler: SamplerConfig,
    *,
    channels: int,
    shift: float,
    seeds: Sequence[int],
    device: torch.device,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Sample a batch of clips, one seed for each: a float32 latent B T C Y X on the CPU.

    `shift` is that of the schedule (`sampler.shift` is already decided there). `on_step(done, steps)` is called after each step.
    """
    count = len(conditions.texts)
    assert len(seeds) == count
    shape = (channels, *size.latent_shape)
    latent_BCTYX = torch.cat([randomness.noise(seed, 0, ["sample"], shape) for seed in seeds]).to(device)
    texts = [_text_input(conditions.texts, device), _text_input([conditions.null_text_ED] * count, device)]
    image_BID = None if conditions.image_BID is None else conditions.image_BID.to(device)
    sharp, blurred = _conditions(conditions.first_frame_BCYX, latent_BCTYX, sampler)
    given_B = torch.full((count,), conditions.first_frame_BCYX is not None, device=device)
    guidance, solver = build_guidance(sampler), build_solver(sampler.solver)
    sigmas = euler_schedule(sampler.num_steps, shift).tolist()
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        condition = blurred if index < sampler.low_pass.share * sampler.num_steps else sharp
        latent_input = model_input(latent_BCTYX, condition, given_B)
        timestep_B = timestep_of(torch.full((count,), sigma, dtype=torch.float64, device=device))
        found = [
            velocity(latent_input, timestep_B, *text, image_BID).float()
            for text in (texts if guidance is not None else texts[:1])
        ]
        guided = found[0] if guidance is None else guidance.combine(found[0], found[1])
        latent_BCTYX = solver.step(latent_BCTYX, guided, sigma, next_sigma)
        if on_step is not None:
            on_step(index + 1, sampler.num_steps)
    return latent_BCTYX.transpose(1, 2).contiguous().cpu()


def sample_as_trained(
    config: TrainConfig,
    velocity: Velocity,
    conditions: Conditions,
    size: LatentSize,
    sampler: SamplerConfig,
    *,
    seeds: Sequence[int],
    device: torch.device,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """`sample_latents` of a network that was trained with `config`, which has the channels and, where the sampler has none, the shift."""
    return sample_latents(
        velocity,
        conditions,
        size,
        sampler,
        channels=config.model.out_channels,
        shift=sampler.shift_for(config.flow, size),
        seeds=seeds,
        device=device,
        on_step=on_step,
    )


def velocity_of(network: MotifVideoDiT) -> Velocity:
    """A network as a velocity."""

    def velocity(
        latent_BCTYX: Tensor, timestep_B: Tensor, text_BED: Tensor, mask_BE: Tensor | None, image_BID: Tensor | None
    ) -> Tensor:
        return network(latent_BCTYX, timestep_B, text_BED, mask_BE, image_BID).velocity_BCTYX

    return velocity


def _text_input(texts: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Padded states and their mask; no mask where no text is shorter than another."""
    text_BED, mask_BE = pad_texts(texts)
    return text_BED.to(device), None if bool(mask_BE.all()) else mask_BE.to(device)


def _conditions(first_frame_BCYX: Tensor | None, like_BCTYX: Tensor, sampler: SamplerConfig) -> tuple[Tensor, Tensor]:
    """The given frame as `model_input` takes it, sharp and low-passed; without a frame it looks at neither."""
    sharp, blurred = torch.zeros_like(like_BCTYX), torch.zeros_like(like_BCTYX)
    if first_frame_BCYX is not None:
        sharp[:, :, 0] = first_frame_BCYX.to(like_BCTYX)
        blurred[:, :, 0] = low_pass(first_frame_BCYX, sampler.low_pass.factor).to(like_BCTYX)
    return sharp, blurred
