"""What the plan says that steps and micro-batches take, held against what they took: the planner's cost error, and the time that is left.

A plan's seconds are in the units of its cost model (nominal TFLOP/s, or another machine's table), so one factor, the run's own ratio of measured
to predicted, stands between the two; what is left is the error of the plan's proportions:

    ratio        median of measured / predicted over the last `_RECENT` steps before this one, a start's first left out
    cost error   ratio x predicted / measured - 1                        the planner's own sign: above 0, it took less than predicted
    time left    wall time so far x predicted seconds of the steps to come / those of the steps done

The wall time counts saving and evaluation, so the time left does too. Price: a plan of several tiers run on fewer ranks than lanes is read lane by
lane at the start, once, because which rank is slowest depends on which lanes it has.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from schemas.cost_table import CostMeasurement, CostTable
from schemas.files import write_json
from schemas.plan import ROWS, PlanMeta, lane_path, read_plan_table
from training.metrics_table import MetricsTable

__all__ = ["COST_ERROR", "CostCheck", "cost_errors", "cost_table_of", "step_seconds", "write_cost_error"]

COST_ERROR = "cost_error.json"
COST_TABLE = "cost_table.json"
_RECENT = 64
_WARM_UP = 1
"""First steps of a start that say nothing of the others: kernels are chosen, memory is asked for."""
_BUCKET_COLUMNS = ["frames", "height", "width"]


def step_seconds(plan: Path, meta: PlanMeta, world_size: int) -> np.ndarray:
    """Predicted seconds of each step of the plan on `world_size` ranks, in the cost model's units, as `reelyard-plan show` counts them.

    Ranks run their lanes of a row one after another and wait for each other after each row (sync micro) or step (sync step).
    """
    if meta.policy != "tiers" or (meta.sync == "micro" and world_size == meta.num_lanes):
        rows = read_plan_table(plan, "rows", ROWS, meta).column("predicted_seconds").to_numpy()
        return _by_step(rows, meta) * (meta.num_lanes // world_size)
    seconds = {entry.bucket: entry.predicted_seconds for entry in meta.batches}
    slowest = np.zeros(meta.num_steps * (meta.micro_per_step if meta.sync == "micro" else 1))
    lanes = meta.num_lanes // world_size
    for first in range(0, meta.num_lanes, lanes):
        rows = sum((_lane_seconds(plan, lane, seconds) for lane in range(first, first + lanes)), np.zeros(()))
        slowest = np.maximum(slowest, rows if meta.sync == "micro" else _by_step(rows, meta))
    return _by_step(slowest, meta) if meta.sync == "micro" else slowest


class CostCheck:
    """Prediction and measurement of the steps of one start of a run, in order."""

    def __init__(self, seconds_N: np.ndarray, first_step: int, start: int, stop: int) -> None:
        """`seconds_N`: of the plan's steps from `first_step` on; the run does `start` up to `stop`."""
        self._seconds, self._first = seconds_N, first_step
        self._done, self._steps = 0.0, 0
        self._left = float(seconds_N[start - first_step : stop - first_step].sum())
        self._ratios: deque[float] = deque(maxlen=_RECENT)

    def step(self, step: int, measured_ms: float) -> dict[str, float | None]:
        """plan_ms, predicted_ms and cost_error_pct of a step; the latter two are null for the first two of a start."""
        plan_ms = 1000 * float(self._seconds[step - self._first])
        self._done += plan_ms / 1000
        self._left = max(0.0, self._left - plan_ms / 1000)
        predicted = statistics.median(self._ratios) * plan_ms if self._ratios else None
        self._steps += 1
        if plan_ms > 0 and self._steps > _WARM_UP:
            self._ratios.append(measured_ms / plan_ms)
        error = None if predicted is None or measured_ms <= 0 else 100 * (predicted / measured_ms - 1)
        return {
            "plan_ms": round(plan_ms, 3),
            "predicted_ms": None if predicted is None else round(predicted, 3),
            "cost_error_pct": None if error is None else round(error, 3),
        }

    def seconds_left(self, wall_seconds: float) -> float | None:
        """Of the steps to come, after `wall_seconds` for those done; None where nothing is predicted."""
        return wall_seconds * self._left / self._done if self._done > 0 else None


