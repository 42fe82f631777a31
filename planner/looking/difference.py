"""Two plans side by side: samples, settings, metrics, and which steps name other clips, used in another place or not at all.

Steps are compared by an order-free sum of hashes of their uses (clip and bucket), so a plan on other lanes, or with clips swapped between lanes,
compares as equal where its steps are. Two different steps agree by chance with probability 2^-64. Memory: 16 bytes for each use of a clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planner.looking.lane_arrays import LaneArrays, open_lanes
from planner.looking.places import place_key, shard_label
from planner.looking.wording import share_words, table_lines
from schemas.buckets import Bucket
from schemas.plan import PlanMeta, read_plan_meta

__all__ = ["Difference", "compare_plans", "difference_lines"]

_SHOWN_CLIPS = 3
_LENGTH_COLUMN = 28


@dataclass(frozen=True)
class ClipChanges:
    """Clips that the plans use, counted over whole plans."""

    only_a: int
    only_b: int
    other_times: int
    """Used by both, but not equally often."""
    used_a: int
    used_b: int


@dataclass(frozen=True)
class StepChanges:
    """Steps that both plans have."""

    common: int
    differ: np.ndarray
    """Numbers of the steps that name other clips, or the same at other buckets."""
    only_a: int
    only_b: int
    """Steps that the other plan does not have."""
    first_clips: tuple[tuple[str, ...], tuple[str, ...]]
    """Of the first such step: some clips that only A names, and that only B names."""


@dataclass(frozen=True)
class Difference:
    """What differs between plans A and B."""

    a: PlanMeta
    b: PlanMeta
    same_samples: bool
    config: dict[str, tuple[Any, Any]]
    metrics: dict[str, tuple[float | None, float | None]]
    lanes: tuple[int, ...]
    """Lanes whose tables differ; of both, or only of one."""
    read_programs: tuple[int, ...]
    """Of these, lanes of both plans that read other byte ranges, in another order, or before other rows."""
    steps: StepChanges | None
    """Null where the samples differ: then places do not name the same clips."""
    clips: ClipChanges | None

    @property
    def equal(self) -> bool:
        """The same plan."""
        return self.a.plan_hash == self.b.plan_hash


def compare_plans(a: Path, b: Path) -> Difference:
    """Compare two plan folders.

    Raises:
        PlanError: if one is no plan, or was changed after it was built.
    """
    metas = read_plan_meta(a), read_plan_meta(b)
    sets = [sorted((item.name, item.samples_hash) for item in meta.sets) for meta in metas]
    same_samples = sets[0] == sets[1]
    tables = metas[0].table_hashes, metas[1].table_hashes
    most = max(meta.num_lanes for meta in metas)
    lanes = tuple(lane for lane in range(most) if tables[0].get(_lane(lane)) != tables[1].get(_lane(lane)))
    steps, clips = None, None
    programs: tuple[int, ...] = ()
    if lanes:
        folded = [_Folded(path, meta, _shards_of(meta, metas[0])) for path, meta in zip((a, b), metas, strict=True)]
        programs = tuple(
            lane
            for lane in lanes
            if lane < min(meta.num_lanes for meta in metas) and folded[0].reads[lane] != folded[1].reads[lane]
        )
        if same_samples:
            steps, clips = _step_changes((a, b), folded), _clip_changes(*(item.uses for item in folded))
    return Difference(
        a=metas[0],
        b=metas[1],
        same_samples=same_samples,
        config=_changed(*(_flat(meta.config) for meta in metas)),
        metrics=_changed(*({**meta.metrics, **_headline(meta)} for meta in metas)),
        lanes=lanes,
        read_programs=programs,
        steps=steps,
        clips=clips,
    )


def _lane(lane: int) -> str:
    return f"lane-{lane:04d}"


def _shards_of(meta: PlanMeta, first: PlanMeta) -> np.ndarray:
    """Plan-wide shard index to that of the first plan, which may name the same sets in another order."""
    target = {(item.name, item.samples_hash): item.first_shard for item in first.sets}
    pieces = [
        np.arange(len(item.shard_names), dtype=np.int64) + target.get((item.name, item.samples_hash), item.first_shard)
        for item in meta.sets
    ]
    return np.concatenate(pieces)


class _Folded:
    """One plan, its lanes folded into sums and sorted places."""

    def __init__(self, path: Path, meta: PlanMeta, shards: np.ndarray) -> None:
        self.meta, self.shards = meta, shards
        self.sums = np.zeros(meta.num_steps, dtype=np.uint64)
        self.reads: list[int] = []
        buckets = [Bucket.parse(entry.bucket) for entry in meta.batches]
        frames = np.array([bucket.frames for bucket in buckets], dtype=np.uint64)
        places = []
        for lane in open_lanes(path, meta, what=f"reading {path}"):
            key = place_key(shards[lane.clip_shard], lane.clip_ordinal)
            places.append(key)
            use = _scatter(_scatter(key.astype(np.uint64)) + frames[lane.bucket[lane.clip_row]])
            np.add.at(self.sums, lane.clip_row // meta.micro_per_step, use)
            self.reads.append(_read_digest(lane, shards))
        self.uses = np.sort(np.concatenate(places))
        """Place of every use, sorted."""


def _scatter(values: np.ndarray) -> np.ndarray:
    """Finaliser of SplitMix64: 64-bit integers to well-mixed ones, without collisions."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _read_digest(lane: LaneArrays, shards: np.ndarray) -> int:
    """One number for what a lane reads, in which order and before which row."""
    columns = [lane.read_row, shards[lane.read_shard], lane.read_offset, lane.read_length]
    mixed = np.arange(len(lane.read_row), dtype=np.uint64)
    for column in columns:
        mixed = _scatter(mixed + np.uint64(0x9E3779B97F4A7C15)) ^ column.astype(np.uint64)
    return int(_scatter(mixed + np.uint64(1)).sum(dtype=np.uint64))


