"""The configuration of a training run: one YAML file, everything in it, units in the names.

A key that is not known is refused, and nothing is read from the environment. Paths are not in here: the plan, the sets and the output folder
are flags, so that one file serves many machines. `config_differences` says which fields two configurations disagree on, for resuming: a field
changes the maths unless it is listed in `FREE_TO_CHANGE`, so that a new field is safe by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from schemas.buckets import TOKEN_PATCH, Bucket
from schemas.config import StrictConfig
from schemas.errors import ConfigError
from schemas.model_shape import ModelShape
from schemas.tables import BRANCHES
from training.curriculum.stage import StageConfig
from training.dit.routing import RouteSpec
from training.evaluation.settings import EvaluationConfig, ValidationConfig
from training.flow import TimeDensity, resolution_shift
from training.logs.settings import LoggingConfig
from training.optimizing.optimizer_config import OptimizerConfig
from training.parallel_config import ParallelConfig
from training.randomness import CaptionKind

__all__ = [
    "FREE_TO_CHANGE",
    "BlurConfig",
    "CheckpointConfig",
    "FlowConfig",
    "I2VConfig",
    "LoaderConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "RepaConfig",
    "TextConfig",
    "TrainConfig",
    "TreadConfig",
    "config_differences",
    "is_free",
]

Probability = Annotated[float, Field(ge=0.0, le=1.0)]

FREE_TO_CHANGE = (
    "checkpoint",
    "steps",
    "loader",
    "stage.note",
    "stage.quality",
    "stage.paper",
    "stage.ours",
    "evaluation",
    "validation",
    "parallel",
    "activation_checkpointing",
    "logging",
    "watchdog",
    "on_nonfinite",
    "deterministic",
)
"""Keys and whole sections that may differ when a run is continued: they decide how long and how it runs, not what it computes."""


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
    until_step: int | None = Field(default=None, gt=0)
    """From this step on every block sees all tokens, as in sampling; null routes to the end. That a network which was trained routed should be
    finished dense is SPRINT's finding (arXiv 2510.21986); the paper says nothing of it."""

    def active_at(self, step: int) -> bool:
        """Whether a step is routed."""
        return self.until_step is None or step < self.until_step

    def spec(self) -> RouteSpec:
        """The same for `training.dit.routing`."""
        return RouteSpec(start=self.start_block, end=self.end_block, drop_ratio=self.drop_ratio)


class RepaConfig(StrictConfig):
    """Alignment of one encoder block's tokens to the features of a frozen teacher."""

    tap_block: int = Field(ge=0)
    """The output of this block is aligned (0-based); a block inside the TREAD route is aligned at its kept tokens."""
    weight: float = Field(ge=0.0)
    until_step: int | None = Field(default=None, gt=0)
    """From this step on no clip is aligned: no features are read or computed, the projectors stay in the graph; null aligns to the end."""
    hidden_width: int = Field(default=2048, gt=0)
    """Of each teacher's projector."""
    source: Literal["stored", "online"] = "stored"
    """stored: the features in the shards. online: the clean latent is decoded and shown to the teacher, clip by clip and step by step, which costs
    far more than reading (see `training.online_teachers`)."""
    teacher_by_branch: dict[str, str | None] | None = None
    """Branch to its teacher, or null for none; branches that are not listed have none. null: as the sets say (set.json: teacher_by_branch)."""

    def weight_at(self, step: int) -> float:
        """Loss weight in a step."""
        return self.weight if self.until_step is None or step < self.until_step else 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.teacher_by_branch is None:
            return self
        unknown = sorted(set(self.teacher_by_branch) - set(BRANCHES))
        if unknown:
            raise ValueError(f"teacher_by_branch names branch {unknown[0]!r}, expected one of {', '.join(BRANCHES)}")
        if not any(self.teacher_by_branch.values()):
            raise ValueError("teacher_by_branch gives no branch a teacher; name one, or set repa=null")
        return self


class BlurConfig(StrictConfig):
    """Timestep-aware blur of the first-frame condition. That there is one is reported of the paper; every value here is ours."""

    probability: Probability
    """How often a first frame that is given is blurred."""
    factor_at_noise: float = Field(default=0.4, gt=0.0, le=1.0)
    """Size of the low-passed picture relative to the latent at time 1, pure noise (ALG's factor; ours as a training value)."""
    power: float = Field(default=1.0, gt=0.0)
    """How the blur fades towards the data: the factor at time s is `1 - (1 - factor_at_noise) s^power`, 1 (no blur) at time 0."""

    def factor_at(self, sigma: float) -> float:
        """`BlurConfig(probability=1, factor_at_noise=0.5).factor_at(0.5) == 0.75`."""
        return 1.0 - (1.0 - self.factor_at_noise) * sigma**self.power


