"""`diff`: nothing between a plan and its copy, and exactly what was changed between two that differ in one thing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from planner.cli import app
from planner.looking.difference import compare_plans, difference_lines
from schemas.command import run_command
from schemas.plan import PlanSet, read_plan_meta

SHORT, LONG = "1x64x112", "33x64x112"
SECONDS = {SHORT: 1.0, LONG: 3.0}
CONFIG = Path(__file__).parents[3] / "configs" / "plan_demo.yaml"


def rows(*clips: int, bucket: str = SHORT, shard: int = 0) -> list:
    return [(bucket, [(shard, clip)], [(shard, 10 * clip, 10)]) for clip in clips]


def test_a_copy_is_the_same_plan(hand_plans: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hand_plans.write_plan(tmp_path / "a", [rows(0, 1)], SECONDS)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert run_command(app, ["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.startswith("the same plan")


def test_clips_that_trade_places_change_their_steps_and_no_clip(hand_plans: ModuleType, tmp_path: Path) -> None:
    hand_plans.write_plan(tmp_path / "a", [rows(0, 1, 2, 3)], SECONDS)
    hand_plans.write_plan(tmp_path / "b", [rows(0, 3, 2, 1)], SECONDS)
    found = compare_plans(tmp_path / "a", tmp_path / "b")
    assert found.steps is not None and found.steps.differ.tolist() == [1, 3] and found.steps.common == 4
    assert found.steps.first_clips == (
        ("64p/shard-000000.tar#1 as 1x64x112",),
        ("64p/shard-000000.tar#3 as 1x64x112",),
    )
    assert found.clips is not None and (found.clips.only_a, found.clips.only_b, found.clips.other_times) == (0, 0, 0)
    assert found.lanes == found.read_programs == (0,)


def test_clips_that_change_lanes_leave_their_step_as_it_is(hand_plans: ModuleType, tmp_path: Path) -> None:
    hand_plans.write_plan(tmp_path / "a", [rows(0, 1), rows(2, 3)], SECONDS)
    hand_plans.write_plan(tmp_path / "b", [rows(2, 1), rows(0, 3)], SECONDS)
    found = compare_plans(tmp_path / "a", tmp_path / "b")
    assert found.lanes == (0, 1) and found.steps is not None and not len(found.steps.differ)


def test_the_same_clip_at_a_shorter_bucket_is_another_use(hand_plans: ModuleType, tmp_path: Path) -> None:
    hand_plans.write_plan(tmp_path / "a", [rows(0) + rows(1, bucket=LONG)], SECONDS)
    hand_plans.write_plan(tmp_path / "b", [rows(0) + rows(1)], SECONDS)
    found = compare_plans(tmp_path / "a", tmp_path / "b")
    assert found.steps is not None and found.steps.differ.tolist() == [1]
    assert found.read_programs == () and found.lanes == (0,)


def test_reads_that_come_earlier_are_another_read_program(hand_plans: ModuleType, tmp_path: Path) -> None:
    early = [(SHORT, [(0, 0)], [(0, 0, 10), (0, 10, 10)]), (SHORT, [(0, 1)], [])]
    hand_plans.write_plan(tmp_path / "a", [rows(0, 1)], SECONDS)
    hand_plans.write_plan(tmp_path / "b", [early], SECONDS)
    found = compare_plans(tmp_path / "a", tmp_path / "b")
    assert found.read_programs == (0,) and found.steps is not None and not len(found.steps.differ)


def test_clips_are_counted_by_how_often_they_are_used(hand_plans: ModuleType, tmp_path: Path) -> None:
    hand_plans.write_plan(tmp_path / "a", [rows(0, 1, 2, 0)], SECONDS, epoch_of_row=[0, 0, 1, 1])
    hand_plans.write_plan(tmp_path / "b", [rows(0, 1, 3, 1)], SECONDS, epoch_of_row=[0, 0, 1, 1])
    found = compare_plans(tmp_path / "a", tmp_path / "b")
    assert found.clips is not None
    assert (found.clips.used_a, found.clips.only_a, found.clips.only_b, found.clips.other_times) == (3, 1, 1, 2)


def test_a_continuation_is_compared_where_both_have_steps(hand_plans: ModuleType, tmp_path: Path) -> None:
    hand_plans.write_plan(tmp_path / "a", [rows(0, 1, 2, 3)], SECONDS)
    hand_plans.write_plan(tmp_path / "b", [rows(2, 4, 5)], SECONDS, first_step=2)
    found = compare_plans(tmp_path / "a", tmp_path / "b")
    assert found.steps is not None and found.steps.differ.tolist() == [3]
    assert (found.steps.common, found.steps.only_a, found.steps.only_b) == (2, 2, 1)


def test_sets_in_another_order_name_the_same_clips(hand_plans: ModuleType, tmp_path: Path) -> None:
    def sets(*names: str) -> list[PlanSet]:
        return [
            PlanSet(
                name=name,
                samples_hash=name * 8,
                first_shard=first,
                shard_names=("shard-000000.tar",),
                shard_bytes=(99,),
            )
            for first, name in enumerate(names)
        ]

    hand_plans.write_plan(tmp_path / "a", [rows(0) + rows(5, shard=1)], SECONDS, sets=sets("one", "two"))
    hand_plans.write_plan(tmp_path / "b", [rows(0, shard=1) + rows(5)], SECONDS, sets=sets("two", "one"))
    found = compare_plans(tmp_path / "a", tmp_path / "b")
    assert found.same_samples and not found.equal
    assert found.steps is not None and not len(found.steps.differ) and found.read_programs == ()


def test_plans_of_other_samples_are_not_compared_clip_by_clip(hand_plans: ModuleType, tmp_path: Path) -> None:
    hand_plans.write_plan(tmp_path / "a", [rows(0, 1)], SECONDS)
    other = [hand_plans.one_set(1).model_copy(update={"samples_hash": "6" * 64})]
    hand_plans.write_plan(tmp_path / "b", [rows(0, 2)], SECONDS, sets=other)
    found = compare_plans(tmp_path / "a", tmp_path / "b")
    assert not found.same_samples and found.steps is None and found.clips is None
    assert any("not compared" in line for line in difference_lines(found))


def test_two_seeds_of_one_configuration(
    write_set: Callable[..., Path],
    make_shards: Callable[..., list[list[tuple[str, int]]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples = write_set(tmp_path / "set", make_shards(3, 40))
    build = ["build", "--samples", str(samples), "--config", str(CONFIG), "--set", "anneal_steps=50"]
    for seed in (0, 1):
        assert run_command(app, [*build, "--output", str(tmp_path / f"plan{seed}"), "--set", f"seed={seed}"]) == 0
    capsys.readouterr()
    assert run_command(app, ["diff", str(tmp_path / "plan0"), str(tmp_path / "plan1")]) == 1
    shown = capsys.readouterr().out
    assert "samples: the same 1 sets" in shown and "name other clips" in shown
    settings = shown[shown.index("settings that differ") : shown.index("metrics that differ")]
    assert [line.split() for line in settings.splitlines()[2:]] == [["seed", "0", "1"]]


def test_a_plan_that_was_changed_is_no_plan_to_compare(
    hand_plans: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hand_plans.write_plan(tmp_path / "a", [rows(0)], SECONDS)
    hand_plans.write_plan(tmp_path / "b", [rows(0)], SECONDS, seed=1)
    path = tmp_path / "b" / "plan.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))
    assert run_command(app, ["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "was changed after it was built" in capsys.readouterr().err
    assert read_plan_meta(tmp_path / "a").seed == 0
