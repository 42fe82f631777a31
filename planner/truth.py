"""What the verifier knows: the samples as they are, and the arithmetic of one lane against them. Imports schemas only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import DataError
from schemas.hashing import table_hash
from schemas.plan import PlanMeta
from schemas.shards import SetInfo, read_set_info, samples_path
from schemas.tables import SAMPLES, read_table

__all__ = ["LaneFacts", "Truth", "check_lane", "load_truth"]

Report = Callable[[str, str], None]
_MOST = 5
_ORDINAL_BITS = 31
_OFFSET_BITS = 40


class Truth:
    """Facts of all samples, ordered by (shard, offset), and how often the plan uses and reads each in each epoch."""

    def __init__(self, frame: pl.DataFrame, num_epochs: int) -> None:
        ordered = frame.sort("shard", "offset")
        self.clip_id: list[str] = ordered["clip_id"].to_list()
        self.shard = ordered["shard"].to_numpy().astype(np.int64)
        self.offset = ordered["offset"].to_numpy().astype(np.int64)
        self.length = ordered["length"].to_numpy().astype(np.int64)
        self.sides = ordered.select("frames", "height", "width").to_numpy()
        self.admitted = ordered["admitted"].to_numpy()
        self.uses = np.zeros((num_epochs, len(ordered)), dtype=np.uint16)
        self.reads = np.zeros((num_epochs, len(ordered)), dtype=np.uint16)
        self.start_key = (self.shard << _OFFSET_BITS) | self.offset
        self.bytes_before = np.concatenate([[0], np.cumsum(self.length)])
        places = (self.shard << _ORDINAL_BITS) | ordered["ordinal"].to_numpy().astype(np.int64)
        self._place_order = np.argsort(places, kind="stable")
        self._places = places[self._place_order]

    def find(self, shard: np.ndarray, ordinal: np.ndarray) -> np.ndarray:
        """Position of each (shard, ordinal), or -1."""
        keys = (shard.astype(np.int64) << _ORDINAL_BITS) | ordinal.astype(np.int64)
        at = np.minimum(np.searchsorted(self._places, keys), len(self._places) - 1)
        known = (self._places[at] == keys) & (ordinal >= 0)
        return np.where(known, self._place_order[at], -1)

    def name(self, position: int) -> str:
        """For messages."""
        return f"{self.clip_id[position]} (shard {self.shard[position]})"

    def share_bound(self, meta: PlanMeta) -> float:
        """Largest used share that lanes, policy and the number of steps allow (see the certificate's formula)."""
        if not self.admitted.any():
            return 1.0
        _, counts = np.unique(self.sides[self.admitted][:, 1:], axis=0, return_counts=True)
        per_epoch = int((counts // meta.num_lanes * meta.num_lanes if meta.policy == "uniform" else counts).sum())
        largest = max((entry.clips_per_lane for entry in meta.batches), default=0)
        in_rows = meta.num_steps * meta.micro_per_step * meta.num_lanes * largest
        epochs = max(1, meta.num_epochs)
        return min(per_epoch * epochs, in_rows) / (int(counts.sum()) * epochs)


def load_truth(paths: Sequence[Path], meta: PlanMeta, add: Report, skip: Callable[[str, str], None]) -> Truth:
    """Read the sets in the plan's order; a set is recognised by its hash, else by its place.

    Raises:
        DataError: if the number of sets differs; then no clip of the plan can be looked up.
    """
    if len(paths) != len(meta.sets):
        raise DataError(
            f"the plan reads {len(meta.sets)} sets ({', '.join(item.name for item in meta.sets)}), --samples gives {len(paths)}; "
            "give each set once, in the order of the build"
        )
    found: list[tuple[Path, SetInfo, pa.Table, str]] = []
    for path in paths:
        folder = path.parent if path.suffix == ".parquet" else path
        table = read_table(path if path.suffix == ".parquet" else samples_path(folder), SAMPLES)
        found.append((folder, read_set_info(folder), table, table_hash(table)))
    by_hash = {item[3]: item for item in found}
    frames: list[pl.DataFrame] = []
    first_shard = 0
    for index, planned in enumerate(meta.sets):
        folder, info, table, digest = by_hash.get(planned.samples_hash, found[index])
        if digest != planned.samples_hash:
            add(
                "samples_hash",
                f"{folder} has samples {digest[:12]}..., the plan was built from {planned.samples_hash[:12]}... (set {planned.name}); "
                "give the set that it was built from",
            )
        if planned.first_shard != first_shard:
            add("shards_listed", f"set {planned.name} begins at shard {planned.first_shard}, expected {first_shard}")
        _check_shards(folder, info, planned.shard_names, planned.shard_bytes, add, skip)
        frames.append(_facts(table, meta.admission, first_shard))
        first_shard += len(info.shards)
    return Truth(pl.concat(frames), max(1, meta.num_epochs))


def _facts(table: pa.Table, admission: str, first_shard: int) -> pl.DataFrame:
    columns = ["clip_id", "shard_index", "ordinal", "offset", "length", "frames", "height", "width", "admissions"]
    frame = pl.from_arrow(table.select(columns))
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(
        shard=pl.col("shard_index") + first_shard, admitted=pl.col("admissions").list.contains(admission)
    ).drop("admissions", "shard_index")


def _check_shards(
    folder: Path,
    info: SetInfo,
    names: Sequence[str],
    sizes: Sequence[int],
    add: Report,
    skip: Callable[[str, str], None],
) -> None:
    listed = [(shard.name, shard.size_bytes) for shard in info.shards]
    for index, pair in enumerate(zip(names, sizes, strict=False)):
        if index >= len(listed) or listed[index] != pair:
            add(
                "shards_listed",
                f"the plan's shard {pair[0]} of {pair[1]} bytes is not number {index} in {folder / 'set.json'}",
            )
    if len(listed) != len(names) or len(names) != len(sizes):
        add(
            "shards_listed",
            f"{folder / 'set.json'} lists {len(listed)} shards, the plan {len(names)} names and {len(sizes)} sizes",
        )
    present = [name for name, _ in listed if (folder / name).is_file()]
    if not present:
        skip("shard_files", f"no tar of {folder} is on this machine")
        return
    for name, size in listed:
        path = folder / name
        actual = path.stat().st_size if path.is_file() else None
        if actual != size:
            add(
                "shard_files",
                f"{path} has {'no file' if actual is None else f'{actual} bytes'}, set.json says {size} bytes",
            )


class LaneFacts:
    """What must be the same, or is summed, over lanes."""

    def __init__(self, meta: PlanMeta, rows: pa.Table) -> None:
        self.first_sides: np.ndarray | None = None
        self.entries = {entry.bucket: entry for entry in meta.batches}
        self.slowest = np.zeros(rows.num_rows)
        self.rows = {name: rows.column(name).to_numpy() for name in ("epoch", "step", "micro", "tier")}
        self.step_uses: list[np.ndarray] = []
        """Per lane: step x clips + clip of each use."""
        self.epoch_bytes = np.zeros(max(1, meta.num_epochs))
        self.counts = {"read_ranges": 0, "bytes_read": 0, "bytes_read_back": 0, "bytes_read_unused": 0}

    def twice_in_a_step(self, num_clips: int) -> list[tuple[int, int, int]]:
        """(step, clip position, uses) of each clip that a step uses more than once."""
        keys, times = np.unique(np.concatenate([np.empty(0, np.int64), *self.step_uses]), return_counts=True)
        again = times > 1
        return [
            (key // num_clips, key % num_clips, count)
            for key, count in zip(keys[again].tolist(), times[again].tolist(), strict=True)
        ]

    def read_metrics(self, truth: Truth) -> dict[str, float]:
        """The metrics of `plan.json` that follow from the reads; NaN where nothing is read."""
        distinct = np.array([truth.length[again > 0].sum() for again in truth.reads], dtype=np.float64)
        total, back = self.counts["bytes_read"], self.counts["bytes_read_back"]
        if not total or not distinct.all():
            return {"read_amplification": math.nan, "sequential_share": math.nan}
        return {
            "read_amplification": float((self.epoch_bytes / distinct).mean()),
            "sequential_share": (total - back) / total,
        }

    def check_costs(self, rows: pa.Table, meta: PlanMeta, add: Report) -> None:
        """Predicted seconds of each row against the slowest lane's."""
        said = rows.column("predicted_seconds").to_numpy()
        wrong = np.flatnonzero(~np.isclose(said, self.slowest, rtol=1e-12, atol=0))
        for row in wrong[:_MOST].tolist():
            add(
                "row_costs",
                f"row {row} says {said[row]:g} s, its slowest lane takes {self.slowest[row]:g} s by the batch table",
            )


def check_lane(lane: int, table: pa.Table, meta: PlanMeta, truth: Truth, facts: LaneFacts, add: Report) -> None:
    """Check one lane and count its uses and reads into `truth`."""
    rows = len(facts.slowest)
    if table.num_rows != rows or any(
        (table.column(name).to_numpy() != facts.rows[name]).any() for name in ("epoch", "step", "micro")
    ):
        add(
            "lane_rows",
            f"lane {lane} has {table.num_rows} rows whose epoch, step and micro are not those of the plan's {rows}",
        )
        return
    sides = np.stack([table.column(name).to_numpy() for name in ("frames", "height", "width")], axis=1)
    _check_buckets(lane, table, sides, meta, facts, add)
    used, used_row = _uses(lane, table, sides, truth, add)
    epoch = np.clip(
        facts.rows["epoch"].astype(np.int64), 0, len(truth.uses) - 1
    )  # others are reported by rows_complete
    np.add.at(truth.uses, (epoch[used_row], used), 1)
    facts.step_uses.append(facts.rows["step"][used_row].astype(np.int64) * len(truth.clip_id) + used)
    read, read_row = _reads(lane, table, epoch, truth, facts, add)
    np.add.at(truth.reads, (epoch[read_row], read), 1)
    _check_buffer(lane, (used, used_row), (read, read_row), epoch, meta, truth, facts, add)


def _check_buckets(
    lane: int, table: pa.Table, sides: np.ndarray, meta: PlanMeta, facts: LaneFacts, add: Report
) -> None:
    names, inverse = np.unique(sides, axis=0, return_inverse=True)
    entries = [facts.entries.get("x".join(map(str, side))) for side in names.tolist()]
    sizes = np.array([-1 if entry is None else entry.clips_per_lane for entry in entries])[inverse.ravel()]
    tiers = np.array([-1 if entry is None else entry.tier for entry in entries])[inverse.ravel()]
    seconds = np.array([0.0 if entry is None else entry.predicted_seconds for entry in entries])[inverse.ravel()]
    found = pc.list_value_length(table.column("clips")).to_numpy()
    for row in np.flatnonzero(sizes != found)[:_MOST].tolist():
        bucket = "x".join(map(str, sides[row].tolist()))
        expected = "no such bucket" if sizes[row] < 0 else f"{sizes[row]} clips"
        add(
            "batch_sizes",
            f"lane {lane}, row {row}: {found[row]} clips of bucket {bucket}, the batch table says {expected}",
        )
    for row in np.flatnonzero(tiers != facts.rows["tier"])[:_MOST].tolist():
        rule = "row_costs" if meta.policy == "uniform" else "row_policy"
        add(rule, f"lane {lane}, row {row}: a bucket of tier {tiers[row]} in a row of tier {facts.rows['tier'][row]}")
    if facts.first_sides is None:
        facts.first_sides = sides
    elif meta.policy == "uniform":
        for row in np.flatnonzero((sides != facts.first_sides).any(axis=1))[:_MOST].tolist():
            one, other = ("x".join(map(str, item[row].tolist())) for item in (sides, facts.first_sides))
            add("row_policy", f"row {row}: lane {lane} runs bucket {one}, the first lane {other}")
    facts.slowest = np.maximum(facts.slowest, seconds)


def _uses(lane: int, table: pa.Table, sides: np.ndarray, truth: Truth, add: Report) -> tuple[np.ndarray, np.ndarray]:
    """(clip position, row) of each known use."""
    clips = table.column("clips").combine_chunks()
    row = np.repeat(np.arange(table.num_rows), pc.list_value_length(clips).to_numpy())
    flat = clips.flatten()
    shard, ordinal = (flat.field(name).to_numpy(zero_copy_only=False) for name in ("shard", "ordinal"))
    position = truth.find(shard, ordinal)
    for index in np.flatnonzero(position < 0)[:_MOST].tolist():
        add("clips_known", f"lane {lane}, row {row[index]}: shard {shard[index]} has no sample {ordinal[index]}")
    row, position = row[position >= 0], position[position >= 0]
    for index in np.flatnonzero(~truth.admitted[position])[:_MOST].tolist():
        add("clips_admitted", f"lane {lane}, row {row[index]}: clip {truth.name(position[index])} is not admitted")
    own, asked = truth.sides[position], sides[row]
    misfit = (own[:, 1:] != asked[:, 1:]).any(axis=1) | (own[:, 0] < asked[:, 0])
    for index in np.flatnonzero(misfit)[:_MOST].tolist():
        add(
            "one_shape",
            f"lane {lane}, row {row[index]}: clip {truth.name(position[index])} of {'x'.join(map(str, own[index].tolist()))} "
            f"in a micro-batch of {'x'.join(map(str, asked[index].tolist()))}",
        )
    return position, row


def _reads(
    lane: int, table: pa.Table, epoch: np.ndarray, truth: Truth, facts: LaneFacts, add: Report
) -> tuple[np.ndarray, np.ndarray]:
    """(clip position, row) of each sample that is read."""
    reads = table.column("reads").combine_chunks()
    row = np.repeat(np.arange(table.num_rows), pc.list_value_length(reads).to_numpy())
    flat = reads.flatten()
    shard, offset, length = (
        flat.field(name).to_numpy(zero_copy_only=False).astype(np.int64) for name in ("shard", "offset", "length")
    )
    facts.counts["read_ranges"] += len(shard)
    facts.counts["bytes_read"] += int(length.sum())
    order = np.lexsort((np.arange(len(shard)), shard, epoch[row]))
    same = (shard[order][1:] == shard[order][:-1]) & (epoch[row][order][1:] == epoch[row][order][:-1])
    back = same & (offset[order][1:] < (offset + length)[order][:-1])
    facts.epoch_bytes += np.bincount(epoch[row], length, minlength=len(facts.epoch_bytes))
    facts.counts["bytes_read_back"] += int(length[order][1:][back].sum())
    for index in order[1:][back][:_MOST].tolist():
        add(
            "reads_forward", f"lane {lane}, row {row[index]}: goes back to byte {offset[index]} of shard {shard[index]}"
        )
    first = np.minimum(np.searchsorted(truth.start_key, (shard << _OFFSET_BITS) | offset), len(truth.shard) - 1)
    begins = (truth.shard[first] == shard) & (truth.offset[first] == offset) & (length > 0)
    last = np.searchsorted(truth.bytes_before, truth.bytes_before[first] + length) - 1
    last = np.clip(last, first, len(truth.shard) - 1)
    whole = (
        begins
        & (truth.shard[last] == shard)
        & (truth.offset[last] + truth.length[last] == offset + length)
        & (truth.bytes_before[last + 1] - truth.bytes_before[first] == length)
    )
    for index in np.flatnonzero(~whole)[:_MOST].tolist():
        add(
            "reads_whole",
            f"lane {lane}, row {row[index]}: bytes {offset[index]}+{length[index]} of shard {shard[index]} are no run of samples",
        )
    first, last, row = first[whole], last[whole], row[whole]
    count = last - first + 1
    inside = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(first, count) + inside, np.repeat(row, count)


def _check_buffer(
    lane: int,
    uses: tuple[np.ndarray, np.ndarray],
    reads: tuple[np.ndarray, np.ndarray],
    epoch: np.ndarray,
    meta: PlanMeta,
    truth: Truth,
    facts: LaneFacts,
    add: Report,
) -> None:
    """Match each use with its read of the same epoch, and replay the buffer."""
    used, used_row = uses
    read, read_row = reads
    clips = len(truth.shard)
    read_key, use_key = epoch[read_row] * clips + read, epoch[used_row] * clips + used
    order = np.argsort(read_key, kind="stable")
    at = np.minimum(np.searchsorted(read_key[order], use_key), max(0, len(order) - 1))
    matched = read_key[order][at] == use_key if len(order) else np.zeros(len(use_key), dtype=bool)
    late = ~matched
    late[matched] = read_row[order][at[matched]] > used_row[matched]
    for index in np.flatnonzero(late)[:_MOST].tolist():
        add(
            "read_before_use",
            f"lane {lane}, row {used_row[index]}: clip {truth.name(used[index])} has not been read by then",
        )
    idle = ~np.isin(read_key, use_key)
    facts.counts["bytes_read_unused"] += int(truth.length[read[idle]].sum())
    for index in np.flatnonzero(idle)[:_MOST].tolist():
        add(
            "reads_used",
            f"lane {lane}, row {read_row[index]}: reads clip {truth.name(read[index])}, which it never uses in that epoch",
        )
    change = np.zeros(len(epoch) + 1, dtype=np.int64)
    np.add.at(change, read_row, truth.length[read])
    np.subtract.at(change, used_row + 1, truth.length[used])
    peak = int(np.cumsum(change)[:-1].max(initial=0))
    said = meta.peak_buffer_bytes[lane] if lane < len(meta.peak_buffer_bytes) else None
    if peak != said:
        add("peak_buffer", f"lane {lane} buffers up to {peak} bytes, plan.json says {said}")
    if peak > meta.max_buffer_bytes:
        add("buffer_cap", f"lane {lane} buffers up to {peak} bytes, the cap is {meta.max_buffer_bytes}")
