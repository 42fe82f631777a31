"""The plan format: a folder that names every clip of every step and every byte range that is read for it.

    plan.json                 PlanMeta
    rows.parquet              one row per (step, micro), in order: what every lane does at the same time
    lanes/lane-0000.parquet   one row per (step, micro), in order: the clips of the lane's micro-batch, and the byte ranges to read before it
    spares.parquet            clips a lane may use in place of a damaged one
    ledger.parquet            exceptions only: clips left over, carried or repeated, and why
    certificate.json          what the verifier proved; not part of the hash

Shards have plan-wide indices: shard `first_shard + shard_index` of each set. A lane reads its `reads` in order, each a run of whole samples
(schemas.tables.SAMPLES offset and length), forward only within a shard and epoch; a clip may be used in its row or any later one, and its bytes
count as buffered from the row that reads them until the end of the last row of the epoch that uses them. `peak_buffer_bytes` is the largest such
sum, exact. A shard is open on a lane from the lane's first read of it in an epoch to its last one, counted read by read.
A clip may be used at a shorter bucket of its own size: then the first latent frames are its sample.

A plan may continue another one (`continues`): its steps and epochs are numbered on from there, and its first epoch has only the clips that the
other plan's earlier steps of that epoch did not use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from schemas.config import StrictConfig, build_config, read_yaml
from schemas.errors import PlanError
from schemas.hashing import combine_hashes, table_hash
from schemas.ids import fingerprint
from schemas.tables import named_schema, read_table, write_table

__all__ = [
    "LANE",
    "LEDGER",
    "LEDGER_EVENTS",
    "PLAN_FORMAT_VERSION",
    "ROWS",
    "SPARES",
    "AdmissionRule",
    "BatchEntry",
    "PlanContinues",
    "PlanMeta",
    "PlanSet",
    "TierPoint",
    "lane_path",
    "lanes_of_rank",
    "parse_plan_meta",
    "plan_hash",
    "read_lane",
    "read_plan_meta",
    "read_plan_table",
    "write_lane",
]

PLAN_FORMAT_VERSION = 2
LEDGER_EVENTS = ("left_over", "carried", "repeated")
"""left_over: not used in the epoch. carried: not used in the epoch, and first in the next one. repeated: used once more in the epoch."""
_RISING_IN_LANE = (
    "step",
    "clips.list.element.shard",
    "clips.list.element.ordinal",
    "reads.list.element.shard",
    "reads.list.element.offset",
    "reads.list.element.length",
)
_CLIP = pa.struct([pa.field("shard", pa.int32(), nullable=False), pa.field("ordinal", pa.int32(), nullable=False)])
_READ = pa.struct(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
    ]
)

ROWS = named_schema(
    "plan_rows",
    1,
    [
        ("epoch", pa.int32()),
        ("step", pa.int64()),  # 0-based over the whole plan
        ("micro", pa.int32()),  # 0 .. K-1
        ("tier", pa.int32()),  # cost tier; rows of one tier cost about the same
        ("predicted_seconds", pa.float64()),  # slowest lane of the row, in the units of the cost model
    ],
)

LANE = named_schema(
    "plan_lane",
    1,
    [
        ("epoch", pa.int32()),
        ("step", pa.int64()),
        ("micro", pa.int32()),
        ("frames", pa.int32()),  # the bucket
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("clips", pa.list_(pa.field("item", _CLIP, nullable=False))),
        ("reads", pa.list_(pa.field("item", _READ, nullable=False))),  # before the row is used, in this order
    ],
)

SPARES = named_schema(
    "plan_spares",
    1,
    [
        ("lane", pa.int32()),
        ("frames", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("shard", pa.int32()),
        ("ordinal", pa.int32()),
    ],
)

LEDGER = named_schema(
    "plan_ledger",
    1,
    [
        ("epoch", pa.int32()),
        ("clip_id", pa.string()),
        ("shard", pa.int32()),
        ("ordinal", pa.int32()),
        ("frames", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("event", pa.string()),  # one of LEDGER_EVENTS
        ("reason", pa.string()),
    ],
)


class AdmissionRule(StrictConfig):
    """Which clips a plan may use, by one column of the samples or of the table of scores (a clips.parquet)."""

    column: str
    """motion, aesthetic, luma, ... of the scores; branch, domain, subject, style, frames, height, width, has_teacher of the samples."""
    at_least: float | None = None
    at_most: float | None = None
    one_of: tuple[str, ...] | None = None
    """Values of a text column."""
    missing: Literal["keep", "drop"] = "keep"
    """What becomes of a clip whose value is null: not computable is no reason to reject."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        numbers = self.at_least is not None or self.at_most is not None
        if numbers == (self.one_of is not None):
            raise ValueError(f"rule on {self.column!r}: give at_least and/or at_most, or one_of")
        if self.at_least is not None and self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"rule on {self.column!r}: at_most {self.at_most:g} is below at_least {self.at_least:g}")
        return self


