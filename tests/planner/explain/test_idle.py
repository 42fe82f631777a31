"""Who is waited for, by hand; and that the seconds add up to the idle time."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from planner.explain.facts import PlanFacts, plan_facts
from planner.explain.idle import idle_by_bucket, idle_lines
from planner.looking.step_times import idle_share, step_times
from planner.mixing import waste
from planner.pricing.tiers import cut_of

A, B, C = "1x64x112", "33x64x112", "65x64x112"
SECONDS = {A: 1.0, B: 3.0, C: 4.0}


def facts(
    hand_plans: ModuleType, folder: Path, lanes: list[str], seconds: dict[str, float] = SECONDS, **meta: object
) -> PlanFacts:
    """Lanes as strings of buckets: "AB" is A in row 0, B in row 1."""
    names = dict(zip("ABC", seconds, strict=False))
    rows = [[(names[letter], [], []) for letter in lane] for lane in lanes]
    return plan_facts(folder, hand_plans.write_plan(folder, rows, seconds, **meta))


def test_a_row_waits_for_the_bucket_of_its_slowest_lane(hand_plans: ModuleType, tmp_path: Path) -> None:
    found = idle_by_bucket(facts(hand_plans, tmp_path / "plan", ["AAC", "BAB"]), ranks=2, sync="micro")
    # row 0: 3 - 2 for B; row 1: nothing; row 2: 4 - 3.5 for C
    assert found.waited.tolist() == [0, 1, 0.5]
    assert found.busy.tolist() == [1.5, 3, 2]


def test_a_step_waits_for_the_bucket_of_which_its_slowest_rank_has_most_more(
    hand_plans: ModuleType, tmp_path: Path
) -> None:
    plan = facts(hand_plans, tmp_path / "plan", ["AAC", "BAB"], micro_per_step=3)
    # rank 0: 6 s, rank 1: 7 s: half a second, for B, of which rank 1 has 6 s and the mean rank 3 s
    assert idle_by_bucket(plan, ranks=2, sync="step").waited.tolist() == [0, 0.5, 0]
    assert idle_by_bucket(plan, ranks=1, sync="step").waited.tolist() == [0, 0, 0]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("sync", ["micro", "step"])
def test_the_waits_add_up_to_the_idle_time(hand_plans: ModuleType, tmp_path: Path, ranks: int, sync: str) -> None:
    rng = np.random.default_rng([3])
    lanes = ["".join(rng.choice(list("ABC"), 12)) for _ in range(4)]
    plan = facts(hand_plans, tmp_path / "plan", lanes, micro_per_step=4)
    found = idle_by_bucket(plan, ranks, sync)
    times = step_times(plan.lane_seconds, ranks, 4)
    assert found.waited.sum() == pytest.approx(times.under(sync).sum() - times.busy.sum())
    if ranks == 4:
        expected = waste(plan.lane_seconds, 4, sync)  # type: ignore[arg-type]
        assert idle_share(times.busy, times.under(sync)) == pytest.approx(expected)


def test_the_straggler_gets_a_tier_of_its_own(hand_plans: ModuleType, tmp_path: Path) -> None:
    """One tier of 1 s and 3 s: with a tier each, no rank waits."""
    plan = facts(hand_plans, tmp_path / "plan", ["ABAB", "BAAB"], {A: 1.0, B: 3.0})
    now = cut_of([0, 0], plan.seconds, np.array([4.0, 4.0]), 2, 1)
    lines = list(idle_lines(plan, 2))
    assert any("the floor is set by 33x64x112: 100.00 %" in line for line in lines)
    as_it_is = next(line for line in lines if "the tiers as they are" in line)
    assert now.waste > 0.1 and as_it_is.split()[5] == f"{now.waste:.2%}"
    split = next(line for line in lines if "one tier more" in line)
    assert "cut between 1x64x112 and 33x64x112" in split and split.split()[-3] == "0.00%"


def test_equal_rows_have_nothing_to_gain(hand_plans: ModuleType, tmp_path: Path) -> None:
    plan = facts(hand_plans, tmp_path / "plan", ["ABC", "ABC"], policy="uniform")
    assert any("nothing to gain" in line for line in idle_lines(plan, 2))
