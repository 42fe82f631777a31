"""`reelyard-plan compare` on a small set: every strategy has its row, and ours are what their plans say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from planner.baselines.compare import OURS, RANDOM_ORDER, Comparison, compare, comparison_lines
from planner.baselines.outcomes import METRICS
from planner.baselines.strategies import BASELINES
from planner.building import build_plan
from planner.cli import app
from planner.folder import write_plan
from planner.samples import Corpus, load_corpus
from planner.settings import PlanConfig
from schemas.command import run_command
from schemas.errors import PlanError

CONFIG = PlanConfig.model_validate(
    {
        "lanes": 4,
        "micro_per_step": 2,
        "epochs": 3,
        "max_tokens_per_micro_batch": 2048,
        "anneal_steps": 200,
        "cost": {"preset": "tiny"},
    }
)


@pytest.fixture(scope="module")
def samples(
    write_set: Callable[..., Path],
    make_shards: Callable[..., list[list[tuple[str, int]]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return write_set(tmp_path_factory.mktemp("compare") / "set", make_shards(16, 60))


@pytest.fixture(scope="module")
def corpus(samples: Path) -> Corpus:
    return load_corpus([samples], "144p")


@pytest.fixture(scope="module")
def comparison(corpus: Corpus) -> Comparison:
    return compare(corpus, CONFIG)


def test_every_strategy_has_a_row_and_every_metric_a_value_or_a_reason(comparison: Comparison) -> None:
    names = [outcome.name for outcome in comparison.outcomes]
    assert names == [*BASELINES, "tiers_not_annealed", RANDOM_ORDER, "ours_uniform", "ours_tiers"]
    assert set(OURS) < set(names)
    for outcome in comparison.outcomes:
        assert list(outcome.values) == list(METRICS)
        assert {name for name, value in outcome.values.items() if value is None} == set(outcome.notes)


def test_ours_are_as_good_by_their_lane_tables_as_by_their_plan_json(
    comparison: Comparison, corpus: Corpus, tmp_path: Path
) -> None:
    for policy in ("uniform", "tiers"):
        config = CONFIG.model_copy(update={"epochs": 1, "policy": policy})
        meta = write_plan(build_plan(corpus, config), tmp_path / policy)
        values = next(one for one in comparison.outcomes if one.name == f"ours_{policy}").values
        assert values["used_share"] == pytest.approx(meta.used_share, abs=1e-12)
        assert values["steps"] == meta.num_steps
        assert values["peak_buffer_mb"] == pytest.approx(max(meta.peak_buffer_bytes) / 1e6)
        assert values["sequential_share"] == values["read_amplification"] == 1.0
        assert values["opens_per_shard"] == pytest.approx(meta.metrics["opens_per_shard"])


def test_ours_use_more_than_every_stream_and_idle_less_than_random(comparison: Comparison) -> None:
    by_name = {outcome.name: outcome.values for outcome in comparison.outcomes}
    for ours in ("ours_uniform", "ours_tiers"):
        for stream in ("webdataset", "lhotse", "paper_random", "paper_greedy", "paper_annealed"):
            assert (by_name[ours]["used_share"] or 0) > (by_name[stream]["used_share"] or 1)
        assert (by_name[ours]["waste_micro"] or 0) < (by_name["open_sora"]["waste_micro"] or 0)


def test_the_table_is_aligned_and_says_what_its_columns_are(comparison: Comparison) -> None:
    lines = comparison_lines(comparison)
    heads = [index for index, line in enumerate(lines) if line.startswith("strategy")]
    for head in heads:
        rows = lines[head : head + 1 + len(comparison.outcomes)]
        assert len({len(line) for line in rows}) == 1
    text = "\n".join(lines)
    assert all(f"{name}: {definition}" in text for name, definition in METRICS.items())
    assert text.count("the set has one domain") == 1


def test_a_plan_that_is_refused_is_a_row_with_the_reason_and_all_refused_is_an_error(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PlanError, match="max_buffer_mb"):
        compare(corpus, CONFIG.model_copy(update={"max_buffer_mb": 0.0001}))
    refused = dict(OURS)
    label, about, changes = refused["ours_uniform"]
    refused["ours_uniform"] = (label, about, {**changes, "max_buffer_mb": 0.0001})
    monkeypatch.setattr("planner.baselines.compare.OURS", refused)
    found = compare(corpus, CONFIG)
    row = next(one for one in found.outcomes if one.name == "ours_uniform")
    assert set(row.values.values()) == {None} and "max_buffer_mb" in row.notes["used_share"]
    assert RANDOM_ORDER not in [one.name for one in found.outcomes]
    assert any("refused" in line for line in comparison_lines(found))


def test_the_command_prints_a_table_for_each_number_of_lanes_and_writes_json(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Path(__file__).parents[3] / "configs" / "plan_demo.yaml"
    arguments = ["compare", "--samples", str(samples), "--config", str(config), "--set", "anneal_steps=50"]
    target = tmp_path / "values.json"
    assert run_command(app, [*arguments, "--lanes", "2", "--lanes", "3", "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "on 2 lanes" in printed and "on 3 lanes" in printed
    values = json.loads(target.read_text())["comparisons"]
    assert [item["lanes"] for item in values] == [2, 3]
    names = [row["name"] for row in values[1]["strategies"]]
    assert names[: len(BASELINES)] == list(BASELINES)
    assert all(set(row["values"]) == set(METRICS) for item in values for row in item["strategies"])
