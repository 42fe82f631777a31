"""What plan.json claims is checked against its configuration and against the tables, and what cannot be checked is named."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
from mutations import OpenPlan
from mutations.small_sets import build_plan_of, write_small_set

from planner.cli import app
from planner.mixing import mix_index, shared_source_ratio
from planner.proof import labels, tallies
from planner.proof.mixed import sliding_mix_index
from planner.verify import RULES, advice, held_line, report_lines, write_certificate
from schemas.command import run_command

REPOSITORY = Path(__file__).resolve().parents[3]
SEARCH = ("anneal_", "handed_over_share", "follow/")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> OpenPlan:
    home = tmp_path_factory.mktemp("built")
    return build_plan_of("tiers", write_small_set(home / "set", 4), home / "plan", 0)


@pytest.fixture
def plan(built: OpenPlan, tmp_path: Path) -> OpenPlan:
    return built.copied(tmp_path / "plan")


CLAIMS: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("settings", lambda meta: meta.update(max_buffer_bytes=10**15)),
    ("settings", lambda meta: meta["config"].update(max_buffer_mb=1)),
    ("settings", lambda meta: meta["config"].update(lanes=64)),
    ("settings", lambda meta: meta["config"].update(policy="uniform")),
    ("settings", lambda meta: meta["config"].update(admission="720p")),
    ("settings", lambda meta: meta["config"].update(max_tokens_per_micro_batch=1)),
    ("settings", lambda meta: meta.update(max_tokens_per_micro_batch=None)),
    ("settings", lambda meta: meta.update(sync="step")),
    ("settings", lambda meta: meta.update(tier_curve=[])),
    ("settings", lambda meta: meta["config"].update(max_buffer_mb="much")),
    ("settings", lambda meta: meta["config"].update(rules=[{"column": "luma"}])),
    ("metrics", lambda meta: meta["metrics"].update({"mix_index_1/bucket": 0.01})),
    ("metrics", lambda meta: meta["metrics"].update({"mix_index_8/domain": 0.01})),
    ("metrics", lambda meta: meta["metrics"].update(waste_micro=0.0)),
    ("metrics", lambda meta: meta["metrics"].update(predicted_hours=1e-9)),
    ("metrics", lambda meta: meta["metrics"].update(waste_step=-0.1)),
]


@pytest.mark.parametrize(("rule", "change"), CLAIMS)
def test_a_claim_that_the_plan_does_not_bear_out_is_named_alone(
    rule: str, change: Callable[[dict[str, Any]], object], plan: OpenPlan
) -> None:
    change(plan.meta)
    plan.save()
    assert rule in plan.verify().broken
    assert set(plan.verify().broken) <= {rule, "metrics"}, "sync also decides the hours"


def test_a_number_that_is_none_is_refused_in_words(plan: OpenPlan, capfd: pytest.CaptureFixture[str]) -> None:
    plan.meta["metrics"]["waste_step"] = float("nan")
    (plan.folder / "plan.json").write_text(json.dumps(plan.meta), encoding="utf-8")
    assert run_command(app, ["verify", str(plan.folder), "--samples", str(plan.samples[0])]) == 1
    assert "plan.json holds NaN or Infinity" in capfd.readouterr().err


def test_what_a_plan_does_not_say_is_not_asked_for(plan: OpenPlan) -> None:
    """Another builder's plan: no configuration, no metrics but those of the reads, and one that nobody here knows."""
    kept = ("read_amplification", "sequential_share", "opens_per_shard")
    plan.meta["metrics"] = {name: plan.meta["metrics"][name] for name in kept} | {"luck": 7.0}
    plan.meta |= {"config": {}, "tier_curve": [], "formulas": {}}
    plan.save()
    report = plan.verify()
    assert report.broken == {}
    assert "no configuration" in report.skipped["settings"]
    assert report.metrics_not_checked == {"luck": "is no metric that the verifier has a definition of"}


def test_the_certificate_and_the_lines_name_what_is_not_checked(built: OpenPlan) -> None:
    report = built.verify()
    not_checked = {name for name in built.meta["metrics"] if name.startswith(SEARCH)}
    assert set(report.metrics_not_checked) == not_checked
    certificate = json.loads(write_certificate(built.folder, report).read_text())
    assert certificate["metrics_not_checked"] == report.metrics_not_checked
    assert {"batches.predicted_seconds", "tier_curve", "config"} <= certificate["fields_not_checked"].keys()
    (line,) = [line for line in report_lines(report) if line.startswith("metrics of plan.json")]
    assert "anneal_* (" in line and "handed_over_share" in line
    assert held_line(report) == f"{len(RULES) - 2} of {len(RULES)} rules, not checked: shard_files, clips_cap"


def test_a_continued_plan_without_its_parent_says_which_figures_need_it(built: OpenPlan, tmp_path: Path) -> None:
    child = built.continued_at(3, tmp_path / "child")
    assert child.verify().broken == {}
    child.parents = []
    report = child.verify()
    assert report.broken == {}
    missing = {name for name in report.metrics_not_checked if not name.startswith(SEARCH)}
    assert missing == {"used_share/epoch-0000", "used_share_full_epochs"}
    assert "--continues PLAN" in report.metrics_not_checked["used_share/epoch-0000"]
    child.meta["metrics"]["used_share/epoch-0001"] -= 0.01
    child.save()
    assert set(child.verify().broken) == {"metrics"}, "later epochs are checked all the same"


