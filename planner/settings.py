"""The planner's configuration: what a plan may use, how large its batches are, and what a micro-batch is predicted to cost.

Nothing here says where files are: two plans of the same samples under the same settings have the same hash, on any machine.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.buckets import Bucket
from schemas.config import StrictConfig
from schemas.model_shape import MOTIF_2B, TINY, ModelShape

__all__ = ["CostConfig", "PlanConfig", "RouteConfig"]

_PRESETS = {"motif-2b": MOTIF_2B, "tiny": TINY}
BYTES_PER_MB = 1_000_000


class RouteConfig(StrictConfig):
    """TREAD: the blocks between which a share of the video tokens is left out."""

    first_block: int = Field(ge=0)
    """First block that sees fewer tokens, 0-based over all blocks."""
    last_block: int = Field(ge=0)
    """Last such block, inclusive."""
    drop_ratio: float = Field(ge=0.0, lt=1.0)
    """Share of the video tokens that these blocks do not see."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.last_block < self.first_block:
            raise ValueError(f"last_block {self.last_block} must not be before first_block {self.first_block}")
        return self


class CostConfig(StrictConfig):
    """Predicted seconds of a micro-batch: analytic FLOPs of forward and backward over a nominal rate."""

    preset: Literal["motif-2b", "tiny"] = "motif-2b"
    """Shape of the network, when `shape` is not given."""
    shape: ModelShape | None = None
    """A shape of your own; replaces the preset."""
    text_tokens: int = Field(default=256, ge=0)
    """Text tokens that each clip brings."""
    route: RouteConfig | None = None
    """TREAD during training, or null."""
    teraflops_per_second: float = Field(default=400.0, gt=0.0)
    """Nominal rate of one device, in 10^12 FLOP/s. It scales all predictions alike and changes no schedule."""

    @property
    def model_shape(self) -> ModelShape:
        """The shape in force."""
        return self.shape or _PRESETS[self.preset]


class PlanConfig(StrictConfig):
    """Everything that decides a plan, besides the samples."""

    lanes: int = Field(ge=1, le=100_000)
    """V, virtual ranks. The plan runs on every world size that divides it; choose a number with many divisors."""
    micro_per_step: int = Field(default=1, ge=1)
    """K, rows (micro-batches per lane) of one optimizer step."""
    epochs: int | None = Field(default=1, ge=1)
    """Times that the data is gone through; null: as many as `max_steps` needs."""
    max_steps: int | None = Field(default=None, ge=1)
    """The plan ends after this many steps, or null: after the last full step of the last epoch."""
    policy: Literal["uniform", "tiers"] = "uniform"
    """uniform: all lanes run the same bucket in a row. tiers: buckets of the same cost tier, which mixes better."""
    tier_ratio: float = Field(default=1.25, ge=1.0)
    """Buckets whose predicted seconds lie within this factor of the tier's cheapest one share a tier."""
    admission: Literal["144p", "360p", "480p", "720p", "sft"] = "144p"
    """Only clips admitted at this level are planned."""
    seed: int = Field(default=0, ge=0)
    """Decides every order and choice; the same seed and samples give the same plan hash."""
    max_buffer_mb: float = Field(default=4096.0, gt=0.0)
    """Hard cap on the bytes of clips that a lane has read and not yet used, in 10^6 bytes."""
    max_tokens_per_micro_batch: int | None = Field(default=None, ge=1)
    """Video tokens that fit in one micro-batch; B_b is the largest count under it that leaves fewest clips over, not below half of it."""
    batch_clips: dict[str, int] = Field(default_factory=dict)
    """B_b by bucket (`33x64x112: 4`), taken as it stands; wins over `max_tokens_per_micro_batch`."""
    shorten_left_over: bool = True
    """Clips that fill no row of their own bucket may be used at a shorter bucket of the same size (their first frames)."""
    spares_per_bucket: int = Field(default=4, ge=0)
    """Left-over clips kept per lane and bucket, to stand in for damaged ones."""
    anneal_steps: int = Field(default=2000, ge=0)
    """Moves of each of the two annealing runs per epoch (ranges to lanes, order within lanes); 0 keeps the constructive start."""
    cost: CostConfig = Field(default_factory=CostConfig)
    """The cost model."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for text, clips in self.batch_clips.items():
            Bucket.parse(text)
            if clips < 1:
                raise ValueError(f"batch_clips.{text} is {clips}, must be at least 1")
        if self.max_tokens_per_micro_batch is None and not self.batch_clips:
            raise ValueError(
                "give max_tokens_per_micro_batch, or batch_clips for every bucket; nothing says how large a batch may be"
            )
        if self.epochs is None and self.max_steps is None:
            raise ValueError("epochs is null and max_steps is null; give at least one, or the plan has no end")
        route, shape = self.cost.route, self.cost.model_shape
        if route is not None and route.last_block >= shape.total_blocks:
            raise ValueError(
                f"cost.route.last_block {route.last_block} is past the last of {shape.total_blocks} blocks"
            )
        return self

    @property
    def max_buffer_bytes(self) -> int:
        """`max_buffer_mb` in bytes."""
        return int(self.max_buffer_mb * BYTES_PER_MB)
