"""A plan for other programs: one NumPy archive per rank, as the paper's `rank{r}.npz`, or one JSON file of what each rank reads.

`rank{r}.npz` holds plain arrays (`np.load(path, allow_pickle=False)`); a rank needs nothing else to read its shards front to back and to make its
micro-batches. `FIELDS` says what each array is. Price: nothing in these files is hashed or checked; the plan folder stays the reference.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from planner.looking.lane_arrays import LaneArrays, open_lane
from planner.looking.places import SamplePlaces, sample_places
from schemas.command import progress
from schemas.errors import DataError, UsageError
from schemas.files import atomic_folder, atomic_path
from schemas.plan import PlanMeta, lanes_of_rank, read_plan_meta

__all__ = ["FIELDS", "export_json", "export_npz", "rank_arrays"]

EXPORT_VERSION = 1

FIELDS = {
    "export_version": "version of this layout",
    "plan_hash": "of the plan that was exported",
    "num_lanes": "V",
    "num_ranks": "R",
    "rank": "this one, from 0",
    "lanes": "lanes that this rank runs, one after another within a row",
    "micro_per_step": "K: rows of one optimizer step",
    "first_step": "number of the first step",
    "num_steps": "optimizer steps",
    "bucket_names": "FRAMESxHEIGHTxWIDTH; bucket ids index it",
    "bucket_clips": "per bucket: clips of one micro-batch",
    "bucket_micro_batches": "per bucket: micro-batches of this rank over the plan",
    "shard_names": "SET/NAME of every shard of the plan; shard ids index it",
    "open_shards": "shard ids in the order in which this rank opens them; once per epoch and lane",
    "open_epochs": "epoch of each open",
    "open_lanes": "lane of each open",
    "clip_shards": "per clip in reading order: shard id",
    "clip_ordinals": "per clip in reading order: position of the sample within its shard",
    "clip_offsets": "per clip in reading order: first byte within the shard",
    "clip_lengths": "per clip in reading order: bytes",
    "clip_buckets": "per clip in reading order: id of the bucket at which it is used first",
    "clip_rows": "per clip in reading order: micro-batch (index into row_*) before which it is read",
    "row_steps": "per micro-batch in order: optimizer step",
    "row_micros": "per micro-batch: row within the step",
    "row_lanes": "per micro-batch: lane",
    "row_buckets": "per micro-batch: bucket id",
    "row_offsets": "micro-batch i has the clips row_clips[row_offsets[i]:row_offsets[i + 1]]",
    "row_clips": "indices into clip_*",
}
"""Name of each array of `rank{r}.npz`, in words."""


def export_npz(plan: Path, samples: Sequence[Path], folder: Path, ranks: int | None = None) -> list[Path]:
    """Write `rank{r}.npz` for each of R ranks (null: one per lane) into a new folder; the paths.

    Raises:
        UsageError: without samples, or if the folder exists.
        PlanError: if R does not divide the lanes, or the samples are not the plan's.
    """
    meta, ranks = _checked(plan, ranks)
    if not samples:
        raise UsageError(
            "--npz lists clips in reading order, and a plan reads byte ranges; add --samples, which says what lies where"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--npz {folder} exists already and is not an empty folder; give another one")
    places = sample_places(meta, samples)
    with atomic_folder(folder) as temporary:
        for rank in progress(range(ranks), what="writing ranks"):
            lanes = [open_lane(plan, lane, meta) for lane in lanes_of_rank(rank, ranks, meta.num_lanes)]
            np.savez(temporary / f"rank{rank}.npz", allow_pickle=False, **rank_arrays(lanes, rank, ranks, meta, places))
    return [folder / f"rank{rank}.npz" for rank in range(ranks)]


def _checked(plan: Path, ranks: int | None) -> tuple[PlanMeta, int]:
    meta = read_plan_meta(plan)
    ranks = meta.num_lanes if ranks is None else ranks
    lanes_of_rank(0, ranks, meta.num_lanes)
    return meta, ranks


def rank_arrays(
    lanes: Sequence[LaneArrays], rank: int, ranks: int, meta: PlanMeta, places: SamplePlaces
) -> dict[str, np.ndarray]:
    """The arrays of one rank (see `FIELDS`); micro-batches and reads go row by row, within a row lane by lane.

    Raises:
        PlanError: if the samples are not the plan's.
        DataError: if a clip is used that was not read.
    """
    rows, count = len(lanes[0].step), len(lanes)
    lane_numbers = np.array([lane.lane for lane in lanes], dtype=np.int32)
    buckets = np.stack([lane.bucket for lane in lanes], axis=1).reshape(-1)
    reads = _merged([(lane.read_row, lane.read_shard, lane.read_offset, lane.read_length) for lane in lanes])
    read_batch, read_lane, shard, offset, length = reads
    position, brought_by = places.in_reads(shard, offset, length)
    clip_batch = read_batch[brought_by]
    use_batch, use_lane, use_shard, use_ordinal = _merged(
        [(lane.clip_row, lane.clip_shard, lane.clip_ordinal) for lane in lanes]
    )
    epoch = np.repeat(lanes[0].epoch, count)

    def key(batch: np.ndarray, lane: np.ndarray, sample: np.ndarray) -> np.ndarray:
        """Lane, epoch and sample as one integer."""
        group = lane.astype(np.int64) * meta.num_epochs + epoch[batch] - meta.first_epoch
        return group * len(places.key) + sample

    used_clip = _served_by(
        key(clip_batch, read_lane[brought_by], position),
        key(use_batch, use_lane, places.find(use_shard, use_ordinal)),
        lanes,
    )
    clip_bucket = np.full(len(position), -1, dtype=np.int32)
    clip_bucket[used_clip[::-1]] = buckets[use_batch[::-1]]
    opens = np.concatenate([lane.opens for lane in lanes])[_row_order([lane.read_row for lane in lanes])]
    return {
        "export_version": np.array(EXPORT_VERSION),
        "plan_hash": np.array(meta.plan_hash),
        "num_lanes": np.array(meta.num_lanes),
        "num_ranks": np.array(ranks),
        "rank": np.array(rank),
        "lanes": lane_numbers,
        "micro_per_step": np.array(meta.micro_per_step),
        "first_step": np.array(meta.first_step),
        "num_steps": np.array(meta.num_steps),
        "bucket_names": np.array([entry.bucket for entry in meta.batches]),
        "bucket_clips": np.array([entry.clips_per_lane for entry in meta.batches], dtype=np.int32),
        "bucket_micro_batches": np.bincount(buckets, minlength=len(meta.batches)),
        "shard_names": np.array(_shard_names(meta)),
        "open_shards": shard[opens],
        "open_epochs": epoch[read_batch[opens]],
        "open_lanes": lane_numbers[read_lane[opens]],
        "clip_shards": places.shard[position],
        "clip_ordinals": places.ordinal[position],
        "clip_offsets": places.offset[position],
        "clip_lengths": places.length[position],
        "clip_buckets": clip_bucket,
        "clip_rows": clip_batch.astype(np.int32),
        "row_steps": np.repeat(lanes[0].step, count),
        "row_micros": np.repeat(np.arange(rows, dtype=np.int32) % meta.micro_per_step, count),
        "row_lanes": np.tile(lane_numbers, rows),
        "row_buckets": buckets,
        "row_offsets": np.concatenate([[0], np.cumsum(np.bincount(use_batch, minlength=rows * count))]),
        "row_clips": used_clip,
    }


def _shard_names(meta: PlanMeta) -> list[str]:
    return [f"{item.name}/{name}" for item in meta.sets for name in item.shard_names]


def _row_order(rows_of_lanes: Sequence[np.ndarray]) -> np.ndarray:
    """Entries of several lanes, lane after lane, in the order row by row and lane by lane."""
    return np.argsort(np.concatenate(rows_of_lanes), kind="stable")


def _merged(columns_of_lanes: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """(micro-batch of the rank, lane from 0, the other columns) of entries whose first column is the row."""
    order = _row_order([columns[0] for columns in columns_of_lanes])
    lane = np.repeat(np.arange(len(columns_of_lanes)), [len(columns[0]) for columns in columns_of_lanes])[order]
    row, *rest = (np.concatenate(parts)[order] for parts in zip(*columns_of_lanes, strict=True))
    return [row * len(columns_of_lanes) + lane, lane, *rest]


def _served_by(read: np.ndarray, used: np.ndarray, lanes: Sequence[LaneArrays]) -> np.ndarray:
    """Index of the read clip that serves each use: the one of the same lane, epoch and place, all in one key."""
    order = np.argsort(read, kind="stable")
    at = np.minimum(np.searchsorted(read[order], used), max(0, len(read) - 1))
    if len(used) and (not len(read) or (read[order][at] != used).any()):
        raise DataError(
            f"lanes {lanes[0].lane} to {lanes[-1].lane} use clips that they do not read; run `reelyard-plan verify` on the plan"
        )
    return order[at]


def export_json(plan: Path, target: Path, ranks: int | None = None) -> Path:
    """Write what each of R ranks (null: one per lane) reads, in reading order, one entry per line; the path.

    An entry is what a lane reads of one shard before one micro-batch: step, micro, lane, shard (SET/NAME), ranges as [offset, length].

    Raises:
        UsageError: if the file exists.
        PlanError: if R does not divide the lanes.
    """
    meta, ranks = _checked(plan, ranks)
    if target.exists():
        raise UsageError(f"--json {target} exists already; give another file")
    head: dict[str, Any] = {
        "export_version": EXPORT_VERSION,
        "plan_hash": meta.plan_hash,
        "num_lanes": meta.num_lanes,
        "num_ranks": ranks,
        "first_step": meta.first_step,
        "num_steps": meta.num_steps,
        "micro_per_step": meta.micro_per_step,
        "sets": [{"name": item.name, "shards": len(item.shard_names)} for item in meta.sets],
    }
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "ranks": [')
        for rank in progress(range(ranks), what="writing ranks"):
            lanes = [open_lane(plan, lane, meta) for lane in lanes_of_rank(rank, ranks, meta.num_lanes)]
            file.write("," * (rank > 0) + f'\n{{"rank": {rank}, "reads": [')
            _write_entries(file, _read_entries(lanes, meta))
            file.write("]}")
        file.write("\n]}\n")
    return target


def _write_entries(file: TextIO, entries: Iterator[dict[str, Any]]) -> None:
    for number, entry in enumerate(entries):
        file.write(("," if number else "") + "\n  " + json.dumps(entry))


def _read_entries(lanes: Sequence[LaneArrays], meta: PlanMeta) -> Iterator[dict[str, Any]]:
    columns = _merged([(lane.read_row, lane.read_shard, lane.read_offset, lane.read_length) for lane in lanes])
    batch, lane, shard, offset, length = columns
    fresh = np.ones(len(batch), dtype=bool)
    fresh[1:] = (batch[1:] != batch[:-1]) | (shard[1:] != shard[:-1])
    firsts = np.flatnonzero(fresh).tolist()
    names = _shard_names(meta)
    for first, past in zip(firsts, [*firsts[1:], len(batch)], strict=True):
        row = int(batch[first]) // len(lanes)
        yield {
            "step": meta.first_step + row // meta.micro_per_step,
            "micro": row % meta.micro_per_step,
            "lane": lanes[int(lane[first])].lane,
            "shard": names[shard[first]],
            "ranges": np.stack([offset[first:past], length[first:past]], axis=1).tolist(),
        }
