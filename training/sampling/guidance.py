"""Two velocities to one: towards the text, away from the null text or a negative prompt.

    cfg    v_null + g (v_text - v_null)
    apg    v_text + g (d_orthogonal + eta d_parallel),   d = v_text - v_null, with momentum over the steps, cut to a norm for each latent frame

Adaptive projected guidance (arXiv 2410.02416) leaves out what only makes the picture louder: the part of the difference along the guided velocity.
Norms and projections are taken over channels, rows and columns, for each latent frame by itself, as published with Motif-Video 2B; projections in
float64. Price of apg: one more latent in memory, and a scale whose numbers do not compare with those of cfg.

Tested equal to diffusers' `AdaptiveProjectedGuidance` (original formulation).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from training.sampler_config import ApgConfig, SamplerConfig

__all__ = ["AdaptiveProjectedGuidance", "ClassifierFreeGuidance", "Guidance", "build_guidance"]

_FRAME_DIMS = (-1, -2, -4)
"""X, Y and C of B C T Y X: all of one latent frame."""


class Guidance(ABC):
    """Combines the velocities of a step; may remember earlier steps, so a new one for each trajectory."""

    @abstractmethod
    def combine(self, text_BCTYX: Tensor, null_BCTYX: Tensor) -> Tensor:
        """The guided velocity."""


class ClassifierFreeGuidance(Guidance):
    """Extrapolates along the difference."""

    def __init__(self, scale: float) -> None:
        self._scale = scale

    def combine(self, text_BCTYX: Tensor, null_BCTYX: Tensor) -> Tensor:
        return null_BCTYX + self._scale * (text_BCTYX - null_BCTYX)


class AdaptiveProjectedGuidance(Guidance):
    """Extrapolates along the part of the difference that is orthogonal to the guided velocity, frame by frame."""

    def __init__(self, scale: float, config: ApgConfig) -> None:
        self._scale = scale
        self._config = config
        self._running_BCTYX: Tensor | None = None

    def combine(self, text_BCTYX: Tensor, null_BCTYX: Tensor) -> Tensor:
        difference = text_BCTYX - null_BCTYX
        if self._config.momentum:
            if self._running_BCTYX is not None:
                difference = difference + self._config.momentum * self._running_BCTYX
            self._running_BCTYX = difference
        return text_BCTYX + self._scale * self._update(difference, text_BCTYX)

    def _update(self, difference: Tensor, text_BCTYX: Tensor) -> Tensor:
        """The difference, cut to the norm threshold, with only `eta` of its part along the guided velocity."""
        if self._config.norm_threshold > 0.0:
            norm = torch.linalg.vector_norm(difference, dim=_FRAME_DIMS, keepdim=True)
            difference = difference * (self._config.norm_threshold / norm).clamp(max=1.0)
        direction = F.normalize(text_BCTYX.double(), dim=_FRAME_DIMS)  # type: ignore[arg-type]  # takes a tuple
        whole = difference.double()
        parallel = (whole * direction).sum(dim=_FRAME_DIMS, keepdim=True) * direction
        return ((whole - parallel) + self._config.eta * parallel).to(torch.float32)


def build_guidance(sampler: SamplerConfig) -> Guidance | None:
    """Guidance at the start of a trajectory; None where the text's velocity is the answer, and one pass a step is enough."""
    if sampler.num_passes == 1:
        return None
    if sampler.guidance_kind == "cfg":
        return ClassifierFreeGuidance(sampler.guidance)
    return AdaptiveProjectedGuidance(sampler.guidance, sampler.apg)
