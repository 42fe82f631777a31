"""The pack phase of the engine: what goes into which tar, the tars on the workers, the set folders, and the outcomes of clips that were lost.

A tar is a committed unit like any other; a set folder links the tars of the present plan under their names and is renamed into place whole. Every
kept clip of a set is packed or has an outcome, so the counts of the funnel close. Price: replacing a set takes two renames, and between
them, for an instant, it is not there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation import pipeline
from curation.commits import DONE, QUARANTINED, link_or_copy
from curation.config import admission_of
from curation.encode_units import EncodePlan, encode_plan
from curation.model_identity import code_identity
from curation.pack import PackEntry, finish_set
from curation.session import Session
from curation.shard_layout import plan_shards
from curation.survivors import KEY_DIGITS, kept_clips
from schemas.command import say
from schemas.config import build_config
from schemas.errors import ConfigError, DataError
from schemas.files import TEMPORARY_PREFIX, flush_to_disk, write_json
from schemas.hashing import table_hash
from schemas.ids import fingerprint
from schemas.shards import CAPTION_KINDS, SampleRecord, SetInfo, ShardInfo, read_set_info, samples_path, shard_name
from schemas.tables import ADMISSIONS, OUTCOMES, SAMPLES, read_table, table_from_rows

__all__ = ["pack_phase", "packed_decisions"]


@dataclass(frozen=True)
class _Sample:
    """One sample to pack: the entry, and what decides its bytes without naming a folder."""

    entry: PackEntry
    identity: list[Any]
    size_bytes: int


@dataclass(frozen=True)
class _Shard:
    set_name: str
    index: int
    clip_ids: list[str]
    key: str


def pack_phase(session: Session) -> None:
    """Cached latents and text states to tars, samples tables and set folders; writes the outcomes table."""
    store = session.commits
    with session.watch.phase("pack") as counts:
        plan = encode_plan(session)
        outcomes: list[dict[str, Any]] = []
        shards: dict[str, list[_Shard]] = {}
        samples: dict[str, dict[str, _Sample]] = {}
        for name in session.config.encode.sets:
            samples[name] = _samples(session, plan, name, outcomes)
            shards[name] = _plan(session, name, samples[name])
        every = [shard for group in shards.values() for shard in group]
        missing = [shard for shard in every if not store.is_committed("pack", shard.key)]
        counts["done"], counts["skipped"] = len(missing), len(every) - len(missing)
        units = [_unit(session, shard, samples[shard.set_name]) for shard in missing]
        session.work(
            "pack",
            units,
            lambda workers: pipeline.pack_stages(session, workers),
            ["pack"],
        )
        facts = _set_facts(session, plan)
        for name, group in shards.items():
            outcomes += _publish(session, name, group, facts)
        ordered = sorted(outcomes, key=lambda row: (row["set"], row["clip_id"]))
        session.write("outcomes", table_from_rows(OUTCOMES, ordered))
        write_json(_note_path(session), {"decisions": table_hash(session.table("decisions")), "sets": list(shards)})


def packed_decisions(session: Session) -> str | None:
    """Hash of the decisions that the sets of the config were packed from; None when they were not packed."""
    path = _note_path(session)
    if not path.is_file():
        return None
    note = json.loads(path.read_text(encoding="utf-8"))
    return str(note["decisions"]) if set(session.config.encode.sets) <= set(note["sets"]) else None


def _note_path(session: Session) -> Path:
    return session.output / "sets" / "packed.json"


def _samples(session: Session, plan: EncodePlan, set_name: str, outcomes: list[dict[str, Any]]) -> dict[str, _Sample]:
    """Samples of a set by clip id; every kept clip that cannot be packed becomes an outcome."""
    admissions = kept_clips(session.table("decisions"), ADMISSIONS)
    clips = {row["clip_id"]: row for row in session.table("clips").to_pylist()}
    labels = {row["clip_id"]: row for row in session.table("labels").to_pylist()}
    level, cache, found = admission_of(set_name), session.cache, {}
    for clip, levels in sorted(admissions.items()):
        if level not in levels:
            continue
        lost = _lost(session, plan, set_name, clip)
        if lost is not None:
            outcomes.append({"clip_id": clip, "phase": lost[0], "set": set_name, "reason": lost[1]})
            continue
        latent_key, text_key = plan.latents[clip, set_name], plan.text[clip]
        latent_folder, text_folder = cache.folder(f"latents/{set_name}", latent_key), cache.folder("text", text_key)
        entry = cache.record(f"latents/{set_name}", latent_key)["entry"]
        members = {"latent.npy": latent_folder / "latent.npy"}
        members |= {f"text_{kind}.npy": text_folder / f"{clip}.text_{kind}.npy" for kind in CAPTION_KINDS}
        if entry["has_teacher"]:
            members["teacher.npy"] = latent_folder / "teacher.npy"
        record = _record(clips[clip], labels[clip], entry)
        subject, style = labels[clip]["subject"], labels[clip]["style"]
        found[clip] = _Sample(
            PackEntry(record, subject, style, tuple(levels), {name: str(path) for name, path in members.items()}),
            [record.model_dump(mode="json"), subject, style, levels, latent_key, text_key],
            sum(path.stat().st_size for path in members.values()),
        )
    return found


def _lost(session: Session, plan: EncodePlan, set_name: str, clip: str) -> tuple[str, str] | None:
    """(phase, reason) when a kept clip has no caption, latents or text states.

    Raises:
        DataError: its units were never tried.
    """
    if clip in plan.no_caption:
        return "caption", plan.no_caption[clip]
    for group, key in ((f"latents/{set_name}", plan.latents[clip, set_name]), ("text", plan.text[clip])):
        if not session.cache.is_committed(group, key):
            raise DataError(
                f"clip {clip} of set {set_name}: {session.cache.folder(group, key)} does not exist; "
                "run the encode phase first (leave --phase out to run all)"
            )
        record = session.cache.record(group, key)
        if record["status"] == QUARANTINED:
            return "encode", record["reason"]
    return None


def _record(clip: dict[str, Any], label: dict[str, Any], entry: dict[str, Any]) -> SampleRecord:
    return SampleRecord(
        clip_id=clip["clip_id"],
        frames=entry["frames"],
        height=entry["height"],
        width=entry["width"],
        fps=clip["clip_fps"],
        branch=clip["branch"],
        domain=clip["domain"],
        source=clip["content_hash"],
        start_us=clip["start_us"],
        end_us=clip["end_us"],
        caption_long=label["caption_long"],
        caption_short=label["caption_short"],
        caption_first=label["caption_first"],
    )


def _plan(session: Session, set_name: str, samples: dict[str, _Sample]) -> list[_Shard]:
    rows = []
    for clip, sample in samples.items():
        record = sample.entry.record
        bucket = f"{record.frames}x{record.height}x{record.width}"
        rows.append({"clip_id": clip, "bucket": bucket, "source": record.source, "size_bytes": sample.size_bytes})
    code = code_identity(["curation.pack"])
    shards = []
    for index, clips in enumerate(plan_shards(rows, session.config.pack)):
        identity = [set_name, index, [samples[clip].identity for clip in clips], code]
        shards.append(_Shard(set_name, index, clips, fingerprint(identity, length=KEY_DIGITS)))
    return shards


def _unit(session: Session, shard: _Shard, samples: dict[str, _Sample]) -> dict[str, Any]:
    entries = [samples[clip] for clip in shard.clip_ids]
    arguments = {
        "entries": [sample.entry.to_json() for sample in entries],
        "set": shard.set_name,
        "shard_index": shard.index,
    }
    timeout_s = session.timeout_s(sum(sample.size_bytes for sample in entries))
    counts = {"clips": len(entries), "video_seconds": 0.0}
    part = {"unit": shard.key, "arguments": arguments, "timeout_s": timeout_s, "counts": counts, "weight": len(entries)}
    return {"label": f"{shard.set_name}/{shard_name(shard.index)}", "parts": {"pack": part}, "results": {}}


def _set_facts(session: Session, plan: EncodePlan) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """Facts of codec and encoders, and the states of the empty prompt, as the encode phase wrote them down."""
    if not session.cache.is_committed("text", plan.facts_key):
        raise DataError(
            f"{session.cache.folder('text', plan.facts_key)} does not exist; run the encode phase first "
            "(leave --phase out to run all)"
        )
    record = session.cache.record("text", plan.facts_key)
    if record["status"] != DONE:
        raise DataError(
            f"the text encoder or the codec could not be asked for their facts: {record['reason']}; "
            "correct `encode`, then run with --retry-quarantined"
        )
    folder = session.cache.folder("text", plan.facts_key)
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    return facts, np.load(folder / "null_text.npy", allow_pickle=False)


def _publish(
    session: Session, set_name: str, shards: list[_Shard], facts: tuple[dict[str, Any], np.ndarray[Any, Any]]
) -> Iterator[dict[str, Any]]:
    """Put the set folder in place; yields outcomes of the clips in quarantined shards."""
    store, folder = session.commits, session.output / "sets" / set_name
    rows: list[dict[str, Any]] = []
    infos: list[ShardInfo] = []
    tars: list[Path] = []
    for shard in shards:
        record = store.record("pack", shard.key)
        if record["status"] == QUARANTINED:
            for clip in shard.clip_ids:
                yield {"clip_id": clip, "phase": "pack", "set": set_name, "reason": record["reason"]}
            continue
        unit = store.folder("pack", shard.key)
        position, name = len(infos), shard_name(len(infos))
        found = read_table(unit / "samples.parquet", SAMPLES).to_pylist()
        rows += [{**row, "shard_index": position} for row in found]
        infos.append(build_config(ShardInfo, {**record["answer"], "name": name}, source=str(unit)))
        tars.append(unit / shard_name(shard.index))
    named = {
        "set_name": set_name,
        "fps": session.config.analyze.clip_fps,
        "teacher_by_branch": session.config.encode.teacher_by_branch,
        "seed": session.config.pack.seed,
        **facts[0],
    }
    expected = build_config(SetInfo, {**named, "shards": tuple(infos)}, source=set_name)
    if not rows:
        _say_empty(session, set_name, folder)
    if _is_current(folder, expected, rows):
        return
    temporary = folder.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{set_name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for info, tar in zip(infos, tars, strict=True):
        link_or_copy(tar, temporary / info.name)
    finish_set(temporary, rows=rows, shards=infos, null_text=facts[1], facts=named)
    _replace(temporary, folder)


def _say_empty(session: Session, set_name: str, folder: Path) -> None:
    """A set without samples is what the decisions ask for, but rarely what anybody wanted."""
    try:
        held = sum(info.num_samples for info in read_set_info(folder).shards)
    except (DataError, ConfigError):
        held = 0
    level = admission_of(set_name)
    decisions = session.table("decisions").select(["admission", "decision"]).to_pylist()
    counts = Counter(row["decision"] for row in decisions if row["admission"] == level)
    found = ", ".join(f"{reason} {count}" for reason, count in counts.most_common()) or "there are no clips"
    say(
        f"warning: set {set_name} has no samples{f'; the {held} that were there are gone' if held else ''}. "
        f"Decisions at level {level}: {found}; if that is not wanted, change decide.levels.{level}"
    )


def _is_current(folder: Path, expected: SetInfo, rows: list[dict[str, Any]]) -> bool:
    """Whether the set folder already holds exactly this: the same facts and rows, and every tar at its size."""
    ordered = sorted(rows, key=lambda row: (row["shard_index"], row["ordinal"]))
    try:
        if read_set_info(folder) != expected or not (folder / expected.null_text).is_file():
            return False
        if not read_table(samples_path(folder), SAMPLES).equals(table_from_rows(SAMPLES, ordered)):
            return False
        return all((folder / info.name).stat().st_size == info.size_bytes for info in expected.shards)
    except (DataError, ConfigError, FileNotFoundError):
        return False  # damaged or of another version: it is put there again


def _replace(temporary: Path, folder: Path) -> None:
    """Rename a whole folder into the place of another; a kill between the renames is mended by the next run."""
    for path in temporary.iterdir():
        flush_to_disk(path)
    flush_to_disk(temporary)
    old = folder.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-old-{folder.name}"
    if folder.exists():
        os.rename(folder, old)
    os.rename(temporary, folder)
    flush_to_disk(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
