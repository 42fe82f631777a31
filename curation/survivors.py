"""Which clips go on: those that some level keeps, grouped by source, with the key of each source's caption unit.

Before captions the decisions are made without labels, in memory, so that the choice of what to caption never depends on earlier captions.
Price: the arithmetic of `decide` once more per command, seconds for millions of clips.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from curation.caption import caption_fingerprint
from curation.decide import KEEP, decide
from curation.session import Session
from schemas.ids import fingerprint

__all__ = ["KEY_DIGITS", "caption_units", "kept_clips"]

KEY_DIGITS = 32
"""Hex digits of a unit's key."""


def kept_clips(decisions: pa.Table, admissions: Iterable[str]) -> dict[str, list[str]]:
    """Clip id to the admissions among `admissions` that keep it."""
    wanted = set(admissions)
    kept: dict[str, list[str]] = defaultdict(list)
    for row in decisions.select(["clip_id", "admission", "decision"]).to_pylist():
        if row["decision"] == KEEP and row["admission"] in wanted:
            kept[row["clip_id"]].append(row["admission"])
    return dict(kept)


def _by_source(clips: pa.Table, clip_ids: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Content hash to the rows of the wanted clips, both sorted."""
    wanted = set(clip_ids)
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in clips.to_pylist():
        if row["clip_id"] in wanted:
            groups[row["content_hash"]].append(row)
    return {content: sorted(groups[content], key=lambda row: str(row["clip_id"])) for content in sorted(groups)}


def caption_units(session: Session) -> dict[str, tuple[str, list[str]]]:
    """Content hash to (key, clip ids) of every caption unit of the present clips: those that some level keeps before labels."""
    if session.caption_units is None:
        session.caption_units = _caption_units(session)
    return session.caption_units


def _caption_units(session: Session) -> dict[str, tuple[str, list[str]]]:
    config, clips, inventory = session.config, session.table("clips"), session.inventory
    kept = kept_clips(
        decide(clips, session.table("pairs"), None, config.decide, session.published), config.decide.levels
    )
    version = caption_fingerprint(config.caption)
    sources, units = inventory.by_content(), {}
    for content, rows in _by_source(clips, kept).items():
        analysis = inventory.key_of[sources[content].uri]
        ids = [row["clip_id"] for row in rows]
        units[content] = (fingerprint([analysis, ids, version], length=KEY_DIGITS), ids)
    return units
