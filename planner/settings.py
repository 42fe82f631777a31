"""The planner's configuration: what a plan may use, how large its batches are, and what a micro-batch is predicted to cost.

Nothing here says where files are: two plans of the same samples under the same settings have the same hash, on any machine.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.buckets import FRAME_COUNTS, Bucket
from schemas.config import StrictConfig
from schemas.model_shape import MOTIF_2B, TINY, ModelShape
from schemas.plan import AdmissionRule

__all__ = ["CostConfig", "MixPhase", "PlanConfig", "RouteConfig"]

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
    """Predicted seconds of a micro-batch where no measured table is given: analytic FLOPs of forward and backward over a nominal rate."""

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
    overhead_seconds: float = Field(default=0.0, ge=0.0)
    """Seconds that every micro-batch takes whatever is in it (launches, collectives)."""

    @property
    def model_shape(self) -> ModelShape:
        """The shape in force."""
        return self.shape or _PRESETS[self.preset]


class MixPhase(StrictConfig):
    """What part of the run is made of, up to a share of its rows."""

    until: float = Field(gt=0.0, le=1.0)
    """Share of the run's rows at which the phase ends; the last phase ends at 1."""
    images_per_video: float | None = Field(default=None, gt=0.0)
    """Rows of images for each row of videos: 0.5 is I-V-V. Null: as the data has it. All phases give it, or none."""
    domain_weights: dict[str, float] = Field(default_factory=dict)
    """Domain to the share of epochs in which its clips are used, above 0 and at most 1; domains that are not named have 1."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for domain, weight in self.domain_weights.items():
            if not 0.0 < weight <= 1.0:
                raise ValueError(
                    f"domain_weights.{domain} is {weight}, must be above 0 and at most 1: the share of epochs in which its clips are used"
                )
        return self


class PlanConfig(StrictConfig):
    """Everything that decides a plan, besides the samples and a measured cost table."""

    lanes: int = Field(ge=1, le=100_000)
    """V, virtual ranks. The plan runs on every world size that divides it; choose a number with many divisors."""
    micro_per_step: int = Field(default=1, ge=1)
    """K, rows (micro-batches per lane) of one optimizer step."""
    epochs: int | None = Field(default=1, ge=1)
    """Times that the data is gone through; null: as many as `max_steps` needs."""
    max_steps: int | None = Field(default=None, ge=1)
    """The plan ends after this many steps, or null: after the last full step of the last epoch."""
    policy: Literal["uniform", "tiers", "paper"] = "uniform"
    """uniform: all lanes run the same bucket in a row. tiers: buckets of the same cost tier, which mixes better and leaves less over.
    paper: uniform, with whole tars on lanes (greedy, then 30,000 annealed swaps), as arXiv 2604.16503 reports it; for comparison."""
    tiers: int | None = Field(default=None, ge=1)
    """Number of cost tiers, cut for least waste; null: of all cuts whose predicted waste is at most `max_waste`, the one that mixes a step best."""
    max_waste: float = Field(default=0.015, gt=0.0, lt=1.0)
    """Idle share that tiers may cost."""
    sync: Literal["micro", "step"] = "micro"
    """What ranks wait for: each row (FSDP with parameters gathered anew in each micro-batch) or each step."""
    admission: Literal["144p", "360p", "480p", "720p", "sft"] = "144p"
    """Only clips admitted at this level are planned."""
    rules: tuple[AdmissionRule, ...] = ()
    """Further rules over the scores (build with --scores) and the labels of the samples."""
    frames: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Set to the lengths at which its clips are planned (`144p: [1, 33]`): each clip at the longest of them that it has, a video never as an image;
    a clip that has none is not admitted. Sets that are not named: each clip at its own length."""
    domain_column: Literal["domain", "subject", "style", "branch"] = "domain"
    """Column of the samples whose values are the domains."""
    mix: tuple[MixPhase, ...] = ()
    """Images to videos, and domains, over the run; empty: as the data has it."""
    seed: int = Field(default=0, ge=0)
    """Decides every order and choice; the same seed and samples give the same plan hash."""
    max_buffer_mb: float = Field(default=4096.0, ge=0.001, le=1e12)
    """Hard cap on the bytes of clips that a lane has read and not yet used, in 10^6 bytes."""
    max_buffer_clips: int | None = Field(default=None, ge=1)
    """Hard cap on the number of those clips, or null."""
    max_open_shards: int = Field(default=4, ge=1)
    """Shards that a lane may be in the middle of at once. More: less buffer; one: strictly one tar after another."""
    pool_micro_batches: int = Field(default=8, ge=0)
    """Further micro-batches of a row's bucket that a lane keeps in memory to choose from, while the buffer is under half of its caps."""
    read_chunk_kb: int = Field(default=1024, ge=0)
    """A lane that reads on in a shard takes at least this much at once (in 1024 bytes) where the caps allow; 0: only what is needed next."""
    max_tokens_per_micro_batch: int | None = Field(default=None, ge=1)
    """Video tokens that fit in one micro-batch; B_b is the largest count under it that leaves fewest clips over, not below half of it."""
    max_memory_gb: float | None = Field(default=None, gt=0.0)
    """Memory of a micro-batch by the measured cost table, in 10^9 bytes; bounds B_b besides the tokens."""
    target_seconds: float | None = Field(default=None, gt=0.0)
    """B_b is lowered to the count whose predicted seconds come nearest to this, so that buckets cost alike; null: as large as memory allows."""
    batch_clips: dict[str, int] = Field(default_factory=dict)
    """B_b by bucket (`33x64x112: 4`), taken as it stands; wins over the limits above."""
    shorten_left_over: bool = True
    """Clips that fill no row of their own bucket may be used at a shorter bucket of the same size (their first frames)."""
    left_over: Literal["drop", "carry", "repeat"] = "carry"
    """Clips that fill no row: drop (out of this epoch, drawn anew in the next), carry (first in the next epoch), or repeat: clips of the bucket
    are used once more so that its last row (under tiers: its last micro-batch) is full, if half of it is new or the bucket has no other."""
    repeat_at_most: int = Field(default=2, ge=2, le=16)
    """Most uses of a clip in one epoch, when `left_over` is repeat."""
    spares_per_bucket: int = Field(default=4, ge=0)
    """Left-over clips kept per lane and bucket, to stand in for damaged ones."""
    anneal_steps: int = Field(default=30_000, ge=0)
    """Moves of each of the two coarse annealing runs per epoch (shards to lanes, order within lanes), at most 50 for each range of a shard; 0 keeps
    the constructive start."""
    anneal_moves_per_clip: float = Field(default=2.0, ge=0.0)
    """Moves of the fine annealing (which clip in which step), per clip and epoch; 0 keeps the constructive start."""
    window_steps: int = Field(default=64, ge=1)
    """Steps of one window of the fine annealing."""
    cost: CostConfig = Field(default_factory=CostConfig)
    """The cost model."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, lengths in self.frames.items():
            if not lengths or set(lengths) - set(FRAME_COUNTS):
                raise ValueError(f"frames.{name} is {list(lengths)}, expected one or more of {list(FRAME_COUNTS)}")
        for text, clips in self.batch_clips.items():
            Bucket.parse(text)
            if clips < 1:
                raise ValueError(f"batch_clips.{text} is {clips}, must be at least 1")
        if self.max_tokens_per_micro_batch is None and self.max_memory_gb is None and not self.batch_clips:
            raise ValueError(
                "give max_tokens_per_micro_batch, max_memory_gb (with a cost table), or batch_clips for every bucket; "
                "nothing says how large a batch may be"
            )
        if self.epochs is None and self.max_steps is None:
            raise ValueError("epochs is null and max_steps is null; give at least one, or the plan has no end")
        route, shape = self.cost.route, self.cost.model_shape
        if route is not None and route.last_block >= shape.total_blocks:
            raise ValueError(
                f"cost.route.last_block {route.last_block} is past the last of {shape.total_blocks} blocks"
            )
        self._check_mix()
        if self.tiers is not None and self.policy != "tiers":
            raise ValueError(f"tiers is {self.tiers}, but policy is {self.policy}; set policy: tiers, or tiers: null")
        return self

    def _check_mix(self) -> None:
        ends = [phase.until for phase in self.mix]
        if ends and (ends != sorted(set(ends)) or ends[-1] != 1.0):
            raise ValueError(f"mix: the phases end at {ends}; each must end after the one before, and the last at 1.0")
        if len({phase.images_per_video is None for phase in self.mix}) > 1:
            raise ValueError(
                "mix: images_per_video is given in some phases and not in others; give it in all, or in none"
            )
        if self.mix and self.policy == "paper":
            raise ValueError("policy paper takes the data as they lie; mix is for uniform and tiers")

    @property
    def max_buffer_bytes(self) -> int:
        """`max_buffer_mb` in bytes."""
        return int(self.max_buffer_mb * BYTES_PER_MB)

    @property
    def max_memory_bytes(self) -> int | None:
        """`max_memory_gb` in bytes."""
        return None if self.max_memory_gb is None else int(self.max_memory_gb * 1e9)
