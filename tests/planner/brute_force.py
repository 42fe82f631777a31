"""A plan replayed clip by clip in plain Python, from its files and the samples alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.verify import verify_plan
from schemas.plan import LEDGER, ROWS, SPARES, PlanMeta, lanes_of_rank, read_lane, read_plan_meta, read_plan_table
from schemas.shards import read_set_info, samples_path
from schemas.tables import SAMPLES, read_table

__all__ = ["Replay", "check_ledger", "check_plan", "ledger_of", "replay", "samples_of"]


def samples_of(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows of the samples tables; `shard` is plan-wide."""
    rows: list[dict[str, Any]] = []
    first = 0
    for folder in folders:
        table = read_table(samples_path(folder), SAMPLES).to_pylist()
        rows += [row | {"shard": first + row["shard_index"]} for row in table]
        first += len(read_set_info(folder).shards)
    return rows


@dataclass
class Replay:
    """What a plan does."""

    meta: PlanMeta
    samples: list[dict[str, Any]]
    uses: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By epoch: how often each clip is used."""
    steps: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By step: the clips of all lanes."""
    lane_steps: dict[tuple[int, int], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By (lane, step)."""
    epoch_of_step: dict[int, int] = field(default_factory=dict)
    buckets: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By row of the plan: bucket of each lane."""
    first_reads: dict[tuple[int, int, int], int] = field(default_factory=dict)
    """By (epoch, lane, shard): offset of the first read."""

    def uses_in_all(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for counter in self.uses.values():
            total += counter
        return total


def replay(plan: Path, folders: Sequence[Path]) -> Replay:
    """Every promise that can be seen in the lanes is asserted on the way."""
    meta = read_plan_meta(plan)
    result = Replay(meta, samples_of(folders))
    rows = read_plan_table(plan, "rows", ROWS, meta).to_pylist()
    assert [(row["step"], row["micro"]) for row in rows] == [
        (step, micro) for step in meta.steps for micro in range(meta.micro_per_step)
    ]
    epochs = [row["epoch"] for row in rows]
    assert epochs == sorted(epochs) and set(epochs) == set(meta.epochs)
    assert all(len({row["epoch"] for row in rows if row["step"] == step}) == 1 for step in meta.steps)
    result.epoch_of_step.update({row["step"]: row["epoch"] for row in rows})
    read_by: dict[tuple[int, str], int] = {}
    for lane in range(meta.num_lanes):
        table = read_lane(plan, lane, meta).to_pylist()
        for name in ("epoch", "step", "micro"):
            assert [row[name] for row in table] == [row[name] for row in rows]
        _replay_lane(lane, table, result, read_by)
    tiers = {entry.bucket: entry.tier for entry in meta.batches}
    for row, names in zip(rows, (result.buckets[index] for index in range(len(rows))), strict=True):
        assert {tiers[name] for name in names} == {row["tier"]}
        assert meta.policy == "tiers" or len(set(names)) == 1
    assert all(max(counter.values()) == 1 for counter in result.steps.values()), "a clip comes twice in a step"
    return result


def _replay_lane(lane: int, table: list[dict[str, Any]], result: Replay, read_by: dict[tuple[int, str], int]) -> None:
    meta = result.meta
    at = {(row["shard"], row["ordinal"]): row for row in result.samples}
    starts = {(row["shard"], row["offset"]): row for row in result.samples}
    batch = {entry.bucket: entry.clips_per_lane for entry in meta.batches}
    last_use: dict[tuple[int, str], int] = {}
    last_read: dict[tuple[int, int], int] = {}
    reads = 0
    for number, row in enumerate(table):
        for place in row["clips"]:
            last_use[row["epoch"], at[place["shard"], place["ordinal"]]["clip_id"]] = number
        for item in row["reads"]:
            last_read[row["epoch"], item["shard"]] = reads
            reads += 1
    held: dict[str, int] = {}
    front: dict[tuple[int, int], int] = {}
    opened: set[tuple[int, int]] = set()
    peaks = [0, 0, 0]
    reads = 0
    for number, row in enumerate(table):
        epoch = row["epoch"]
        for item in row["reads"]:
            shard = (epoch, item["shard"])
            position, end = item["offset"], item["offset"] + item["length"]
            assert position >= front.get(shard, 0), "a read goes back"
            front[shard] = end
            result.first_reads.setdefault((epoch, lane, item["shard"]), position)
            opened.add(shard)
            peaks[2] = max(peaks[2], len(opened))
            if last_read[shard] == reads:
                opened.remove(shard)
            reads += 1
            while position < end:
                sample = starts[item["shard"], position]
                assert (epoch, sample["clip_id"]) not in read_by, "a clip is read twice in an epoch"
                assert (epoch, sample["clip_id"]) in last_use, "a clip is read and never used"
                read_by[epoch, sample["clip_id"]] = lane
                held[sample["clip_id"]] = sample["length"]
                position += sample["length"]
            assert position == end
        peaks[0], peaks[1] = max(peaks[0], sum(held.values())), max(peaks[1], len(held))
        bucket = f"{row['frames']}x{row['height']}x{row['width']}"
        result.buckets[number].append(bucket)
        assert len(row["clips"]) == batch[bucket]
        for place in row["clips"]:
            sample = at[place["shard"], place["ordinal"]]
            name = sample["clip_id"]
            assert (sample["height"], sample["width"]) == (row["height"], row["width"])
            assert sample["frames"] >= row["frames"]
            assert name in held, "a clip is used before it is read"
            result.uses[epoch][name] += 1
            result.steps[row["step"]][name] += 1
            result.lane_steps[lane, row["step"]][name] += 1
        for name in [name for name in held if last_use[epoch, name] == number]:
            del held[name]
    assert not held and not opened
    assert peaks[0] == meta.peak_buffer_bytes[lane] <= meta.max_buffer_bytes
    assert peaks[1] == meta.peak_buffer_clips[lane] <= (meta.max_buffer_clips or peaks[1])
    assert peaks[2] == meta.peak_open_shards[lane] <= (meta.max_open_shards or peaks[2])


def ledger_of(plan: Path, meta: PlanMeta) -> list[dict[str, Any]]:
    """Rows of the ledger."""
    rows: list[dict[str, Any]] = read_plan_table(plan, "ledger", LEDGER, meta).to_pylist()
    return rows


def check_ledger(plan: Path, done: Replay, admitted: set[str], used_before: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Every admitted clip of every epoch is used or in the ledger, and its further uses are there; spares fit."""
    meta = done.meta
    out: dict[int, Counter[str]] = defaultdict(Counter)
    again: dict[int, Counter[str]] = defaultdict(Counter)
    for row in ledger_of(plan, meta):
        assert row["reason"]
        (again if row["event"] == "repeated" else out)[row["epoch"]][row["clip_id"]] += 1
    total = 0
    for epoch in meta.epochs:
        uses = done.uses[epoch]
        free = admitted - (used_before if epoch == meta.first_epoch else set())
        assert set(uses) | set(out[epoch]) == free
        assert not set(uses) & set(out[epoch])
        assert set(out[epoch].values()) <= {1}
        assert again[epoch] == Counter({name: count - 1 for name, count in uses.items() if count > 1})
        assert max(uses.values()) <= meta.max_uses_per_epoch
        total += len(uses)
    assert meta.admitted_clips == len(admitted)
    assert abs(meta.used_share - total / (len(admitted) * meta.num_epochs)) < 1e-12
    ids = {(row["shard"], row["ordinal"]): row for row in done.samples}
    for row in read_plan_table(plan, "spares", SPARES, meta).to_pylist():
        sample = ids[row["shard"], row["ordinal"]]
        assert (sample["height"], sample["width"]) == (row["height"], row["width"])
        assert sample["frames"] >= row["frames"]
        assert sample["clip_id"] in admitted and any(sample["clip_id"] in counter for counter in out.values())


def check_plan(
    folders: Sequence[Path], plan: Path, admitted: set[str] | None = None, scores: Path | None = None
) -> Replay:
    """Replay, ledger, the clips of each step on any world size, and the verifier."""
    done = replay(plan, folders)
    meta = done.meta
    if admitted is None:
        admitted = {row["clip_id"] for row in done.samples if meta.admission in row["admissions"]}
    check_ledger(plan, done, admitted)
    for world in range(1, meta.num_lanes + 1):
        if meta.num_lanes % world == 0:
            for step in meta.steps:
                over_ranks: Counter[str] = Counter()
                for rank in range(world):
                    for lane in lanes_of_rank(rank, world, meta.num_lanes):
                        over_ranks += done.lane_steps[lane, step]
                assert over_ranks == done.steps[step]
    assert meta.metrics["read_amplification"] == meta.metrics["sequential_share"] == 1.0
    report = verify_plan(plan, folders, scores=scores)
    assert report.ok, report.broken
    assert not {"admission_rules", "continues", "admitted_clips"} & set(report.skipped)
    assert report.bounds["used_share"] <= report.bounds["used_share_upper_bound"] + 1e-12
    return done
