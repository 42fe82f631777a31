"""What is said of other settings is what builds with these settings do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from planner.cli import app
from planner.explain.facts import plan_facts
from planner.explain.share import share_lines, trial_of
from planner.settings import PlanConfig
from schemas.buckets import Bucket
from schemas.command import run_command
from schemas.plan import LEDGER, read_plan_meta, read_plan_table

CONFIG = Path(__file__).parents[3] / "configs" / "plan_demo.yaml"
SHORT = "1x64x112"


@pytest.fixture(scope="module")
def samples(
    write_set: Callable[..., Path],
    make_shards: Callable[..., list[list[tuple[str, int]]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return write_set(tmp_path_factory.mktemp("share") / "set", make_shards(4, 90, seed=1))


SETTINGS = {
    "policy": "uniform",
    "lanes": "4",
    "micro_per_step": "3",
    "epochs": "1",
    "max_steps": "null",
    "anneal_steps": "0",
    "shorten_left_over": "false",
    "left_over": "drop",
    "batch_clips": "{1x64x112: 5, 33x64x112: 4, 65x64x112: 3, 121x64x112: 2, 33x112x64: 4, 1x112x64: 4}",
}


def built(samples: Path, output: Path, **changes: str) -> tuple[Path, int]:
    """(a plan, the length of its ledger)."""
    command = ["build", "--samples", str(samples), "--config", str(CONFIG), "--output", str(output)]
    settings = {**SETTINGS, **changes}
    assert run_command(app, [*command, *(f"--set={key}={value}" for key, value in settings.items())]) == 0
    return output, read_plan_table(output, "ledger", LEDGER, read_plan_meta(output)).num_rows


@pytest.mark.parametrize(
    "changes",
    [{}, {"lanes": "2"}, {"micro_per_step": "2"}, {"shorten_left_over": "true"}],
    ids=lambda changes: "-".join(changes) or "as it is",
)
def test_builds_leave_over_what_was_said_of_them(samples: Path, tmp_path: Path, changes: dict[str, str]) -> None:
    plan, _ = built(samples, tmp_path / "before")
    trial = trial_of(plan_facts(plan, read_plan_meta(plan)))
    values = {"true": True}
    said = trial.left_over(**{key: values.get(value) or int(value) for key, value in changes.items()})
    assert said.clips == built(samples, tmp_path / "after", **changes)[1]


def test_a_smaller_batch_leaves_what_was_said_of_it(samples: Path, tmp_path: Path) -> None:
    plan, before = built(samples, tmp_path / "before")
    trial = trial_of(plan_facts(plan, read_plan_meta(plan)))
    batches = SETTINGS["batch_clips"].replace("1x64x112: 5", "1x64x112: 3")
    assert trial.left_over().clips == before
    assert trial.with_batch(SHORT, 3).left_over().clips == built(samples, tmp_path / "b", batch_clips=batches)[1]


def left_over(bucket: str, count: int, reason: str) -> list[dict[str, object]]:
    size = Bucket.parse(bucket)
    sides = {"frames": size.frames, "height": size.height, "width": size.width}
    rest = {"event": "left_over", "reason": reason, "shard": 0, "epoch": 0}
    return [{**sides, **rest, "ordinal": number, "clip_id": str(number)} for number in range(count)]


def one_bucket(hand_plans: ModuleType, folder: Path, clips: int, left: int) -> str:
    """What is said of a plan of 4 lanes with batches of 5: one row, and `left` of `clips` left over."""
    rows = [[(SHORT, [(0, 5 * lane + clip) for clip in range(5)], [])] for lane in range(4)]
    meta = hand_plans.write_plan(
        folder,
        rows,
        {SHORT: 1.0},
        clips_per_lane={SHORT: 5},
        clips_in_set={SHORT: clips},
        policy="uniform",
        used_share=20 / clips,
        ledger=left_over(SHORT, left, "no row"),
        config=PlanConfig(lanes=4, batch_clips={SHORT: 5}).model_dump(mode="json"),
    )
    return "\n".join(share_lines(plan_facts(folder, meta)))


def changes_of(text: str) -> list[str]:
    """The suggestions, blanks squeezed."""
    lines = text.splitlines()
    first = next(index for index, line in enumerate(lines) if "it would leave:" in line)
    return [" ".join(line.split()) for line in lines[first + 1 :]]


def test_the_floor_and_what_would_lower_it(hand_plans: ModuleType, tmp_path: Path) -> None:
    """23 clips at 5 on 4 lanes: one row of 20, 3 left; fewer lanes, tiers, smaller batches and repeats leave 3 as well, or more."""
    text = one_bucket(hand_plans, tmp_path / "plan", 23, 3)
    assert "3.0 of 23 admitted clips are not used" in text and "3.0 an epoch: no row" in text
    assert "the floor is set by 1x64x112, with 100.00 % of what is left over (a row takes 4 x 5 clips)" in text
    (nothing,) = changes_of(text)
    assert nothing.startswith("no less by"), "17 repeats are too many for 3 clips"


def test_fewer_lanes_and_smaller_batches_are_offered_where_they_help(hand_plans: ModuleType, tmp_path: Path) -> None:
    """38 clips at 5 on 4 lanes leave 18; on 2 lanes 8; at 3 clips they leave 2."""
    changes = changes_of(one_bucket(hand_plans, tmp_path / "plan", 38, 18))
    assert changes[:2] == ["lanes 2 8", "1x64x112: 3 clips in place of 5 2, with +2 rows an epoch"]
    assert "left_over repeat 0, with 2 clips used once more" in changes


def test_a_plan_that_uses_everything_has_nothing_to_gain(hand_plans: ModuleType, tmp_path: Path) -> None:
    meta = hand_plans.write_plan(tmp_path / "plan", [[(SHORT, [(0, 0)], [])]], {SHORT: 1.0})
    assert "nothing to gain" in "\n".join(share_lines(plan_facts(tmp_path / "plan", meta)))