class I2VConfig(StrictConfig):
    """Image-to-video in training: how often, and how, a video clip's first frame is given as a condition."""

    probability: Probability = 0.0
    """How often the first latent frame is given, in the condition channels and the mask; never for images."""
    image_tokens: bool = False
    """Whether a clip whose first frame is given is also given its image tokens (`.image.npy` of the set, for `model.image_width`)."""
    blur: BlurConfig | None = None
    """null gives the first frame as it is."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, wanted in (("image_tokens", self.image_tokens), ("blur", self.blur is not None)):
            if wanted and self.probability == 0.0:
                raise ValueError(
                    f"{key} is set, but probability is 0: no clip would be given a first frame; set i2v.probability"
                )
        return self


class TextConfig(StrictConfig):
    """Which text a clip is trained with."""

    dropout_probability: Probability = 0.1
    """How often the null text takes the caption's place, for classifier-free guidance."""
    long_share: Probability = 0.5
    short_share: Probability = 0.3
    first_share: Probability = 0.2
    length_multiple: int = Field(default=1, gt=0)
    """Texts of a micro-batch are padded to the longest, rounded up to a multiple of this. For `compile`, which makes a graph for each length;
    otherwise padding is dropped again before anything is computed."""

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
    keep_every_steps: int | None = Field(default=None, gt=0)
    """A checkpoint whose step is a multiple of this is never removed; null removes all old ones."""
    asynchronous: bool = True
    """Copy the state to memory of the host, go on, and write in the background. That memory, as much as a process holds of weights, moments and
    averages, is taken when the run starts. false: all wait until the files are on disk, and nothing is copied. The files are the same."""


class LoaderConfig(StrictConfig):
    """How each rank reads the plan's samples; batches do not depend on it."""

    reader_threads: int = Field(default=2, ge=1)
    """Threads that read and check samples; one more makes batches of them."""
    read_ahead_bytes: int = Field(default=1 << 30, ge=0)
    """Bytes of ready batches, the ones being trained among them. The next step is always made ready, however large."""
    read_ahead_seconds: float = Field(default=30.0, ge=0.0)
    """How far ahead batches are made, in time: the plan's predicted seconds, scaled by how long steps really take. The tighter limit holds."""
    store_timeout_seconds: float = Field(default=30.0, gt=0.0)
    """Of one try to read from an object store."""
    store_tries: int = Field(default=6, ge=1)
    """Tries in a row that bring next to nothing, before the run ends with an error that names the object."""
    max_replaced_share: Probability = 0.1
    """How much of a rank's data may be lost: the run ends when damaged clips replaced within 100 steps are more than this share of the clips of 100
    steps. 0 ends it with the first one, 1 never."""


class WatchdogConfig(StrictConfig):
    """When a run in which nothing moves any more is ended, with the rank, step and phase that it hangs in (`training.control.watchdog`)."""

    seconds: float = Field(default=1800.0, gt=0.0)
    """Longest time without a new phase (data, forward, backward, ... of a micro-batch) on any rank."""
    first_step_seconds: float = Field(default=3600.0, gt=0.0)
    """The same until a process has finished its first step: loading, compiling, starting up."""


