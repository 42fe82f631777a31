"""Does a plan keep its promises? Checked from the files alone; shares no code with the builder, only schemas.

Every rule has a name; all are checked and listed, so that a broken plan says everything at once. Samples are read row group by row group and lanes
one by one: memory holds about 70 bytes a clip, two counters per clip and epoch, 8 bytes a use for the sources of steps, and the lanes that are being
read. Price: the samples table is read and hashed again, which at millions of clips is most of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from planner.proof.bounds import time_bounds, used_share_bound
from planner.proof.continued import check_continues
from planner.proof.figures import check_figures, check_read_figures
from planner.proof.lanes import LaneChecks, check_lanes
from planner.proof.ledger import LedgerFacts, check_ledger, check_spares, load_ledger, narrow_to_accounted
from planner.proof.report import (
    CERTIFICATE,
    MOST_MESSAGES,
    RULES,
    VerifyReport,
    advice,
    held_line,
    report_lines,
    write_certificate,
)
from planner.proof.stated import check_settings, check_table_settings
from planner.proof.truth import Truth, load_truth
from schemas.buckets import Bucket
from schemas.errors import SchemaError
from schemas.hashing import table_hash
from schemas.plan import LEDGER, ROWS, SPARES, PlanMeta, parse_plan_meta, plan_hash
from schemas.tables import read_table

__all__ = ["RULES", "VerifyReport", "advice", "held_line", "report_lines", "verify_plan", "write_certificate"]


def verify_plan(
    plan: Path, samples: Sequence[Path], *, scores: Path | None = None, continues: Sequence[Path] = ()
) -> VerifyReport:
    """Check every rule. A certificate of an earlier check is removed first: one lies there only if the last check found nothing.

    Args:
        plan: the folder.
        samples: the plan's sets, each a folder or its samples.parquet.
        scores: the table that rules on scores look at; without it those rules are skipped.
        continues: the plans that were run before this one, oldest first; without them a plan that continues another is checked by itself.

    Raises:
        PlanError: if there is no plan.json of this format; anything else that is wrong is in the report.
    """
    if plan.is_dir():
        (plan / CERTIFICATE).unlink(missing_ok=True)
    meta = parse_plan_meta(plan)
    report = VerifyReport(meta)
    if meta.plan_hash != (digest := plan_hash(meta.model_dump(mode="json"))):
        report.add("plan_hash", f"plan.json says {meta.plan_hash[:12]}..., its content gives {digest[:12]}...")
    truth = load_truth(samples, meta, scores, report)
    if "samples_hash" in report.broken:
        report.leave_out_samples()
    check_continues(meta, continues, truth, report)
    rows = _read(plan, "rows", ROWS, meta, report)
    ledger = _read(plan, "ledger", LEDGER, meta, report)
    spares = _read(plan, "spares", SPARES, meta, report)
    _check_names(plan, meta, report)
    _check_batches(meta, report)
    check_settings(meta, report)
    if rows is None:
        report.add("rows_complete", "rows.parquet cannot be read, so no lane can be checked against it")
        report.leave_out_tables("rows.parquet cannot be read")
        return report
    _check_rows(rows, meta, report)
    facts = LedgerFacts.empty() if ledger is None else load_ledger(ledger, meta, truth, report)
    watched = np.zeros(truth.num_clips, dtype=bool)
    watched[facts.clip[facts.repeated]] = True
    checks = LaneChecks(meta, truth, rows, watched, report)
    check_lanes(plan, checks, meta, truth, report)
    check_read_figures(meta, truth, checks, report)
    check_table_settings(meta, spares, checks.tallies.shortened, report)
    report.counts |= {"lanes": meta.num_lanes, "rows": rows.num_rows, "steps": meta.num_steps, **checks.counts}
    if not report.other_samples:
        if not truth.rules_known:
            narrow_to_accounted(facts, truth)
        check_ledger(facts, meta, truth, report, complete=ledger is not None)
        if spares is not None:
            check_spares(spares, meta, truth, report)
        _check_totals(meta, truth, report)
    check_figures(meta, truth, checks, report)
    report.bounds |= {
        **{name: float(value) for name, value in checks.peaks.items()},
        "max_buffer_bytes": float(meta.max_buffer_bytes),
        **({} if meta.max_buffer_clips is None else {"max_buffer_clips": float(meta.max_buffer_clips)}),
        **({} if meta.max_open_shards is None else {"max_open_shards": float(meta.max_open_shards)}),
        "opens_per_shard": checks.opens_per_shard,
        **time_bounds(meta, checks),
    }
    return report


def _read(plan: Path, name: str, schema: pa.Schema, meta: PlanMeta, report: VerifyReport) -> pa.Table | None:
    path = plan / f"{name}.parquet"
    try:
        table = read_table(path, schema)
    except (SchemaError, OSError, pa.ArrowInvalid) as error:
        report.add("table_hashes", f"{path.name} cannot be read: {error}")
        return None
    if (digest := table_hash(table)) != meta.table_hashes.get(name):
        said = str(meta.table_hashes.get(name))
        report.add(
            "table_hashes", f"{path.name} has hash {digest[:12]}..., plan.json gives {said[:12]}... for {name!r}"
        )
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


def _check_batches(meta: PlanMeta, report: VerifyReport) -> None:
    """Tokens and memory of each line of the batch table."""
    named = meta.config.get("batch_clips") or {}
    for entry in meta.batches:
        tokens = entry.clips_per_lane * Bucket.parse(entry.bucket).video_tokens
        limit = meta.max_tokens_per_micro_batch
        if limit is not None and tokens > limit and entry.bucket not in named:
            report.add(
                "batch_memory",
                f"{entry.clips_per_lane} clips of bucket {entry.bucket} are {tokens} video tokens, max_tokens_per_micro_batch is {limit}",
            )
        most, needs = meta.max_memory_bytes, entry.memory_bytes
        if most is not None and needs is not None and needs > most:
            report.add(
                "batch_memory",
                f"{entry.clips_per_lane} clips of bucket {entry.bucket} take {needs} bytes of memory, max_memory_bytes is {most}",
            )


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
    right = (step == meta.first_step + number // meta.micro_per_step) & (micro == number % meta.micro_per_step)
    wrong = np.flatnonzero(~right)
    report.add_first(
        "rows_complete",
        [
            f"row {row} says step {step[row]}, micro {micro[row]}, expected step {meta.first_step + row // meta.micro_per_step}, "
            f"micro {row % meta.micro_per_step}"
            for row in wrong[:MOST_MESSAGES].tolist()
        ],
        len(wrong),
    )
    epoch = rows.column("epoch").to_numpy()
    found = np.unique(epoch)
    if (np.diff(epoch) < 0).any() or not np.array_equal(found, np.array(meta.epochs, found.dtype)):
        report.add(
            "rows_complete",
            f"epochs {found[:8].tolist()} are not {meta.first_epoch} to {meta.first_epoch + meta.num_epochs - 1} in order",
        )


def _check_totals(meta: PlanMeta, truth: Truth, report: VerifyReport) -> None:
    """Admitted clips, per bucket and in all, and the share of them that is used."""
    admitted = truth.admitted
    count = int(admitted.sum())
    whole = truth.rules_known or truth.before_known or meta.num_epochs > 1
    if not whole:
        report.skip(
            "admitted_clips", "neither the scores that rules look at nor the plan that this one continues is given"
        )
    elif count != meta.admitted_clips:
        report.add("admitted_clips", f"{count} samples are admitted, plan.json says {meta.admitted_clips}")
    in_set = np.bincount(truth.code[admitted], minlength=len(truth.sizes)).tolist()
    found = {"x".join(map(str, size)): number for size, number in zip(truth.sizes, in_set, strict=True) if number}
    for entry in meta.batches if whole else ():
        number = found.pop(entry.bucket, 0)
        if number != entry.clips_in_set:
            report.add(
                "admitted_clips",
                f"the batch table gives bucket {entry.bucket} {entry.clips_in_set} clips, the samples {number}",
            )
    if found and whole:
        report.add("admitted_clips", f"the batch table lacks buckets {sorted(found)[:4]}")
    used = sum(int((uses > 0).sum()) for uses in truth.uses)
    total = (count if whole else meta.admitted_clips) * meta.num_epochs
    share = used / max(1, total)
    if abs(share - meta.used_share) > 1e-12:
        report.add(
            "used_share",
            f"plan.json says {meta.used_share:.6f}, the lanes use {used} of {total} clips, that is {share:.6f}",
        )
    report.counts |= {"admitted_clips": count, "epochs": meta.num_epochs, "clips_used": used}
    report.bounds["used_share"] = share
    if truth.before_known:
        report.bounds["used_share_upper_bound"] = used_share_bound(meta, truth)
