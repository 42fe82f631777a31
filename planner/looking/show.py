"""A plan in words: its summary, what a step does on each lane, when a clip is used.

Lanes are read one by one and only the rows asked for become Python objects; clip ids are looked up in Arrow. So each question costs a pass over
the lanes' files (and their hashes), whatever the number of clips.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from planner.looking.places import find_clip, name_clips, shard_label
from planner.looking.wording import size_words, span_words
from schemas.errors import UsageError
from schemas.plan import LEDGER as LEDGER_SCHEMA
from schemas.plan import ROWS as ROWS_SCHEMA
from schemas.plan import PlanMeta, lanes_of_rank, read_lane, read_plan_meta, read_plan_table

__all__ = ["clip_lines", "step_lines", "summary_lines"]

_SHOWN_EPOCHS = 6
_ANNEAL = "anneal_"
_PLACE = re.compile("[0-9]+:[0-9]+")


def summary_lines(meta: PlanMeta) -> Iterator[str]:
    """The plan's headline; what its builder did not measure is left out."""
    steps = f"{meta.num_steps} steps x {meta.micro_per_step} rows on {meta.num_lanes} lanes"
    numbered = f" (steps {meta.steps.start} to {meta.steps.stop - 1})" if meta.first_step else ""
    yield f"plan {meta.plan_hash[:12]}: {steps}{numbered}, {meta.policy}, sync {meta.sync}, seed {meta.seed}"
    if meta.continues is not None:
        before = meta.continues
        yield f"continues plan {before.plan_hash[:12]} ({before.num_lanes} lanes) from step {before.from_step}, in epoch {meta.first_epoch}"
    for item in meta.sets:
        yield f"set {item.name}: {len(item.shard_names)} shards, {size_words(sum(item.shard_bytes))}, samples {item.samples_hash[:12]}"
    rules = f", {len(meta.rules)} rules ({', '.join(rule.column for rule in meta.rules)})" if meta.rules else ""
    yield f"admitted at {meta.admission}{rules}: {meta.admitted_clips:,} clips, {meta.num_epochs} epochs"
    yield from _cost_lines(meta)
    yield from _share_lines(meta)
    yield from _cap_lines(meta)
    yield from _metric_lines(meta)
    yield from _annealing_lines(meta)


def _cost_lines(meta: PlanMeta) -> Iterator[str]:
    yield f"cost: {meta.cost_model}"
    if meta.cost_errors:
        errors = ", ".join(f"{name} {value:.2%}" for name, value in meta.cost_errors.items())
        yield f"cost model against its measurements: {errors}"
    memory = any(entry.memory_bytes is not None for entry in meta.batches)
    yield f"{'bucket':>16} {'clips':>8} {'B':>5} {'tier':>5} {'seconds':>10}" + (f" {'memory':>12}" if memory else "")
    for entry in meta.batches:
        line = f"{entry.bucket:>16} {entry.clips_in_set:>8} {entry.clips_per_lane:>5} {entry.tier:>5} {entry.predicted_seconds:>10.4g}"
        yield line + (f" {size_words(entry.memory_bytes):>12}" if entry.memory_bytes is not None else "")
    limits = {
        "max_tokens_per_micro_batch": meta.max_tokens_per_micro_batch,
        "max_memory_bytes": meta.max_memory_bytes,
    }
    if any(limits.values()):
        yield "batches under " + ", ".join(f"{name} {value:,}" for name, value in limits.items() if value)
    if meta.tier_curve:
        own = 1 + max((entry.tier for entry in meta.batches), default=0) if meta.policy == "tiers" else 0
        yield "cost tiers: idle time against mixing by the model, cuts of least waste" + (
            "; * this plan's own cut, which mixes a step best within max_waste:" if own else ":"
        )
        yield f"  {'tiers':>5} {'waste':>8} {'mix_1':>7} {'mix_8':>7}"
        for point in meta.tier_curve:
            mark = "*" if point.tiers == own else " "
            yield f" {mark}{point.tiers:>5} {point.waste:>8.2%} {point.mix_index_1:>7.3f} {point.mix_index_8:>7.3f}"


def _share_lines(meta: PlanMeta) -> Iterator[str]:
    values = meta.metrics
    per_epoch = [f"{share:.2%}" for name, share in sorted(values.items()) if name.startswith("used_share/")]
    shown = ", ".join(per_epoch[:_SHOWN_EPOCHS]) + (", ..." if len(per_epoch) > _SHOWN_EPOCHS else "")
    full = values.get("used_share_full_epochs")
    if full is not None and full != meta.used_share:
        yield f"used share of the epochs that the plan goes through to the end: {full:.2%}"
    of_what = " of all clips; what the plan before left is counted by epoch" if meta.continues else ""
    line = f"used share: {meta.used_share:.2%}{of_what}" + (f" (by epoch {shown})" if shown else "")
    ever, fewest, most = (values.get(name) for name in ("clips_ever_used_share", "use_count_min", "use_count_max"))
    if ever is not None:
        line += f"; ever used {ever:.2%}"
    if fewest is not None and most is not None:
        line += f", each clip {fewest:.0f} to {most:.0f} times"
    yield line
    if meta.max_uses_per_epoch > 1:
        yield f"clips are used up to {meta.max_uses_per_epoch} times in an epoch (left_over: repeat)"


