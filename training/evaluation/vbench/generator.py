"""The run's sampler as a function of (prompt, seed): the one place where this package touches `training.sampling`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.evaluation.vbench.videos import Generate, VideoSettings
from training.sampling import Conditions, SampleRequest, open_sampler, sample_latents

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
    shift = opened.config.flow.shift_of(size.video_tokens) if sampler.shift is None else sampler.shift

    def generate(prompt: str, seed: int) -> np.ndarray:
        conditions = Conditions(texts=[opened.texts[place[prompt]]], null_text_ED=opened.null_text_ED)
        latent_BTCYX = sample_latents(
            opened.velocity,
            conditions,
            size,
            sampler,
            channels=opened.config.model.out_channels,
            shift=shift,
            seeds=[seed],
            device=opened.device,
        )
        return opened.decode(latent_BTCYX[0])

    settings = VideoSettings(
        run=request.run.absolute().name,
        checkpoint=opened.checkpoint.name,
        weights=request.weights,
        frames=size.frames,
        height=size.height,
        width=size.width,
        fps=opened.info.fps,
        seed=request.seed,
        sampler={**sampler.model_dump(mode="json"), "shift": shift},
    )
    return OpenGenerator(generate=generate, settings=settings, notes=opened.notes)
