"""What chance does: the quantiles, and how often a variant that changes nothing lacks the mark."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.ablations.noise import FALSE_ALARMS, measure_noise, t_quantile
from training.ablations.results import RunResult
from training.ablations.suite import Row, SuiteTable
from training.ablations.table import difference_words, table_lines


def result(loss: float, validation: float | None = None) -> RunResult:
    return RunResult(
        steps=4, final_flow_loss=loss, validation_loss=validation, validation_weights=None, seconds_per_step=0.5, parameters=1000,
        flops_per_clip=2e9, flow_curve=((0, 1.0), (1, loss)), validation_curve=(),
    )  # fmt: skip


def row(name: str, against: str | None, *losses: float) -> Row:
    return Row(name=name, group="g", question="q", against=against, result=result(*losses))


def table_of(seeds: list[float], **others: tuple[str, float]) -> SuiteTable:
    base = [row("base" if index == 0 else f"base-seed-{index}", None, loss) for index, loss in enumerate(seeds)]
    return SuiteTable(rows=(*base, *(row(name, against, loss) for name, (against, loss) in others.items())))


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 10, 30])
def test_the_quantiles_are_those_of_students_t(degrees: int) -> None:
    """The tail of the density beyond the quantile, by the substitution x = tan(a)."""
    angles = np.linspace(-math.pi / 2, math.atan(t_quantile(degrees)), 200_001)[1:]
    tangents = np.tan(angles)
    density = (1 + tangents**2 / degrees) ** (-(degrees + 1) / 2) * (1 + tangents**2)
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    assert scale * np.trapezoid(density, angles) == pytest.approx(0.975, abs=1e-4)


@pytest.mark.parametrize("seeds", [2, 4, 8])
def test_a_variant_that_changes_nothing_lacks_the_mark_in_five_per_cent(seeds: int) -> None:
    draws = np.random.default_rng(seeds).normal(0.7, 0.01, (6000, seeds + 2)).tolist()
    beyond = {"to_base": 0, "to_other": 0}
    for values in draws:
        table = table_of(values[:seeds], one=("base", values[-2]), other=("one", values[-1]))
        beyond["to_base"] += not difference_words(table, table.rows[-2], "final_flow_loss").startswith("~")
        beyond["to_other"] += not difference_words(table, table.rows[-1], "final_flow_loss").startswith("~")
    for found in beyond.values():
        assert found / len(draws) == pytest.approx(FALSE_ALARMS, abs=0.01), "4 standard errors are 0.011"


def test_a_real_difference_is_seen_with_four_seeds_and_not_with_two() -> None:
    draws = np.random.default_rng(0).normal(0.7, 0.01, (2000, 5)).tolist()
    seen = [
        sum(
            not table_of(values[:seeds], one=("base", values[4] - 0.06)).is_within_noise(
                row("one", "base", values[4] - 0.06), "final_flow_loss"
            )
            for values in draws
        )
        / len(draws)
        for seeds in (2, 4)
    ]
    assert seen[0] < 0.4 and seen[1] > 0.85, "six deviations"


def test_differences_to_the_base_are_to_the_mean_of_its_seeds() -> None:
    table = table_of([0.50, 0.52, 0.51, 0.53], near=("base", 0.52), far=("base", 0.40), next=("far", 0.45))
    noise = table.noise("final_flow_loss")
    assert (
        noise is not None
        and noise.mean == pytest.approx(0.515)
        and noise.deviation == pytest.approx(0.012910, abs=1e-6)
    )
    assert noise.to_base == pytest.approx(3.182 * 0.012910 * math.sqrt(1.25), rel=1e-4)
    assert noise.between_runs == pytest.approx(3.182 * 0.012910 * math.sqrt(2), rel=1e-4)
    words = {one.name: difference_words(table, one, "final_flow_loss") for one in table.rows}
    assert words["base"] == "" == words["base-seed-3"]
    assert (words["near"], words["far"], words["next"]) == ("~+0.0050", "-0.1150", "~+0.0500")
    lines = table_lines(table)
    assert "noise of the flow loss: 0.0459 to the base, 0.0581 between two runs, by Student's t" in lines[8]
    assert lines[9].endswith("lacks the mark in 5% of cases: of 3 variants 0.2 by chance")
    values = table.to_json()
    assert values["false_alarms"] == {"share": 0.05, "expected": pytest.approx(0.15)}
    assert [one["within_noise"]["final_flow_loss"] for one in values["rows"]] == [None] * 4 + [True, False, True]


def test_few_seeds_are_said_and_one_tells_nothing() -> None:
    assert any(line.startswith("2 seeds make that wide: --seeds 4") for line in table_lines(table_of([0.5, 0.52])))
    alone = table_of([0.5], far=("base", 0.1))
    assert measure_noise([0.5]) is None and alone.noise("final_flow_loss") is None
    assert difference_words(alone, alone.rows[1], "final_flow_loss") == "~-0.4000"
    assert any("the base has not two seeds with a result" in line for line in table_lines(alone))
