"""A small plan with everything that a page shows, written by the format alone: two sets, two epochs, tiers, repeats, a certificate, hostile names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from schemas.hashing import table_hash
from schemas.plan import (
    LANE,
    LEDGER,
    ROWS,
    SPARES,
    BatchEntry,
    PlanMeta,
    PlanSet,
    TierPoint,
    plan_hash,
    read_lane,
    read_plan_meta,
    write_lane,
)
from schemas.shards import read_set_info, samples_path
from schemas.tables import SAMPLES, read_table, table_from_rows, write_table

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&amp;"
LANES, MICRO, EPOCHS = 4, 2, (3, 4)
FIRST_STEP = 10
BATCHES = {"1x64x112": (4, 0, 0.25), "33x64x112": (2, 0, 0.5), "65x64x112": (1, 1, 2.0)}
DOMAINS = ("city", "nature", HOSTILE)
Use = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """Where the plan and its sets lie, and the samples by (plan-wide shard, ordinal)."""

    plan: Path
    sets: tuple[Path, ...]
    samples: dict[tuple[int, int], dict[str, Any]]

    @property
    def meta(self) -> PlanMeta:
        return read_plan_meta(self.plan)

    def lanes(self) -> list[list[dict[str, Any]]]:
        """Rows of each lane as Python objects."""
        return [read_lane(self.plan, lane, self.meta).to_pylist() for lane in range(LANES)]


def rewrite_meta(plan: Path, **changes: Any) -> None:
    """Change keys of plan.json and make its hash fit again."""
    values = json.loads((plan / "plan.json").read_text(encoding="utf-8")) | changes
    values["plan_hash"] = plan_hash(values)
    (plan / "plan.json").write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture
def rewrite() -> Callable[..., None]:
    return rewrite_meta


def _with_domains(folder: Path, seed: int) -> None:
    table = read_table(samples_path(folder), SAMPLES)
    names = np.array(DOMAINS)[np.random.default_rng([seed, 1]).integers(0, len(DOMAINS), table.num_rows)]
    write_table(
        samples_path(folder), table.set_column(SAMPLES.get_field_index("domain"), "domain", pa.array(names)), SAMPLES
    )


def _lane_rows(clips: list[dict[str, Any]], rng: np.random.Generator, *, repeat: bool) -> list[Use]:
    """Micro-batches of one lane in one epoch: clips read in their order, each batch when its last clip is read, some rows late."""
    by_bucket: dict[str, list[dict[str, Any]]] = {name: [] for name in BATCHES}
    for clip in clips:
        by_bucket[f"{clip['frames']}x{clip['height']}x{clip['width']}"].append(clip)
    batches: list[tuple[str, list[dict[str, Any]]]] = []
    for name, (size, _, _) in BATCHES.items():
        found = by_bucket[name]
        batches += [(name, found[at : at + size]) for at in range(0, len(found) - size + 1, size)]
    if repeat:
        name, last = batches[-1]
        first = next(batch for other, batch in batches if other == name)
        batches[-1] = (name, [*last[:-1], first[0]])
    order = rng.permutation(len(batches)).tolist()
    return [{"bucket": batches[at][0], "clips": batches[at][1]} for at in order]


def _lane_table(
    rows: list[Use], sequence: list[tuple[int, int]], samples: dict[tuple[int, int], dict[str, Any]]
) -> pa.Table:
    """`rows` with epoch, step, micro, bucket, clips; reads follow `sequence` as far as each row needs."""
    out, place, epoch, have = [], 0, None, set()
    for row in rows:
        if row["epoch"] != epoch:
            epoch, place, have = row["epoch"], 0, set()
            used = {clip for other in rows if other["epoch"] == epoch for clip in other["places"]}
            queue = [clip for clip in sequence if clip in used]
        reads: list[dict[str, int]] = []
        while not set(row["places"]) <= have:
            clip = queue[place]
            place += 1
            have.add(clip)
            fact = samples[clip]
            if reads and (reads[-1]["shard"], reads[-1]["offset"] + reads[-1]["length"]) == (clip[0], fact["offset"]):
                reads[-1]["length"] += fact["length"]
            else:
                reads.append({"shard": clip[0], "offset": fact["offset"], "length": fact["length"]})
        frames, height, width = map(int, row["bucket"].split("x"))
        out.append(
            {
                "epoch": row["epoch"],
                "step": row["step"],
                "micro": row["micro"],
                "frames": frames,
                "height": height,
                "width": width,
                "clips": [{"shard": shard, "ordinal": ordinal} for shard, ordinal in row["places"]],
                "reads": reads,
            }
        )
    return table_from_rows(LANE, out)


@pytest.fixture
def written(write_set: Callable[..., Path], tmp_path: Path) -> Written:
    """The plan in a folder of its own, so that a test may change it."""
    rng = np.random.default_rng(7)
    sets = []
    for number, name in enumerate(("64p", HOSTILE)):
        shards = [
            [(str(rng.choice(list(BATCHES), p=[0.5, 0.3, 0.2])), source) for source in range(40)] for _ in range(6)
        ]
        sets.append(write_set(tmp_path / f"set-{number}", shards, name=name, seed=number))
        _with_domains(sets[-1], number)
    samples: dict[tuple[int, int], dict[str, Any]] = {}
    planned = []
    for folder in sets:
        first = sum(len(item.shard_names) for item in planned)
        table, info = read_table(samples_path(folder), SAMPLES), read_set_info(folder)
        names, sizes = tuple(shard.name for shard in info.shards), tuple(shard.size_bytes for shard in info.shards)
        planned.append(
            PlanSet(
                name=info.set_name,
                samples_hash=table_hash(table),
                first_shard=first,
                shard_names=names,
                shard_bytes=sizes,
            )
        )
        for row in table.to_pylist():
            samples[row["shard_index"] + first, row["ordinal"]] = row
    return Written(_write_plan(tmp_path / "plan", tuple(planned), samples, rng), tuple(sets), samples)


def _write_plan(
    plan: Path, planned: tuple[PlanSet, ...], samples: dict[tuple[int, int], dict[str, Any]], rng: np.random.Generator
) -> Path:
    (plan / "lanes").mkdir(parents=True)
    rows: list[list[Use]] = [[] for _ in range(LANES)]
    sequences: list[list[tuple[int, int]]] = [[] for _ in range(LANES)]
    for epoch in EPOCHS:
        shards = [
            shard for item in planned for shard in range(item.first_shard, item.first_shard + len(item.shard_names))
        ]
        parts = [np.array(shards)[lane::LANES].tolist() for lane in range(LANES)]
        parts[1].append(parts[0][0])  # two lanes share a shard: the first half is lane 0's
        found = []
        for lane, part in enumerate(parts):
            places = [place for shard in part for place in sorted(samples) if place[0] == shard]
            shared = parts[0][0]
            places = [place for place in places if place[0] != shared or (place[1] < 20) == (lane == 0)]
            sequences[lane] = places
            clips = [samples[place] | {"place": place} for place in places]
            found.append(_lane_rows(clips, rng, repeat=epoch == EPOCHS[-1] and lane == 0))
        count = min(map(len, found)) // MICRO * MICRO
        for lane in range(LANES):
            before = len(rows[lane])
            for index, row in enumerate(found[lane][:count]):
                at = before + index
                places = [clip["place"] for clip in row["clips"]]
                rows[lane].append(
                    {
                        "epoch": epoch,
                        "step": FIRST_STEP + at // MICRO,
                        "micro": at % MICRO,
                        "bucket": row["bucket"],
                        "places": places,
                    }
                )
    hashes: dict[str, str] = {}
    for lane in range(LANES):
        table = _lane_table(rows[lane], sequences[lane], samples)
        write_lane(plan, lane, table)
        hashes[f"lane-{lane:04d}"] = table_hash(table)
    slowest = [max(BATCHES[rows[lane][at]["bucket"]][2] for lane in range(LANES)) for at in range(len(rows[0]))]
    tables = {
        "rows": (
            table_from_rows(
                ROWS,
                [
                    {key: row[key] for key in ("epoch", "step", "micro")} | {"tier": 0, "predicted_seconds": seconds}
                    for row, seconds in zip(rows[0], slowest, strict=True)
                ],
            ),
            ROWS,
        ),
        "ledger": (table_from_rows(LEDGER, _ledger(rows, samples)), LEDGER),
        "spares": (
            table_from_rows(
                SPARES, [{"lane": 0, "frames": 1, "height": 64, "width": 112, "shard": 0, "ordinal": 0}] * 3
            ),
            SPARES,
        ),
    }
    for name, (table, schema) in tables.items():
        write_table(plan / f"{name}.parquet", table, schema)
        hashes[name] = table_hash(table)
    used = sum(len(row["places"]) for lane in rows for row in lane)
    values = PlanMeta(
        plan_hash="",
        table_hashes=hashes,
        num_lanes=LANES,
        micro_per_step=MICRO,
        num_steps=len(rows[0]) // MICRO,
        num_epochs=len(EPOCHS),
        first_step=FIRST_STEP,
        first_epoch=EPOCHS[0],
        policy="tiers",
        admission="144p",
        seed=0,
        sets=planned,
        batches=tuple(
            BatchEntry(bucket=name, clips_per_lane=size, tier=tier, predicted_seconds=seconds, clips_in_set=160)
            for name, (size, tier, seconds) in BATCHES.items()
        ),
        cost_model=f"made up {HOSTILE}",
        admitted_clips=len(samples),
        used_share=used / (len(samples) * len(EPOCHS)),
        peak_buffer_bytes=(0,) * LANES,
        max_buffer_bytes=3_000_000,
        max_open_shards=4,
        max_uses_per_epoch=2,
        tier_curve=(
            TierPoint(tiers=1, waste=0.4, mix_index_1=1.0, mix_index_8=1.0),
            TierPoint(tiers=2, waste=0.1, mix_index_1=1.4, mix_index_8=0.8),
            TierPoint(tiers=3, waste=0.0, mix_index_1=3.0, mix_index_8=1.5),
        ),
        metrics={
            "read_amplification": 1.0,
            "anneal_opens_start": 30.0,
            "anneal_opens_gain": 0.0,
            "opens_per_shard": 1.1,
        },
        formulas={"opens_per_shard": f"pairs {HOSTILE}"},
        config={"lanes": LANES, "note": HOSTILE},
        created_by="test",
    ).model_dump(mode="json")
    values["plan_hash"] = plan_hash(values)
    (plan / "plan.json").write_text(json.dumps(values), encoding="utf-8")
    return plan


def _ledger(rows: list[list[Use]], samples: dict[tuple[int, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """Clips not used, and those used twice."""
    found = []
    for epoch in EPOCHS:
        uses: dict[tuple[int, int], int] = {}
        for place in (place for lane in rows for row in lane if row["epoch"] == epoch for place in row["places"]):
            uses[place] = uses.get(place, 0) + 1
        for place, fact in samples.items():
            if uses.get(place, 0) == 1:
                continue
            event = "repeated" if place in uses else "left_over" if epoch == EPOCHS[-1] else "carried"
            facts = {key: fact[key] for key in ("clip_id", "frames", "height", "width")}
            found.append(
                facts
                | {
                    "epoch": epoch,
                    "shard": place[0],
                    "ordinal": place[1],
                    "event": event,
                    "reason": f"{event} {HOSTILE}",
                }
            )
    return found
