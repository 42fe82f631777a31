"""Damage to the files, once all hashes fit."""

from __future__ import annotations

import shutil

import numpy as np

from mutations.opened import OpenPlan
from mutations.places import (
    file_damage,
    pick,
)
from schemas.plan import lane_path

__all__ = [
    "edited_plan_json",
    "edited_table_hash",
    "exchanged_lane_files",
    "extra_lane_file",
    "missing_lane_file",
    "truncated_file",
]


@file_damage
def missing_lane_file(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A lane has no file."""
    lane_path(plan.folder, int(rng.integers(plan.num_lanes))).unlink()
    return "table_hashes"


@file_damage
def extra_lane_file(plan: OpenPlan, rng: np.random.Generator) -> str:
    """There is a file of a lane that the plan does not have."""
    lane = int(rng.integers(plan.num_lanes))
    shutil.copy(lane_path(plan.folder, lane), lane_path(plan.folder, plan.num_lanes + int(rng.integers(4))))
    return "table_hashes"


@file_damage
def truncated_file(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A table breaks off."""
    path = pick(rng, sorted(plan.folder.rglob("*.parquet")))
    data = path.read_bytes()
    path.write_bytes(data[: int(rng.integers(0, len(data) - 1))])
    return "table_hashes"


@file_damage
def exchanged_lane_files(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Two lanes have each other's file."""
    first, second = (lane_path(plan.folder, lane) for lane in rng.choice(plan.num_lanes, 2, replace=False).tolist())
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    return "table_hashes"


@file_damage
def edited_table_hash(plan: OpenPlan, rng: np.random.Generator) -> str:
    """plan.json gives a table another hash."""
    plan.meta["table_hashes"][pick(rng, sorted(plan.meta["table_hashes"]))] = "f" * 64
    plan.write_meta()
    return "table_hashes"


@file_damage
def edited_plan_json(plan: OpenPlan, rng: np.random.Generator) -> str:
    """plan.json was edited, its hash was not."""
    path = plan.folder / "plan.json"
    text = path.read_text(encoding="utf-8")
    old = f'"seed": {plan.meta["seed"]}'
    assert old in text
    path.write_text(text.replace(old, f'"seed": {plan.meta["seed"] + 1}', 1), encoding="utf-8")
    return "plan_hash"