def cost_errors(table: MetricsTable, batches: Mapping[str, float]) -> dict[str, Any]:
    """Predicted against measured over all lines of a run: whole steps, and micro-batches of rank 0 by bucket.

    `batches`: bucket to predicted seconds of a micro-batch. Errors are signed shares (mean) and shares (p95 of their size); null without lines.
    """
    known = {
        bucket: [float(took_ms) for took_ms in took_N[took_N > 0]]
        for bucket, took_N in table.by_bucket["micro_ms_by_bucket"].items()
        if batches.get(bucket, 0) > 0
    }
    steps = table["cost_error_pct"]
    ratios = [took_ms / (1000 * batches[bucket]) for bucket, took in known.items() for took_ms in took]
    ratio = statistics.median(ratios) if ratios else None
    return {
        "ratio": ratio,
        "steps": _summary((steps[np.isfinite(steps)] / 100).tolist()),
        "buckets": {
            bucket: {
                "micro_batches": len(known[bucket]),
                "plan_ms": 1000 * batches[bucket],
                "predicted_ms": 1000 * batches[bucket] * ratio,
                "measured_ms": statistics.median(known[bucket]),
                "spread_ms": float(np.subtract(*np.quantile(known[bucket], (0.75, 0.25)))),
                **_summary([1000 * batches[bucket] * ratio / took_ms - 1 for took_ms in known[bucket]]),
            }
            for bucket in sorted(known, key=lambda name: batches[name])
            if ratio is not None
        },
    }


def cost_table_of(
    found: Mapping[str, Any], meta: PlanMeta, *, device: str, model: str, text_tokens: int
) -> CostTable | None:
    """The measured micro-batches as a table that `reelyard-plan build --cost-table` takes; None where nothing was measured."""
    clips = {entry.bucket: entry.clips_per_lane for entry in meta.batches}
    measurements = tuple(
        CostMeasurement(
            bucket=bucket,
            clips=clips[bucket],
            seconds=line["measured_ms"] / 1000,
            spread_seconds=line["spread_ms"] / 1000,
        )
        for bucket, line in found["buckets"].items()
    )
    if not measurements:
        return None
    least = min(line["micro_batches"] for line in found["buckets"].values())
    return CostTable(device=device, model=model, text_tokens=text_tokens, repeats=least, measurements=measurements)


def write_cost_error(run: Path, found: Mapping[str, Any], meta: PlanMeta, table: CostTable | None) -> None:
    """`cost_error.json`, and `cost_table.json` beside it."""
    write_json(run / COST_ERROR, {"plan_hash": meta.plan_hash, "cost_model": meta.cost_model, **found})
    if table is not None:
        write_json(run / COST_TABLE, table.model_dump(mode="json"))


def _summary(errors: Sequence[float]) -> dict[str, float | None]:
    if not errors:
        return {"mean": None, "p95": None}
    return {"mean": float(np.mean(errors)), "p95": float(np.quantile(np.abs(errors), 0.95))}


def _by_step(rows_N: np.ndarray, meta: PlanMeta) -> np.ndarray:
    return rows_N.reshape(meta.num_steps, meta.micro_per_step).sum(axis=1)


def _lane_seconds(plan: Path, lane: int, seconds: Mapping[str, float]) -> np.ndarray:
    """Of each row of a lane; the table's hash is the loader's and the verifier's business."""
    table = pq.read_table(lane_path(plan, lane), columns=_BUCKET_COLUMNS)
    sizes_N3 = np.stack([table.column(name).to_numpy() for name in _BUCKET_COLUMNS], axis=1)
    found_M3, place_N = np.unique(sizes_N3, axis=0, return_inverse=True)
    names = ["x".join(map(str, size)) for size in found_M3.tolist()]
    return np.array([seconds[name] for name in names])[place_N.reshape(-1)]