class BatchEntry(StrictConfig):
    """One line of the batch table."""

    bucket: str
    """FRAMESxHEIGHTxWIDTH in pixels."""
    clips_per_lane: int
    """B_b: clips of one micro-batch on one lane."""
    tier: int
    predicted_seconds: float
    """Of one micro-batch on one lane."""
    clips_in_set: int
    """Admitted clips whose longest bucket this is."""
    memory_bytes: int | None = None
    """Predicted peak memory of one micro-batch, where the cost table has it."""


class PlanSet(StrictConfig):
    """One set that the plan reads."""

    name: str
    samples_hash: str
    """Canonical hash of its samples table."""
    first_shard: int
    shard_names: tuple[str, ...]
    shard_bytes: tuple[int, ...]


class TierPoint(StrictConfig):
    """What a number of cost tiers gives by the model: the price of mixing in idle time."""

    tiers: int
    waste: float
    """Predicted idle share under `sync` micro."""
    mix_index_1: float
    """Predicted total variation of a step's buckets from the whole, over that of random micro-batches."""
    mix_index_8: float
    """The same over windows of 8 steps."""


class PlanContinues(StrictConfig):
    """The plan that this one takes over from."""

    plan_hash: str
    from_step: int
    """Its steps before this one were run."""
    num_lanes: int


class PlanMeta(StrictConfig):
    """`plan.json`."""

    format_version: int = PLAN_FORMAT_VERSION
    plan_hash: str
    """`plan_hash(...)`: over everything else in this file but `created_by`, and all tables."""
    table_hashes: dict[str, str]
    """rows, spares, ledger, lane-0000, ...: canonical hash of each."""
    num_lanes: int
    micro_per_step: int
    num_steps: int
    """Steps of this plan; they are first_step to first_step + num_steps - 1."""
    num_epochs: int
    """Epochs of this plan; they are first_epoch to first_epoch + num_epochs - 1."""
    first_step: int = 0
    first_epoch: int = 0
    continues: PlanContinues | None = None
    policy: str
    """uniform (all lanes the same bucket in a row), paper (the same, whole tars on lanes), or tiers (the same cost tier)."""
    sync: Literal["micro", "step"] = "micro"
    """What ranks wait for: each row (FSDP) or each step; decides predicted step times, and the trainer must agree."""
    admission: str
    """The level whose clips the plan may use."""
    rules: tuple[AdmissionRule, ...] = ()
    """Further rules that every clip of the plan meets."""
    scores_hash: str | None = None
    """Canonical hash of the table of scores that the rules look at, or null."""
    domain_column: str = "domain"
    """Column of the samples whose values are the domains."""
    seed: int
    sets: tuple[PlanSet, ...]
    batches: tuple[BatchEntry, ...]
    cost_model: str
    """Where predicted_seconds comes from."""
    admitted_clips: int
    """Per epoch."""
    used_share: float
    """Clips that some step names over all admitted clips, over all epochs."""
    peak_buffer_bytes: tuple[int, ...]
    """Per lane, exact."""
    max_buffer_bytes: int
    """The hard cap that the plan was built under."""
    peak_buffer_clips: tuple[int, ...] = ()
    """Per lane, exact: most clips that are read and still to be used."""
    max_buffer_clips: int | None = None
    """Hard cap on that, or null."""
    peak_open_shards: tuple[int, ...] = ()
    """Per lane, exact: most shards open at once."""
    max_open_shards: int | None = None
    """Hard cap on that, or null."""
    max_tokens_per_micro_batch: int | None = None
    """Video tokens that fit in a micro-batch (buckets that `config.batch_clips` names are exempt), or null."""
    max_memory_bytes: int | None = None
    """Memory that a micro-batch may take by the cost table, or null."""
    max_uses_per_epoch: int = 1
    """1: each clip at most once in an epoch; more: clips that the ledger calls repeated."""
    tier_curve: tuple[TierPoint, ...] = ()
    """Idle time against mixing by number of tiers; the plan's own is the one with as many tiers as `batches` has."""
    cost_errors: dict[str, float] = Field(default_factory=dict)
    """How far the cost model is from its measurements: mape, p95 and worst of measurements predicted from the others, bias/BUCKET, and analytic_mape
    and analytic_worst of plain FLOPs; empty where nothing was measured."""
    metrics: dict[str, float]
    """Headline metrics of the build (opens, annealing gain, ...)."""
    formulas: dict[str, str]
    """Definition of each metric, in words."""
    config: dict[str, Any]
    """The planner's configuration as built."""
    created_by: str
    """Name and version of the writer; not hashed."""

    @property
    def steps(self) -> range:
        """The steps of this plan."""
        return range(self.first_step, self.first_step + self.num_steps)

    @property
    def epochs(self) -> range:
        """The epochs of this plan."""
        return range(self.first_epoch, self.first_epoch + self.num_epochs)


