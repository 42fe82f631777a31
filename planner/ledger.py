"""What a plan does not do with a clip, and why: the ledger of exceptions; and the spares that are drawn from it.

Entries are made in bulk, as arrays with one reason each: a plan of millions of clips may leave many out on purpose (a domain that takes part in half
of the epochs), and each still has a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from planner.pricing.batches import BatchLine
from planner.samples import Corpus
from planner.schedule.demand import Demand
from planner.schedule.epochs import EpochPlan
from schemas.plan import LEDGER, SPARES

__all__ = ["LedgerEntry", "ledger_table", "left_over_entries", "spares_table"]


@dataclass(frozen=True)
class LedgerEntry:
    """Clips of one epoch to which the same happened for the same reason."""

    epoch: int
    clips: np.ndarray
    """Corpus positions; one that was repeated twice stands here twice."""
    event: str
    """One of schemas.plan.LEDGER_EVENTS."""
    reason: str


def left_over_entries(
    epoch: int,
    unchosen: np.ndarray,
    native: np.ndarray,
    chains: Sequence[Sequence[int]],
    demand: Demand,
    event: str,
    lanes: int,
) -> list[LedgerEntry]:
    """Why clips (positions, ascending) were chosen for no row: what was cut from full rows first, the rest filled none."""
    entries = []
    for chain in chains:
        left = unchosen[np.isin(native[unchosen], list(chain))]
        for reason, by_line in demand.cut:
            count = min(len(left), int(by_line[list(chain)].sum()))
            if count:
                entries.append(LedgerEntry(epoch, left[:count], event, reason))
                left = left[count:]
        if len(left):
            reason = f"too few clips of this size were left for a row of {lanes} lanes"
            entries.append(LedgerEntry(epoch, left, event, reason))
    return entries


def ledger_table(entries: Sequence[LedgerEntry], corpus: Corpus) -> pa.Table:
    """All entries, in their order, clips ascending within each."""
    sides = np.array([(item.frames, item.height, item.width) for item in corpus.buckets], dtype=np.int32)
    tables = [LEDGER.empty_table()]
    for entry in entries:
        clips = np.sort(entry.clips)
        count = len(clips)
        columns = [
            pa.array(np.full(count, entry.epoch, dtype=np.int32)),
            corpus.clip_ids.take(pa.array(clips)).cast(pa.string()),
            pa.array(corpus.shard[clips]),
            pa.array(corpus.ordinal[clips]),
            *(pa.array(sides[corpus.bucket[clips], side]) for side in range(3)),
            _repeated_text(entry.event, count),
            _repeated_text(entry.reason, count),
        ]
        tables.append(pa.Table.from_arrays(columns, schema=LEDGER))
    return pa.concat_tables(tables)


def _repeated_text(text: str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, dtype=np.int32)), pa.array([text])).cast(pa.string())


def spares_table(
    corpus: Corpus, lines: Sequence[BatchLine], left_over: np.ndarray, epochs: Sequence[EpochPlan], per_bucket: int
) -> pa.Table:
    """Up to `per_bucket` clips per lane and bucket out of those left over in some epoch (`left_over` counts how often).

    Clips of the bucket itself come before longer ones of its size, and those left over most before others; a clip goes to a lane that reads its
    shard while that lane has room, else to the lane with fewest.
    """
    num_lanes = len(epochs[0].rows)
    in_use = np.unique(np.concatenate([np.unique(epoch.rows) for epoch in epochs]))
    readers = _readers(corpus, epochs, left_over)
    rows: list[tuple[int, int, int, int, int, int]] = []
    for number in in_use.tolist():
        bucket = lines[number].bucket
        counts = [0] * num_lanes
        for clip in _spare_candidates(corpus, lines[number], left_over, num_lanes * per_bucket):
            shard = int(corpus.shard[clip])
            near = [lane for lane in readers.get(shard, []) if counts[lane] < per_bucket]
            lane = min(near or range(num_lanes), key=counts.__getitem__)
            if counts[lane] < per_bucket:
                counts[lane] += 1
                place = (shard, int(corpus.ordinal[clip]))
                rows.append((lane, bucket.frames, bucket.height, bucket.width, *place))
    rows.sort(key=lambda row: row[:4])
    columns = [pa.array([row[column] for row in rows], pa.int32()) for column in range(6)]
    return pa.Table.from_arrays(columns, schema=SPARES)


def _readers(corpus: Corpus, epochs: Sequence[EpochPlan], left_over: np.ndarray) -> dict[int, list[int]]:
    """Lanes that read each shard which has left-over clips."""
    wanted = np.zeros(corpus.num_shards, dtype=bool)
    wanted[corpus.shard[left_over > 0]] = True
    keys = []
    for epoch in epochs:
        lane = np.repeat(np.arange(len(epoch.rows), dtype=np.int64), np.diff(epoch.read_start))
        shard = corpus.shard[epoch.read_clip].astype(np.int64)
        kept = wanted[shard]
        keys.append(np.unique(shard[kept] * len(epoch.rows) + lane[kept]))
    readers: dict[int, list[int]] = {}
    for key in np.unique(np.concatenate(keys)).tolist():
        shard, lane = divmod(key, len(epochs[0].rows))
        readers.setdefault(shard, []).append(lane)
    return readers


def _spare_candidates(corpus: Corpus, line: BatchLine, left_over: np.ndarray, most: int) -> list[int]:
    fits = [
        (bucket.height, bucket.width) == (line.bucket.height, line.bucket.width) and bucket.frames >= line.bucket.frames
        for bucket in corpus.buckets
    ]
    left = np.flatnonzero(left_over > 0)
    clips = left[np.array(fits)[corpus.bucket[left]]]
    frames = np.array([bucket.frames for bucket in corpus.buckets])[corpus.bucket[clips]]
    chosen: list[int] = clips[np.lexsort((clips, -left_over[clips], frames))][:most].tolist()
    return chosen
