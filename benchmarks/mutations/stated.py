"""Damage to the rows, the batch table and the numbers of plan.json."""

from __future__ import annotations

import numpy as np

from mutations.opened import NoPlaceError, OpenPlan
from mutations.places import (
    bucket_of,
    damage,
    pick,
)
from schemas.buckets import Bucket

__all__ = [
    "impossible_epoch",
    "missing_row",
    "over_the_memory",
    "over_the_tokens",
    "rows_out_of_order",
    "wrong_batch_in_the_table",
    "wrong_count",
    "wrong_first_step",
    "wrong_read_metric",
    "wrong_samples_hash",
    "wrong_scores_hash",
    "wrong_seconds",
    "wrong_shard",
    "wrong_share",
    "wrong_tier",
    "wrong_tier_in_the_table",
]


@damage
def missing_row(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A lane lacks a row."""
    lane = int(rng.integers(plan.num_lanes))
    plan.lane(lane).pop(int(rng.integers(len(plan.lane(lane)))))
    return "lane_rows"


@damage
def rows_out_of_order(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Two rows exchange their steps."""
    rows = plan.tables["rows"]
    first, second = rng.choice(len(rows), 2, replace=False).tolist()
    if rows[first]["step"] == rows[second]["step"]:
        raise NoPlaceError("both are of one step")
    rows[first]["step"], rows[second]["step"] = rows[second]["step"], rows[first]["step"]
    return "rows_complete"


@damage
def impossible_epoch(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The last row is of an epoch that the plan does not have."""
    for name in ("rows", *(f"lane-{lane:04d}" for lane in range(plan.num_lanes))):
        plan.tables[name][-1]["epoch"] = 9
    return "rows_complete"


@damage
def wrong_first_step(plan: OpenPlan, rng: np.random.Generator) -> str:
    """plan.json says that the steps begin later."""
    plan.meta["first_step"] += int(rng.integers(1, 5))
    return "rows_complete"


@damage
def wrong_seconds(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A row says other seconds than its slowest lane takes."""
    pick(rng, plan.tables["rows"])["predicted_seconds"] *= float(pick(rng, [0.5, 1.001]))
    return "row_costs"


@damage
def wrong_tier(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A row says another tier than its buckets have."""
    pick(rng, plan.tables["rows"])["tier"] += 1
    return "row_policy" if plan.meta["policy"] == "tiers" else "row_costs"


@damage
def wrong_tier_in_the_table(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A bucket has another tier than its rows."""
    used = {bucket_of(row) for row in plan.lane(0)}
    pick(rng, (entry for entry in plan.meta["batches"] if entry["bucket"] in used))["tier"] += 1
    return "row_policy" if plan.meta["policy"] == "tiers" else "row_costs"


@damage
def wrong_batch_in_the_table(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The batch table gives a bucket a clip more."""
    used = {bucket_of(row) for row in plan.lane(0)}
    pick(rng, (entry for entry in plan.meta["batches"] if entry["bucket"] in used))["clips_per_lane"] += 1
    return "batch_sizes"


@damage
def over_the_tokens(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The limit of tokens is below a batch."""
    named = plan.meta["config"].get("batch_clips") or {}
    tokens = [
        entry["clips_per_lane"] * Bucket.parse(entry["bucket"]).video_tokens
        for entry in plan.meta["batches"]
        if entry["bucket"] not in named
    ]
    plan.meta["max_tokens_per_micro_batch"] = pick(rng, tokens) - 1
    return "batch_memory"


@damage
def over_the_memory(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The limit of memory is below what a batch takes."""
    entry = pick(rng, plan.meta["batches"])
    entry["memory_bytes"] = int(rng.integers(10**9, 10**10))
    plan.meta["max_memory_bytes"] = entry["memory_bytes"] - 1
    return "batch_memory"


@damage
def wrong_share(plan: OpenPlan, rng: np.random.Generator) -> str:
    """used_share is off by a clip or more."""
    clips = plan.meta["admitted_clips"] * plan.meta["num_epochs"]
    plan.meta["used_share"] += float(pick(rng, [-1, 1])) * int(rng.integers(1, 10)) / clips
    return "used_share"


@damage
def wrong_read_metric(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A metric of the reads is off."""
    plan.meta["metrics"][pick(rng, ["read_amplification", "sequential_share", "opens_per_shard"])] += 0.001
    return "read_metrics"


@damage
def wrong_count(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A count of admitted clips is off."""
    if rng.integers(2):
        plan.meta["admitted_clips"] += 1
    else:
        pick(rng, plan.meta["batches"])["clips_in_set"] += 1
    return "admitted_clips"


@damage
def wrong_shard(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A tar has another size than set.json says."""
    sizes = pick(rng, plan.meta["sets"])["shard_bytes"]
    sizes[int(rng.integers(len(sizes)))] += 512
    return "shards_listed"


@damage
def wrong_samples_hash(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The plan was made of other samples."""
    pick(rng, plan.meta["sets"])["samples_hash"] = "f" * 64
    return "samples_hash"


@damage
def wrong_scores_hash(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The rules looked at other scores."""
    if plan.meta["scores_hash"] is None:
        raise NoPlaceError("no rule looks at scores")
    plan.meta["scores_hash"] = "f" * 64
    return "scores_hash"
