"""The configuration of a training run: one YAML file, everything in it, units in the names.

A key that is not known is refused, and nothing is read from the environment. Paths are not in here: the plan, the sets and the output folder
are flags, so that one file serves many machines. `maths_differences` says which fields two configurations disagree on, for resuming: a field
changes the maths unless it is listed in `FREE_TO_CHANGE`, so that a new field is safe by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from schemas.buckets import Bucket
from schemas.config import StrictConfig
from schemas.errors import ConfigError
from schemas.model_shape import ModelShape
from training.evaluation.settings import EvaluationConfig, ValidationConfig
from training.flow import TimeDensity, resolution_shift
from training.randomness import CaptionKind
from training.routing import RouteSpec

__all__ = [
    "FREE_TO_CHANGE",
    "CheckpointConfig",
    "FlowConfig",
    "OptimizerConfig",
    "RepaConfig",
    "TextConfig",
    "TrainConfig",
    "TreadConfig",
    "maths_differences",
]

Probability = Annotated[float, Field(ge=0.0, le=1.0)]

FREE_TO_CHANGE = (
    "checkpoint.every_steps",
    "checkpoint.keep",
    "steps",
    "read_ahead_steps",
    "evaluation",
    "validation",
)
"""Keys and whole sections that may differ when a run is continued: they decide how long and how it runs, not what it computes."""


class OptimizerConfig(StrictConfig):
    """AdamW; the learning rate is a function of the step alone."""

    lr: float = Field(default=1e-4, gt=0.0)
    """Learning rate after the warm-up."""
    betas: tuple[Probability, Probability] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Decoupled; on weights of two or more axes only, never on biases and norms."""
    clip_norm: float = Field(default=1.0, gt=0.0)
    """The gradient of a step is scaled down to this global norm."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises in a line; step 0 has `lr / warmup_steps`."""
    decay: Literal["cosine", "linear"] = "cosine"
    """How it falls, where it does."""
    decay_steps: int | None = Field(default=None, gt=0)
    """Step from which on the rate is `lr * final_ratio`; between the warm-up's end and this it falls. null lets it stay at `lr`."""
    final_ratio: float = Field(default=0.0, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"decay_steps {self.decay_steps} must be above warmup_steps {self.warmup_steps}: the rate rises first, then falls"
            )
        return self


class FlowConfig(StrictConfig):
    """How the time s of each clip is drawn (0 data, 1 noise)."""

    time_density: TimeDensity = "logit_normal"
    logit_mean: float = 0.0
    logit_std: float = Field(default=1.0, gt=0.0)
    shift: float = Field(default=1.0, gt=0.0)
    """`k s / (1 + (k - 1) s)`; above 1 favours noise."""
    shift_base_tokens: int | None = Field(default=None, gt=0)
    """With a number, the shift of a bucket is `shift * sqrt(video tokens / this)`; null keeps one shift for all buckets."""

    def shift_of(self, video_tokens: int) -> float:
        """The shift for clips of that many video tokens."""
        if self.shift_base_tokens is None:
            return self.shift
        return resolution_shift(video_tokens, base_tokens=self.shift_base_tokens, base_shift=self.shift)


class TreadConfig(StrictConfig):
    """TREAD token routing: blocks are numbered dual, single, decoder."""

    start_block: int = Field(ge=0)
    end_block: int = Field(ge=0)
    """Inclusive."""
    drop_ratio: float = Field(ge=0.0, lt=1.0)
    """Share of the video tokens that the routed blocks do not see."""

    def spec(self) -> RouteSpec:
        """The same for `training.routing`."""
        return RouteSpec(start=self.start_block, end=self.end_block, drop_ratio=self.drop_ratio)


class RepaConfig(StrictConfig):
    """Alignment of one encoder block's tokens to the stored teacher features."""

    tap_block: int = Field(ge=0)
    """The output of this block is aligned (0-based)."""
    weight: float = Field(ge=0.0)
    until_step: int | None = Field(default=None, ge=0)
    """From this step on the weight is 0, the graph stays; null keeps the weight to the end."""
    hidden_width: int = Field(default=2048, gt=0)
    """Of the projector."""

    def weight_at(self, step: int) -> float:
        """Loss weight in a step."""
        return self.weight if self.until_step is None or step < self.until_step else 0.0


