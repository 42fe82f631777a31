"""The run's sampler as a function of (prompt, seed), opened when the first video is asked for; the one place here that touches `training.sampling`.

What all videos have in common is read from the run's files, so a folder that has its videos already is gone through without a network, a codec or
a text encoder. Price: a mistake in one of those is found after the folder's videos were looked at, before the first is made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from schemas.config import build_config
from training.checkpoints.checkpoint import find_checkpoint, read_record
from training.config import TrainConfig
from training.evaluation.vbench.videos import VideoSettings
from training.run_setup import read_run_info
from training.sampling import OpenSampler, SampleRequest, open_sampler

__all__ = ["RunGenerator"]


class RunGenerator:
    """Call it with a prompt of the request and a seed for frames T H W C; `on_note` is told what the sampler has to say when it is opened."""

    def __init__(self, request: SampleRequest, *, on_note: Callable[[str], None] | None = None) -> None:
        self._request, self._on_note = request, on_note
        self._places = {prompt: index for index, prompt in enumerate(request.prompts)}
        self.settings = _settings_of(request)

    def __call__(self, prompt: str, seed: int) -> np.ndarray:
        """Frames of one video."""
        place = self._places[prompt]
        (latent_TCYX,) = self._opened.latents(place, place + 1, seed=seed)
        return self._opened.decode(latent_TCYX)

    @cached_property
    def _opened(self) -> OpenSampler:
        opened = open_sampler(self._request)
        for note in opened.notes:
            if self._on_note is not None:
                self._on_note(note)
        return opened


def _settings_of(request: SampleRequest) -> VideoSettings:
    """Of the run's files and the request alone; UsageError for a folder that is no run, or has no such checkpoint."""
    info = read_run_info(request.run)
    checkpoint = find_checkpoint(request.run, request.checkpoint)
    config = build_config(TrainConfig, read_record(checkpoint).config, source=str(checkpoint / "record.json"))
    size, sampler = request.size, request.sampler
    return VideoSettings(
        run=request.run.absolute().name,
        checkpoint=checkpoint.name,
        weights=request.weights,
        frames=size.frames,
        height=size.height,
        width=size.width,
        fps=info.fps,
        seed=request.seed,
        sampler={**sampler.model_dump(mode="json"), "shift": sampler.shift_for(config.flow, size)},
    )
