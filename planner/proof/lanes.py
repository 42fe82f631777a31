"""Each lane against the samples, the rows and the batch table, one lane at a time, in order, so that the report is the same each time.

Each lane is replayed in compiled code and its uses and reads are counted; the rest are comparisons of whole columns. Price: where a clip that the
ledger does not repeat comes twice in an epoch, the lanes are read a second time to say in which step.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from planner.proof.lane_tables import LaneTable, lane_tables
from planner.proof.replay import find_reads, replay_lane, walk_shards
from planner.proof.report import MOST_MESSAGES, VerifyReport
from planner.proof.step_uses import StepUses
from planner.proof.tallies import Tallies
from planner.proof.truth import Truth
from schemas.command import progress
from schemas.plan import PlanMeta, lane_path

__all__ = ["LaneChecks", "check_lanes"]

_COSTS_TOLERANCE = 1e-12


class LaneChecks:
    """What must be the same over lanes, or is summed over them."""

    def __init__(self, meta: PlanMeta, truth: Truth, rows: pa.Table, watched: np.ndarray, report: VerifyReport) -> None:
        self._meta, self._truth, self._report = meta, truth, report
        self.rows = {
            name: rows.column(name).to_numpy() for name in ("epoch", "step", "micro", "tier", "predicted_seconds")
        }
        number = self.rows["epoch"].astype(np.int64) - meta.first_epoch
        self._row_epoch = np.clip(number, 0, truth.uses.shape[0] - 1)
        self._first_sides: np.ndarray | None = None
        self._entry = {entry.bucket: index for index, entry in enumerate(meta.batches)}
        self.slowest = np.zeros(rows.num_rows)
        """Seconds of each row's slowest lane."""
        self._per_step = max(1, meta.micro_per_step)
        self._steps = rows.num_rows // self._per_step
        self.slowest_steps = np.zeros(self._steps)
        """Seconds of each step's slowest lane, its rows added up."""
        self.micro_batches = np.zeros(len(meta.batches), np.int64)
        """Micro-batches of each line of the batch table."""
        self._work = (np.full(truth.num_clips, -1, np.int32), np.full(truth.num_clips, -1, np.int32))
        self.step_uses = StepUses(self.rows["step"], self.rows["epoch"], watched)
        self.tallies = Tallies(meta, truth, self._row_epoch)
        """What the metrics are made of."""
        self.epoch_bytes = np.zeros(truth.uses.shape[0], np.int64)
        num_shards = max(truth.num_shards, sum(len(item.shard_names) for item in meta.sets))
        self.shard_lanes = np.zeros((truth.uses.shape[0], num_shards), np.int32)
        """Lanes that read each shard, per epoch."""
        self.counts = {
            "uses": 0,
            "read_ranges": 0,
            "read_runs": 0,
            "bytes_read": 0,
            "bytes_read_back": 0,
            "bytes_read_unused": 0,
            "opens": 0,
        }
        self.peaks: dict[str, int] = {"peak_buffer_bytes": 0, "peak_buffer_clips": 0, "peak_open_shards": 0}

    def check(self, lane: int, table: LaneTable) -> None:
        """Look at one lane, and count its uses and reads into the truth."""
        same = len(table.epoch) == len(self.slowest) and all(
            np.array_equal(getattr(table, name), self.rows[name]) for name in ("epoch", "step", "micro")
        )
        if not same:
            self._report.add(
                "lane_rows",
                f"lane {lane} has {len(table.epoch)} rows whose epoch, step and micro are not those of the plan's {len(self.slowest)}",
            )
            return
        row_use = table.row_of_use
        line = self._check_buckets(lane, table)
        clip = self._check_clips(lane, table, row_use)
        self.step_uses.note(row_use, clip)
        self.tallies.note(table, line, clip, row_use)
        first, count = self._check_reads(lane, table)
        found = replay_lane(
            self._row_epoch,
            (table.use_start, clip),
            (table.read_start, first, count),
            self._truth.length,
            (self._truth.uses, self._truth.reads),
            self._work,
        )
        self.counts["uses"] += len(clip)
        self.counts["bytes_read_unused"] += found.unused_bytes
        name = self._truth.name
        self._report.add_first(
            "read_before_use",
            [
                f"lane {lane}, row {row}: clip {name(one)} has not been read by then"
                for row, one in found.late.first.tolist()
            ],
            found.late.number,
        )
        self._report.add_first(
            "reads_used",
            [
                f"lane {lane}, row {row}: reads clip {name(one)}, which it never uses in that epoch"
                for row, one in found.unused.first.tolist()
            ],
            found.unused.number,
        )
        meta = self._meta
        self._check_peak(lane, found.peak_bytes, "peak_buffer_bytes", meta.peak_buffer_bytes, meta.max_buffer_bytes)
        self._check_peak(lane, found.peak_clips, "peak_buffer_clips", meta.peak_buffer_clips, meta.max_buffer_clips)

    def _check_peak(self, lane: int, peak: int, name: str, said: tuple[int, ...], cap: int | None) -> None:
        exact, capped, unit, most = _PEAKS[name]
        self.peaks[name] = max(self.peaks[name], peak)
        if said or cap is not None:
            value = said[lane] if lane < len(said) else None
            if value != peak:
                self._report.add(exact, f"lane {lane} has up to {peak} {unit}, plan.json says {value} ({name})")
            if cap is not None and peak > cap:
                self._report.add(capped, f"lane {lane} has up to {peak} {unit}, the cap is {cap} ({most})")

    def _check_buckets(self, lane: int, table: LaneTable) -> np.ndarray:
        """Line of the batch table of each row, -1 where there is none."""
        meta = self._meta
        names, inverse = np.unique(table.sides, axis=0, return_inverse=True)
        inverse = inverse.ravel()
        line = np.array([self._entry.get("x".join(map(str, side)), -1) for side in names.tolist()], np.int64)[inverse]
        sizes = np.array([*(entry.clips_per_lane for entry in meta.batches), -1])[line]
        tiers = np.array([*(entry.tier for entry in meta.batches), -1])[line]
        seconds = np.array([*(entry.predicted_seconds for entry in meta.batches), 0.0])[line]
        found = np.diff(table.use_start)
        wrong = np.flatnonzero(sizes != found)
        self._report.add_first(
            "batch_sizes",
            [
                f"lane {lane}, row {row}: {found[row]} clips of bucket {_bucket(table.sides[row])}, the batch table says "
                + ("no such bucket" if sizes[row] < 0 else f"{sizes[row]} clips")
                for row in wrong[:MOST_MESSAGES].tolist()
            ],
            len(wrong),
        )
        wrong = np.flatnonzero(tiers != self.rows["tier"])
        self._report.add_first(
            "row_policy" if meta.policy == "tiers" else "row_costs",
            [
                f"lane {lane}, row {row}: a bucket of tier {tiers[row]} in a row of tier {self.rows['tier'][row]}"
                for row in wrong[:MOST_MESSAGES].tolist()
            ],
            len(wrong),
        )
        if self._first_sides is None:
            self._first_sides = table.sides
        elif meta.policy != "tiers":
            wrong = np.flatnonzero((table.sides != self._first_sides).any(axis=1))
            self._report.add_first(
                "row_policy",
                [
                    f"row {row}: lane {lane} runs bucket {_bucket(table.sides[row])}, the first lane {_bucket(self._first_sides[row])}"
                    for row in wrong[:MOST_MESSAGES].tolist()
                ],
                len(wrong),
            )
        self.slowest = np.maximum(self.slowest, seconds)
        whole = seconds[: self._steps * self._per_step].reshape(self._steps, self._per_step)
        self.slowest_steps = np.maximum(self.slowest_steps, whole.sum(axis=1))
        self.micro_batches += np.bincount(line[line >= 0], minlength=len(meta.batches))
        return line

    def _check_clips(self, lane: int, table: LaneTable, row_use: np.ndarray) -> np.ndarray:
        """Position of each used clip, -1 where there is none."""
        truth, report = self._truth, self._report
        clip = truth.find(table.shard, table.ordinal)
        wrong = np.flatnonzero(clip < 0)
        report.add_first(
            "clips_known",
            [
                f"lane {lane}, row {row_use[use]}: shard {table.shard[use]} has no sample {table.ordinal[use]}"
                for use in wrong[:MOST_MESSAGES].tolist()
            ],
            len(wrong),
        )
        if not truth.num_clips:
            return clip
        known = clip >= 0
        for rule, mask, what in (
            ("clips_admitted", truth.level, f"is not admitted at {self._meta.admission}"),
            ("admission_rules", truth.meets, "does not meet the plan's rules"),
        ):
            wrong = np.flatnonzero(known & ~mask[clip])
            report.add_first(
                rule,
                [
                    f"lane {lane}, row {row_use[use]}: clip {truth.name(clip[use])} {what}"
                    for use in wrong[:MOST_MESSAGES].tolist()
                ],
                len(wrong),
            )
        own = np.array(truth.sizes)[truth.code[clip]]
        asked = table.sides[row_use]
        misfit = known & ((own[:, 1] != asked[:, 1]) | (own[:, 2] != asked[:, 2]) | (own[:, 0] < asked[:, 0]))
        wrong = np.flatnonzero(misfit)
        report.add_first(
            "one_shape",
            [
                f"lane {lane}, row {row_use[use]}: clip {truth.name(clip[use])} of {truth.size(clip[use])} "
                f"in a micro-batch of {_bucket(asked[use])}"
                for use in wrong[:MOST_MESSAGES].tolist()
            ],
            len(wrong),
        )
        return clip

    def _check_reads(self, lane: int, table: LaneTable) -> tuple[np.ndarray, np.ndarray]:
        """First sample and number of samples of each read."""
        truth, report = self._truth, self._report
        row_read = table.row_of_read
        epoch = self._row_epoch[row_read]
        walk = walk_shards(epoch, table.read_shard, table.read_offset, table.read_length, self.shard_lanes)
        np.add.at(self.epoch_bytes, epoch, table.read_length)
        self.counts["read_ranges"] += len(row_read)
        self.counts["read_runs"] += walk.runs
        self.counts["bytes_read"] += int(table.read_length.sum())
        self.counts["bytes_read_back"] += walk.back_bytes
        self.counts["opens"] += walk.opens
        report.add_first(
            "reads_forward",
            [
                f"lane {lane}, row {row_read[read]}: goes back to byte {table.read_offset[read]} of shard {shard}"
                for read, shard in walk.back.first.tolist()
            ],
            walk.back.number,
        )
        meta = self._meta
        self._check_peak(lane, walk.peak_open, "peak_open_shards", meta.peak_open_shards, meta.max_open_shards)
        first, count = find_reads(
            table.read_shard, table.read_offset, table.read_length, truth.shard_first, truth.offset, truth.length
        )
        wrong = np.flatnonzero(count == 0)
        report.add_first(
            "reads_whole",
            [
                f"lane {lane}, row {row_read[read]}: bytes {table.read_offset[read]}+{table.read_length[read]} "
                f"of shard {table.read_shard[read]} are no run of samples"
                for read in wrong[:MOST_MESSAGES].tolist()
            ],
            len(wrong),
        )
        return first, count

    def check_costs(self) -> None:
        """Predicted seconds of each row against the slowest lane's."""
        said = self.rows["predicted_seconds"]
        wrong = np.flatnonzero(~np.isclose(said, self.slowest, rtol=_COSTS_TOLERANCE, atol=0))
        self._report.add_first(
            "row_costs",
            [
                f"row {row} says {said[row]:g} s, its slowest lane takes {self.slowest[row]:g} s by the batch table"
                for row in wrong[:MOST_MESSAGES].tolist()
            ],
            len(wrong),
        )

    def check_whole_tars(self) -> None:
        """Under `paper`, one lane reads a tar."""
        if self._meta.policy != "paper":
            return
        shared = np.argwhere(self.shard_lanes > 1)
        self._report.add_first(
            "whole_tars",
            [
                f"shard {shard} is read by {self.shard_lanes[epoch, shard]} lanes in epoch {epoch + self._meta.first_epoch}"
                for epoch, shard in shared[:MOST_MESSAGES].tolist()
            ],
            len(shared),
        )

    @property
    def opens_per_shard(self) -> float:
        """(lane, shard) pairs read, per epoch and shard."""
        return self.counts["opens"] / max(1, self.shard_lanes.size)


