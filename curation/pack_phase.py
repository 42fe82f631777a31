"""The pack phase of the engine: what goes into which tar, the tars on the workers, the set folders, and the outcomes of clips that were lost.

A tar is a committed unit like any other; a set folder links the tars of the present plan under their names and is renamed into place whole. Every
kept clip of a set is packed or has an outcome, so the counts of the funnel close. Price: while a set is replaced, for two renames here and for
the copies on an object store, it is not there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from curation import pipeline
from curation.commits import DONE, QUARANTINED
from curation.config import admission_of
from curation.encode_units import EncodePlan, encode_plan
from curation.model_identity import code_identity
from curation.pack import PackEntry, finish_set
from curation.places import Place
from curation.session import Session
from curation.shard_layout import plan_shards
from curation.survivors import KEY_DIGITS, kept_clips
from schemas.command import say
from schemas.config import build_config
from schemas.errors import ConfigError, DataError
from schemas.files import write_json
from schemas.hashing import table_hash
from schemas.ids import fingerprint
from schemas.shards import CAPTION_KINDS, SampleRecord, SetInfo, ShardInfo, read_set_info, samples_path, shard_name
from schemas.tables import ADMISSIONS, OUTCOMES, SAMPLES, read_table, table_from_rows

__all__ = ["pack_phase", "packed_decisions"]

_NOTE = "sets/packed.json"


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
        note = {"decisions": table_hash(session.table("decisions")), "sets": list(shards)}
        write_json(session.output / _NOTE, note)
        session.place.publish(_NOTE)


def packed_decisions(session: Session) -> str | None:
    """Hash of the decisions that the sets of the config were packed from; None when they were not packed."""
    if not session.place.has(_NOTE):
        return None
    note = json.loads(session.place.near(_NOTE).read_text(encoding="utf-8"))
    return str(note["decisions"]) if set(session.config.encode.sets) <= set(note["sets"]) else None


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
        latents, text = cache.record(f"latents/{set_name}", latent_key), cache.record("text", text_key)
        entry, files = latents["entry"], latents["files"] | text["files"]
        names = ["latent.npy", *(f"{kind}.npy" for kind in ("teacher", "image") if entry[f"has_{kind}"])]
        members = {name: cache.address_of(f"latents/{set_name}", latent_key, name) for name in names}
        sizes = [files[name] for name in names]
        for kind in CAPTION_KINDS:
            file = f"{clip}.text_{kind}.npy"
            members[f"text_{kind}.npy"] = cache.address_of("text", text_key, file)
            sizes.append(files[file])
        record = _record(clips[clip], labels[clip], entry)
        subject, style = labels[clip]["subject"], labels[clip]["style"]
        found[clip] = _Sample(
            PackEntry(record, subject, style, tuple(levels), members),
            [record.model_dump(mode="json"), subject, style, levels, latent_key, text_key],
            sum(sizes),
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
                f"clip {clip} of set {set_name}: {session.cache.address_of(group, key)} does not exist; "
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
            f"{session.cache.address_of('text', plan.facts_key)} does not exist; run the encode phase first "
            "(leave --phase out to run all)"
        )
    record = session.cache.record("text", plan.facts_key)
    if record["status"] != DONE:
        raise DataError(
            f"the text encoder or the codec could not be asked for their facts: {record['reason']}; "
            "correct `encode`, then run with --retry-quarantined"
        )
    cache = session.cache
    facts = json.loads(cache.file("text", plan.facts_key, "facts.json").read_text(encoding="utf-8"))
    return facts, np.load(cache.file("text", plan.facts_key, "null_text.npy"), allow_pickle=False)


def _publish(
    session: Session, set_name: str, shards: list[_Shard], facts: tuple[dict[str, Any], np.ndarray[Any, Any]]
) -> Iterator[dict[str, Any]]:
    """Put the set folder in place; yields outcomes of the clips in quarantined shards."""
    store, place, name = session.commits, session.place, f"sets/{set_name}"
    rows: list[dict[str, Any]] = []
    infos: list[ShardInfo] = []
    tars: list[tuple[str, str]] = []
    for shard in shards:
        record = store.record("pack", shard.key)
        if record["status"] == QUARANTINED:
            for clip in shard.clip_ids:
                yield {"clip_id": clip, "phase": "pack", "set": set_name, "reason": record["reason"]}
            continue
        unit = store.address_of("pack", shard.key)
        position = len(infos)
        found = read_table(store.file("pack", shard.key, "samples.parquet"), SAMPLES).to_pylist()
        rows += [{**row, "shard_index": position} for row in found]
        infos.append(build_config(ShardInfo, {**record["answer"], "name": shard_name(position)}, source=unit))
        tars.append((shard.key, shard_name(shard.index)))
    named = {
        "set_name": set_name,
        "fps": session.config.analyze.clip_fps,
        "teacher_by_branch": session.config.encode.teacher_by_branch,
        "seed": session.config.pack.seed,
        **facts[0],
    }
    expected = build_config(SetInfo, {**named, "shards": tuple(infos)}, source=set_name)
    if not rows:
        _say_empty(session, set_name)
    if _is_current(place, name, expected, rows):
        return
    with place.new_set(name) as new:
        for info, (key, file) in zip(infos, tars, strict=True):
            new.add(store, "pack", key, file, info.name)
        finish_set(new.folder, rows=rows, shards=infos, null_text=facts[1], facts=named)


def _say_empty(session: Session, set_name: str) -> None:
    """A set without samples is what the decisions ask for, but rarely what anybody wanted."""
    try:
        info = read_set_info(session.place.near(f"sets/{set_name}/set.json").parent)
        held = sum(shard.num_samples for shard in info.shards)
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


def _is_current(place: Place, name: str, expected: SetInfo, rows: list[dict[str, Any]]) -> bool:
    """Whether the set folder already holds exactly this: the same facts and rows, and every tar at its size."""
    ordered = sorted(rows, key=lambda row: (row["shard_index"], row["ordinal"]))
    sizes, folder = place.sizes(name), place.near(f"{name}/set.json").parent
    try:
        if read_set_info(folder) != expected or expected.null_text not in sizes:
            return False
        samples = place.near(f"{name}/{samples_path(folder).name}")
        if not read_table(samples, SAMPLES).equals(table_from_rows(SAMPLES, ordered)):
            return False
        return all(sizes.get(info.name) == info.size_bytes for info in expected.shards)
    except (DataError, ConfigError, FileNotFoundError):
        return False  # damaged or of another version: it is put there again
