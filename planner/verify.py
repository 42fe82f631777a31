"""Does a plan keep its promises? Checked from the files alone; shares no code with the builder, only schemas.

Every rule has a name; all are checked and listed, so that a broken plan says everything at once. Lanes are streamed: memory holds the facts of the
samples, two counters per clip and epoch, eight bytes per use, and one lane. Price: the samples table is read and hashed again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from planner.truth import LaneFacts, Truth, check_lane, load_truth
from schemas.command import progress
from schemas.errors import SchemaError
from schemas.files import write_json
from schemas.hashing import table_hash
from schemas.plan import (
    LANE,
    LEDGER,
    LEDGER_EVENTS,
    ROWS,
    SPARES,
    PlanMeta,
    lane_path,
    parse_plan_meta,
    plan_hash,
)
from schemas.tables import read_table

__all__ = ["RULES", "VerifyReport", "verify_plan", "write_certificate"]

RULES = {
    "plan_hash": "plan.json's hash fits its content",
    "table_hashes": "each table's hash fits plan.json, and no table is missing or extra",
    "samples_hash": "the samples are those that the plan was built from",
    "shards_listed": "names and sizes of the shards are those of set.json",
    "shard_files": "the tars on this machine have these sizes",
    "admitted_clips": "plan.json counts the admitted clips, and those of each bucket, right",
    "rows_complete": "rows are steps 0, 1, ... of K micro-batches each, epochs in order",
    "lane_rows": "every lane has exactly the plan's rows",
    "row_policy": "lanes of a row run the same bucket (uniform) or the same cost tier (tiers)",
    "row_costs": "tier and predicted seconds of a row are those of its slowest lane in the batch table",
    "batch_sizes": "every micro-batch has the clips_per_lane of its bucket in the batch table",
    "clips_known": "every named clip is in the samples",
    "clips_admitted": "every named clip is admitted at the plan's level",
    "one_shape": "every clip has the size of its micro-batch and at least its frames",
    "once_per_epoch": "no clip is used twice in an epoch",
    "once_per_step": "no clip is used twice in a step, on whatever lanes and in whatever epochs",
    "ledger": "every admitted clip of an epoch is used or in the ledger, never both, with its own facts",
    "reads_whole": "every read is a run of whole samples",
    "reads_forward": "a lane reads each shard front to back within an epoch",
    "reads_once": "no sample is read twice in an epoch",
    "reads_used": "every sample that is read is used by that lane in that epoch",
    "read_before_use": "every clip is read by its lane before, or at, the row that uses it",
    "peak_buffer": "peak_buffer_bytes of each lane is exact",
    "buffer_cap": "no lane buffers more than max_buffer_bytes",
    "used_share": "used_share is exact",
    "read_metrics": "read_amplification and sequential_share are exact, by the reads of the lanes",
    "spares": "spares are admitted clips that fit their bucket and were left over in some epoch",
}
"""Rule name to what it says."""

_OF_SAMPLES = [
    "shards_listed",
    "shard_files",
    "admitted_clips",
    "clips_known",
    "clips_admitted",
    "one_shape",
    "once_per_epoch",
    "once_per_step",
    "ledger",
    "reads_whole",
    "reads_once",
    "reads_used",
    "read_before_use",
    "peak_buffer",
    "buffer_cap",
    "used_share",
    "read_metrics",
    "spares",
]
"""Rules that say nothing when the samples are others."""

_MESSAGES_PER_RULE = 5
_CERTIFICATE = "certificate.json"


@dataclass
class VerifyReport:
    """What was found. `broken` holds messages by rule, `skipped` why a rule could not be looked at."""

    meta: PlanMeta
    broken: dict[str, list[str]] = field(default_factory=dict)
    broken_counts: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    other_samples: bool = False
    """The samples given are not those of the plan; rules that need them are not checked."""

    @property
    def ok(self) -> bool:
        """No rule is broken; tars that are not on this machine are no breach."""
        return not self.broken

    def add(self, rule: str, message: str) -> None:
        """Record a breach."""
        assert rule in RULES, rule
        if self.other_samples and rule in _OF_SAMPLES:
            return
        self.broken_counts[rule] = self.broken_counts.get(rule, 0) + 1
        messages = self.broken.setdefault(rule, [])
        if len(messages) < _MESSAGES_PER_RULE:
            messages.append(message)

    def skip(self, rule: str, reason: str) -> None:
        """Record that a rule was not looked at."""
        self.skipped.setdefault(rule, reason)

    def leave_out_samples(self) -> None:
        """From here on only rules that do not need the samples are looked at."""
        self.other_samples = True
        for rule in _OF_SAMPLES:
            self.broken.pop(rule, None)
            self.broken_counts.pop(rule, None)
            self.skipped[rule] = "not checked: these are other samples than the plan's"


def verify_plan(plan: Path, samples: Sequence[Path]) -> VerifyReport:
    """Check every rule. A certificate of an earlier check is removed first: one lies there only if the last check found nothing.

    Raises:
        PlanError: if there is no plan.json of this format; anything else that is wrong is in the report.
    """
    if plan.is_dir():
        (plan / _CERTIFICATE).unlink(missing_ok=True)
    meta = parse_plan_meta(plan)
    report = VerifyReport(meta)
    if meta.plan_hash != plan_hash(meta.model_dump(mode="json")):
        report.add("plan_hash", f"plan.json says {meta.plan_hash[:12]}..., its content gives another hash")
    truth = load_truth(samples, meta, report.add, report.skip)
    if "samples_hash" in report.broken:
        report.leave_out_samples()
    rows = _read(plan / "rows.parquet", "rows", ROWS, meta, report)
    ledger = _read(plan / "ledger.parquet", "ledger", LEDGER, meta, report)
    spares = _read(plan / "spares.parquet", "spares", SPARES, meta, report)
    _check_names(plan, meta, report)
    if rows is None:
        report.add("rows_complete", "rows.parquet cannot be read, so no lane can be checked against it")
    else:
        _check_rows(rows, meta, report)
        _check_lanes(plan, meta, truth, rows, report)
        if ledger is not None and not report.other_samples:
            _check_ledger(ledger, meta, truth, report)
    if spares is not None and not report.other_samples:
        _check_spares(spares, meta, truth, report)
    if not report.other_samples:
        _check_totals(meta, truth, report)
    return report


def _read(path: Path, name: str, schema: pa.Schema, meta: PlanMeta, report: VerifyReport) -> pa.Table | None:
    try:
        table = read_table(path, schema)
    except (SchemaError, OSError, pa.ArrowInvalid) as error:
        report.add("table_hashes", f"{path.name} cannot be read: {error}")
        return None
    if table_hash(table) != meta.table_hashes.get(name):
        report.add("table_hashes", f"{path.name} has another hash than plan.json gives for {name!r}")
    return table


def _check_names(plan: Path, meta: PlanMeta, report: VerifyReport) -> None:
    expected = {"rows", "ledger", "spares"} | {f"lane-{lane:04d}" for lane in range(meta.num_lanes)}
    if set(meta.table_hashes) != expected:
        report.add(
            "table_hashes", f"plan.json hashes {sorted(set(meta.table_hashes) ^ expected)[:4]} too many or too few"
        )
    files = {path.stem for path in (plan / "lanes").glob("*")}
    surplus = sorted(files - expected)
    if surplus:
        report.add("table_hashes", f"lanes/ holds files that the plan does not have: {surplus[:4]}")


def _check_rows(rows: pa.Table, meta: PlanMeta, report: VerifyReport) -> None:
    expected = meta.num_steps * meta.micro_per_step
    if rows.num_rows != expected:
        report.add(
            "rows_complete",
            f"{rows.num_rows} rows, expected {meta.num_steps} steps x {meta.micro_per_step} = {expected}",
        )
        return
    number = np.arange(expected)
    step, micro = rows.column("step").to_numpy(), rows.column("micro").to_numpy()
    wrong = np.flatnonzero((step != number // meta.micro_per_step) | (micro != number % meta.micro_per_step))
    for row in wrong[:_MESSAGES_PER_RULE].tolist():
        report.add("rows_complete", f"row {row} says step {step[row]}, micro {micro[row]}")
    epoch = rows.column("epoch").to_numpy()
    if (np.diff(epoch) < 0).any() or set(epoch.tolist()) != set(range(meta.num_epochs)):
        report.add(
            "rows_complete", f"epochs {sorted(set(epoch.tolist()))[:8]} are not 0 to {meta.num_epochs - 1} in order"
        )


def _check_lanes(plan: Path, meta: PlanMeta, truth: Truth, rows: pa.Table, report: VerifyReport) -> None:
    facts = LaneFacts(meta, rows)
    for lane in progress(range(meta.num_lanes), what="verifying lanes"):
        table = _read(lane_path(plan, lane), f"lane-{lane:04d}", LANE, meta, report)
        if table is None:
            report.add("lane_rows", f"lane {lane}: {lane_path(plan, lane).name} cannot be read")
            continue
        check_lane(lane, table, meta, truth, facts, report.add)
    facts.check_costs(rows, meta, report.add)
    report.counts |= {"lanes": meta.num_lanes, "rows": rows.num_rows, "steps": meta.num_steps, **facts.counts}
    for name, value in facts.read_metrics(truth).items():
        said = meta.metrics.get(name, math.nan)
        if not math.isclose(said, value, rel_tol=1e-12):
            report.add("read_metrics", f"plan.json says {name} {said:.6f}, the lanes' reads give {value:.6f}")
    twice = np.argwhere(truth.uses > 1)
    for epoch, clip in twice.tolist()[: _MESSAGES_PER_RULE + 1]:
        report.add(
            "once_per_epoch", f"clip {truth.name(clip)} is used {truth.uses[epoch, clip]} times in epoch {epoch}"
        )
    for step, clip, times in facts.twice_in_a_step(len(truth.clip_id))[: _MESSAGES_PER_RULE + 1]:
        report.add("once_per_step", f"clip {truth.name(clip)} is used {times} times in step {step}")
    again = np.argwhere(truth.reads > 1)
    for epoch, clip in again.tolist()[: _MESSAGES_PER_RULE + 1]:
        report.add("reads_once", f"clip {truth.name(clip)} is read {truth.reads[epoch, clip]} times in epoch {epoch}")


def _check_ledger(ledger: pa.Table, meta: PlanMeta, truth: Truth, report: VerifyReport) -> None:
    """Left-over and carried clips are those not used, once each; this format's plans repeat nothing within an epoch."""
    epoch = ledger.column("epoch").to_numpy().astype(np.int64)
    clip = truth.find(ledger.column("shard").to_numpy(), ledger.column("ordinal").to_numpy())
    events = ledger.column("event").to_pylist()
    ids = ledger.column("clip_id").to_pylist()
    sides = np.stack([ledger.column(name).to_numpy() for name in ("frames", "height", "width")], axis=1)
    entered = np.zeros(truth.uses.shape, dtype=np.uint16)
    for index in range(ledger.num_rows):
        where = f"ledger row {index} ({ids[index]}, epoch {epoch[index]})"
        known = clip[index] >= 0 and 0 <= epoch[index] < meta.num_epochs
        if not known or truth.clip_id[clip[index]] != ids[index] or (truth.sides[clip[index]] != sides[index]).any():
            report.add("ledger", f"{where}: names no clip and epoch with these facts")
        elif events[index] not in LEDGER_EVENTS or events[index] == "repeated":
            report.add("ledger", f"{where}: event {events[index]!r}, expected left_over or carried")
        else:
            entered[epoch[index], clip[index]] += 1
    used = truth.uses > 0
    for rows, what in (
        (np.argwhere(used & (entered > 0)), "is used, yet the ledger says it was not"),
        (np.argwhere(entered > 1), "is in the ledger more than once"),
        (np.argwhere((entered > 0) & ~truth.admitted), "is in the ledger, but is not admitted"),
        (np.argwhere(~used & (entered == 0) & truth.admitted), "is neither used nor in the ledger"),
    ):
        for number, position in rows.tolist()[: _MESSAGES_PER_RULE + 1]:
            report.add("ledger", f"clip {truth.name(position)} {what} in epoch {number}")
    report.counts["ledger_rows"] = ledger.num_rows