_PEAKS = {
    "peak_buffer_bytes": ("peak_buffer", "buffer_cap", "bytes buffered", "max_buffer_bytes"),
    "peak_buffer_clips": ("peak_clips", "clips_cap", "clips buffered", "max_buffer_clips"),
    "peak_open_shards": ("peak_open_shards", "open_shards_cap", "shards open", "max_open_shards"),
}
"""Field of plan.json to its two rules, its unit, and the field of its cap."""


def _bucket(sides: np.ndarray) -> str:
    return "x".join(map(str, sides.tolist()))


def check_lanes(plan: Path, checks: LaneChecks, meta: PlanMeta, truth: Truth, report: VerifyReport) -> None:
    """All lanes, then what only all of them together show."""
    rows = len(checks.slowest)
    found = lane_tables(plan, meta.num_lanes)
    for lane, item in enumerate(progress(found, what="verifying lanes", total=meta.num_lanes)):
        name = lane_path(plan, lane).name
        if isinstance(item, str):
            report.add("table_hashes", f"{name} cannot be read: {item}")
            report.add("lane_rows", f"lane {lane}: {name} cannot be read")
            continue
        table, digest = item
        said = str(meta.table_hashes.get(f"lane-{lane:04d}"))
        if digest != said:
            report.add("table_hashes", f"{name} has hash {digest[:12]}..., plan.json gives {said[:12]}...")
        checks.check(lane, table)
    checks.check_costs()
    checks.check_whole_tars()
    for field, peaks, cap in (
        ("peak_buffer_clips", meta.peak_buffer_clips, meta.max_buffer_clips),
        ("peak_open_shards", meta.peak_open_shards, meta.max_open_shards),
    ):
        exact, capped, _, most = _PEAKS[field]
        if cap is None:
            report.skip(capped, f"the plan has no such cap ({most} is null)")
        if cap is None and not peaks:
            report.skip(exact, f"plan.json gives no {field}")
    again = truth.uses.max(axis=0, initial=0) > 1
    if checks.step_uses.watch_too(again):
        for item in lane_tables(plan, meta.num_lanes):
            if not isinstance(item, str) and len(item[0].epoch) == rows:
                checks.step_uses.note(item[0].row_of_use, truth.find(item[0].shard, item[0].ordinal))
    twice = checks.step_uses.twice()
    report.add_first(
        "once_per_step",
        [
            f"clip {truth.name(clip)} is used {times} times in step {step}"
            for step, clip, times in twice[:MOST_MESSAGES]
        ],
        len(twice),
    )
    for epoch, reads in enumerate(truth.reads):
        many = np.flatnonzero(reads > 1)
        report.add_first(
            "reads_once",
            [
                f"clip {truth.name(clip)} is read {reads[clip]} times in epoch {epoch + meta.first_epoch}"
                for clip in many[:MOST_MESSAGES].tolist()
            ],
            len(many),
        )
