"""What is measured while a network trains, and how often. None of it touches the training: losses are the same bits with and without."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.config import StrictConfig
from training.randomness import CaptionKind
from training.sampler_config import LatentSize, LowPassConfig, SamplerConfig

__all__ = ["EvaluationConfig", "ValidationConfig"]


class EvaluationConfig(StrictConfig):
    """Videos of fixed prompts and seeds, from the averages: `RUN/samples/step-00000020/`."""

    every_steps: int = Field(default=1000, gt=0)
    """Also before the first step and after the last."""
    prompts: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Every prompt is sampled with each."""
    frames: int = 33
    """4k + 1, of any length."""
    height: int = 64
    width: int = 112
    sampler: SamplerConfig = SamplerConfig()

    @property
    def size(self) -> LatentSize:
        """In pixels."""
        return LatentSize(self.frames, self.height, self.width)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(not prompt.strip() for prompt in self.prompts):
            raise ValueError("one of the prompts is empty; leave it out")
        if self.sampler.low_pass != LowPassConfig():
            raise ValueError("sampler.low_pass has no effect: no first frame is given to these videos; leave it out")
        assert self.size
        return self


class ValidationConfig(StrictConfig):
    """Loss on clips that are never trained on (`--validation SET`): `RUN/validation.jsonl`."""

    every_steps: int = Field(default=1000, gt=0)
    """Also before the first step and after the last."""
    clips_per_bucket: int | None = Field(default=16, gt=0)
    """At most this many of each size, chosen by their ids; null takes all. They are held in memory."""
    num_timesteps: int = Field(default=8, gt=0)
    """Every clip is measured at this many times: the middles of equal shares of the training density of its size."""
    caption: CaptionKind = "long"
    weights: tuple[Literal["ema", "trained"], ...] = Field(default=("ema", "trained"), min_length=1)
    seed: int = 0
    """Of the noise, one draw for each clip, the same at all times."""
