"""What fills the largest buffer, and what other orders of reading would need, computed on the lane that has it.

The lane's uses stay as they are (which bucket in which row); only the supply changes. Read one clip after another in a given order, the k-th use
of a bucket takes its k-th clip, and a row can run when all its clips are there:

    frontier(row)  the furthest place in the order of a clip that a row up to this one uses
    held(row)      bytes of the order up to the frontier - bytes used by earlier rows
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planner.explain.facts import PlanFacts
from planner.looking.held import held_over_rows, lane_stays
from planner.looking.lane_arrays import open_lane
from planner.looking.places import sample_places, shard_label
from planner.looking.wording import share_words, size_words, table_lines
from schemas.plan import PlanMeta

__all__ = ["OrderedUses", "buffer_lines", "peak_of_order"]

_SHOWN = 4
_RANDOM_ORDERS = 8


@dataclass(frozen=True)
class OrderedUses:
    """The clips that a lane uses in an epoch, by the row of their (last) use, rows rising."""

    bucket: np.ndarray
    row: np.ndarray
    """From 0."""
    length: np.ndarray
    """Bytes."""
    read: np.ndarray
    """Rank in the plan's reading order."""
    shard: np.ndarray
    position: np.ndarray
    """Rank in the order of the tars."""


def peak_of_order(uses: OrderedUses, order: np.ndarray) -> int:
    """Peak bytes if the clips are read one by one in `order`, as long as no row lacks one; a clip keeps its bucket, not its row."""
    place = np.argsort(order)
    clip_of_use = np.empty(len(uses.row), dtype=np.int64)
    clip_of_use[np.argsort(uses.bucket, kind="stable")] = np.lexsort((place, uses.bucket))
    rows = int(uses.row[-1]) + 1
    frontier = np.zeros(rows, dtype=np.int64)
    np.maximum.at(frontier, uses.row, place[clip_of_use] + 1)
    frontier = np.maximum.accumulate(frontier)
    come = np.concatenate([[0], np.cumsum(uses.length[order])])[frontier]
    gone = np.cumsum(np.bincount(uses.row, uses.length[clip_of_use], minlength=rows))
    return int((come - np.concatenate([[0], gone[:-1]])).max())


def buffer_lines(facts: PlanFacts, plan: Path, samples: Sequence[Path]) -> Iterator[str]:
    """The chapter on the buffer; what fills it needs the samples."""
    meta = facts.meta
    peaks = np.array(meta.peak_buffer_bytes)
    worst = int(peaks.argmax())
    yield (
        f"buffer: {size_words(peaks[worst])} at most, on lane {worst}; {size_words(float(np.median(peaks)))} on the median lane, "
        f"{size_words(peaks.min())} on the least; cap {size_words(meta.max_buffer_bytes)} ({share_words(peaks[worst], meta.max_buffer_bytes)} used)"
    )
    if not samples:
        yield "  what fills it is known with --samples only"
        return
    places = sample_places(meta, samples)
    lane = open_lane(plan, worst, meta)
    stays = lane_stays(lane, places)
    length = places.length[stays.position]
    held = held_over_rows(stays, length, len(lane.step))
    row = int(held.argmax())
    here = (stays.read_row <= row) & (stays.last_row >= row)
    wait = stays.last_row[here] - row
    yield (
        f"  the peak is in step {lane.step[row]} (row {row % meta.micro_per_step}, epoch {lane.epoch[row]}): {int(here.sum()):,} clips, "
        f"used up to {int(wait.max())} rows later (median {int(np.median(wait))}); mean over all rows {size_words(held.mean())}"
    )
    if held.max() != peaks[worst]:
        yield f"  plan.json says {peaks[worst]:,} bytes, the lane holds {int(held.max()):,}: run `reelyard-plan verify`"
    bucket = lane.bucket[stays.last_row]
    shard = places.shard[stays.position]
    yield from _top("bucket", bucket[here], length[here], [entry.bucket for entry in meta.batches])
    yield from _top(
        "shard",
        shard[here],
        length[here],
        [shard_label(meta, index) for index in range(meta.sets[-1].first_shard + len(meta.sets[-1].shard_names))],
    )
    same = np.flatnonzero(lane.epoch[stays.last_row] == lane.epoch[row])
    same = same[np.argsort(stays.last_row[same], kind="stable")]
    uses = OrderedUses(
        bucket=bucket[same],
        row=stays.last_row[same] - stays.last_row[same[0]],
        length=length[same],
        read=same,
        shard=shard[same],
        position=stays.position[same],
    )
    yield from _order_lines(uses, meta, int(held.max()))


def _top(what: str, names_of: np.ndarray, length: np.ndarray, labels: Sequence[str]) -> Iterator[str]:
    """The values that hold most bytes."""
    values, inverse, counts = np.unique(names_of, return_inverse=True, return_counts=True)
    bytes_held = np.bincount(inverse.ravel(), length)
    rows = [
        [
            labels[values[index]],
            f"{counts[index]:,}",
            size_words(bytes_held[index]),
            share_words(bytes_held[index], length.sum()),
        ]
        for index in np.argsort(-bytes_held, kind="stable")[:_SHOWN].tolist()
    ]
    yield from table_lines([f"{what} ({len(values)} in all)", "clips", "bytes", "of the peak"], rows, text_columns=[0])


def _order_lines(uses: OrderedUses, meta: PlanMeta, held: int) -> Iterator[str]:
    """The same lane and epoch under other orders of reading."""
    as_read = np.argsort(uses.read, kind="stable")
    first_read = np.full(int(uses.shard.max()) + 1, len(uses.row))
    np.minimum.at(first_read, uses.shard, np.argsort(as_read))
    by_tar = np.lexsort((uses.position, first_read[uses.shard]))
    orders = (np.random.default_rng([meta.seed, number]).permutation(len(uses.row)) for number in range(_RANDOM_ORDERS))
    mixed = float(np.mean([peak_of_order(uses, order) for order in orders]))
    least = int(np.bincount(uses.row, uses.length).max())
    allowed = f"max_open_shards: {meta.max_open_shards}" if meta.max_open_shards else "open shards without limit"
    rows = [
        ["as it is", size_words(held), allowed],
        ["the same order, read when needed", size_words(peak_of_order(uses, as_read)), "as with read_chunk_kb: 0"],
        ["one tar after another", size_words(peak_of_order(uses, by_tar)), "max_open_shards: 1, tars in this order"],
        ["its clips in random order", size_words(mixed), f"tars packed anew; mean of {_RANDOM_ORDERS} orders"],
        ["each clip read in its row", size_words(least), "the largest row: no order needs less"],
    ]
    yield "  this lane's rows of that epoch with other orders (clips of one bucket may trade rows):"
    yield from table_lines(["order", "peak", "that is"], rows, text_columns=[0, 2])
