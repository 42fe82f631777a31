"""Units of the caption phase on disk: one per source, handed to workers in batches, and the clips of it that stay without a caption.

A batch of sources keeps a server busy where sources have few clips each; the committed unit stays the source, so that other batches, or another
number of clips in one, caption nothing again. Price: a batch is one task of one worker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from curation.commits import QUARANTINED, CommitStore
from curation.objects import is_url
from curation.session import Session
from schemas.command import say
from schemas.ids import fingerprint

__all__ = ["caption_batches", "failed_clips", "forget_failed", "say_uncaptioned"]


def caption_batches(session: Session, wanted: Mapping[str, tuple[str, list[str]]]) -> list[dict[str, Any]]:
    """Tasks for the sources that are not committed. `wanted`: what `survivors.caption_units` gives."""
    settings, sources = session.config.caption, session.inventory.by_content()
    full = settings.server.clips_per_unit if settings.captioner == "server" else 1
    batches: list[list[dict[str, Any]]] = []
    clips = full
    for content, (key, ids) in wanted.items():
        if session.commits.is_committed("caption", key):
            continue
        if clips >= full:
            batches.append([])
            clips = 0
        clips += len(ids)
        request = sources[content]
        analysis = session.commits.address_of("analyze", session.inventory.key_of[request.uri])
        member: dict[str, Any] = {"unit": key, "analysis": analysis, "path": request.path, "clip_ids": ids}
        if settings.captioner == "server" and is_url(request.path):
            member["request"] = request.to_json()
        batches[-1].append({**member, "label": request.uri, "timeout_s": _timeout_s(session, request.size_bytes, ids)})
    return [_task(members) for members in batches]


def _timeout_s(session: Session, size_bytes: int, ids: list[str]) -> float:
    settings = session.config.caption
    if settings.captioner == "tags":
        return session.timeout_s(0)
    return session.timeout_s(size_bytes) + settings.server.work_seconds(len(ids))


def _task(members: list[dict[str, Any]]) -> dict[str, Any]:
    more = f" and {len(members) - 1} more" if len(members) > 1 else ""
    part = {
        "unit": members[0]["unit"] if not more else fingerprint([member["unit"] for member in members], length=32),
        "arguments": {"members": members},
        "timeout_s": sum(member["timeout_s"] for member in members),
    }
    clips = sum(len(member["clip_ids"]) for member in members)
    part |= {"weight": clips, "counts": {"clips": clips, "video_seconds": 0.0}}
    return {"label": f"{members[0]['label']}{more}", "parts": {"caption": part}, "results": {}}


def failed_clips(record: Mapping[str, Any]) -> dict[str, str]:
    """Clip id to the reason why it has no caption, of the record of a committed caption unit that is not quarantined."""
    answer = record.get("answer")
    return {} if answer is None else dict(answer["failed"])


def forget_failed(store: CommitStore) -> int:
    """Remove every caption unit with a clip that stayed without a caption, so that it is tried again; how many there were."""
    bad = [key for key in store.keys("caption") if failed_clips(store.record("caption", key))]
    for key in bad:
        store.forget("caption", key)
    return len(bad)


def say_uncaptioned(store: CommitStore, wanted: Mapping[str, tuple[str, list[str]]]) -> None:
    """One line each on clips without a caption and on captions with a note."""
    reasons: Counter[str] = Counter()
    notes = 0
    for key, ids in wanted.values():
        record = store.record("caption", key)
        if record["status"] == QUARANTINED:
            reasons[record["reason"]] += len(ids)
        else:
            reasons.update(failed_clips(record).values())
            notes += len((record.get("answer") or {"notes": {}})["notes"])
    if reasons:
        reason, count = reasons.most_common(1)[0]
        say(
            f"caption: {reasons.total()} clips have no caption, {count} of them: {reason}; the rest is in the outcomes table. "
            "--retry-quarantined tries them again"
        )
    if notes:
        say(f"caption: {notes} captions are shorter or longer than asked for; the notes are in OUT/commits/caption")
