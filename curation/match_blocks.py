"""A large match cut into units: blocks of clips on disk, and one unit of search per pair of blocks.

A block is a committed folder with the clips and descriptors of some clips; a unit searches one block, or two against each other, and commits the
frame pairs it found. Both are named by what is in them, so a killed match loses the units under way, and after sources were added the old blocks
stay and only the new ones are searched, against themselves and all others. Blocks of earlier runs are not searched against each other. A machine
holds two blocks at a time to search. Price: the descriptors lie on disk twice; many small additions leave many small blocks; the verdict needs
the frames of all clips in one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.commits import DONE, CommitStore
from curation.frame_search import Hits, best_hits, build_index, search
from curation.match import compared_frames
from curation.match_frames import ClipFrames, Indices, gather_frames
from curation.match_settings import MatchSettings
from schemas.hashing import table_hash
from schemas.ids import fingerprint

__all__ = ["BLOCKS", "Block", "block_pairs", "collect_hits", "search_blocks", "settle_blocks"]

BLOCKS = "match_blocks"
"""Group of the blocks' commits."""
_KEY_DIGITS = 32


@dataclass(frozen=True)
class Block:
    """Some clips with their frames, committed."""

    key: str
    clip_ids: pa.Array
    earlier: bool
    """Of earlier runs."""


def settle_blocks(
    store: CommitStore, facts: pa.Table, descriptors: pa.Table, *, earlier: bool, frames_per_block: int
) -> list[Block]:
    """Blocks that hold exactly these clips: committed ones as far as they fit, and new ones for the rest."""
    blocks: list[Block] = []
    left = facts
    store.bring(BLOCKS, store.keys(BLOCKS))
    for key in store.keys(BLOCKS):
        record = store.record(BLOCKS, key)["answer"]
        if record["earlier"] != earlier or not store.is_committed(BLOCKS, key):
            continue
        ids = pq.read_table(store.folder(BLOCKS, key) / "clips.parquet", columns=["clip_id"])["clip_id"]
        part, frames = _of(left, ids), _of(descriptors, ids)
        if part.num_rows == len(ids) and _key(part, frames, earlier) == key:
            blocks.append(Block(key, ids.combine_chunks(), earlier))
            left = left.filter(pc.invert(pc.is_in(left["clip_id"], ids.combine_chunks())))
    for ids in _cuts(left, descriptors, frames_per_block):
        part, frames = _of(left, ids), _of(descriptors, ids)
        key = _key(part, frames, earlier)
        with store.unit(BLOCKS, key, {"status": DONE, "reason": None, "answer": {"earlier": earlier}}) as folder:
            pq.write_table(part, folder / "clips.parquet")
            pq.write_table(frames, folder / "descriptors.parquet")
        blocks.append(Block(key, ids, earlier))
    return sorted(blocks, key=lambda block: block.key)


def block_pairs(blocks: Sequence[Block], identity: Any) -> Iterator[tuple[str, Block, Block]]:
    """Key, and the two blocks, of every unit; `identity` is what else decides its result."""
    for place, one in enumerate(blocks):
        for other in blocks[place:]:
            if not (one.earlier and other.earlier):
                yield fingerprint([one.key, other.key, identity], length=_KEY_DIGITS), one, other


def search_blocks(folders: Sequence[Path], settings: MatchSettings, target: Path) -> None:
    """The work of one unit: `target`/hits.parquet, frames numbered in the order of (clip id, time) over the blocks together."""
    data, of_block = _load(folders)
    data = compared_frames(data, settings)
    rows = [np.flatnonzero(of_block[data.clip] == place) for place in range(len(folders))]
    indexes = [build_index(data, part, settings) for part in rows if len(part)]
    hits = search(data, indexes[0], indexes[1] if len(indexes) > 1 else None, settings) if indexes else Hits.none()
    pq.write_table(
        pa.table({"first": hits.first, "second": hits.second, "cosine": hits.cosine}), target / "hits.parquet"
    )


def collect_hits(
    data: ClipFrames, store: CommitStore, units: Sequence[tuple[str, Block, Block]], settings: MatchSettings
) -> Hits:
    """Hits of all units, as frames of `data`; the same as of one search over all of it."""
    parts = [Hits.none()]
    for key, one, other in units:
        table = pq.read_table(store.folder("match", key) / "hits.parquet")
        ids = pa.concat_arrays([one.clip_ids, other.clip_ids] if other is not one else [one.clip_ids])
        clips = np.searchsorted(data.ids, np.unique(ids.to_numpy(zero_copy_only=False).astype(str)))
        frames = np.repeat(data.first[clips], data.count[clips]) + _within(data.count[clips])
        first, second = frames[table["first"].to_numpy()], frames[table["second"].to_numpy()]
        parts.append(Hits(np.minimum(first, second), np.maximum(first, second), table["cosine"].to_numpy()))
    joined = [np.concatenate([getattr(part, name) for part in parts]) for name in ("first", "second", "cosine")]
    order = np.lexsort((joined[1], joined[0]))
    return best_hits(Hits(joined[0][order], joined[1][order], joined[2][order]), settings.max_hits_per_frame)


def _load(folders: Sequence[Path]) -> tuple[ClipFrames, Indices]:
    """Frames of the blocks together, and the block of each clip."""
    facts = [pq.read_table(folder / "clips.parquet") for folder in folders]
    descriptors = [pq.read_table(folder / "descriptors.parquet") for folder in folders]
    data = gather_frames(pa.concat_tables(descriptors), pa.concat_tables(facts))
    first = facts[0]["clip_id"].to_numpy(zero_copy_only=False).astype(str)
    return data, np.isin(data.ids, first, invert=True).astype(np.int64)


def _within(counts: Indices) -> Indices:
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _of(table: pa.Table, ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    values = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    return table.filter(pc.is_in(table["clip_id"], values)).combine_chunks().replace_schema_metadata()


def _key(facts: pa.Table, descriptors: pa.Table, earlier: bool) -> str:
    return fingerprint([table_hash(facts), table_hash(descriptors), earlier], length=_KEY_DIGITS)


def _cuts(facts: pa.Table, descriptors: pa.Table, frames_per_block: int) -> Iterator[pa.Array]:
    """Clip ids with descriptors, in order, in runs of at most that many frames (at least one clip)."""
    counted = (
        _of(descriptors, facts["clip_id"]).group_by("clip_id").aggregate([("time_us", "count")]).sort_by("clip_id")
    )
    counts, start, held = counted["time_us_count"].to_numpy(), 0, 0
    for place, count in enumerate(counts):
        if held and held + count > frames_per_block:
            yield counted["clip_id"].combine_chunks()[start:place]
            start, held = place, 0
        held += int(count)
    if held:
        yield counted["clip_id"].combine_chunks()[start:]