def test_the_last_epoch_of_a_plan_that_max_steps_ended_may_be_whole_or_not(plan: OpenPlan) -> None:
    plan.meta["config"]["max_steps"] = plan.meta["num_steps"]
    shares = [len(plan.uses(epoch)) / plan.meta["admitted_clips"] for epoch in plan.epochs()]
    for share in (sum(shares) / 2, shares[0]):
        plan.meta["metrics"]["used_share_full_epochs"] = share
        plan.save()
        assert plan.verify().broken == {}
    plan.meta["metrics"]["used_share_full_epochs"] = 1.0
    plan.save()
    assert "plan.json says used_share_full_epochs 1, rows and lanes give 0.978" in plan.verify().broken["metrics"][0]


def test_figures_that_take_too_much_memory_are_given_up_in_words(
    plan: OpenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, metric in (
        (labels, "MOST_VALUES", "mix_index_1/domain"),
        (tallies, "_MOST_CELLS", "mix_index_1/domain"),
        (labels, "MOST_VALUES", "shared_source_ratio"),
        (tallies, "_MOST_PAIRED", "shared_source_ratio"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, 2)
            report = plan.verify()
            assert report.broken == {} and metric in report.metrics_not_checked
    plan.meta["domain_column"] = plan.meta["config"]["domain_column"] = "members"
    plan.save()
    report = plan.verify()
    assert report.broken == {} and "is no column of text" in report.metrics_not_checked["mix_index_1/domain"]


def test_with_other_samples_the_figures_of_the_lanes_are_still_checked(plan: OpenPlan, tmp_path: Path) -> None:
    plan.samples = [write_small_set(tmp_path / "other", 9)]
    report = plan.verify()
    assert set(report.broken) == {"samples_hash"} and "settings" not in report.skipped
    assert "other samples" in report.metrics_not_checked["use_count_min"]
    plan.meta["metrics"]["mix_index_1/bucket"] /= 2
    plan.meta["config"]["seed"] += 1
    plan.save()
    assert set(plan.verify().broken) == {"samples_hash", "settings", "metrics"}


def test_rules_that_were_not_looked_at_are_not_said_to_hold(plan: OpenPlan) -> None:
    (plan.folder / "rows.parquet").write_bytes(b"PAR1")
    report = plan.verify()
    assert report.skipped["clips_known"] == "rows.parquet cannot be read"
    assert {"table_hashes", "rows_complete"}.isdisjoint(report.skipped)


def test_the_advice_fits_what_is_broken() -> None:
    assert "put the tars of set.json back" in advice(["shard_files"])
    assert "oldest first" in advice(["continues"])
    assert "build" not in advice(["continues", "scores_hash"])
    assert advice(["ledger", "metrics"]) == "build the plan again"
    assert advice(["ledger", "continues"]).endswith("; build the plan again")


def test_the_command_gives_the_advice_and_counts_what_holds(
    built: OpenPlan, plan: OpenPlan, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", str(plan.folder), "--samples", str(plan.samples[0])]
    assert run_command(app, arguments) == 0
    assert "holds (36 of 38 rules, not checked: shard_files, clips_cap)" in capfd.readouterr().err
    assert run_command(app, [*arguments, "--continues", str(built.folder)]) == 1
    errors = capfd.readouterr().err
    assert "give the plans that were run before this one" in errors and "build" not in errors


COUNTS = st.integers(1, 12).flatmap(
    lambda groups: st.lists(st.lists(st.integers(0, 9), min_size=groups, max_size=groups), min_size=1, max_size=12)
)


@settings(deadline=None)
@given(COUNTS, st.integers(1, 14))
def test_the_mix_index_is_the_planners_though_it_is_computed_otherwise(rows: list[list[int]], window: int) -> None:
    counts = np.array(rows, np.int32)
    if not counts.any():
        assert sliding_mix_index(counts, window) is None
        return
    assert sliding_mix_index(counts, window) == pytest.approx(mix_index(counts, window), rel=1e-12, abs=1e-12)


def test_the_mix_index_of_two_steps_by_hand() -> None:
    assert sliding_mix_index(np.array([[1, 0], [0, 1]]), 1) == pytest.approx(0.5 * np.sqrt(2 * np.pi))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=40))
def test_the_ratio_of_shared_sources_is_the_planners(uses: list[tuple[int, int]]) -> None:
    step, source = (
        (np.array(column, np.int64) for column in zip(*uses, strict=True)) if uses else (np.zeros(0, np.int64),) * 2
    )
    found = tallies._shared_ratio(step * 5 + source, 5, 6)
    assert found == pytest.approx(shared_source_ratio(step, source) if len(uses) > 1 else 0.0)


def test_the_proof_imports_nothing_of_the_planner_but_itself() -> None:
    files = [REPOSITORY / "planner" / "verify.py", *(REPOSITORY / "planner" / "proof").glob("*.py")]
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            for name in names:
                assert not name.startswith("planner") or name.startswith("planner.proof"), f"{file.name} imports {name}"
