"""The packed sets of a curriculum, held against what its stages ask for: encoders, teachers, levels, rules, lengths, buckets, domains.

A set's description (`set.json`) is asked the same before a run and by `reelyard-train plan-curriculum`; its samples only by the latter, before
there is a plan. What stops a stage is a problem. What a stage can do without is a note: a length or a domain that these clips lack, as long as others
of its kind are there, for a stage's file is written for more than one collection and more than one captioner. Price: a misspelt domain is a note too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from schemas.buckets import Bucket
from schemas.errors import ConfigError, DataError
from schemas.plan import AdmissionRule
from schemas.shards import SetInfo, read_set_info, samples_path
from schemas.tables import SAMPLES, read_table
from training.config import TrainConfig
from training.curriculum.stage import StageConfig, StagePart
from training.set_encoders import width_problems
from training.teachers import check_teachers

__all__ = ["Findings", "PackedSet", "look_at_part", "open_sets", "set_problems"]

_COLUMNS = tuple(name for name in SAMPLES.names if name not in ("members", "latent_shape"))


@dataclass(frozen=True, kw_only=True)
class PackedSet:
    """One set, with the columns of its samples that stages look at."""

    folder: Path
    info: SetInfo
    samples: pa.Table


@dataclass(kw_only=True)
class Findings:
    """What the sets are to one part of a stage."""

    problems: list[str] = field(default_factory=list)
    """Each with what to do."""
    notes: list[str] = field(default_factory=list)
    """What is well but worth knowing."""


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


def set_problems(config: TrainConfig, stage: StageConfig, info: SetInfo) -> list[str]:
    """What keeps a set from being used by a stage, each with what to do; empty when all is well."""
    found = []
    if info.text_encoder != stage.text_encoder:
        found.append(
            f"stage.text_encoder is {stage.text_encoder!r}, the set {info.set_name!r} has text of {info.text_encoder!r} (set.json); "
            "pack it with the stage's encoder"
        )
    found += width_problems(config, info)
    try:
        check_teachers(config.repa, [info])
    except (ConfigError, DataError) as error:
        found.append(str(error))
    return found


def look_at_part(config: TrainConfig, stage: StageConfig, part: StagePart, sets: Sequence[PackedSet]) -> Findings:
    """Hold the sets against one part of a stage."""
    found = Findings()
    domains: Counter[str] = Counter()
    buckets: Counter[Bucket] = Counter()
    missing = False
    for name in part.frames:
        packed = _set_of(config, stage, name, sets)
        if packed is None:
            missing = True
            given = ", ".join(f"{item.info.set_name} ({item.folder})" for item in sets) or "none"
            found.problems.append(f"wants the set {name}, --samples gives: {given}; pack it, or name its folder")
            continue
        used = list(_used(part, packed))
        here = Counter(bucket for _, bucket in used)
        found.problems += [f"{packed.folder}: {text}" for text in set_problems(config, stage, packed.info)]
        found.problems += [f"{packed.folder}: {text}" for text in _data_problems(part, packed, here)]
        buckets.update(here)
        domains.update(packed.samples.column(part.domain_column)[index].as_py() for index, _ in used)
    if buckets:
        empty = [str(bucket) for bucket in part.buckets if not buckets[bucket]]
        text = f"{sum(buckets.values()):,} clips in {len(buckets)} buckets"
        found.notes.append(text + (f"; no clip in {', '.join(empty)}" if empty else ""))
    found.notes += _rules_elsewhere(part)
    if domains and not missing:
        _look_at_domains(part, domains, found)
    for texts in (found.problems, found.notes):
        texts[:] = [f"part {part.name}: {text}" for text in texts]
    return found


def _set_of(config: TrainConfig, stage: StageConfig, name: str, sets: Sequence[PackedSet]) -> PackedSet | None:
    """The set of that name that suits the stage best: the same clips may be packed for several stages, with other encoders."""
    named = [packed for packed in sets if packed.info.set_name == name]
    return min(named, key=lambda packed: len(set_problems(config, stage, packed.info)), default=None)


def _used(part: StagePart, packed: PackedSet) -> Iterator[tuple[int, Bucket]]:
    """(row, bucket) of each clip that the part uses, as the planner chooses them (`PlanConfig.frames`, `PlanConfig.rules`)."""
    lengths = part.frames[packed.info.set_name]
    rules = [rule for rule in part.rules if rule.column in _COLUMNS]
    names = ("frames", "height", "width", "admissions", *(rule.column for rule in rules))
    columns = [packed.samples.column(name).to_pylist() for name in names]
    for index, (frames, height, width, levels, *values) in enumerate(zip(*columns, strict=True)):
        fitting = [length for length in lengths if (length == 1) == (frames == 1) and length <= frames]
        if part.admission in levels and fitting and all(map(_meets, rules, values)):
            yield index, Bucket(max(fitting), height, width)


def _meets(rule: AdmissionRule, value: Any) -> bool:
    """Whether a clip with this value meets the rule."""
    if value is None:
        return rule.missing == "keep"
    if rule.one_of is not None:
        return (str(value).lower() if isinstance(value, bool) else str(value)) in rule.one_of
    above = rule.at_least is None or value >= rule.at_least
    return above and (rule.at_most is None or value <= rule.at_most)


def _rules_elsewhere(part: StagePart) -> Iterator[str]:
    """A note for each rule over a column that the samples do not have."""
    for rule in part.rules:
        if rule.column not in _COLUMNS:
            yield (
                f"the rule on {rule.column!r} is not looked at here, for the samples have no such column; "
                "`reelyard-plan build --scores FILE` applies it (labels: the curation's tables/labels.parquet)"
            )


def _data_problems(part: StagePart, packed: PackedSet, used: Counter[Bucket]) -> Iterator[str]:
    """What the samples of one set lack."""
    name = packed.info.set_name
    lengths = part.frames[name]
    if not used:
        levels = sorted({level for row in packed.samples.column("admissions").to_pylist() for level in row})
        rules = " and meets its rules" if part.rules else ""
        yield (
            f"no clip is admitted at {part.admission} with one of the lengths {list(lengths)}{rules}; "
            f"the set knows the levels {levels}; curate more, or lower decide.levels"
        )
        return
    for kind, wanted in (("image", [n for n in lengths if n == 1]), ("video", [n for n in lengths if n > 1])):
        if wanted and not any(bucket.frames in wanted for bucket in used):
            yield f"no {kind} is used at {' or '.join(map(str, wanted))} frames; take {wanted} out of frames.{name}, or add such clips"
    for bucket in sorted(used):
        if str(bucket) not in part.batch_clips:
            yield f"{used[bucket]} clips are of bucket {bucket}, which batch_clips lacks; add it ({bucket}: 1)"


def _look_at_domains(part: StagePart, domains: Counter[str], found: Findings) -> None:
    """Names of `domain_weights` that no clip has: some are a note, all are a problem, for then nothing is balanced."""
    absent = [name for name in part.domain_weights if name not in domains]
    if not absent:
        return
    known = ", ".join(sorted(map(repr, domains)))
    text = (
        f"domain_weights names {', '.join(map(repr, absent))}, which no clip admitted at {part.admission} has in its column "
        f"{part.domain_column!r}; it has: {known}"
    )
    if len(absent) == len(part.domain_weights):
        found.problems.append(
            f"{text}; nothing would be balanced: name domains of these clips, or set domain_weights={{}}"
        )
    else:
        found.notes.append(f"{text}; these weights do nothing: correct them if they are misspelt, else leave them")
