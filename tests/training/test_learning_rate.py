"""The learning rate as a function of the step."""

import pytest

from training.learning_rate import learning_rate, schedule_step
from training.optimizer_config import OptimizerConfig


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