def _step_changes(paths: tuple[Path, Path], folded: list[_Folded]) -> StepChanges:
    a, b = folded
    first = max(a.meta.steps.start, b.meta.steps.start)
    past = min(a.meta.steps.stop, b.meta.steps.stop)
    common = max(0, past - first)
    sums = [item.sums[first - item.meta.first_step :][:common] for item in folded]
    differ = np.flatnonzero(sums[0] != sums[1]) + first if common else np.empty(0, dtype=np.int64)
    clips: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    if len(differ):
        named = [_uses_of_step(path, item, int(differ[0])) for path, item in zip(paths, folded, strict=True)]
        clips = (_some_clips(a.meta, named[0] - named[1]), _some_clips(a.meta, named[1] - named[0]))
    return StepChanges(
        common=common,
        differ=differ,
        only_a=a.meta.num_steps - common,
        only_b=b.meta.num_steps - common,
        first_clips=clips,
    )


def _uses_of_step(path: Path, item: _Folded, step: int) -> set[tuple[int, int, str]]:
    """(shard, ordinal, bucket) of each use."""
    uses: set[tuple[int, int, str]] = set()
    rows = (step - item.meta.first_step) * item.meta.micro_per_step
    for lane in open_lanes(path, item.meta, what=f"reading step {step} of {path}"):
        first, past = np.searchsorted(lane.clip_row, [rows, rows + item.meta.micro_per_step]).tolist()
        shard = item.shards[lane.clip_shard[first:past]].tolist()
        ordinal = lane.clip_ordinal[first:past].tolist()
        bucket = [item.meta.batches[index].bucket for index in lane.bucket[lane.clip_row[first:past]].tolist()]
        uses |= set(zip(shard, ordinal, bucket, strict=True))
    return uses


def _some_clips(meta: PlanMeta, uses: set[tuple[int, int, str]]) -> tuple[str, ...]:
    shown = [f"{shard_label(meta, shard)}#{ordinal} as {bucket}" for shard, ordinal, bucket in sorted(uses)]
    more = (f"{len(shown) - _SHOWN_CLIPS} more",) if len(shown) > _SHOWN_CLIPS else ()
    return (*shown[:_SHOWN_CLIPS], *more)


