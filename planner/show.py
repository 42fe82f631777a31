"""A plan in words: its summary, what a step does on each lane, when a clip is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.compute as pc

from schemas.errors import PlanError, UsageError
from schemas.plan import LEDGER as LEDGER_SCHEMA
from schemas.plan import ROWS as ROWS_SCHEMA
from schemas.plan import PlanMeta, lanes_of_rank, read_lane, read_plan_meta, read_plan_table
from schemas.shards import samples_path
from schemas.tables import SAMPLES, read_table

__all__ = ["clip_lines", "step_lines", "summary_lines"]

Names = dict[tuple[int, int], str]


def summary_lines(meta: PlanMeta) -> Iterator[str]:
    """The plan's headline."""
    values = meta.metrics
    yield (
        f"plan {meta.plan_hash[:12]}: {meta.num_steps} steps x {meta.micro_per_step} rows on {meta.num_lanes} lanes, "
        f"{meta.policy}, seed {meta.seed}"
    )
    for item in meta.sets:
        yield f"set {item.name}: {len(item.shard_names)} shards, {sum(item.shard_bytes) / 1e6:.1f} MB, samples {item.samples_hash[:12]}"
    yield f"admitted at {meta.admission}: {meta.admitted_clips} clips, {meta.num_epochs} epochs"
    yield f"cost: {meta.cost_model}"
    yield f"{'bucket':>16} {'clips':>8} {'B':>5} {'tier':>5} {'seconds':>10}"
    for entry in meta.batches:
        yield f"{entry.bucket:>16} {entry.clips_in_set:>8} {entry.clips_per_lane:>5} {entry.tier:>5} {entry.predicted_seconds:>10.4g}"
    per_epoch = [f"{share:.2%}" for name, share in sorted(values.items()) if name.startswith("used_share/")]
    shown = ", ".join(per_epoch[:8]) + (", ..." if len(per_epoch) > 8 else "")
    full = values.get("used_share_full_epochs")
    if full is not None and full != meta.used_share:
        yield f"used share of the epochs that the plan goes through to the end: {full:.2%}"
    yield (
        f"used share: {meta.used_share:.2%} (by epoch {shown}); ever used {values['clips_ever_used_share']:.2%}, "
        f"each clip {values['use_count_min']:.0f} to {values['use_count_max']:.0f} times"
    )
    peak = max(meta.peak_buffer_bytes)
    yield f"peak buffer: {peak / 1e6:.3f} MB (lane {meta.peak_buffer_bytes.index(peak)}) of {meta.max_buffer_bytes / 1e6:.3f} MB allowed"
    yield (
        f"reads: {values['opens_per_shard']:.2f} opens per shard and epoch, {values['reads_per_clip']:.2f} ranges per clip, "
        f"amplification {values['read_amplification']:.3f}, sequential {values['sequential_share']:.3f}"
    )
    yield (
        f"annealing over the constructive start: better in {values['anneal_epochs_won']:.0f} of {meta.num_epochs} epochs; "
        f"peak buffer {0 - values['anneal_peak_buffer_gain_bytes'] / 1e6:+.3f} MB, opens {0 - values['anneal_opens_gain']:+.0f}, "
        f"handed-over clips {0 - values['anneal_handed_over_gain']:+.0f}, "
        f"used share before the repair {values['anneal_share_before_repair_gain']:+.2%}"
    )


def clip_names(meta: PlanMeta, samples: Sequence[Path]) -> Names:
    """(plan-wide shard, ordinal) to clip id, from the sets in the plan's order.

    Raises:
        PlanError: if the number of sets or the names of their sets differ.
    """
    if len(samples) != len(meta.sets):
        raise PlanError(
            f"the plan reads {len(meta.sets)} sets, --samples gives {len(samples)}; give each once, in the order of the build"
        )
    names: Names = {}
    for path, item in zip(samples, meta.sets, strict=True):
        table = read_table(
            path if path.suffix == ".parquet" else samples_path(path),
            SAMPLES,
            columns=["clip_id", "shard_index", "ordinal"],
        )
        if table.num_rows and (pc.max(table.column("shard_index")).as_py() or 0) >= len(item.shard_names):
            raise PlanError(
                f"{path} names shards that set {item.name} of the plan does not have; these are other samples"
            )
        columns = (table.column(name).to_pylist() for name in ("shard_index", "ordinal", "clip_id"))
        names |= {(shard + item.first_shard, ordinal): clip for shard, ordinal, clip in zip(*columns, strict=True)}
    return names