def _check_spares(spares: pa.Table, meta: PlanMeta, truth: Truth, report: VerifyReport) -> None:
    columns: dict[str, Any] = {name: spares.column(name).to_numpy() for name in spares.column_names}
    clip = truth.find(columns["shard"], columns["ordinal"])
    buckets = {entry.bucket for entry in meta.batches}
    for index in range(spares.num_rows):
        frames, height, width = (int(columns[name][index]) for name in ("frames", "height", "width"))
        where = f"spare {index} of lane {columns['lane'][index]}, bucket {frames}x{height}x{width}"
        position = int(clip[index])
        if position < 0 or not 0 <= columns["lane"][index] < meta.num_lanes:
            report.add("spares", f"{where}: no such clip or lane")
            continue
        own = truth.sides[position]
        if f"{frames}x{height}x{width}" not in buckets or own[0] < frames or (own[1], own[2]) != (height, width):
            report.add("spares", f"{where}: clip {truth.name(position)} of {'x'.join(map(str, own))} does not fit")
        if not truth.admitted[position] or (truth.uses[:, position] > 0).all():
            report.add("spares", f"{where}: clip {truth.name(position)} is not admitted, or never left over")
    report.counts["spares"] = spares.num_rows


def _check_totals(meta: PlanMeta, truth: Truth, report: VerifyReport) -> None:
    admitted = int(truth.admitted.sum())
    if admitted != meta.admitted_clips:
        report.add(
            "admitted_clips",
            f"{admitted} samples are admitted at {meta.admission}, plan.json says {meta.admitted_clips}",
        )
    found = {f"{a}x{b}x{c}": 0 for a, b, c in truth.sides[truth.admitted].tolist()}
    for a, b, c in truth.sides[truth.admitted].tolist():
        found[f"{a}x{b}x{c}"] += 1
    for entry in meta.batches:
        if found.pop(entry.bucket, 0) != entry.clips_in_set:
            report.add(
                "admitted_clips",
                f"the batch table gives bucket {entry.bucket} {entry.clips_in_set} clips, the samples do not",
            )
    if found:
        report.add("admitted_clips", f"the batch table lacks buckets {sorted(found)[:4]}")
    used = int((truth.uses > 0).sum())
    share = used / max(1, admitted * meta.num_epochs)
    if abs(share - meta.used_share) > 1e-12:
        report.add(
            "used_share", f"plan.json says {meta.used_share:.6f}, the lanes use {used} clips, that is {share:.6f}"
        )
    report.counts |= {"admitted_clips": admitted, "epochs": meta.num_epochs, "uses": used}
    report.bounds |= {
        "used_share": share,
        "used_share_upper_bound": truth.share_bound(meta),
        "peak_buffer_bytes": float(max(meta.peak_buffer_bytes, default=0)),
        "max_buffer_bytes": float(meta.max_buffer_bytes),
    }


def write_certificate(plan: Path, report: VerifyReport) -> Path:
    """Write what was proved; only for a report that is ok."""
    assert report.ok
    path = plan / _CERTIFICATE
    write_json(
        path,
        {
            "format_version": 1,
            "plan_hash": report.meta.plan_hash,
            "samples_hashes": {str(index): item.samples_hash for index, item in enumerate(report.meta.sets)},
            "rules_that_hold": {name: text for name, text in RULES.items() if name not in report.skipped},
            "rules_not_checked": report.skipped,
            "counts": report.counts,
            "bounds": report.bounds,
            "bound_formula": "used_share_upper_bound: min(epochs x sum over sizes of u(n), num_steps x K x lanes x largest clips_per_lane) / "
            "(epochs x admitted clips), n the admitted clips of a size; u(n) is floor(n / lanes) x lanes under `uniform`, n under `tiers`",
        },
    )
    return path
