"""The match phase: clips and descriptors, of this run and of earlier ones, to pairs.

Up to `match.frames_per_block` frames it is one unit in this process. Above, the search is cut into units on the engine (`match_blocks`), and this
process judges what they found. Either way a rerun with nothing new does nothing.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from curation import pipeline
from curation.collect import concatenated
from curation.commits import DONE, QUARANTINED
from curation.earlier_runs import CLIP_FACTS, EarlierClips, earlier_clips
from curation.frame_search import Hits, popular_frames
from curation.match import match_clips, search_whole
from curation.match_blocks import BLOCKS, Block, block_pairs, collect_hits, settle_blocks
from curation.match_frames import ClipFrames
from curation.match_settings import MatchSettings
from curation.model_identity import code_identity
from curation.session import Session
from curation.survivors import KEY_DIGITS
from schemas.command import say
from schemas.errors import ReelyardError
from schemas.hashing import table_hash
from schemas.ids import fingerprint
from schemas.tables import PAIRS, write_table

__all__ = ["match_phase"]

_CODE = [
    f"curation.{name}"
    for name in ("clip_fit", "frame_search", "match", "match_blocks", "match_frames", "source_alignment")
]
_WHOLE_TABLE_PATIENCE = 6
"""A unit compares hundreds of thousands of frames with as many; minutes where cells are not used."""


def match_phase(session: Session) -> None:
    """Clips and descriptors to pairs."""
    store, settings = session.commits, session.config.match
    with session.watch.phase("match") as counts:
        facts = session.table("clips").select(CLIP_FACTS).replace_schema_metadata()
        descriptors = session.table("descriptors").replace_schema_metadata()
        earlier = earlier_clips(settings.against, facts)
        identity = [_deciding(settings), code_identity(_CODE)]
        tables = (facts, descriptors, earlier.facts, earlier.descriptors)
        key = fingerprint(["match", [table_hash(table) for table in tables], identity], length=KEY_DIGITS)
        if store.is_committed("match", key):
            counts["skipped"] = 1
        else:
            counts["done"] = 1
            pairs = _pairs(session, facts, descriptors, earlier, identity)
            with store.unit("match", key, {"status": DONE, "reason": None}) as folder:
                write_table(folder / "pairs.parquet", pairs, PAIRS)
        session.write("pairs", concatenated([store.folder("match", key)], "pairs", ["clip_a", "clip_b"]))


def _deciding(settings: MatchSettings) -> dict[str, Any]:
    """Settings that decide what is found; the names of earlier runs do not, their clips do."""
    return settings.model_dump(mode="json", exclude={"against"})


def _pairs(session: Session, facts: pa.Table, descriptors: pa.Table, earlier: EarlierClips, identity: Any) -> pa.Table:
    settings = session.config.match
    limit = settings.frames_per_block

    def find(data: ClipFrames) -> Hits:
        if descriptors.num_rows + earlier.descriptors.num_rows <= limit:
            hits = search_whole(data, settings)
        else:
            store = session.commits
            blocks = settle_blocks(store, facts, descriptors, earlier=False, frames_per_block=limit)
            blocks += settle_blocks(store, earlier.facts, earlier.descriptors, earlier=True, frames_per_block=limit)
            hits = collect_hits(data, store, _searched(session, blocks, identity), settings)
        _say_popular(data, hits, settings)
        return hits

    every = pa.concat_tables([descriptors, earlier.descriptors]), pa.concat_tables([facts, earlier.facts])
    return match_clips(*every, settings, earlier=earlier.facts["clip_id"], find=find)


def _say_popular(data: ClipFrames, hits: Hits, settings: MatchSettings) -> None:
    """A frame that is like most others (a title, a test card) hides copies when there are more of them than it keeps."""
    found = popular_frames(hits, settings.max_hits_per_frame)
    if len(found):
        say(
            f"match: {len(found)} frames are like {settings.max_hits_per_frame} others or more and keep only their best "
            f"(match.max_hits_per_frame), one of them in clip {data.ids[data.clip[found[0]]]}"
        )


def _searched(session: Session, blocks: list[Block], identity: Any) -> list[tuple[str, Block, Block]]:
    """Every unit, committed."""
    store = session.commits
    pairs = list(block_pairs(blocks, identity))
    units = []
    for key, one, other in pairs:
        if not store.is_committed("match", key):
            blocks_of_unit = [one] if one is other else [one, other]
            folders = [store.address_of(BLOCKS, block.key) for block in blocks_of_unit]
            part = {
                "unit": key,
                "arguments": {"blocks": folders},
                "timeout_s": _WHOLE_TABLE_PATIENCE * session.timeout_s(0),
            }
            units.append({"label": f"{one.key[:8]} {other.key[:8]}", "parts": {"match": part}, "results": {}})
    session.work(
        "match",
        units,
        lambda workers: pipeline.match_stages(session, workers),
        ["match"],
    )
    store.bring("match", [key for key, _, _ in pairs])
    for key, _, _ in pairs:
        record = store.record("match", key)
        if record["status"] == QUARANTINED:
            store.forget("match", key)
            raise ReelyardError(
                f"match: a unit of the search failed ({record['reason']}), and without it copies would be missed; correct that "
                "(less memory per unit: a smaller match.frames_per_block) and run the phase again: the other units stay"
            )
    return pairs