def _cap_lines(meta: PlanMeta) -> Iterator[str]:
    peak = max(meta.peak_buffer_bytes, default=0)
    lane = meta.peak_buffer_bytes.index(peak) if meta.peak_buffer_bytes else 0
    line = f"peak buffer: {peak / 1e6:.3f} MB (lane {lane}) of {meta.max_buffer_bytes / 1e6:.3f} MB allowed"
    if meta.peak_buffer_clips:
        line += f"; {max(meta.peak_buffer_clips)} clips of {_cap(meta.max_buffer_clips)}"
    if meta.peak_open_shards:
        line += f"; {max(meta.peak_open_shards)} open shards of {_cap(meta.max_open_shards)}"
    yield line


def _cap(value: int | None) -> str:
    return "any number" if value is None else f"{value} allowed"


def _metric_lines(meta: PlanMeta) -> Iterator[str]:
    values = meta.metrics
    reads = [
        text.format(values[name])
        for name, text in (
            ("opens_per_shard", "{:.2f} opens per shard and epoch"),
            ("reads_per_clip", "{:.2f} ranges per clip"),
            ("read_amplification", "amplification {:.3f}"),
            ("sequential_share", "sequential {:.3f}"),
        )
        if name in values
    ]
    if reads:
        yield "reads: " + ", ".join(reads)
    waste = [
        f"{values[f'waste_{sync}']:.2%} under sync {sync}" for sync in ("micro", "step") if f"waste_{sync}" in values
    ]
    if waste:
        yield "predicted idle share (1 - busy / waited-for): " + ", ".join(waste)
    for unit in ("bucket", "domain"):
        mixes = [
            f"{values[f'mix_index_{window}/{unit}']:.3f} over {window}"
            for window in (1, 8, 64, 512)
            if f"mix_index_{window}/{unit}" in values
            and window < meta.num_steps  # else the only window is the whole: 0
        ]
        if mixes:
            yield f"mix index by {unit} (1 is random): " + ", ".join(mixes) + " steps"


def _annealing_lines(meta: PlanMeta) -> Iterator[str]:
    """What annealing took off each measure (off shares: added), from the constructive start to the plan; measures it left alone come last."""
    values = meta.metrics
    changed, alone = [], []
    for name, gain in sorted(values.items()):
        if not (name.startswith(_ANNEAL) and name.endswith("_gain")):
            continue
        measure = name.removeprefix(_ANNEAL).removesuffix("_gain")
        start = values.get(f"{_ANNEAL}{measure}_start")
        words = measure.removesuffix("_bytes").replace("_", " ")
        if not gain:
            alone.append(words)
        elif start is None:
            changed.append(f"{words} {_signed(measure, gain)}")
        else:
            end = start + gain if "share" in measure else start - gain
            changed.append(f"{words} {_amount(measure, start)} to {_amount(measure, end)}")
    won = values.get("anneal_epochs_won")
    parts = [f"better in {won:.0f} of {meta.num_epochs} epochs"] if won is not None else []
    parts += changed + ([f"nothing on {', '.join(alone)}"] if alone else [])
    yield "annealing over the constructive start: " + ("; ".join(parts) or "not measured in this plan")


def _amount(measure: str, value: float) -> str:
    if measure.endswith("_bytes"):
        return size_words(value)
    return f"{value:.2%}" if "share" in measure else f"{value:,.6g}"


def _signed(measure: str, gain: float) -> str:
    sign = "+" if ("share" in measure) == (gain > 0) else "-"
    return sign + _amount(measure, abs(gain))


def step_lines(plan: Path, step: int, rank: int | None, world: int | None, samples: Sequence[Path]) -> Iterator[str]:
    """What each lane (of one rank) reads and uses in a step.

    Raises:
        UsageError: for a step that the plan does not have, or half of --rank and --world.
        PlanError: if the world size does not divide the lanes.
    """
    meta = read_plan_meta(plan)
    if step not in meta.steps:
        raise UsageError(f"--step {step}: the plan {plan} has steps {meta.steps.start} to {meta.steps.stop - 1}")
    if (rank is None) != (world is None):
        raise UsageError("--rank and --world go together; give both, or neither for all lanes")
    lanes = range(meta.num_lanes) if rank is None or world is None else lanes_of_rank(rank, world, meta.num_lanes)
    rows = _rows_of_step(read_plan_table(plan, "rows", ROWS_SCHEMA, meta), step)
    tables = {lane: _rows_of_step(read_lane(plan, lane, meta), step) for lane in lanes}
    names = _names(meta, samples, [table.column("clips") for table in tables.values()]) if samples else {}
    for row in rows.to_pylist():
        yield f"step {row['step']}, micro {row['micro']}: epoch {row['epoch']}, tier {row['tier']}, predicted {span_words(row['predicted_seconds'])}"
    for lane, table in tables.items():
        for row in table.to_pylist():
            clips = [_clip(meta, names, clip["shard"], clip["ordinal"]) for clip in row["clips"]]
            read = sum(item["length"] for item in row["reads"])
            yield f"  lane {lane}, micro {row['micro']}: {row['frames']}x{row['height']}x{row['width']}: {', '.join(clips)}"
            yield f"    reads {len(row['reads'])} ranges, {read:,} bytes" + "".join(
                f"\n      {shard_label(meta, item['shard'])} bytes {item['offset']}+{item['length']}"
                for item in row["reads"]
            )


