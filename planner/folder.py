"""A planned run to a plan folder, which appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow.compute as pc

from planner.building import PlannedRun
from planner.ledger import spares_table
from planner.measures import FORMULAS, measure
from planner.schedule.kernels import on_threads
from planner.writing import Numbering, lane_table, rows_table
from schemas.command import say
from schemas.errors import UsageError
from schemas.files import TEMPORARY_PREFIX, atomic_folder, flush_to_disk, write_json
from schemas.hashing import table_hash
from schemas.plan import LEDGER, PLAN_FORMAT_VERSION, ROWS, SPARES, BatchEntry, PlanMeta, plan_hash, write_lane
from schemas.tables import write_table

__all__ = ["refuse_existing", "write_plan"]


def write_plan(run: PlannedRun, output: Path, *, overwrite: bool = False) -> PlanMeta:
    """Write the folder and return its `plan.json`.

    Raises:
        UsageError: if `output` exists and may not be replaced.
    """
    refuse_existing(output, overwrite=overwrite)
    numbering = Numbering(run.first_step, run.config.micro_per_step)
    with _replacing(output) as folder:
        spares = spares_table(run.corpus, run.lines, run.left_over, run.epochs, run.config.spares_per_bucket)
        hashes: dict[str, str] = {}
        for name, table, schema in (
            ("rows", rows_table(run.epochs, run.lines, numbering), ROWS),
            ("ledger", run.ledger, LEDGER),
            ("spares", spares, SPARES),
        ):
            write_table(folder / f"{name}.parquet", table, schema)
            hashes[name] = table_hash(table)
        say(f"writing {run.config.lanes} lanes")

        def write(lane: int) -> tuple[str, int]:
            table = lane_table(lane, run.epochs, run.lines, run.corpus, numbering)
            write_lane(folder, lane, table)
            return table_hash(table), int(pc.sum(pc.list_value_length(table.column("reads"))).as_py() or 0)

        written = on_threads(write, range(run.config.lanes), what="writing lanes")
        hashes |= {f"lane-{lane:04d}": digest for lane, (digest, _) in enumerate(written)}
        values = _meta_values(run, hashes, sum(ranges for _, ranges in written))
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


def _meta_values(run: PlannedRun, hashes: dict[str, str], num_read_ranges: int) -> dict[str, Any]:
    """`plan.json` but for its hash, in JSON form."""
    config, corpus, epochs = run.config, run.corpus, run.epochs
    metrics = measure(run, num_read_ranges)
    meta = PlanMeta(
        format_version=PLAN_FORMAT_VERSION,
        plan_hash="",
        table_hashes=hashes,
        num_lanes=config.lanes,
        micro_per_step=config.micro_per_step,
        num_steps=run.num_steps,
        num_epochs=len(epochs),
        first_step=run.first_step,
        first_epoch=epochs[0].number,
        continues=None if run.history is None else run.history.continues,
        policy=config.policy,
        sync=config.sync,
        admission=config.admission,
        rules=config.rules,
        scores_hash=corpus.scores_hash,
        domain_column=config.domain_column,
        seed=config.seed,
        sets=corpus.sets,
        batches=tuple(
            BatchEntry(
                bucket=str(line.bucket),
                clips_per_lane=line.clips_per_lane,
                tier=line.tier,
                predicted_seconds=line.seconds,
                clips_in_set=line.clips_in_set,
                memory_bytes=line.memory_bytes,
            )
            for line in run.lines
        ),
        cost_model=run.cost_words,
        cost_errors=run.cost_errors,
        tier_curve=run.curve,
        admitted_clips=corpus.num_clips,
        used_share=sum(len(epoch.read_clip) for epoch in epochs) / (corpus.num_clips * len(epochs)),
        peak_buffer_bytes=_peaks([epoch.peak_bytes for epoch in epochs]),
        max_buffer_bytes=config.max_buffer_bytes,
        peak_buffer_clips=_peaks([epoch.peak_clips for epoch in epochs]),
        max_buffer_clips=config.max_buffer_clips,
        peak_open_shards=_peaks([epoch.peak_open for epoch in epochs]),
        max_open_shards=config.max_open_shards,
        max_tokens_per_micro_batch=config.max_tokens_per_micro_batch,
        max_memory_bytes=config.max_memory_bytes,
        max_uses_per_epoch=config.repeat_at_most if config.left_over == "repeat" else 1,
        metrics=metrics,
        formulas={name: _formula(name) for name in metrics},
        config=config.model_dump(mode="json"),
        created_by=f"reelyard {version('reelyard')}",
    )
    return meta.model_dump(mode="json")


def _formula(name: str) -> str:
    base = name.split("/")[0]
    return FORMULAS["mix_index_W" if base.startswith("mix_index_") else base]


def _peaks(per_epoch: list[np.ndarray]) -> tuple[int, ...]:
    return tuple(np.max(per_epoch, axis=0).tolist())
