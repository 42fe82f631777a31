"""What is drawn from noise, and how: size, solver, steps, guidance and low-pass, the same for the command line and for samples in training.

Apart from `training.sampling`, so that `training.config` can hold it without loading the sampler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from schemas.buckets import SIDE_MULTIPLE, latent_frames
from schemas.config import StrictConfig
from schemas.errors import UsageError

if TYPE_CHECKING:
    from training.config import FlowConfig

__all__ = ["ApgConfig", "GuidanceKind", "LatentSize", "LowPassConfig", "SamplerConfig", "SolverName"]

SolverName = Literal["euler", "dpmpp_2m"]
"""`dpmpp_2m`: DPM-Solver++, second order, multistep."""

GuidanceKind = Literal["cfg", "apg"]
"""Classifier-free guidance, or adaptive projected guidance (arXiv 2410.02416)."""


@dataclass(frozen=True)
class LatentSize:
    """Size of a video in pixels: any 4k + 1 frames, sides of any multiple of 16; UsageError otherwise."""

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.frames < 1 or self.frames % 4 != 1:
            raise UsageError(f"frames is {self.frames}, expected 4k + 1: 1, 33, 65, 121, 161, ...")
        for name, value in (("height", self.height), ("width", self.width)):
            if value <= 0 or value % SIDE_MULTIPLE:
                raise UsageError(f"{name} is {value}, expected a positive multiple of {SIDE_MULTIPLE}")

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """T, Y, X."""
        return (latent_frames(self.frames), self.height // 8, self.width // 8)

    @property
    def video_tokens(self) -> int:
        """After the 1x2x2 patch."""
        frames, rows, columns = self.latent_shape
        return frames * (rows // 2) * (columns // 2)


class ApgConfig(StrictConfig):
    """Adaptive projected guidance; the defaults are those published with Motif-Video 2B."""

    norm_threshold: float = Field(default=12.0, ge=0.0)
    """The guiding difference of each latent frame is scaled down to this norm; 0 leaves it."""
    momentum: float = 0.1
    """Share of the last step's running difference that is added to this step's; 0 keeps none, below 0 is what the APG paper uses."""
    eta: float = 0.0
    """How much of the difference's part along the guided velocity stays; 1 keeps it whole."""


class LowPassConfig(StrictConfig):
    """Adaptive Low-Pass Guidance (arXiv 2506.08456) for image-to-video: the given frame is seen blurred at first, so that motion can begin."""

    factor: float = Field(default=0.4, gt=0.0, le=1.0)
    """Size of the picture through which the given frame is seen; 1 is no blur. See `training.low_pass`."""
    share: float = Field(default=0.2, ge=0.0, le=1.0)
    """Share of the steps, from the first, that see it so; 0 switches it off."""


class SamplerConfig(StrictConfig):
    """From noise to a latent."""

    solver: SolverName = "euler"
    num_steps: int = Field(default=20, ge=1)
    """Of the solver; each is one velocity, two with guidance."""
    shift: float | None = Field(default=None, gt=0.0)
    """Of the schedule; null takes the training shift of the sampled size."""
    guidance_kind: GuidanceKind = "cfg"
    guidance: float = Field(default=4.0, ge=0.0)
    """cfg: `v_null + g (v_text - v_null)`, 1 follows the text without guidance. apg: `v_text + g update`, as published, 0 is without.
    The default of apg is 8."""
    apg: ApgConfig = ApgConfig()
    negative_prompt: str | None = None
    """Takes the null text's place; null keeps the null text that training dropped captions to."""
    low_pass: LowPassConfig = LowPassConfig()

    @model_validator(mode="before")
    @classmethod
    def _guidance_of_kind(cls, values: Any) -> Any:
        """The published scale, where only the kind is given."""
        if isinstance(values, dict) and values.get("guidance_kind") == "apg":
            return {"guidance": 8.0, **values}
        return values

    @property
    def num_passes(self) -> int:
        """Forward passes of a step: one where guidance changes nothing."""
        return 1 if self.guidance == (1.0 if self.guidance_kind == "cfg" else 0.0) else 2

    def shift_for(self, flow: FlowConfig, size: LatentSize) -> float:
        """Of the schedule at that size: the sampler's own, else that of a training with this flow."""
        return flow.shift_of(size.video_tokens) if self.shift is None else self.shift

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.negative_prompt is not None and self.num_passes == 1:
            raise ValueError(
                f"negative_prompt {self.negative_prompt!r} has no effect with guidance {self.guidance:g} ({self.guidance_kind}): "
                "there is nothing to be guided away from; raise guidance, or leave negative_prompt out"
            )
        return self