class TextConfig(StrictConfig):
    """Which text a clip is trained with."""

    dropout_probability: Probability = 0.1
    """How often the null text takes the caption's place, for classifier-free guidance."""
    long_share: Probability = 0.5
    short_share: Probability = 0.3
    first_share: Probability = 0.2

    @property
    def shares(self) -> Mapping[CaptionKind, float]:
        """Caption kind to share."""
        return {"long": self.long_share, "short": self.short_share, "first": self.first_share}

    @model_validator(mode="after")
    def _check(self) -> Self:
        total = sum(self.shares.values())
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"long_share, short_share and first_share add up to {total:g}, expected 1")
        return self


class CheckpointConfig(StrictConfig):
    """When to save, and how much to keep. The last step is always saved."""

    every_steps: int = Field(default=1000, gt=0)
    keep: int = Field(default=3, gt=0)
    """Older checkpoints beyond this many are removed after a new one is complete."""


class TrainConfig(StrictConfig):
    """Everything that decides what a run computes, but the plan and the samples."""

    model: ModelShape
    optimizer: OptimizerConfig = OptimizerConfig()
    flow: FlowConfig = FlowConfig()
    tread: TreadConfig | None = None
    """null trains dense."""
    repa: RepaConfig | None = None
    """null trains without alignment; teacher features are then not even parsed."""
    text: TextConfig = TextConfig()
    ema_decays: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = (0.9999,)
    """One average of the weights for each; early in the run a smaller decay is used, see `training.ema`. Sampling takes the first."""
    i2v_probability: Probability = 0.0
    """How often a video clip's first frame is given as a condition."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig | None = None
    """Videos of fixed prompts on the way; null makes none."""
    validation: ValidationConfig | None = None
    """Loss on held-out clips on the way; null measures none."""
    steps: int | None = Field(default=None, gt=0)
    """Stop after this many steps of the plan; null runs all of them."""
    seed: int = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the computation; weights, optimizer and reductions are always fp32. auto: bf16 on CUDA, fp32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA when there is one."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory for about a third more time."""
    compile: bool = False
    """`torch.compile` each block; a graph for each bucket and each text length of a micro-batch, until torch's recompile limit; then it runs eager.
    Not tested."""
    read_ahead_steps: int = Field(default=1, ge=1)
    """Steps that wait ready in memory, beside the one being trained."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tread is not None:
            try:
                self.tread.spec().validated(self.model)
            except ConfigError as error:
                raise ValueError(f"tread: {error}") from error
        if self.repa is not None and self.repa.tap_block >= self.model.encoder_blocks:
            raise ValueError(
                f"repa.tap_block {self.repa.tap_block} must be an encoder block, 0 to {self.model.encoder_blocks - 1}"
            )
        if self.model.in_channels != 2 * self.model.out_channels + 1:
            raise ValueError(
                f"model.in_channels {self.model.in_channels} must be 2 x model.out_channels {self.model.out_channels} + 1: "
                "noisy latent, condition latent, mask"
            )
        return self

    def forward_flops(self, bucket: Bucket, text_tokens: int) -> int:
        """Analytic FLOPs of one clip's forward pass with the route of this run; a training step is three times that."""
        route = None if self.tread is None else (self.tread.start_block, self.tread.end_block, self.tread.drop_ratio)
        return self.model.forward_flops(bucket.video_tokens, text_tokens, route=route).total


def maths_differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys on which two JSON configurations differ (saved value, wanted value), but for `FREE_TO_CHANGE`."""
    old, new = _flat(saved), _flat(wanted)
    absent = "(not there)"
    return {
        key: (old.get(key, absent), new.get(key, absent))
        for key in sorted(old.keys() | new.keys())
        if not _is_free(key) and old.get(key, absent) != new.get(key, absent)
    }


def _is_free(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in FREE_TO_CHANGE)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys; a null section and a filled one differ in the section's own key as well."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
