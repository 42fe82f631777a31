"""The packed sets of a curriculum, held against what its stages ask for: encoders, levels, lengths, buckets, domains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from schemas.buckets import Bucket
from schemas.shards import SetInfo, read_set_info, samples_path
from schemas.tables import SAMPLES, read_table
from training.config import TrainConfig
from training.curriculum.stage import StageConfig, StagePart
from training.curriculum.stage_data import set_problems

__all__ = ["PackedSet", "open_sets", "part_notes", "part_problems"]

_COLUMNS = ("frames", "height", "width", "admissions", "domain", "subject", "style", "branch")


@dataclass(frozen=True, kw_only=True)
class PackedSet:
    """One set, with the columns of its samples that stages look at."""

    folder: Path
    info: SetInfo
    samples: pa.Table


def open_sets(folders: Sequence[Path]) -> list[PackedSet]:
    """Read each set's description and samples.

    Raises:
        DataError: if a folder is not a set, or its samples are of another version.
    """
    return [
        PackedSet(
            folder=folder,
            info=read_set_info(folder),
            samples=read_table(samples_path(folder), SAMPLES).select(list(_COLUMNS)),
        )
        for folder in folders
    ]


def part_problems(config: TrainConfig, stage: StageConfig, part: StagePart, sets: Sequence[PackedSet]) -> list[str]:
    """What the sets lack for one part of a stage, each with what to do."""
    found: list[str] = []
    domains: Counter[str] = Counter()
    chosen = []
    for name in part.frames:
        packed = _set_of(config, stage, name, sets)
        if packed is None:
            given = ", ".join(f"{item.info.set_name} ({item.folder})" for item in sets) or "none"
            found.append(
                f"part {part.name} wants the set {name}, --samples gives: {given}; pack it, or name its folder"
            )
            continue
        wrong = set_problems(config, stage, packed.info)
        found += [f"part {part.name}: {packed.folder}: {problem}" for problem in wrong]
        chosen.append(packed)
    for packed in chosen:
        used = list(_used(part, packed))
        found += [f"part {part.name}: {packed.folder}: {problem}" for problem in _data_problems(part, packed, used)]
        domains.update(packed.samples.column(part.domain_column)[index].as_py() for index, _ in used)
    if len(chosen) == len(part.frames):
        for name in part.domain_weights:
            if name not in domains:
                known = ", ".join(sorted(map(repr, domains))) or "none"
                found.append(
                    f"part {part.name}: domain_weights names {name!r}, which no clip admitted at {part.admission} has in its column "
                    f"{part.domain_column!r}; it has: {known}; correct it, or add such clips"
                )
    return found


def part_notes(config: TrainConfig, stage: StageConfig, part: StagePart, sets: Sequence[PackedSet]) -> list[str]:
    """Clips by bucket, and buckets of the file that no clip fills, which is no mistake."""
    counts: Counter[Bucket] = Counter()
    for name in part.frames:
        packed = _set_of(config, stage, name, sets)
        counts.update(bucket for _, bucket in _used(part, packed)) if packed is not None else None
    if not counts:
        return []
    empty = [str(bucket) for bucket in part.buckets if not counts[bucket]]
    text = f"part {part.name}: {sum(counts.values()):,} clips in {len(counts)} buckets"
    return [text + (f"; no clip in {', '.join(empty)}" if empty else "")]


def _set_of(config: TrainConfig, stage: StageConfig, name: str, sets: Sequence[PackedSet]) -> PackedSet | None:
    """The set of that name that suits the stage best: the same clips may be packed for several stages, with other encoders."""
    named = [packed for packed in sets if packed.info.set_name == name]
    return min(named, key=lambda packed: len(set_problems(config, stage, packed.info)), default=None)


def _used(part: StagePart, packed: PackedSet) -> Iterator[tuple[int, Bucket]]:
    """(row, bucket) of each clip that the part uses, as the planner chooses them (`PlanConfig.frames`)."""
    lengths = part.frames[packed.info.set_name]
    columns = [packed.samples.column(name).to_pylist() for name in ("frames", "height", "width", "admissions")]
    for index, (frames, height, width, levels) in enumerate(zip(*columns, strict=True)):
        fitting = [length for length in lengths if (length == 1) == (frames == 1) and length <= frames]
        if part.admission in levels and fitting:
            yield index, Bucket(max(fitting), height, width)


def _data_problems(part: StagePart, packed: PackedSet, used: Sequence[tuple[int, Bucket]]) -> Iterator[str]:
    """What the samples of one set lack."""
    if not used:
        levels = sorted({level for row in packed.samples.column("admissions").to_pylist() for level in row})
        yield (
            f"no clip is admitted at {part.admission} with one of the lengths {list(part.frames[packed.info.set_name])}; "
            f"the set knows the levels {levels}; curate more, or lower decide.levels"
        )
        return
    counts = Counter(bucket for _, bucket in used)
    for length in part.frames[packed.info.set_name]:
        if not any(bucket.frames == length for bucket in counts):
            yield f"no clip is used at {length} frames; take {length} out of frames.{packed.info.set_name}, or add such clips"
    for bucket in sorted(counts):
        if str(bucket) not in part.batch_clips:
            yield f"{counts[bucket]} clips are of bucket {bucket}, which batch_clips lacks; add it ({bucket}: 1)"
