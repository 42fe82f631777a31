"""A written plan as a schedule, from its lane tables alone, so that it is measured as the baselines are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from planner.baselines.outcomes import Reads, Schedule, Setup, Uses
from planner.baselines.streams import first_in_first_out, shuffled_stream, stream_schedule
from planner.samples import Corpus
from planner.settings import PlanConfig
from schemas.errors import PlanError
from schemas.plan import BatchEntry, PlanMeta, read_lane

__all__ = ["in_random_order", "plan_schedule", "setup_of"]


def setup_of(corpus: Corpus, batches: Sequence[BatchEntry], config: PlanConfig) -> Setup:
    """The corpus and a plan's batch table as arrays."""
    position = {entry.bucket: index for index, entry in enumerate(batches)}
    native = np.array([position[str(bucket)] for bucket in corpus.buckets], dtype=np.int64)
    return Setup(
        bucket=native[corpus.bucket],
        shard=corpus.shard,
        length=corpus.length,
        source=corpus.source,
        domain=corpus.domain,
        clips_per_batch=np.array([entry.clips_per_lane for entry in batches], dtype=np.int64),
        seconds=np.array([entry.predicted_seconds for entry in batches]),
        lanes=config.lanes,
        micro_per_step=config.micro_per_step,
        seed=config.seed,
    )


def plan_schedule(plan: Path, meta: PlanMeta, corpus: Corpus, config: PlanConfig) -> tuple[Setup, Schedule]:
    """A written plan of one epoch, from its lane tables alone.

    Raises:
        PlanError: if a lane reads bytes that are not whole admitted clips, or uses a clip that it does not hold.
    """
    setup = setup_of(corpus, meta.batches, config)
    position = {entry.bucket: index for index, entry in enumerate(meta.batches)}
    place = (corpus.shard.astype(np.int64) << 32) | corpus.ordinal
    start = (corpus.shard.astype(np.int64) << 44) | corpus.offset
    buckets, uses, reads = [], [], []
    for lane in range(meta.num_lanes):
        table = read_lane(plan, lane, meta)
        sides = [table.column(name).to_pylist() for name in ("frames", "height", "width")]
        buckets.append(np.array([position[f"{f}x{h}x{w}"] for f, h, w in zip(*sides, strict=True)], dtype=np.int64))
        use_row, use = _flat(table.column("clips").combine_chunks(), ("shard", "ordinal"))
        use_clip = np.searchsorted(place, (use[0] << 32) | use[1])
        uses.append((np.full(len(use_clip), lane), use_row, use_clip))
        range_row, spans = _flat(table.column("reads").combine_chunks(), ("shard", "offset", "length"))
        first = np.searchsorted(start, (spans[0] << 44) | spans[1])
        last = np.searchsorted(start, (spans[0] << 44) | (spans[1] + spans[2]))
        counts = last - first
        read_clip = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))
        read_row = np.repeat(range_row, counts)
        if int(corpus.length[read_clip].sum()) != int(spans[2].sum()):
            raise PlanError(
                f"{plan}: lane {lane} reads {int(spans[2].sum())} bytes that are not those of whole admitted clips; build the plan again"
            )
        reads.append((np.full(len(read_clip), lane), read_row, _until(lane, read_clip, use_clip, use_row), read_clip))
    return setup, Schedule(
        np.stack(buckets),
        Uses(*(np.concatenate(part) for part in zip(*uses, strict=True))),
        Reads(*(np.concatenate(part) for part in zip(*reads, strict=True))),
    )


def _flat(column: Any, names: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
    """(row of each item, its fields as int64) of a column of lists of structs."""
    items = column.flatten()
    row = np.repeat(np.arange(len(column)), pc.list_value_length(column).to_numpy())
    return row, [items.field(name).to_numpy(zero_copy_only=False).astype(np.int64) for name in names]


def _until(lane: int, read_clip: np.ndarray, use_clip: np.ndarray, use_row: np.ndarray) -> np.ndarray:
    """Last row that uses each clip that is read."""
    order = np.lexsort((use_row, use_clip))
    after = np.searchsorted(use_clip[order], read_clip, side="right") - 1
    found = (after >= 0) & (use_clip[order][np.maximum(after, 0)] == read_clip)
    if not found.all() or not np.isin(use_clip, read_clip).all():
        raise PlanError(
            f"lane {lane} reads clips that it does not use, or uses clips that it does not read; build the plan again"
        )
    return use_row[order][after]


def in_random_order(setup: Setup, schedule: Schedule) -> Schedule:
    """The same clips and rows on each lane, its tars read in random order, clips used first in, first out."""
    streams = []
    for lane in range(setup.lanes):
        mine = schedule.uses.lane == lane
        clip, row = schedule.uses.clip[mine], schedule.uses.row[mine]
        rank = setup.rng(11, lane).permutation(int(setup.shard.max()) + 1)
        order = np.lexsort((clip, rank[setup.shard[clip]]))
        clips, bucket = clip[order], schedule.bucket_VxM[lane]
        use = first_in_first_out(setup, bucket[row[order]], bucket)
        streams.append(shuffled_stream(clips, np.arange(len(clips)), use, bucket, 0, discard_unused=True))
    return stream_schedule(streams)
