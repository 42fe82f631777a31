"""A plan that continues others: do they fit together, and what did the earlier ones use of the epoch that the later one finishes?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from planner.proof.lane_tables import lane_tables
from planner.proof.report import VerifyReport
from planner.proof.truth import Truth
from schemas.errors import DataError
from schemas.plan import ROWS, PlanMeta, parse_plan_meta, plan_hash, read_plan_table

__all__ = ["check_continues"]


def check_continues(meta: PlanMeta, parents: Sequence[Path], truth: Truth, report: VerifyReport) -> None:
    """Check that the chain fits, and count into `truth.used_before` what its steps used of this plan's first epoch.

    `parents` are the plans that were run before, oldest first; the last one is the plan that `meta` continues.
    """
    taken = meta.continues
    if taken is None:
        if meta.first_step or meta.first_epoch:
            report.add(
                "continues",
                f"the plan begins at step {meta.first_step} of epoch {meta.first_epoch}, but continues none",
            )
        if parents:
            report.add("continues", f"--continues names {parents[-1]}, but this plan continues none")
        return
    truth.before_known = False
    if meta.first_step != taken.from_step:
        report.add(
            "continues", f"the plan begins at step {meta.first_step}, and continues another from step {taken.from_step}"
        )
    if not parents:
        report.skip(
            "continues",
            f"the plan continues plan {taken.plan_hash[:12]} from step {taken.from_step}; give that plan's folder: --continues PLAN. "
            f"Until then uses and ledger of epoch {meta.first_epoch} are checked within this plan alone",
        )
        return
    metas = [parse_plan_meta(parent) for parent in parents]
    before = len(report.broken.get("continues", []))
    for path, one in zip(parents, metas, strict=True):
        if one.plan_hash != plan_hash(one.model_dump(mode="json")):
            report.add("continues", f"{path}: plan_hash does not fit its content")
    for (path, older), newer in zip(zip(parents, metas, strict=True), [*metas[1:], meta], strict=True):
        _check_link(path, older, newer, report)
    if len(report.broken.get("continues", [])) > before:
        return
    oldest = metas[0]
    if oldest.continues is not None and oldest.first_epoch == meta.first_epoch:
        report.skip(
            "continues",
            f"{parents[0]} itself continues plan {oldest.continues.plan_hash[:12]} within epoch {meta.first_epoch}; "
            "give that one too, before it: --continues OLDER --continues NEWER",
        )
        return
    limits = [newer.first_step for _, newer in pairwise([*metas, meta])]
    held = [
        _mark_used(path, one, limit, meta.first_epoch, truth, report)
        for path, one, limit in zip(parents, metas, limits, strict=True)
    ]
    truth.before_known = all(held)
    report.counts["uses_before"] = int(truth.used_before.sum())


def _check_link(path: Path, older: PlanMeta, newer: PlanMeta, report: VerifyReport) -> None:
    """Does `newer` continue `older`?"""
    taken = newer.continues
    if taken is None or taken.plan_hash != older.plan_hash:
        says = "none" if taken is None else f"plan {taken.plan_hash[:12]}"
        report.add(
            "continues",
            f"{path} is plan {older.plan_hash[:12]}, the one after it continues {says}; give the plans oldest first",
        )
        return
    if taken.num_lanes != older.num_lanes:
        report.add(
            "continues", f"{path} has {older.num_lanes} lanes, the plan that continues it says {taken.num_lanes}"
        )
    last = older.first_step + older.num_steps
    if not older.first_step <= taken.from_step <= last or newer.first_step != taken.from_step:
        report.add(
            "continues",
            f"{path} has steps {older.first_step} to {last - 1}; the plan that continues it says from_step {taken.from_step} "
            f"and begins at step {newer.first_step}",
        )
    for name in ("admission", "rules", "scores_hash"):
        if getattr(older, name) != getattr(newer, name):
            report.add(
                "continues",
                f"{path} has {name} {getattr(older, name)}, the plan that continues it {getattr(newer, name)}",
            )
    if (older.config.get("frames") or {}) != (newer.config.get("frames") or {}):
        report.add(
            "continues", f"{path} plans its sets at other lengths than the plan that continues it (config: frames)"
        )
    if [(item.samples_hash, item.first_shard) for item in older.sets] != [
        (item.samples_hash, item.first_shard) for item in newer.sets
    ]:
        report.add(
            "continues", f"{path} was built from other samples than the plan that continues it, or in another order"
        )


def _mark_used(path: Path, meta: PlanMeta, limit: int, epoch: int, truth: Truth, report: VerifyReport) -> bool:
    """Count the uses of steps before `limit` of the epoch; False if that cannot be known."""
    try:
        rows = read_plan_table(path, "rows", ROWS, meta)
    except DataError as error:
        report.add("continues", f"{path}: {error}")
        return False
    _check_epoch(path, rows.column("step").to_numpy(), rows.column("epoch").to_numpy(), limit, epoch, report)
    held = True
    for lane, item in enumerate(lane_tables(path, meta.num_lanes)):
        name = f"lane-{lane:04d}"
        if isinstance(item, str) or item[1] != meta.table_hashes.get(name):
            report.add("continues", f"{path}: {name} cannot be read, or is not the one that its plan.json hashes")
            held = False
            continue
        table = item[0]
        row_use = table.row_of_use
        taken = (table.epoch[row_use] == epoch) & (table.step[row_use] < limit)
        clip = truth.find(table.shard[taken], table.ordinal[taken])
        if (clip < 0).any():
            report.add("continues", f"{path}: {name} names {int((clip < 0).sum())} clips that the samples do not have")
        np.add.at(truth.used_before, clip[clip >= 0], 1)
    return held


def _check_epoch(
    path: Path, step: np.ndarray, epochs: np.ndarray, limit: int, first_epoch: int, report: VerifyReport
) -> None:
    """The epoch that is begun with is the one that was cut, or the next one after a whole one."""
    after, before = epochs[step >= limit], epochs[step < limit]
    fits = {int(after[0])} if len(after) else {int(before[-1]), int(before[-1]) + 1} if len(before) else {first_epoch}
    if first_epoch not in fits:
        report.add(
            "continues",
            f"{path} is left in epoch {' or '.join(map(str, sorted(fits)))} at step {limit}, the plan after it begins with epoch {first_epoch}",
        )
