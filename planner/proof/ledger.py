"""The ledger and the spares against what the lanes use: an admitted clip of an epoch is used or in the ledger, and its further uses are there too.

Counted per epoch over all clips at once. In the first epoch of a plan that continues others, their uses count; where those plans were not given, the
ledger is only held against this plan's own uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from planner.proof.report import MOST_MESSAGES, VerifyReport
from planner.proof.truth import Truth
from schemas.plan import LEDGER_EVENTS, PlanMeta

__all__ = ["LedgerFacts", "check_ledger", "check_spares", "load_ledger", "narrow_to_accounted"]

_REPEATED = "repeated"


@dataclass(frozen=True)
class LedgerFacts:
    """The rows of the ledger that name a clip of the samples and an epoch of the plan."""

    epoch: np.ndarray
    """0 for the plan's first."""
    clip: np.ndarray
    repeated: np.ndarray
    """True for further uses, False for clips that are not used."""

    @classmethod
    def empty(cls) -> LedgerFacts:
        """No rows."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool))

    def counts(self, epoch: int, num_clips: int, *, repeated: bool) -> np.ndarray:
        """Rows of an epoch per clip, up to 255."""
        clips = self.clip[(self.epoch == epoch) & (self.repeated == repeated)]
        distinct, times = np.unique(clips, return_counts=True)
        found = np.zeros(num_clips, np.uint8)
        found[distinct] = np.minimum(times, 255)
        return found


def load_ledger(table: pa.Table, meta: PlanMeta, truth: Truth, report: VerifyReport) -> LedgerFacts:
    """Check each row's own facts, and keep the rows that have them right."""
    clip = truth.find(*(table.column(name).to_numpy().astype(np.int64) for name in ("shard", "ordinal")))
    epoch = table.column("epoch").to_numpy().astype(np.int64) - meta.first_epoch
    good = (clip >= 0) & (epoch >= 0) & (epoch < meta.num_epochs)
    at = np.flatnonzero(good)
    if len(at):
        same_id = pc.equal(table.column("clip_id").take(pa.array(at)), truth.ids(clip[at]))
        sides = np.stack([table.column(name).to_numpy()[at] for name in ("frames", "height", "width")], axis=1)
        own = np.array(truth.sizes)[truth.code[clip[at]]]
        good[at] = _numpy(same_id) & (own == sides).all(axis=1)
    event = table.column("event")
    known = _numpy(pc.is_in(event, value_set=pa.array(LEDGER_EVENTS, event.type)))
    repeated = _numpy(pc.equal(event, _REPEATED))
    if meta.max_uses_per_epoch <= 1:
        known &= ~repeated
    for wrong, what in (
        (~good, "names no clip and epoch with these facts"),
        (
            good & ~known,
            f"has an event other than {', '.join(LEDGER_EVENTS if meta.max_uses_per_epoch > 1 else LEDGER_EVENTS[:2])}",
        ),
    ):
        rows = np.flatnonzero(wrong)
        report.add_first("ledger", [f"{_row(table, row)} {what}" for row in rows[:MOST_MESSAGES].tolist()], len(rows))
    kept = good & known
    report.counts["ledger_rows"] = table.num_rows
    return LedgerFacts(epoch[kept], clip[kept], repeated[kept])


def narrow_to_accounted(ledger: LedgerFacts, truth: Truth) -> None:
    """Where rules could not be looked at, take as admitted what some epoch uses or has in the ledger; then each epoch must account for all of it."""
    accounted = truth.used_before > 0
    for epoch in range(len(truth.uses)):
        accounted |= truth.uses[epoch] > 0
        accounted |= ledger.counts(epoch, truth.num_clips, repeated=False) > 0
    truth.meets &= accounted