def _clip_changes(a: np.ndarray, b: np.ndarray) -> ClipChanges:
    """Sorted places of all uses of each plan."""
    clips_a, times_a = np.unique(a, return_counts=True)
    clips_b, times_b = np.unique(b, return_counts=True)
    both, in_a, in_b = np.intersect1d(clips_a, clips_b, assume_unique=True, return_indices=True)
    return ClipChanges(
        only_a=len(clips_a) - len(both),
        only_b=len(clips_b) - len(both),
        other_times=int((times_a[in_a] != times_b[in_b]).sum()),
        used_a=len(clips_a),
        used_b=len(clips_b),
    )


def _headline(meta: PlanMeta) -> dict[str, float]:
    return {
        "num_steps": meta.num_steps,
        "num_epochs": meta.num_epochs,
        "admitted_clips": meta.admitted_clips,
        "used_share": meta.used_share,
        "peak_buffer_bytes (worst lane)": max(meta.peak_buffer_bytes, default=0),
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = sorted(a.keys() | b.keys())
    return {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}


def difference_lines(difference: Difference) -> Iterator[str]:
    """A short report."""
    a, b = difference.a, difference.b
    if difference.equal:
        yield f"the same plan: {a.plan_hash[:12]}"
        return
    yield f"A {a.plan_hash[:12]}: {a.num_steps} steps x {a.micro_per_step} rows on {a.num_lanes} lanes, {a.policy}, seed {a.seed}"
    yield f"B {b.plan_hash[:12]}: {b.num_steps} steps x {b.micro_per_step} rows on {b.num_lanes} lanes, {b.policy}, seed {b.seed}"
    if difference.same_samples:
        yield f"samples: the same {len(a.sets)} sets"
    else:
        for name, meta in (("A", a), ("B", b)):
            sets = ", ".join(
                f"{item.name} {item.samples_hash[:12]} ({len(item.shard_names)} shards)" for item in meta.sets
            )
            yield f"samples of {name}: {sets}"
    yield from _pair_lines("settings", difference.config)
    yield from _pair_lines("metrics", difference.metrics)
    yield from _step_lines(difference)
    if difference.clips is not None:
        clips = difference.clips
        yield (
            f"clips: {clips.used_a:,} used in A, {clips.used_b:,} in B; {clips.only_a:,} only in A, {clips.only_b:,} only in B, "
            f"{clips.other_times:,} not equally often"
        )
    most = max(a.num_lanes, b.num_lanes)
    yield (
        f"lanes: {len(difference.lanes)} of {most} tables differ, {len(difference.read_programs)} of the "
        f"{min(a.num_lanes, b.num_lanes)} lanes of both read other bytes, in another order or before other rows"
    )


def _pair_lines(what: str, pairs: Mapping[str, tuple[Any, Any]]) -> Iterator[str]:
    if not pairs:
        yield f"{what}: the same"
        return
    yield f"{what} that differ:"
    rows = [[name, _value(one), _value(other)] for name, (one, other) in pairs.items()]
    yield from table_lines([what, "A", "B"], rows, text_columns=[0])


def _value(value: object) -> str:
    if value is None:
        return "-"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LENGTH_COLUMN else text[: _LENGTH_COLUMN - 3] + "..."


def _step_lines(difference: Difference) -> Iterator[str]:
    steps = difference.steps
    if steps is None:
        same = difference.same_samples
        yield "steps: the same clips in each" if same else "steps: not compared, the plans name clips of other samples"
        return
    alone = f"; {steps.only_a} steps only in A, {steps.only_b} only in B" if steps.only_a or steps.only_b else ""
    if not len(steps.differ):
        yield f"steps: the same clips in each of {steps.common} common steps{alone}"
        return
    count = len(steps.differ)
    yield (
        f"steps: {count} of {steps.common} common steps ({share_words(count, steps.common)}) name other clips, "
        f"the first is step {steps.differ[0]}{alone}"
    )
    for name, clips in zip("AB", steps.first_clips, strict=True):
        if clips:
            yield f"  step {steps.differ[0]}, only in {name}: {', '.join(clips)}"
