"""Plan folders written by hand: every row is what a test says, and no builder is involved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from schemas.files import write_json
from schemas.hashing import table_hash
from schemas.plan import LANE, LEDGER, ROWS, SPARES, BatchEntry, PlanMeta, PlanSet, plan_hash, write_lane
from schemas.tables import table_from_rows, write_table

__all__ = ["HandRow", "write_plan"]

HandRow = tuple[str, Sequence[tuple[int, int]], Sequence[tuple[int, int, int]]]
"""(bucket, clips as (shard, ordinal), reads as (shard, offset, length))."""


def write_plan(
    folder: Path,
    lanes: Sequence[Sequence[HandRow]],
    seconds: Mapping[str, float],
    *,
    micro_per_step: int = 1,
    clips_per_lane: Mapping[str, int] | None = None,
    clips_in_set: Mapping[str, int] | None = None,
    tiers: Mapping[str, int] | None = None,
    epoch_of_row: Sequence[int] | None = None,
    ledger: Sequence[Mapping[str, Any]] = (),
    sets: Sequence[PlanSet] | None = None,
    first_step: int = 0,
    **meta: Any,
) -> PlanMeta:
    """Write a whole plan folder whose hashes fit, and return its meta."""
    num_rows = len(lanes[0])
    numbers = [
        {
            "epoch": 0 if epoch_of_row is None else epoch_of_row[row],
            "step": first_step + row // micro_per_step,
            "micro": row % micro_per_step,
        }
        for row in range(num_rows)
    ]
    hashes: dict[str, str] = {}

    def write(name: str, table: pa.Table, schema: pa.Schema) -> None:
        write_table(folder / f"{name}.parquet", table, schema)
        hashes[name] = table_hash(table)

    rows = [
        {**number, "tier": 0, "predicted_seconds": max(seconds[lane[row][0]] for lane in lanes)}
        for row, number in enumerate(numbers)
    ]
    write("rows", table_from_rows(ROWS, rows), ROWS)
    write("ledger", table_from_rows(LEDGER, ledger), LEDGER)
    write("spares", table_from_rows(SPARES, []), SPARES)
    for lane, lane_rows in enumerate(lanes):
        table = table_from_rows(
            LANE, [{**number, **_lane_row(row)} for number, row in zip(numbers, lane_rows, strict=True)]
        )
        write_lane(folder, lane, table)
        hashes[f"lane-{lane:04d}"] = table_hash(table)
    shards = 1 + max((read[0] for lane in lanes for row in lane for read in row[2]), default=0)
    plan_sets = tuple(sets) if sets is not None else (one_set(shards),)
    uses = sum(len(row[1]) for lane in lanes for row in lane)
    in_set = dict(clips_in_set or dict.fromkeys(seconds, 0))
    values = PlanMeta(
        **{
            "plan_hash": "",
            "table_hashes": hashes,
            "num_lanes": len(lanes),
            "micro_per_step": micro_per_step,
            "num_steps": num_rows // micro_per_step,
            "num_epochs": 1 if epoch_of_row is None else len(set(epoch_of_row)),
            "first_step": first_step,
            "policy": "tiers",
            "admission": "144p",
            "seed": 0,
            "sets": plan_sets,
            "batches": tuple(
                BatchEntry(
                    bucket=bucket,
                    clips_per_lane=(clips_per_lane or {}).get(bucket, 1),
                    tier=(tiers or {}).get(bucket, 0),
                    predicted_seconds=value,
                    clips_in_set=in_set[bucket],
                )
                for bucket, value in seconds.items()
            ),
            "cost_model": "by hand",
            "admitted_clips": sum(in_set.values()) or uses,
            "used_share": 1.0,
            "peak_buffer_bytes": (0,) * len(lanes),
            "max_buffer_bytes": 1_000_000,
            "metrics": {},
            "formulas": {},
            "config": {},
            "created_by": "by hand",
            **meta,
        }
    ).model_dump(mode="json")
    values["plan_hash"] = plan_hash(values)
    write_json(folder / "plan.json", values)
    return PlanMeta.model_validate(values)


def one_set(shards: int, *, name: str = "64p", size: int = 1 << 30) -> PlanSet:
    """A set of shards that exist on paper."""
    return PlanSet(
        name=name,
        samples_hash="5" * 64,
        first_shard=0,
        shard_names=tuple(f"shard-{index:06d}.tar" for index in range(shards)),
        shard_bytes=(size,) * shards,
    )


def _lane_row(row: HandRow) -> dict[str, Any]:
    bucket, clips, reads = row
    frames, height, width = map(int, bucket.split("x"))
    return {
        "frames": frames,
        "height": height,
        "width": width,
        "clips": [{"shard": shard, "ordinal": ordinal} for shard, ordinal in clips],
        "reads": [{"shard": shard, "offset": offset, "length": length} for shard, offset, length in reads],
    }
