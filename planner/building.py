"""Samples and settings to a plan folder: select, place, order, schedule epoch by epoch, then write everything at once.

Each epoch ends on a full step: a step over two epochs could name a clip twice, with the same noise, time and caption, since a trainer's randomness
hangs on (seed, step, clip). Price: up to K-1 rows of each epoch stay out; they are small ones, take turns,
and stand in the ledger. The folder appears whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa

from planner.batches import BatchLine, batch_table
from planner.costs import cost_model
from planner.epochs import EpochPlan, plan_epoch, row_shape
from planner.measures import FORMULAS, ReadTally, measure
from planner.samples import Corpus
from planner.schedule import RowStarts
from planner.selection import Selection
from planner.settings import PlanConfig
from planner.writing import lane_table, ledger_table, rows_table, spares_table
from schemas.command import progress
from schemas.errors import PlanError, UsageError
from schemas.files import TEMPORARY_PREFIX, atomic_folder, flush_to_disk, write_json
from schemas.hashing import table_hash
from schemas.plan import (
    LANE,
    LEDGER,
    PLAN_FORMAT_VERSION,
    ROWS,
    SPARES,
    BatchEntry,
    PlanMeta,
    lane_path,
    plan_hash,
)
from schemas.tables import write_table

__all__ = ["PlannedRun", "build_plan", "write_plan"]


@dataclass(frozen=True)
class PlannedRun:
    """A whole plan in memory."""

    corpus: Corpus
    config: PlanConfig
    table: tuple[BatchLine, ...]
    starts: tuple[RowStarts, ...]
    epochs: tuple[EpochPlan, ...]
    constructive: tuple[EpochPlan, ...]
    """The same epochs without annealing."""
    used_per_epoch: tuple[int, ...]
    shortened: int
    """Uses of a clip below its longest bucket."""
    uses: np.ndarray
    """Per clip, over the plan."""
    ledger: pa.Table

    @property
    def num_steps(self) -> int:
        """Full optimizer steps."""
        return sum(start.num_rows for start in self.starts) // self.config.micro_per_step


def build_plan(corpus: Corpus, config: PlanConfig) -> PlannedRun:
    """Plan every epoch.

    Raises:
        PlanError: if the data fill no row or no step, or the buffer cap cannot hold.
    """
    counts = np.bincount(corpus.bucket, minlength=len(corpus.buckets))
    table = batch_table(dict(zip(corpus.buckets, counts.tolist(), strict=True)), config, cost_model(config, None))
    shape = row_shape(table, config.policy)
    starts, end_reason = _row_starts(int(shape.rows.sum()), config)
    selection = Selection(corpus, table, config.lanes, config.seed, shorten=config.shorten_left_over)
    epochs: list[EpochPlan] = []
    constructive: list[EpochPlan] = []
    entries: list[tuple[int, np.ndarray, str]] = []
    used_per_epoch: list[int] = []
    shortened = 0
    rows_by_group = np.bincount(shape.group, shape.rows).astype(np.int64)
    dropped = np.zeros_like(rows_by_group)
    for number, start in progress(list(enumerate(starts)), what="planning epochs"):
        chosen = selection.choose(number)
        before, plan = plan_epoch(corpus, chosen, shape, config, number, start, dropped)
        used = np.sort(np.concatenate([lane.clips for lane in plan.lanes]))
        selection.record(used, chosen)
        whole = start.num_rows == starts[0].num_rows
        entries.extend(_left_over(number, chosen, used, config.lanes, _step_reason(config) if whole else end_reason))
        shortened += int((chosen[used] != selection.native[used]).sum())
        used_per_epoch.append(len(used))
        epochs.append(plan)
        constructive.append(before)
        dropped += rows_by_group - np.bincount(shape.group[plan.lane_rows[0]], minlength=len(dropped))
    return PlannedRun(
        corpus=corpus,
        config=config,
        table=table,
        starts=starts,
        epochs=tuple(epochs),
        constructive=tuple(constructive),
        used_per_epoch=tuple(used_per_epoch),
        shortened=shortened,
        uses=selection.uses,
        ledger=ledger_table(entries, corpus),
    )


def _step_reason(config: PlanConfig) -> str:
    return f"its row does not fill a step of {config.micro_per_step} rows within the epoch"


def _row_starts(rows_per_epoch: int, config: PlanConfig) -> tuple[tuple[RowStarts, ...], str]:
    """Rows of each epoch, whole steps only, and why the last one may stop short."""
    per_step = config.micro_per_step
    full = rows_per_epoch // per_step * per_step
    if full == 0:
        raise PlanError(
            f"an epoch of {rows_per_epoch} rows fills no step of {per_step} rows, and a step over two epochs would name clips twice; "
            f"set micro_per_step to at most {rows_per_epoch}, make micro-batches smaller (config: batch_clips,"
            " max_tokens_per_micro_batch), or add data"
        )
    most = None if config.max_steps is None else config.max_steps * per_step
    if config.epochs is None:
        assert most is not None
        total = most
    else:
        total = config.epochs * full if most is None else min(most, config.epochs * full)
    firsts = range(0, total, full)
    reason = f"the plan ends after max_steps {config.max_steps}"
    return tuple(RowStarts(first, min(full, total - first), per_step) for first in firsts), reason


def _left_over(
    epoch: int, chosen: np.ndarray, used: np.ndarray, lanes: int, end_reason: str
) -> Iterator[tuple[int, np.ndarray, str]]:
    unused = np.ones(len(chosen), dtype=bool)
    unused[used] = False
    no_row = np.flatnonzero(unused & (chosen < 0))
    if len(no_row):
        yield epoch, no_row, f"too few clips of this size were left for a row of {lanes} lanes"
    no_step = np.flatnonzero(unused & (chosen >= 0))
    if len(no_step):
        yield epoch, no_step, end_reason


def write_plan(run: PlannedRun, output: Path, *, overwrite: bool = False) -> PlanMeta:
    """Write the folder and return its `plan.json`.

    Raises:
        UsageError: if `output` exists and may not be replaced.
    """
    refuse_existing(output, overwrite=overwrite)
    with _replacing(output) as folder:
        hashes: dict[str, str] = {}

        def write(name: str, path: Path, table: pa.Table, schema: pa.Schema) -> None:
            write_table(path, table, schema)
            hashes[name] = table_hash(table)

        write("rows", folder / "rows.parquet", rows_table(run.epochs, run.starts, run.table), ROWS)
        write("ledger", folder / "ledger.parquet", run.ledger, LEDGER)
        left = len(run.epochs) - run.uses
        spares = spares_table(run.corpus, run.table, left, run.epochs, run.config.spares_per_bucket)
        write("spares", folder / "spares.parquet", spares, SPARES)
        reads = ReadTally()
        for lane in progress(range(run.config.lanes), what="writing lanes"):
            table = lane_table(lane, run.epochs, run.starts, run.table, run.corpus)
            write(f"lane-{lane:04d}", lane_path(folder, lane), table, LANE)
            reads.add(table)
        values = _meta_values(run, hashes, reads)
        values["plan_hash"] = plan_hash(values)
        write_json(folder / "plan.json", values)
    return PlanMeta.model_validate(values)


def refuse_existing(output: Path, *, overwrite: bool) -> None:
    """UsageError unless `output` is free, or is a plan that may be replaced."""
    if not output.exists():
        return
    if not overwrite:
        raise UsageError(
            f"--output {output} exists already; give another folder, or --overwrite to replace the plan there"
        )
    if not (output / "plan.json").is_file() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(
            f"--output {output} exists and is no plan (it has no plan.json), so --overwrite does not remove it; give another folder"
        )


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `output` once it is whole and on disk; the plan that was there stays until then."""
    if not output.exists():
        with atomic_folder(output) as folder:
            yield folder
        return
    mark = f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid4().hex[:8]}"
    new, old = (output.parent / f"{mark}-{age}-{output.name}" for age in ("new", "old"))
    try:
        with atomic_folder(new) as folder:
            yield folder
        os.rename(output, old)
        try:
            os.rename(new, output)
        except BaseException:
            os.rename(old, output)
            raise
        flush_to_disk(output.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old)


