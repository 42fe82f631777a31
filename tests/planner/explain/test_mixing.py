"""The window that is furthest from the whole is found, with the bucket that is off in it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from planner.explain.facts import plan_facts
from planner.explain.mixing import mixing_lines, step_counts

A, B = "1x64x112", "33x64x112"
SECONDS = {A: 1.0, B: 3.0}


def test_the_worst_window_is_where_one_bucket_follows_another(hand_plans: ModuleType, tmp_path: Path) -> None:
    """Steps of two lanes: mixed but for steps 19 to 26, which have B alone, so that A makes 12 of 40."""
    lanes = [[(A if step < 12 else B, [], []) for step in range(20)], [(B, [], [])] * 20]
    meta = hand_plans.write_plan(tmp_path / "plan", lanes, SECONDS, first_step=7)
    facts = plan_facts(tmp_path / "plan", meta)
    assert step_counts(facts).tolist() == [[1, 1]] * 12 + [[0, 2]] * 8
    lines = [" ".join(line.split()) for line in mixing_lines(facts)]
    (eight,) = [line for line in lines if line.startswith("8 ")]
    both = ("1x64x112: 0.0%, not 30.0%", "33x64x112: 100.0%, not 70.0%")
    assert "19 to 26" in eight and eight.endswith(both), "with two buckets both are equally far off"
    (one,) = [line for line in lines if line.startswith("1 ")]
    # 12 steps are 0.2 off, 8 steps 0.3
    assert one.split()[1] == "0.2400" and one.split()[4] == "0.3000"


def test_one_bucket_needs_no_mixing(hand_plans: ModuleType, tmp_path: Path) -> None:
    meta = hand_plans.write_plan(tmp_path / "plan", [[(A, [], [])] * 3], SECONDS)
    assert "nothing to mix" in "\n".join(mixing_lines(plan_facts(tmp_path / "plan", meta)))


def test_uniform_rows_are_told_what_they_cost(hand_plans: ModuleType, tmp_path: Path) -> None:
    rows = [(A, [], []), (B, [], [])] * 4
    meta = hand_plans.write_plan(tmp_path / "plan", [rows, rows], SECONDS, micro_per_step=2, policy="uniform")
    text = "\n".join(mixing_lines(plan_facts(tmp_path / "plan", meta)))
    assert "policy tiers mixes lanes" in text and "micro_per_step 4 with the rows in this order" in text
