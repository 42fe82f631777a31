"""A plan that continues another is proved over both parts: what the first one used counts, in the epoch that was cut."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
from mutations import LEGAL_CHANGES, NoPlaceError, OpenPlan
from mutations.small_sets import build_plan_of, write_small_set

from planner.cli import app
from planner.verify import report_lines, verify_plan
from schemas.command import run_command


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> OpenPlan:
    home = tmp_path_factory.mktemp("parent")
    return build_plan_of("uniform", write_small_set(home / "set", 3), home / "plan", 0)


def test_any_step_may_be_taken_over_from(parent: OpenPlan, tmp_path: Path) -> None:
    steps = sorted({row["step"] for row in parent.tables["rows"]})
    total = sum(len(parent.uses(epoch)) for epoch in parent.epochs())
    for step in steps[:: max(1, len(steps) // 8)]:
        child = parent.continued_at(step, tmp_path / f"at-{step}")
        report = child.verify()
        assert report.broken == {} and "continues" not in report.skipped, step
        before = report.counts["uses_before"]
        epochs_before = sum(len(parent.uses(epoch)) for epoch in parent.epochs() if epoch < child.meta["first_epoch"])
        assert epochs_before + before + report.counts["clips_used"] == total, "each clip once over both parts"
        assert report.bounds["used_share"] <= report.bounds["used_share_upper_bound"] + 1e-12


def test_without_the_parent_only_what_needs_it_is_skipped(parent: OpenPlan, tmp_path: Path) -> None:
    child = parent.continued_at(3, tmp_path / "child")
    child.parents = []
    report = child.verify()
    assert report.broken == {}
    assert "give that plan's folder: --continues PLAN" in report.skipped["continues"]
    assert "used_share_upper_bound" not in report.bounds, "which clips are left is not known"
    assert any("no bound without the plan" in line for line in report_lines(report))
    child.tables["ledger"] = [row for row in child.tables["ledger"] if row["epoch"] == child.meta["first_epoch"]]
    child.save()
    assert "ledger" in child.verify().broken, "the ledger of later epochs is checked all the same"


def test_a_chain_is_followed_oldest_first(parent: OpenPlan, tmp_path: Path) -> None:
    child = parent.continued_at(2, tmp_path / "child")
    grandchild = child.continued_at(4, tmp_path / "grandchild")
    assert [path.name for path in grandchild.parents] == ["plan", "child"]
    report = grandchild.verify()
    assert report.broken == {} and "continues" not in report.skipped
    grandchild.parents.reverse()
    assert "give the plans oldest first" in " ".join(grandchild.verify().broken["continues"])
    grandchild.parents = [child.folder]
    report = grandchild.verify()
    assert report.broken == {}
    assert "itself continues plan" in report.skipped["continues"], "uses before the child are not known"


def test_a_repeat_may_follow_a_use_in_the_parent(parent: OpenPlan, tmp_path: Path) -> None:
    plan = parent.copied(tmp_path / "repeats")
    for number in range(100):
        try:
            LEGAL_CHANGES["repeat_a_clip"](plan, np.random.default_rng(number))
        except NoPlaceError:
            continue
        break
    plan.save()
    repeated = next(row for row in plan.tables["ledger"] if row["event"] == "repeated")
    place = (repeated["shard"], repeated["ordinal"])
    steps = [
        row["step"]
        for lane in range(plan.num_lanes)
        for row in plan.lane(lane)
        if row["epoch"] == repeated["epoch"] and place in [(clip["shard"], clip["ordinal"]) for clip in row["clips"]]
    ]
    assert len(steps) == 2
    child = plan.continued_at(max(steps), tmp_path / "child")
    assert [row["event"] for row in child.tables["ledger"] if (row["shard"], row["ordinal"]) == place] == ["repeated"]
    assert child.verify().broken == {}
    child.tables["ledger"] = [row for row in child.tables["ledger"] if row["event"] != "repeated"]
    child.save()
    assert "once_per_epoch" in child.verify().broken


def test_a_changed_parent_proves_nothing(parent: OpenPlan, tmp_path: Path) -> None:
    copy = parent.copied(tmp_path / "copy")
    child = copy.continued_at(3, tmp_path / "child")
    (copy.folder / "lanes" / "lane-0001.parquet").unlink()
    broken = child.verify().broken
    assert "lane-0001 cannot be read" in broken["continues"][0]
    meta = json.loads((copy.folder / "plan.json").read_text())
    (copy.folder / "plan.json").write_text(json.dumps(meta | {"seed": 99}))
    assert "plan_hash does not fit its content" in child.verify().broken["continues"][0]


def test_the_command_takes_the_parent(parent: OpenPlan, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    child = parent.continued_at(3, tmp_path / "child")
    arguments = ["verify", str(child.folder), "--samples", str(child.samples[0])]
    assert run_command(app, arguments) == 0
    assert "skipped  continues" in capfd.readouterr().out
    assert run_command(app, [*arguments, "--continues", str(parent.folder)]) == 0
    assert "holds    continues" in capfd.readouterr().out
    assert run_command(app, ["verify", str(parent.folder), *arguments[2:], "--continues", str(child.folder)]) == 1
    assert "continues none" in capfd.readouterr().out
    assert not verify_plan(child.folder, child.samples, continues=[child.folder]).ok
