"""Predicted step times are the planner's own, the run's ratio takes out the units, and a table goes back to the planner."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.looking.step_times import lane_seconds, step_times
from planner.pricing.costs import cost_model
from planner.settings import PlanConfig
from schemas.buckets import Bucket
from schemas.cost_table import read_cost_table
from schemas.plan import LANE, PlanMeta, lane_path, read_plan_meta
from schemas.tables import table_from_rows, write_table
from training.cli import main
from training.metrics import LineFile, read_lines, write_metrics
from training.metrics_table import MetricsTable
from training.step_costs import CostCheck, cost_errors, step_seconds

BUCKETS = ("1x32x48", "33x32x48", "65x32x48")
SECONDS = (1.0, 2.5, 4.0)


@pytest.fixture
def tiers_plan(tmp_path: Path, tiny_plan: Any) -> tuple[Path, PlanMeta, np.ndarray]:
    """A plan of four lanes, three steps of two rows, whose lanes have different buckets in a row; (folder, meta, bucket of lane and row)."""
    rng = np.random.default_rng(5)
    bucket_VN = rng.integers(0, 3, (4, 6))
    for lane, row in enumerate(bucket_VN.tolist()):
        lines = [
            {
                "epoch": 0,
                "step": index // 2,
                "micro": index % 2,
                **dict(zip(("frames", "height", "width"), map(int, BUCKETS[place].split("x")), strict=True)),
                "clips": [],
                "reads": [],
            }
            for index, place in enumerate(row)
        ]
        write_table(lane_path(tmp_path, lane), table_from_rows(LANE, lines), LANE)
    entries = [
        {"bucket": name, "clips_per_lane": 1, "tier": 0, "predicted_seconds": seconds, "clips_in_set": 1}
        for name, seconds in zip(BUCKETS, SECONDS, strict=True)
    ]
    values = read_plan_meta(tiny_plan.folder).model_dump(mode="json")
    values |= {"batches": entries, "num_lanes": 4, "num_steps": 3, "policy": "tiers"}
    return tmp_path, PlanMeta.model_validate(values), bucket_VN


@pytest.mark.parametrize(("sync", "ranks"), [("micro", 1), ("micro", 2), ("step", 1), ("step", 2), ("step", 4)])
def test_step_times_are_the_planners(tiers_plan: tuple[Path, PlanMeta, np.ndarray], sync: str, ranks: int) -> None:
    folder, meta, bucket_VN = tiers_plan
    meta = meta.model_copy(update={"sync": sync})
    expected = step_times(lane_seconds(bucket_VN, meta), ranks, 2).under(sync)
    assert step_seconds(folder, meta, ranks) == pytest.approx(expected)


@pytest.mark.parametrize(("ranks", "seconds"), [(1, 4.0), (2, 2.0)])
def test_lanes_that_are_alike_need_only_the_rows(tiny_plan: Any, ranks: int, seconds: float) -> None:
    """The tiny plan predicts 1 s for every row, has two rows in a step and two lanes."""
    meta = read_plan_meta(tiny_plan.folder)
    assert step_seconds(tiny_plan.folder, meta, ranks).tolist() == [seconds] * meta.num_steps


def test_the_ratio_comes_from_earlier_steps_but_the_first() -> None:
    check = CostCheck(np.array([1.0, 1.0, 2.0, 1.0]), first_step=10, start=10, stop=14)
    first = check.step(10, 900.0)
    assert first == {"plan_ms": 1000.0, "predicted_ms": None, "cost_error_pct": None}
    assert check.step(11, 50.0)["predicted_ms"] is None, "a first step says nothing of the others"
    third = check.step(12, 80.0)
    assert third == {"plan_ms": 2000.0, "predicted_ms": 100.0, "cost_error_pct": 25.0}, "it took less than predicted"
    assert check.step(13, 45.0)["predicted_ms"] == pytest.approx(45.0), "median of 50 and 40 ms per planned second"


def test_time_left_goes_by_planned_cost_not_by_steps() -> None:
    check = CostCheck(np.array([1.0, 1.0, 8.0]), first_step=0, start=0, stop=3)
    assert check.seconds_left(1.0) is None
    check.step(0, 1.0)
    assert check.seconds_left(5.0) == pytest.approx(45.0)
    check.step(1, 1.0)
    check.step(2, 1.0)
    assert check.seconds_left(50.0) == 0.0


def write_lines(run: Path, micro: list[dict[str, float]]) -> MetricsTable:
    from training.metrics import METRICS

    file = LineFile(run / "metrics.jsonl")
    for step, times in enumerate(micro):
        values: dict[str, Any] = {key: 1.0 for key in METRICS if key != "loss_hex"}
        values |= {"step": step, "micro_ms_by_bucket": times, "buckets": {}, "loss_by_bucket": {}, "loss_by_time": []}
        write_metrics(file, values | {"cost_error_pct": 5.0 if step else None})
    file.close()
    return MetricsTable.read(run)


def test_errors_by_bucket_are_what_one_factor_leaves(tmp_path: Path) -> None:
    table = write_lines(tmp_path, [{"a": 10.0, "b": 40.0}, {"a": 10.0}, {"a": 10.0, "unplanned": 3.0}])
    found = cost_errors(table, {"a": 1.0, "b": 2.0, "never": 9.0})
    assert found["ratio"] == pytest.approx(0.010) and list(found["buckets"]) == ["a", "b"]
    assert found["buckets"]["a"]["mean"] == pytest.approx(0.0)
    slow = found["buckets"]["b"]
    assert slow["predicted_ms"] == pytest.approx(20.0) and slow["mean"] == pytest.approx(-0.5)
    assert found["steps"] == {"mean": pytest.approx(0.05), "p95": pytest.approx(0.05)}


def test_a_run_writes_its_errors_and_a_table_that_the_planner_takes(
    tmp_path: Path, run_arguments: Callable[..., list[str]]
) -> None:
    run = tmp_path / "run"
    assert main(["run", *run_arguments(run, steps=4)]) == 0
    found = json.loads((run / "cost_error.json").read_text())
    lines = read_lines(run / "metrics.jsonl")
    assert found["buckets"].keys() == {name for line in lines for name in line["buckets"]}
    assert [line["predicted_ms"] is None for line in lines] == [True, True, False, False]
    assert all(line["plan_ms"] == 4000.0 for line in lines)
    table = read_cost_table(run / "cost_table.json")
    assert "in a run on 1" in table.model and 2 <= table.text_tokens <= 9
    costs = cost_model(PlanConfig(lanes=2, batch_clips=dict.fromkeys(found["buckets"], 1)), table)
    for one in table.measurements:
        assert costs.seconds(Bucket.parse(one.bucket), one.clips) == pytest.approx(one.seconds)
        assert one.seconds == pytest.approx(found["buckets"][one.bucket]["measured_ms"] / 1000)
