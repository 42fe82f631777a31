"""Units of the encode phase: which clips go into which set, the key of each latent and text unit, and what is still missing.

Latents are keyed by (clip, crop, set, encoder fingerprint), so a new captioner encodes none of them again; text by the captions of a source.
Price: a source is decoded again when one more of its clips is kept, for the missing clips only.
"""

from __future__ import annotations

from typing import Any

from curation.caption_units import failed_clips
from curation.commits import QUARANTINED
from curation.config import admission_of
from curation.session import Session
from curation.survivors import KEY_DIGITS, caption_units, kept_clips
from schemas.buckets import nearest_size
from schemas.ids import fingerprint
from schemas.tables import BRANCHES

__all__ = ["EncodePlan", "encode_plan", "encode_units"]


class EncodePlan:
    """Keys of everything that the present decisions ask for."""

    def __init__(self) -> None:
        self.latents: dict[tuple[str, str], str] = {}
        """(clip id, set) to latent key."""
        self.pixels: dict[tuple[str, str], int] = {}
        """(clip id, set) to the pixels that are encoded for it: frames x height x width."""
        self.text: dict[str, str] = {}
        """Clip id to the key of the text unit that it is in; clips without a caption are missing here."""
        self.no_caption: dict[str, str] = {}
        """Kept clip without a caption to the reason."""
        self.sources: dict[str, list[str]] = {}
        """Content hash to its kept clips, sorted."""
        self.facts_key = ""
        """Key of the unit that asks codec, teachers and text encoder for their facts."""
        self.captions: dict[str, str] = {}
        """Content hash to the key of its caption unit."""


def encode_plan(session: Session) -> EncodePlan:
    """Keys for the clips that the decisions on disk keep for the sets of the config."""
    from curation.encoding.text import text_fingerprint
    from curation.encoding.worker import encoding_fingerprint

    settings, plan = session.config.encode, EncodePlan()
    versions = {
        name: {branch: encoding_fingerprint(settings, name, branch) for branch in BRANCHES} for name in settings.sets
    }
    kept = kept_clips(session.table("decisions"), {admission_of(name) for name in settings.sets})
    clips = {row["clip_id"]: row for row in session.table("clips").to_pylist() if row["clip_id"] in kept}
    for clip, admissions in sorted(kept.items()):
        row = clips[clip]
        plan.sources.setdefault(row["content_hash"], []).append(clip)
        crop = row["crop"]
        facts = {name: row[name] for name in ("clip_id", "crop", "frames", "clip_fps", "kind", "branch")}
        for name in settings.sets:
            if admission_of(name) in admissions:
                plan.latents[clip, name] = fingerprint([facts, name, versions[name][row["branch"]]], length=KEY_DIGITS)
                height, width = nearest_size(name, crop["bottom"] - crop["top"], crop["right"] - crop["left"])
                plan.pixels[clip, name] = row["frames"] * height * width
    captions = caption_units(session)
    version = text_fingerprint(settings)
    plan.facts_key = fingerprint(["facts", version, versions], length=KEY_DIGITS)
    for content, ids in plan.sources.items():
        caption_key, captioned = captions[content]
        plan.captions[content] = caption_key
        record = session.commits.record("caption", caption_key)
        if record["status"] == QUARANTINED:
            plan.no_caption |= dict.fromkeys(ids, record["reason"])
            continue
        failed = failed_clips(record)
        key = fingerprint([caption_key, ids, version], length=KEY_DIGITS)
        for clip in ids:
            if clip in captioned and clip not in failed:
                plan.text[clip] = key
            else:
                plan.no_caption[clip] = failed.get(clip, "no caption was made")
    return plan


def _missing(session: Session, plan: EncodePlan, clips: list[str]) -> list[list[str]]:
    """[clip id, set, key] of the latents of these clips that are not committed."""
    targets = []
    for clip in clips:
        for name in session.config.encode.sets:
            key = plan.latents.get((clip, name))
            if key is not None and not session.cache.is_committed(f"latents/{name}", key):
                targets.append([clip, name, key])
    return targets


def encode_units(session: Session) -> list[dict[str, Any]]:
    """One unit per source, with the parts that are not committed; a unit without parts has nothing left to do."""
    plan, store = encode_plan(session), session.cache
    inventory, sources = session.inventory, session.inventory.by_content()
    units = []
    for content, ids in sorted(plan.sources.items()):
        request = sources[content]
        parts: dict[str, Any] = {}
        targets = _missing(session, plan, ids)
        if targets:
            sets_by_clip: dict[str, list[str]] = {}
            for clip, name, _ in targets:
                sets_by_clip.setdefault(clip, []).append(name)
            arguments = {
                "request": request.to_json(),
                "analysis": session.commits.address_of("analyze", inventory.key_of[request.uri]),
                "sets_by_clip": sets_by_clip,
            }
            pixels = sum(plan.pixels[clip, name] for clip, name, _ in targets)
            timeout_s = session.timeout_s(request.size_bytes, pixels=pixels)
            unit = fingerprint(targets, length=KEY_DIGITS)
            counts = {"clips": len(sets_by_clip), "video_seconds": 0.0}
            parts["latents"] = {"unit": unit, "arguments": arguments, "timeout_s": timeout_s, "targets": targets}
            parts["latents"] |= {"weight": pixels, "counts": counts}
        captioned = [clip for clip in ids if clip in plan.text]
        if captioned and not store.is_committed("text", plan.text[captioned[0]]):
            labels = session.commits.address_of("caption", plan.captions[content])
            arguments = {"labels": labels, "clip_ids": captioned}
            timeout_s = session.timeout_s(request.size_bytes)
            parts["text"] = {"unit": plan.text[captioned[0]], "arguments": arguments, "timeout_s": timeout_s}
            parts["text"]["counts"] = {"clips": len(captioned), "video_seconds": 0.0}
        units.append({"label": request.uri, "parts": parts, "results": {}})
    if not store.is_committed("text", plan.facts_key):
        part = {"unit": plan.facts_key, "arguments": {"facts": True}, "timeout_s": session.timeout_s(0)}
        units.append({"label": "facts of the encoders", "parts": {"text": part}, "results": {}})
    return units