def check_ledger(ledger: LedgerFacts, meta: PlanMeta, truth: Truth, report: VerifyReport, *, complete: bool) -> None:
    """Uses against the ledger, epoch by epoch; `complete` is False where the ledger could not be read."""
    admitted = truth.admitted
    for epoch in range(meta.num_epochs):
        total = truth.uses_of(epoch)
        out = ledger.counts(epoch, truth.num_clips, repeated=False)
        again = ledger.counts(epoch, truth.num_clips, repeated=True)
        number = epoch + meta.first_epoch
        open_start = epoch == 0 and not truth.before_known
        _check_once(total, truth.uses[epoch], again, number, meta, truth, report, open_start=open_start)
        used = total > 0
        findings = [
            (used & (out > 0), "is used, yet the ledger says it was not"),
            (out > 1, "is in the ledger more than once"),
            (((out > 0) | (again > 0)) & ~admitted, "is in the ledger, but is not admitted"),
        ]
        if complete and not open_start:
            findings.append((~used & (out == 0) & admitted, "is neither used nor in the ledger"))
        for mask, what in findings:
            clips = np.flatnonzero(mask)
            report.add_first(
                "ledger",
                [f"clip {truth.name(clip)} {what} in epoch {number}" for clip in clips[:MOST_MESSAGES].tolist()],
                len(clips),
            )


def _check_once(
    total: np.ndarray,
    own: np.ndarray,
    again: np.ndarray,
    number: int,
    meta: PlanMeta,
    truth: Truth,
    report: VerifyReport,
    *,
    open_start: bool,
) -> None:
    """One use, and one more for each `repeated` row; a use in a continued plan is the first one."""
    first_here = (own > 0) & (total == own)
    extra = own - first_here
    unknown_first = open_start & (own > 0) & (again == own)
    too_often = ((extra > again) & ~unknown_first) | (total > meta.max_uses_per_epoch)
    for rule, mask, say in (
        ("once_per_epoch", too_often, True),
        ("ledger", (extra != again) & ~unknown_first & (meta.max_uses_per_epoch > 1), False),
        ("ledger", (again > extra) & ~unknown_first & (meta.max_uses_per_epoch <= 1), False),
    ):
        clips = np.flatnonzero(mask)
        tail = f", max_uses_per_epoch is {meta.max_uses_per_epoch}" if say else ""
        report.add_first(
            rule,
            [
                f"clip {truth.name(clip)} is used {total[clip]} times in epoch {number}, the ledger repeats it {again[clip]} times{tail}"
                for clip in clips[:MOST_MESSAGES].tolist()
            ],
            len(clips),
        )


def check_spares(spares: pa.Table, meta: PlanMeta, truth: Truth, report: VerifyReport) -> None:
    """Spares fit the bucket that they stand in for, and are not used in every epoch anyway."""
    columns: dict[str, Any] = {name: spares.column(name).to_numpy().astype(np.int64) for name in spares.column_names}
    clip = truth.find(columns["shard"], columns["ordinal"])
    buckets = {entry.bucket for entry in meta.batches}
    always = np.ones(truth.num_clips, dtype=bool)
    for epoch in range(len(truth.uses)):
        always &= truth.uses_of(epoch) > 0
    admitted = truth.admitted
    for index in range(spares.num_rows):
        lane, frames, height, width = (int(columns[name][index]) for name in ("lane", "frames", "height", "width"))
        where = f"spare {index} of lane {lane}, bucket {frames}x{height}x{width}"
        position = int(clip[index])
        if position < 0 or not 0 <= lane < meta.num_lanes:
            report.add("spares", f"{where}: no such clip or lane")
            continue
        own = truth.sizes[truth.code[position]]
        if f"{frames}x{height}x{width}" not in buckets or own[0] < frames or own[1:] != (height, width):
            report.add("spares", f"{where}: clip {truth.name(position)} of {truth.size(position)} does not fit")
        if not admitted[position] or always[position]:
            report.add("spares", f"{where}: clip {truth.name(position)} is not admitted, or never left over")
    report.counts["spares"] = spares.num_rows


def _row(table: pa.Table, row: int) -> str:
    values = table.slice(row, 1).to_pylist()[0]
    return f"ledger row {row} ({values['clip_id']}, epoch {values['epoch']}, event {values['event']!r})"


def _numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.array(array.to_numpy(zero_copy_only=False))