def step_lines(plan: Path, step: int, rank: int | None, world: int | None, samples: Sequence[Path]) -> Iterator[str]:
    """What each lane (of one rank) reads and uses in a step.

    Raises:
        UsageError: for a step that the plan does not have, or half of --rank and --world.
        PlanError: if the world size does not divide the lanes.
    """
    meta = read_plan_meta(plan)
    if not 0 <= step < meta.num_steps:
        raise UsageError(f"--step {step}: the plan {plan} has steps 0 to {meta.num_steps - 1}")
    if (rank is None) != (world is None):
        raise UsageError("--rank and --world go together; give both, or neither for all lanes")
    lanes = range(meta.num_lanes) if rank is None or world is None else lanes_of_rank(rank, world, meta.num_lanes)
    names = clip_names(meta, samples) if samples else {}
    rows = read_plan_table(plan, "rows", ROWS_SCHEMA, meta)
    for row in rows.filter(pc.equal(rows.column("step"), step)).to_pylist():
        yield f"step {row['step']}, micro {row['micro']}: epoch {row['epoch']}, tier {row['tier']}, predicted {row['predicted_seconds']:.4g} s"
    for lane in lanes:
        table = read_lane(plan, lane, meta)
        for row in table.filter(pc.equal(table.column("step"), step)).to_pylist():
            clips = [_clip(meta, names, clip["shard"], clip["ordinal"]) for clip in row["clips"]]
            read = sum(item["length"] for item in row["reads"])
            yield f"  lane {lane}, micro {row['micro']}: {row['frames']}x{row['height']}x{row['width']}: {', '.join(clips)}"
            yield f"    reads {len(row['reads'])} ranges, {read:,} bytes" + "".join(
                f"\n      {_shard(meta, item['shard'])} bytes {item['offset']}+{item['length']}"
                for item in row["reads"]
            )


def _shard(meta: PlanMeta, shard: int) -> str:
    for item in meta.sets:
        if item.first_shard <= shard < item.first_shard + len(item.shard_names):
            return f"{item.name}/{item.shard_names[shard - item.first_shard]}"
    return f"shard {shard}"


def _clip(meta: PlanMeta, names: Names, shard: int, ordinal: int) -> str:
    place = f"{_shard(meta, shard)}#{ordinal}"
    return f"{names[shard, ordinal]} ({place})" if (shard, ordinal) in names else place


def clip_lines(plan: Path, clip: str, samples: Sequence[Path]) -> Iterator[str]:
    """When a clip is used, by which lane, and when it is left over. `clip` is a clip id (needs samples) or SHARD:ORDINAL.

    Raises:
        UsageError: if the clip is not known, or is an id without samples.
    """
    meta = read_plan_meta(plan)
    places = _places(meta, clip, samples)
    found = 0
    for lane in range(meta.num_lanes):
        table = read_lane(plan, lane, meta).select(["epoch", "step", "micro", "frames", "height", "width", "clips"])
        clips = table.column("clips").combine_chunks()
        flat = clips.flatten()
        parents = pc.list_parent_indices(clips)
        for shard, ordinal in places:
            hit = pc.and_(pc.equal(flat.field("shard"), shard), pc.equal(flat.field("ordinal"), ordinal))
            for row in table.take(parents.filter(hit)).to_pylist():
                found += 1
                bucket = f"{row['frames']}x{row['height']}x{row['width']}"
                yield (
                    f"epoch {row['epoch']}: step {row['step']}, micro {row['micro']}, lane {lane}, bucket {bucket}, "
                    f"from {_clip(meta, {}, shard, ordinal)}"
                )
    ledger = read_plan_table(plan, "ledger", LEDGER_SCHEMA, meta)
    for row in ledger.to_pylist():
        if (row["shard"], row["ordinal"]) in places:
            found += 1
            yield f"epoch {row['epoch']}: {row['event'].replace('_', ' ')}: {row['reason']}"
    if not found:
        yield f"clip {clip} is in the samples, but the plan neither uses it nor leaves it over: it is not admitted at {meta.admission}"


def _places(meta: PlanMeta, clip: str, samples: Sequence[Path]) -> list[tuple[int, int]]:
    shard, colon, ordinal = clip.partition(":")
    if colon and shard.isdigit() and ordinal.isdigit():
        return [(int(shard), int(ordinal))]
    if not samples:
        raise UsageError(
            f"--clip {clip}: a plan names clips by place; add --samples to look up an id, or give SHARD:ORDINAL"
        )
    places = [place for place, name in clip_names(meta, samples).items() if name == clip]
    if not places:
        raise UsageError(f"--clip {clip}: no sample of {', '.join(map(str, samples))} has this clip id")
    return places
