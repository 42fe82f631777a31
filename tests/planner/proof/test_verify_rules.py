"""Admission rules are applied anew, from the samples and from the table of scores whose hash the plan has."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
from mutations import OpenPlan
from mutations.small_sets import build_plan_of, write_small_set

from planner.cli import app
from planner.proof.admitted import meets_rule
from planner.proof.report import VerifyReport
from schemas.command import run_command
from schemas.errors import UsageError
from schemas.plan import AdmissionRule, read_plan_meta
from schemas.tables import SAMPLES, read_table


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> OpenPlan:
    home = tmp_path_factory.mktemp("rules")
    return build_plan_of("rules", write_small_set(home / "set", 5), home / "plan", 0)


@pytest.fixture
def plan(built: OpenPlan, tmp_path: Path) -> OpenPlan:
    return built.copied(tmp_path / "plan")


def test_rules_hold_with_the_scores_and_are_skipped_without(plan: OpenPlan) -> None:
    report = plan.verify()
    assert report.broken == {} and "admission_rules" not in report.skipped
    assert report.counts["admitted_clips"] == plan.meta["admitted_clips"]
    plan.scores = None
    report = plan.verify()
    assert report.broken == {}
    assert "rules on motion look at scores" in report.skipped["admission_rules"]
    assert report.counts["admitted_clips"] == plan.meta["admitted_clips"], "what uses and ledger account for"


def test_a_lost_ledger_row_is_found_without_the_scores_too(plan: OpenPlan) -> None:
    plan.scores = None
    plan.tables["ledger"].pop()
    plan.save()
    assert "admitted_clips" in plan.verify().broken


def test_rules_over_the_samples_need_no_scores(plan: OpenPlan) -> None:
    subjects = {
        (row["shard_index"], row["ordinal"]): row["subject"]
        for row in read_table(plan.samples[0] / "samples.parquet", SAMPLES).to_pylist()
    }
    used = {subjects[place] for place in plan.uses(0)}
    assert used <= {"street", "sea"}
    plan.scores = None
    plan.meta["rules"][1]["one_of"] = ["sea"]
    plan.save()
    message = plan.verify().broken["admission_rules"][0]
    assert "does not meet the plan's rules" in message and "lane" in message


def test_a_stricter_rule_over_scores_is_broken(plan: OpenPlan) -> None:
    plan.meta["rules"][0]["at_least"] = 0.5
    plan.save()
    assert {"admission_rules", "admitted_clips"} <= set(plan.verify().broken)


def test_other_scores_and_missing_columns_are_named(plan: OpenPlan, tmp_path: Path) -> None:
    table = pq.read_table(plan.samples[0] / "scores.parquet")
    plan.scores = tmp_path / "other.parquet"
    pq.write_table(table.slice(1), plan.scores)
    broken = plan.verify().broken
    assert set(broken) == {"scores_hash"}
    assert "give the table that it was built with" in broken["scores_hash"][0]
    plan.meta["rules"][0]["column"] = "aesthetic"
    plan.save()
    plan.scores = plan.samples[0] / "scores.parquet"
    assert "has no column aesthetic" in plan.verify().broken["admission_rules"][0]
    no_id, no_table = tmp_path / "no-id.parquet", tmp_path / "no-table.parquet"
    pq.write_table(table.select(["motion"]), no_id)
    no_table.write_bytes(b"no table")
    for plan.scores, message in ((no_table, "cannot be read"), (no_id, "has no column clip_id")):
        with pytest.raises(UsageError, match=message):
            plan.verify()


def test_the_order_and_the_row_groups_of_the_scores_do_not_matter_for_the_rules(plan: OpenPlan, tmp_path: Path) -> None:
    table = pq.read_table(plan.samples[0] / "scores.parquet")
    plan.scores = tmp_path / "groups.parquet"
    pq.write_table(table, plan.scores, row_group_size=17)
    assert plan.verify().broken == {}, "the hash is over values"
    order = np.random.default_rng(0).permutation(len(table))
    pq.write_table(table.take(pa.array(order)), plan.scores)
    broken = plan.verify().broken
    assert set(broken) == {"scores_hash"}, "another order is another table"


def test_the_command_takes_the_scores(plan: OpenPlan, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", str(plan.folder), "--samples", str(plan.samples[0])]
    assert run_command(app, arguments) == 0
    assert "skipped  admission_rules" in capfd.readouterr().out
    assert run_command(app, [*arguments, "--scores", str(plan.scores)]) == 0
    assert "holds    admission_rules" in capfd.readouterr().out


CASES = [
    ({"at_least": 0.3}, pa.array([0.3, 0.29, None, float("nan")], pa.float32()), [True, False, True, True]),
    ({"at_most": 0.3}, pa.array([0.3, 0.31, None, float("nan")], pa.float32()), [True, False, True, True]),
    ({"at_least": 1, "missing": "drop"}, pa.array([1, 0, None], pa.int32()), [True, False, False]),
    ({"at_least": 1}, pa.array([True, False]), [True, False]),
    ({"one_of": ("a", "b")}, pa.array(["a", "c", None]), [True, False, True]),
    ({"one_of": ("a",), "missing": "drop"}, pa.array(["a", None]), [True, False]),
    ({"one_of": ("true",)}, pa.array([True, False]), [True, False]),
    ({"one_of": ("33",)}, pa.array([33, 65], pa.int32()), [True, False]),
]


@pytest.mark.parametrize(("limits", "values", "expected"), CASES, ids=lambda value: str(value)[:30])
def test_one_rule_on_one_column(
    limits: dict[str, object], values: pa.Array, expected: list[bool], built: OpenPlan
) -> None:
    rule = AdmissionRule.model_validate({"column": "x", **limits})
    report = VerifyReport(read_plan_meta(built.folder))
    assert meets_rule(rule, values, report).tolist() == expected
    assert meets_rule(rule, pa.chunked_array([values[:1], values[1:]]), report).tolist() == expected
    assert report.ok


def test_a_rule_that_does_not_fit_its_column_is_named(built: OpenPlan) -> None:
    report = VerifyReport(read_plan_meta(built.folder))
    rule = AdmissionRule(column="style", at_least=1.0)
    assert meets_rule(rule, pa.array(["a", "b"]), report).all()
    assert "the rule on 'style' gives numbers, the column holds string" in report.broken["admission_rules"][0]
