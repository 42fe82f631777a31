"""Plans made by hand, without the planner: what the contract in schemas/ says, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.buckets import FRAME_COUNTS, Bucket
from schemas.files import write_json
from schemas.hashing import table_hash
from schemas.plan import LANE, LEDGER, PLAN_FORMAT_VERSION, ROWS, SPARES, PlanMeta, lane_path, plan_hash
from schemas.shards import read_set_info, samples_path
from schemas.tables import SAMPLES, read_table, table_from_rows, write_table

__all__ = ["Plan", "write_plan"]


@dataclass
class Plan:
    """What `make_plan` wrote."""

    folder: Path
    uses: list[dict[str, Any]] = field(default_factory=list)
    """Every (lane, step, micro, bucket, clip ids), in order of rows, then lanes."""


def write_plan(
    folder: Path,
    sets: Sequence[Path],
    *,
    lanes: int = 2,
    micro: int = 2,
    steps: int = 10,
    batch: dict[int, int] | None = None,
    longest: int = 65,
    spares: Sequence[tuple[int, int, int, int, int, int]] = (),
    first_step: int = 0,
    settings: dict[str, Any] | None = None,
    sync: str = "micro",
) -> Plan:
    """A uniform plan: shards dealt to lanes, each lane reads its shards in order until it has the row's clips, epoch after epoch.

    Clips longer than `longest` frames are used at `longest`. `spares` are (lane, frames, height, width, shard, ordinal). A plan that continues
    another one has a `first_step`. `settings` are what `plan.json` says that it was built with, by default the lengths alone.
    """
    batch = batch or {1: 3, 33: 2, 65: 1}
    samples, plan_sets, first = {}, [], 0
    for path in sets:
        table = read_table(samples_path(path), SAMPLES)
        names = sorted(file.name for file in path.glob("*.tar"))
        sizes = [(path / name).stat().st_size for name in names]
        plan_sets.append(
            {
                "name": path.name,
                "samples_hash": table_hash(table),
                "first_shard": first,
                "shard_names": names,
                "shard_bytes": sizes,
            }
        )
        for row in table.to_pylist():
            samples[row["shard_index"] + first, row["ordinal"]] = row
        first += len(names)
    bucket_of = {key: Bucket(min(row["frames"], longest), row["height"], row["width"]) for key, row in samples.items()}
    reserved = {(spare[4], spare[5]) for spare in spares}
    buckets = sorted(set(bucket_of.values()))
    plan = Plan(folder)
    tables, peaks = {}, []
    lengths = {read_set_info(path).set_name: [count for count in FRAME_COUNTS if count <= longest] for path in sets}
    for lane in range(lanes):
        mine = [key for key in sorted(samples) if key[0] % lanes == lane and key not in reserved]
        table, peak = _lane_rows(plan, lane, mine, samples, bucket_of, buckets, batch, steps, micro)
        for row in table:
            row["step"] += first_step
        tables[f"lane-{lane:04d}"] = table_from_rows(LANE, table)
        write_table(lane_path(folder, lane), tables[f"lane-{lane:04d}"], LANE)
        peaks.append(peak)
    tables["rows"] = table_from_rows(
        ROWS,
        [
            {"epoch": 0, "step": step, "micro": index, "tier": 0, "predicted_seconds": 1.0}
            for step in range(first_step, first_step + steps)
            for index in range(micro)
        ],
    )
    keys = ("lane", "frames", "height", "width", "shard", "ordinal")
    tables["spares"] = table_from_rows(SPARES, [dict(zip(keys, spare, strict=True)) for spare in spares])
    tables["ledger"] = table_from_rows(LEDGER, [])
    for name, schema in (("rows", ROWS), ("spares", SPARES), ("ledger", LEDGER)):
        write_table(folder / f"{name}.parquet", tables[name], schema)
    meta: dict[str, Any] = {
        "format_version": PLAN_FORMAT_VERSION,
        "table_hashes": {name: table_hash(table) for name, table in tables.items()},
        "num_lanes": lanes,
        "micro_per_step": micro,
        "num_steps": steps,
        "num_epochs": 1,
        "first_step": first_step,
        "policy": "uniform",
        "sync": sync,
        "admission": "144p",
        "seed": 0,
        "sets": plan_sets,
        "batches": [
            {
                "bucket": str(bucket),
                "clips_per_lane": batch[bucket.frames],
                "tier": 0,
                "predicted_seconds": 1.0,
                "clips_in_set": list(bucket_of.values()).count(bucket),
            }
            for bucket in buckets
        ],
        "cost_model": "none",
        "admitted_clips": len(samples),
        "used_share": 1.0,
        "peak_buffer_bytes": peaks,
        "max_buffer_bytes": max(peaks),
        "metrics": {},
        "formulas": {},
        "config": {"frames": lengths} if settings is None else settings,
        "created_by": "tests",
    }
    meta = PlanMeta.model_validate({**meta, "plan_hash": ""}).model_dump(mode="json")
    write_json(folder / "plan.json", {**meta, "plan_hash": plan_hash(meta)})
    for use in plan.uses:
        use["step"] += first_step
    plan.uses.sort(key=lambda use: (use["step"], use["micro"], use["lane"]))
    return plan


def _lane_rows(
    plan: Plan,
    lane: int,
    mine: list[tuple[int, int]],
    samples: dict[tuple[int, int], dict[str, Any]],
    bucket_of: dict[tuple[int, int], Bucket],
    buckets: list[Bucket],
    batch: dict[int, int],
    steps: int,
    micro: int,
) -> tuple[list[dict[str, Any]], int]:
    """One lane's rows, and its peak by counting every (read, use) span."""
    waiting: list[tuple[tuple[int, int], int]] = []
    position, rows, spans, arrivals = 0, [], [], []
    for index in range(steps * micro):
        bucket = buckets[index % len(buckets)]
        arrived: list[tuple[int, int]] = []
        limit = position + 3 * len(mine)
        while sum(bucket_of[key] == bucket for key, _ in waiting) < batch[bucket.frames]:
            key = mine[position % len(mine)]
            position += 1
            assert position <= limit, f"lane {lane} lacks clips of {bucket} for its batches"
            if any(key == held for held, _ in waiting):
                continue  # an epoch begins while the last one's clip still waits
            arrived.append(key)
            waiting.append((key, index))
        chosen = [item for item in waiting if bucket_of[item[0]] == bucket][: batch[bucket.frames]]
        for item in chosen:
            waiting.remove(item)
            spans.append((item, index, samples[item[0]]["length"]))
        arrivals.append(arrived)
        step, number = divmod(index, micro)
        rows.append(
            {
                "epoch": 0,
                "step": step,
                "micro": number,
                "frames": bucket.frames,
                "height": bucket.height,
                "width": bucket.width,
                "clips": [{"shard": key[0], "ordinal": key[1]} for key, _ in chosen],
            }
        )
        ids = [samples[key]["clip_id"] for key, _ in chosen]
        plan.uses.append({"lane": lane, "step": step, "micro": number, "bucket": bucket, "clip_ids": ids})
    needed = {item for item, _, _ in spans}  # the last clips to arrive are used by no row, and not read
    for index, row in enumerate(rows):
        row["reads"] = _merge([key for key in arrivals[index] if (key, index) in needed], samples)
    peak = max(
        sum(length for (_, read), used, length in spans if read <= index <= used) for index in range(steps * micro)
    )
    return rows, peak


def _merge(keys: list[tuple[int, int]], samples: dict[tuple[int, int], dict[str, Any]]) -> list[dict[str, int]]:
    """Byte ranges of samples in order, neighbours joined."""
    reads: list[dict[str, int]] = []
    for key in keys:
        row = samples[key]
        if reads and reads[-1]["shard"] == key[0] and reads[-1]["offset"] + reads[-1]["length"] == row["offset"]:
            reads[-1]["length"] += row["length"]
        else:
            reads.append({"shard": key[0], "offset": row["offset"], "length": row["length"]})
    return reads