def _rows_of_step(table: pa.Table, step: int) -> pa.Table:
    """Steps rise, so the rows are one slice."""
    steps = table.column("step").to_numpy()
    first, past = np.searchsorted(steps, [step, step + 1]).tolist()
    return table.slice(first, past - first)


def _names(meta: PlanMeta, samples: Sequence[Path], clips: Sequence[pa.ChunkedArray]) -> Mapping[tuple[int, int], str]:
    flat = [column.combine_chunks().flatten() for column in clips]
    shard, ordinal = (np.concatenate([part.field(name).to_numpy() for part in flat]) for name in ("shard", "ordinal"))
    return name_clips(meta, samples, shard, ordinal)


def _clip(meta: PlanMeta, names: Mapping[tuple[int, int], str], shard: int, ordinal: int) -> str:
    place = f"{shard_label(meta, shard)}#{ordinal}"
    return f"{names[shard, ordinal]} ({place})" if (shard, ordinal) in names else place


def clip_lines(plan: Path, clip: str, samples: Sequence[Path]) -> Iterator[str]:
    """When a clip is used, by which lane, and when it is left over. `clip` is a clip id (needs samples) or SHARD:ORDINAL.

    Raises:
        UsageError: if the clip is not known, or is an id without samples.
    """
    meta = read_plan_meta(plan)
    places = _places(meta, clip, samples)
    found: list[tuple[int, int, str]] = []
    for lane in range(meta.num_lanes):
        table = read_lane(plan, lane, meta).select(["epoch", "step", "micro", "frames", "height", "width", "clips"])
        clips = table.column("clips").combine_chunks()
        for shard, ordinal in places:
            for row in table.take(_rows_using(clips, shard, ordinal)).to_pylist():
                bucket = f"{row['frames']}x{row['height']}x{row['width']}"
                words = f"step {row['step']}, micro {row['micro']}, lane {lane}, bucket {bucket}, from {_clip(meta, {}, shard, ordinal)}"
                found.append((row["epoch"], row["step"], f"epoch {row['epoch']}: {words}"))
    ledger = read_plan_table(plan, "ledger", LEDGER_SCHEMA, meta)
    for shard, ordinal in places:
        here = pc.and_(pc.equal(ledger.column("shard"), shard), pc.equal(ledger.column("ordinal"), ordinal))
        for row in ledger.filter(here).to_pylist():
            words = f"epoch {row['epoch']}: {row['event'].replace('_', ' ')}: {row['reason']}"
            found.append((row["epoch"], meta.steps.stop, words))
    for _, _, words in sorted(found):
        yield words
    if not found:
        rules = " or not by its rules" if meta.rules else ""
        known = "" if _PLACE.fullmatch(clip) is None else ", or there is no sample in that place"
        yield f"clip {clip}: the plan neither uses it nor leaves it over: it is not admitted at {meta.admission}{rules}{known}"


def _rows_using(clips: pa.ListArray, shard: int, ordinal: int) -> pa.Array:
    """Rows of a lane that use one clip."""
    flat = clips.flatten()
    hit = pc.and_(pc.equal(flat.field("shard"), shard), pc.equal(flat.field("ordinal"), ordinal))
    return pc.list_parent_indices(clips).filter(hit)


def _places(meta: PlanMeta, clip: str, samples: Sequence[Path]) -> list[tuple[int, int]]:
    if _PLACE.fullmatch(clip):
        shard, ordinal = map(int, clip.split(":"))
        num_shards = sum(len(item.shard_names) for item in meta.sets)
        if shard >= num_shards:
            raise UsageError(f"--clip {clip}: the plan has shards 0 to {num_shards - 1}, counted over all its sets")
        return [(shard, ordinal)]
    if not samples:
        raise UsageError(
            f"--clip {clip}: a plan names clips by place; add --samples to look up an id, or give SHARD:ORDINAL"
        )
    places = find_clip(meta, samples, clip)
    if not places:
        raise UsageError(f"--clip {clip}: no sample of {', '.join(map(str, samples))} has this clip id")
    return places