def _meta_values(run: PlannedRun, hashes: dict[str, str], reads: ReadTally) -> dict[str, Any]:
    """`plan.json` but for its hash, in JSON form."""
    config, corpus = run.config, run.corpus
    full_rows = sum(line.rows_per_epoch for line in run.table) // config.micro_per_step * config.micro_per_step
    metrics = measure(
        run.epochs, run.constructive, run.used_per_epoch, corpus, run.uses, reads, run.shortened, full_rows
    )
    meta = PlanMeta(
        format_version=PLAN_FORMAT_VERSION,
        plan_hash="",
        table_hashes=hashes,
        num_lanes=config.lanes,
        micro_per_step=config.micro_per_step,
        num_steps=run.num_steps,
        num_epochs=len(run.epochs),
        policy=config.policy,
        admission=config.admission,
        seed=config.seed,
        sets=corpus.sets,
        batches=tuple(_batch_entry(line) for line in run.table),
        cost_model=cost_model(config, None).words,
        admitted_clips=corpus.num_clips,
        used_share=sum(run.used_per_epoch) / (corpus.num_clips * len(run.epochs)),
        peak_buffer_bytes=_peaks(run.epochs),
        max_buffer_bytes=config.max_buffer_bytes,
        metrics=metrics,
        formulas={name: FORMULAS[name.split("/")[0]] for name in metrics},
        config=config.model_dump(mode="json"),
        created_by=f"reelyard {version('reelyard')}",
    )
    return meta.model_dump(mode="json")


def _peaks(epochs: Sequence[EpochPlan]) -> tuple[int, ...]:
    return tuple(int(peak) for peak in np.max([epoch.peaks for epoch in epochs], axis=0))


def _batch_entry(line: BatchLine) -> BatchEntry:
    return BatchEntry(
        bucket=str(line.bucket),
        clips_per_lane=line.clips_per_lane,
        tier=line.tier,
        predicted_seconds=line.seconds,
        clips_in_set=line.clips_in_set,
    )