class TrainConfig(StrictConfig):
    """Everything that decides what a run computes, but the plan and the samples."""

    stage: StageConfig | None = None
    """Place in a curriculum: where the weights come from and what data the stage is for; null for a run by itself."""
    model: ModelShape
    optimizer: OptimizerConfig = OptimizerConfig()
    flow: FlowConfig = FlowConfig()
    tread: TreadConfig | None = None
    """null trains dense."""
    repa: RepaConfig | None = None
    """null trains without alignment; teacher features are then not even parsed."""
    text: TextConfig = TextConfig()
    ema_decays: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = (0.9999,)
    """One average of the weights for each; early in the run a smaller decay is used, see `training.optimizing.ema`. Sampling takes the first."""
    i2v: I2VConfig = I2VConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig | None = None
    """Videos of fixed prompts on the way; null makes none."""
    validation: ValidationConfig | None = None
    """Loss on held-out clips on the way; null measures none."""
    logging: LoggingConfig = LoggingConfig()
    """Where numbers go beside `metrics.jsonl`."""
    steps: int | None = Field(default=None, gt=0)
    """Stop after this many steps of the plan; null runs all of them."""
    seed: int = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the computation; weights, optimizer and reductions are always fp32. auto: bf16 on CUDA, fp32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA when there is one."""
    parallel: ParallelConfig = ParallelConfig()
    """Over how many ranks weights are cut, and when ranks wait for each other."""
    activation_checkpointing: bool | Annotated[int, Field(gt=0)] = False
    """Recompute blocks in the backward pass: less memory for up to a third more time. true or 1: each block; n: every n-th, counted dual, single,
    decoder. Changes no bit."""
    compile: bool = False
    """`torch.compile` each block whole. A graph for each class of block, bucket, routed or dense, and text length of a micro-batch (see
    `text.length_multiple`), with and without padded text; which tokens a route keeps makes no new one."""
    deterministic: bool = False
    """Only kernels that give the same bits each time, so that a resumed run on a GPU repeats the other bit for bit; on a CPU it does so anyway. Costs
    time: `training.deterministic`."""
    loader: LoaderConfig = LoaderConfig()
    watchdog: WatchdogConfig | None = WatchdogConfig()
    """null lets a run that hangs hang."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a step does whose loss or gradient is not finite. stop: nothing is updated, the clips are named, a dump is written, the run ends. skip:
    nothing is updated, `skipped.jsonl` gets a line, the run goes on; ten such steps in a row stop it all the same."""

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
        if self.i2v.image_tokens and self.model.image_width is None:
            raise ValueError(
                "i2v.image_tokens is true, but model.image_width is null: the network takes no image tokens; "
                "set model.image_width to the set's image_width (set.json), or i2v.image_tokens=false"
            )
        if self.model.patch != TOKEN_PATCH:
            raise ValueError(
                f"model.patch is {self.model.patch}, expected {TOKEN_PATCH}: buckets, teachers and shards count tokens of that size"
            )
        if self.model.in_channels != 2 * self.model.out_channels + 1:
            raise ValueError(
                f"model.in_channels {self.model.in_channels} must be 2 x model.out_channels {self.model.out_channels} + 1: "
                "noisy latent, condition latent, mask"
            )
        if not self.ema_decays:
            raise ValueError(
                "ema_decays is empty; give one average at least, it is what sampling and the next stage take"
            )
        twice = [decay for decay in self.ema_decays if self.ema_decays.count(decay) > 1]
        if twice:
            raise ValueError(f"ema_decays names {twice[0]:g} twice; give each average once")
        if self.stage is not None:
            self._check_stage(self.stage)
        return self

    def _check_stage(self, stage: StageConfig) -> None:
        """The stage's words against the rest of the file."""
        known = _flat(self.model_dump(mode="json"), lists=True)
        for field in ("paper", "ours"):
            for key in getattr(stage, field):
                if not any(name == key or name.startswith(f"{key}.") for name in known):
                    raise ValueError(f"stage.{field} names {key!r}, which is no key of this file; correct it")

    def forward_flops(self, bucket: Bucket, text_tokens: int, *, image_tokens: int = 0, routed: bool = True) -> int:
        """Analytic FLOPs of one clip's forward pass, with the route of this run if `routed`; a training step is three times that."""
        tread = self.tread if routed else None
        route = None if tread is None else (tread.start_block, tread.end_block, tread.drop_ratio)
        tokens = bucket.video_tokens
        return self.model.forward_flops(tokens, text_tokens, image_tokens=image_tokens, route=route).total


def config_differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys on which two JSON configurations differ: (saved value, wanted value)."""
    old, new = _flat(saved), _flat(wanted)
    absent = "(not there)"
    return {
        key: (old.get(key, absent), new.get(key, absent))
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    }


def is_free(key: str) -> bool:
    """Whether a dotted key, or a section that it is in, is in `FREE_TO_CHANGE`."""
    return any(key == name or key.startswith(f"{name}.") for name in FREE_TO_CHANGE)


def _flat(values: Mapping[str, Any], prefix: str = "", *, lists: bool = False) -> dict[str, Any]:
    """Nested mappings to dotted keys; a null section and a filled one differ in the section's own key as well.

    `lists`: lists as well, by index.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if lists and isinstance(value, list) and value:
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.", lists=lists) or {prefix + key: {}}
        else:
            flat[prefix + key] = value
    return flat
