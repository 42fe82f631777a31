"""What each stretch of a run was trained with survives changes of configuration and plan, and goes where steps go."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import DataError
from training.cli import main
from training.metrics import read_lines
from training.run_starts import read_starts, start_of_step
from training.whatwas.answer import clip_answer, steps_answer
from training.whatwas.run_folder import open_run_folder

Arguments = Callable[..., list[str]]


@pytest.fixture(scope="module")
def two_plans(
    tiny_set: Path, make_plan: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any]:
    """One of ten steps, and one that goes on at step 3 on four lanes."""
    folder = tmp_path_factory.mktemp("two")
    batch = {1: 1, 33: 1, 65: 1}
    second = make_plan(folder / "second", [tiny_set], lanes=1, micro=2, steps=4, batch=batch, first_step=3)
    return make_plan(folder / "first", [tiny_set], steps=5), second


def test_each_stretch_keeps_its_plan_and_configuration(
    two_plans: tuple[Any, Any], run_arguments: Arguments, tmp_path: Path
) -> None:
    run, (first, second) = tmp_path / "run", two_plans
    text = {"text": {"dropout_probability": 1.0}}
    changed = ("--allow-change", "plan", "--allow-change", "text")
    assert main(["run", *run_arguments(run, plan=first.folder, steps=3)]) == 0
    assert main(["run", *run_arguments(run, *changed, plan=second.folder, steps=6, **text)]) == 0
    starts = read_starts(run)
    assert [start.first_step for start in starts] == [0, 3]
    assert [start_of_step(starts, step).first_step for step in (0, 2, 3, 9)] == [0, 0, 3, 3]
    opened = open_run_folder(run)
    records = steps_answer(opened, range(6)).records
    assert all(record.digest_matches for record in records)
    assert len({record.plan_hash for record in records[:3]} | {record.plan_hash for record in records[3:]}) == 2
    assert {clip.text for record in records[3:] for clip in record.clips} == {"dropped"}
    assert {clip.text for record in records[:3] for clip in record.clips} > {"long"}
    clip = records[4].clips[0].clip_id
    uses = [use.step for use in clip_answer(opened, clip).uses]
    planned = [use["step"] for use in first.uses if use["step"] < 3 and clip in use["clip_ids"]]
    assert uses == planned + [use["step"] for use in second.uses if clip in use["clip_ids"]]
    # Going back to step 2 under the first plan, the second one never was.
    assert main(["run", *run_arguments(run, plan=first.folder, steps=5)]) == 2
    assert [start.first_step for start in read_starts(run)] == [0, 3]


def test_a_start_goes_with_the_steps_that_are_dropped(run_arguments: Arguments, tmp_path: Path) -> None:
    run = tmp_path / "run"
    every: dict[str, Any] = {"checkpoint": {"every_steps": 1, "keep": 9}}
    for arguments, steps in (((), 2), ((), 4), (("--checkpoint", 2), 3), (("--checkpoint", 1), 3)):
        assert main(["run", *run_arguments(run, *arguments, steps=steps, **every)]) == 0
        assert main(["run", *run_arguments(run, steps=steps, **every)]) == 0, "nothing to do, nothing to write down"
    assert [start.first_step for start in read_starts(run)] == [0, 1]


def test_a_run_that_wrote_no_starts_is_known_by_its_checkpoints(
    run_arguments: Arguments, tiny_plan: Any, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["run", *run_arguments(run, steps=3, checkpoint={"every_steps": 2, "keep": 9})]) == 0
    (run / "starts.jsonl").unlink()
    plan, samples = str(tiny_plan.folder), (str(tiny_set),)
    assert [(one.first_step, one.plan, one.samples) for one in read_starts(run)] == [
        (0, plan, samples),
        (2, plan, samples),
    ]
    assert main(["whatwas", "--run", str(run), "--step", "1"]) == 0
    assert "clips_digest matches" in capsys.readouterr().out
    for path in run.glob("checkpoints/*/record.json"):  # as it was before records held folders
        record = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in record.items() if key not in ("plan", "samples")}))
    assert main(["whatwas", "--run", str(run), "--step", "1"]) == 2
    assert "does not say where its plan is; give it with --plan" in capsys.readouterr().err
    assert main(["whatwas", "--run", str(run), "--step", "1", "--plan", plan]) == 2
    assert "does not say where the sets of its plan are" in capsys.readouterr().err
    assert main(["whatwas", "--run", str(run), "--step", "1", "--plan", plan, "--samples", samples[0]]) == 0
    assert "clips_digest matches" in capsys.readouterr().out
    with pytest.raises(DataError, match="says nothing of its plan and configuration"):
        read_starts(tmp_path)


def test_a_broken_file_of_starts_is_named(tmp_path: Path) -> None:
    (tmp_path / "starts.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"starts\.jsonl is not JSON lines"):
        read_starts(tmp_path)


def test_the_line_has_absolute_folders(
    run_arguments: Arguments, tiny_plan: Any, tiny_set: Path, tmp_path: Path
) -> None:
    assert main(["run", *run_arguments(tmp_path / "run", steps=1)]) == 0
    (line,) = read_lines(tmp_path / "run" / "starts.jsonl")
    assert (line["plan"], line["samples"]) == (str(tiny_plan.folder), [str(tiny_set)])
    assert json.loads((tiny_plan.folder / "plan.json").read_text())["plan_hash"] == line["plan_hash"]
