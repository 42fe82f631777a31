"""The learning rate as a function of the step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.cli import main
from training.metrics import read_lines
from training.optimizing.learning_rate import learning_rate, schedule_step
from training.optimizing.optimizer_config import OptimizerConfig


def test_it_rises_in_a_line_and_stays() -> None:
    config = OptimizerConfig(lr=8.0, warmup_steps=4)
    assert [learning_rate(config, step) for step in (0, 1, 2, 3, 4, 10_000)] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]
    assert learning_rate(OptimizerConfig(lr=8.0), 0) == 8.0


@pytest.mark.parametrize(("decay", "middle"), [("cosine", 0.55), ("linear", 0.55)])
def test_it_falls_to_its_floor(decay: str, middle: float) -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=10, decay=decay, decay_steps=110, final_ratio=0.1)  # type: ignore[arg-type]
    rates = [learning_rate(config, step) for step in range(10, 130)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1.0 and rates[50] == pytest.approx(middle) and rates[100:] == pytest.approx([0.1] * 20)
    quarter = 0.1 + 0.9 * (0.75 if decay == "linear" else 0.8535533906)
    assert rates[25] == pytest.approx(quarter)


def test_a_stage_may_count_from_its_own_first_step() -> None:
    planned, own = OptimizerConfig(warmup_steps=4), OptimizerConfig(warmup_steps=4, steps_from="start")
    assert [schedule_step(planned, step, first_step=400) for step in (400, 403)] == [400, 403]
    assert [schedule_step(own, step, first_step=400) for step in (400, 403)] == [0, 3]
    assert learning_rate(own, schedule_step(own, 400, 400)) == own.lr / 4
    assert learning_rate(planned, schedule_step(planned, 400, 400)) == planned.lr


@pytest.mark.parametrize(("steps_from", "rates"), [("plan", [1e-3, 1e-3]), ("start", [1e-3 / 3, 2e-3 / 3])])
def test_a_run_from_others_weights_in_the_middle_of_a_plan_warms_up_if_asked(
    two_rank_run: Path,
    tiny_set: Path,
    make_plan: Callable[..., Any],
    run_arguments: Callable[..., list[str]],
    tmp_path: Path,
    steps_from: str,
    rates: list[float],
) -> None:
    plan = make_plan(tmp_path / "plan", [tiny_set], steps=4, first_step=40).folder
    optimizer = {"lr": 1e-3, "warmup_steps": 3, "steps_from": steps_from}
    arguments = run_arguments(tmp_path / "run", "--init-from", two_rank_run, plan=plan, steps=41, optimizer=optimizer)
    assert main(["run", *arguments]) == 0
    arguments = run_arguments(tmp_path / "run", plan=plan, steps=42, optimizer=optimizer)
    assert main(["run", *arguments]) == 0, "a continued run counts from where it began"
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [40, 41]
    assert [line["lr"] for line in lines] == pytest.approx(rates)
