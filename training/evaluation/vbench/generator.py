"""The run's sampler as a function of (prompt, seed): the one place where this package touches `training.sampling`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.evaluation.vbench.videos import Generate, VideoSettings
from training.sampling import SampleRequest, open_sampler

__all__ = ["OpenGenerator", "open_generator"]


@dataclass(frozen=True, kw_only=True)
class OpenGenerator:
    """Loaded and ready."""

    generate: Generate
    settings: VideoSettings
    notes: tuple[str, ...]


def open_generator(request: SampleRequest, prompts: Sequence[str]) -> OpenGenerator:
    """Load the run's network, codec and the states of all prompts once; `request.seed` is the seed of seeds.

    Raises:
        UsageError, ModelMissingError, ConfigError: as `training.sampling.open_sampler`.
    """
    opened = open_sampler(request)
    place = {prompt: index for index, prompt in enumerate(prompts)}
    size, sampler = request.size, request.sampler

    def generate(prompt: str, seed: int) -> np.ndarray:
        index = place[prompt]
        return opened.decode(opened.latents(index, index + 1, seed=seed)[0])

    settings = VideoSettings(
        run=request.run.absolute().name,
        checkpoint=opened.checkpoint.name,
        weights=request.weights,
        frames=size.frames,
        height=size.height,
        width=size.width,
        fps=opened.info.fps,
        seed=request.seed,
        sampler={**sampler.model_dump(mode="json"), "shift": sampler.shift_for(opened.config.flow, size)},
    )
    return OpenGenerator(generate=generate, settings=settings, notes=opened.notes)
