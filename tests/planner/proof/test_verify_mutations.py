"""Every kind of damage is named by its rule, in plans of every kind; every legal change passes."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
from mutations import KINDS, LEGAL_CHANGES, NoPlaceError, OpenPlan, apply_damage
from mutations.small_sets import PLANS, build_plan_of, write_small_set

from planner.verify import RULES

SEEDS = (1, 2)
NOT_BROKEN_HERE = {"shard_files"}
"""Rules that have tests of their own: these plans have no tars."""


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> list[OpenPlan]:
    home = tmp_path_factory.mktemp("plans")
    return [
        build_plan_of(kind, write_small_set(home / f"set-{kind}", seed), home / kind, seed)
        for seed, kind in enumerate((*PLANS, "continued"))
    ]


def test_plans_of_every_kind_hold(plans: list[OpenPlan]) -> None:
    for kind, plan in zip((*PLANS, "continued"), plans, strict=True):
        report = plan.verify()
        assert report.broken == {}, kind
        assert set(report.skipped) <= {"shard_files", "clips_cap"}, kind


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_damage_is_named_by_its_rule(kind: str, seed: int, plans: list[OpenPlan], tmp_path: Path) -> None:
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    for index in rng.permutation(len(plans)).tolist():
        plan = plans[index].copied(tmp_path / "broken")
        try:
            rule = apply_damage(kind, plan, rng)
        except NoPlaceError:
            shutil.rmtree(plan.folder)
            continue
        report = plan.verify()
        assert rule in report.broken, (plan.meta["policy"], report.broken)
        message = report.broken[rule][0]
        assert any(character.isdigit() for character in message) or "but config:" in message, "messages carry numbers"
        return
    raise AssertionError(f"none of the plans has a place for {kind}")


def test_every_rule_has_a_damage_that_breaks_it_or_a_test_of_its_own(plans: list[OpenPlan], tmp_path: Path) -> None:
    rules = set()
    for number, plan in enumerate(plans):
        for kind in KINDS:
            copied = plan.copied(tmp_path / f"{number}-{kind}")
            with contextlib.suppress(NoPlaceError):
                rules.add(apply_damage(kind, copied, np.random.default_rng(number)))
    assert set(RULES) - rules == NOT_BROKEN_HERE


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", LEGAL_CHANGES)
def test_legal_changes_pass(name: str, seed: int, plans: list[OpenPlan], tmp_path: Path) -> None:
    rng = np.random.default_rng([seed, 7])
    changed = 0
    for number in rng.permutation(len(plans) * 3).tolist():
        plan = plans[number % len(plans)].copied(tmp_path / str(number))
        try:
            LEGAL_CHANGES[name](plan, rng)
        except NoPlaceError:
            continue
        plan.save()
        assert plan.verify().broken == {}, plan.meta["policy"]
        changed += 1
        if changed == 2:
            return
    raise AssertionError(f"{name} was possible {changed} times only")