def lane_path(plan: Path, lane: int) -> Path:
    """`lane_path(plan, 3)` is `plan/lanes/lane-0003.parquet`."""
    return plan / "lanes" / f"lane-{lane:04d}.parquet"


def lanes_of_rank(rank: int, world_size: int, num_lanes: int) -> range:
    """Lanes that a rank runs, one after another within a row: `lanes_of_rank(1, 2, 4) == range(2, 4)`.

    Raises:
        PlanError: if the world size does not divide the lanes, or has no such rank.
    """
    if world_size >= 1 and not 0 <= rank < world_size:
        raise PlanError(f"world size {world_size} has ranks 0 to {world_size - 1}, not {rank}; give one of them")
    if world_size < 1 or num_lanes % world_size:
        divisors = [count for count in range(1, num_lanes + 1) if num_lanes % count == 0]
        raise PlanError(
            f"rank {rank} of world size {world_size} cannot run a plan of {num_lanes} lanes; "
            f"use a world size that divides the lanes ({', '.join(map(str, divisors))}), or build the plan for other lanes"
        )
    per_rank = num_lanes // world_size
    return range(rank * per_rank, (rank + 1) * per_rank)


def plan_hash(meta: Mapping[str, Any]) -> str:
    """The plan's hash from the JSON form of its meta: every key but plan_hash and created_by; the tables enter by `table_hashes`."""
    rest = {key: value for key, value in meta.items() if key not in ("plan_hash", "created_by", "table_hashes")}
    return fingerprint({"meta": rest, "tables": combine_hashes(meta["table_hashes"])}, length=64)


def parse_plan_meta(plan: Path) -> PlanMeta:
    """Read `plan.json` without asking whether its hash fits, which is the verifier's to judge.

    Raises:
        PlanError: if it is missing, of another version, or holds a number that is not finite.
    """
    path = plan / "plan.json"
    if not path.is_file():
        raise PlanError(f"{plan} is not a plan folder: plan.json is missing; make one with `reelyard-plan build`")
    values = read_yaml(path)
    if values.get("format_version") != PLAN_FORMAT_VERSION:
        raise PlanError(
            f"{path}: format_version {values.get('format_version')!r}, expected {PLAN_FORMAT_VERSION}; build the plan again"
        )
    try:
        json.dumps(values, allow_nan=False)
    except ValueError as error:
        raise PlanError(
            f"{path} holds NaN or Infinity, which no plan has ({error}); it was changed after it was built, build the plan again"
        ) from error
    return build_config(PlanMeta, values, source=str(path))


def read_plan_meta(plan: Path) -> PlanMeta:
    """Read and check `plan.json`.

    Raises:
        PlanError: if it is missing, of another version, or its hash does not fit its content.
    """
    meta = parse_plan_meta(plan)
    expected = plan_hash(meta.model_dump(mode="json"))
    if meta.plan_hash != expected:
        raise PlanError(
            f"{plan / 'plan.json'}: plan_hash {meta.plan_hash[:12]}... does not fit its content ({expected[:12]}...); "
            "the plan was changed after it was built"
        )
    return meta


def read_plan_table(plan: Path, name: str, schema: pa.Schema, meta: PlanMeta) -> pa.Table:
    """Read `rows`, `spares` or `ledger` and check its hash against the meta."""
    return _checked_hash(read_table(plan / f"{name}.parquet", schema), name, plan, meta)


def read_lane(plan: Path, lane: int, meta: PlanMeta) -> pa.Table:
    """Read one lane's table and check its hash against the meta."""
    return _checked_hash(read_table(lane_path(plan, lane), LANE), f"lane-{lane:04d}", plan, meta)


def write_lane(plan: Path, lane: int, table: pa.Table) -> None:
    """Write one lane's table, its integers as differences: a few bytes per clip."""
    write_table(lane_path(plan, lane), table, LANE, rising=_RISING_IN_LANE)


def _checked_hash(table: pa.Table, name: str, plan: Path, meta: PlanMeta) -> pa.Table:
    found = table_hash(table)
    expected = meta.table_hashes.get(name)
    if found != expected:
        raise PlanError(
            f"{plan}: table {name!r} has hash {found[:12]}..., plan.json says {str(expected)[:12]}...; the plan was changed after it was built"
        )
    return table
