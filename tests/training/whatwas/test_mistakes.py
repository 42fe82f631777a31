"""What can be wrong with a run, its plan, its sets or the question: each with a message that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.cli import main
from training.metrics import read_lines


def ask(run: Path, *arguments: object) -> int:
    return main([str(part) for part in ["whatwas", "--run", run, *arguments]])


@pytest.fixture
def run(story_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be spoilt."""
    return Path(shutil.copytree(story_run, tmp_path / "run"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "asked for: nothing; give one of --step N, --spikes K and --clip ID"),
        (("--step", 1, "--spikes", 2), "asked for: --step, --spikes; give one of"),
        (("--step", 6), "--step 6 is not in the plan of the run: "),
        (("--step", 2, "--by", "lr"), "--by is 'lr', expected loss or grad_norm"),
        (("--step", 2, "--pictures", "all"), "--pictures is 'all', expected strip, first or none"),
        (("--step", 2, "--codec-path", "x"), "--codec-path is for the pictures of the page"),
        (("--step", 2, "--codec-path", "x", "--html", "page.html"), "the codec 'dct' has no weights"),
        (("--clip", "123"), "--clip '123' is in none of the sets of the run"),
        (("--step", 2, "--checkpoint", 2), "--checkpoint 2 says whose weights give the losses"),
        (("--step", 2, "--losses", "--checkpoint", 3), "has no checkpoint of step 3; it has 2, 4, 5"),
        (("--clip", "123", "--losses"), "--losses is for the clips of steps"),
    ],
)
def test_impossible_questions(
    story_run: Path, arguments: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(story_run, *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(tmp_path, "--step", 1) == 2
    assert "is not a training run: run.json is missing" in capsys.readouterr().err


def test_plan_and_sets_that_moved_are_asked_for_and_taken(
    run: Path, damaged: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story, plan, _ = damaged
    (start,) = read_lines(run / "starts.jsonl")
    gone = {"plan": str(tmp_path / "gone"), "samples": [str(tmp_path / "gone_set")]}
    (run / "starts.jsonl").write_text(json.dumps(start | gone) + "\n")
    assert ask(run, "--step", 1) == 1
    assert (
        f"the plan {tmp_path / 'gone'}, which steps 0 and later were trained with, is not there"
        in capsys.readouterr().err
    )
    assert ask(run, "--step", 1, "--plan", plan.folder) == 1
    assert f"the set {tmp_path / 'gone_set'}, which steps 0 and later were trained on" in capsys.readouterr().err
    assert ask(run, "--step", 1, "--plan", plan.folder, "--samples", story.folder) == 0
    assert "clips_digest matches" in capsys.readouterr().out


def test_another_plan_is_refused(run: Path, tiny_plan: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(run, "--step", 1, "--plan", tiny_plan.folder) == 1
    said = capsys.readouterr().err
    (start,) = read_lines(run / "starts.jsonl")
    assert f"were trained with plan {start['plan_hash'][:12]}, given: {tiny_plan.folder} (" in said


def test_other_sets_are_refused(run: Path, tiny_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(run, "--step", 1, "--samples", tiny_set) == 1
    assert "the run's plan was built for other samples" in capsys.readouterr().err


def test_a_ledger_of_another_plan_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sorted((run / "ledger").glob("*.jsonl"))[0]
    lines = read_lines(path)
    step = lines[0]["step"]
    path.write_text(json.dumps(lines[0] | {"ordinal": lines[0]["ordinal"] + 100}) + "\n")
    assert ask(run, "--step", step) == 1
    assert "where the plan has no such clip: the ledger is of another plan" in capsys.readouterr().err
    path.write_text(json.dumps(lines[0] | {"replaced_by": "0" * 24}) + "\n")
    assert ask(run, "--step", step) == 1
    assert f"its sets have 0 samples of {'0' * 24} for bucket" in capsys.readouterr().err
    path.write_text(json.dumps({"step": step}) + "\n")
    assert ask(run, "--step", step) == 1
    assert f"{path}: line 1 has no micro" in capsys.readouterr().err


def test_metrics_without_a_digest_or_without_the_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "metrics.jsonl"
    lines = read_lines(path)
    bare = [{key: value for key, value in line.items() if key != "clips_digest"} for line in lines if line["step"] != 2]
    path.write_text("".join(json.dumps(line) + "\n" for line in bare) + '{"step": 9, "lo')
    assert ask(run, "--step", 1, "--step", 2) == 0
    said = capsys.readouterr().out
    assert "not known: the run wrote no clips_digest" in said
    assert "a checkpoint holds this step, but metrics.jsonl has no line of it" in said


def test_spikes_of_a_run_without_steps(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").unlink()
    assert ask(run, "--spikes", 1) == 1
    assert "has no line: the run has taken no step yet" in capsys.readouterr().err


def write_dump(run: Path, ids: list[str], value: str = "nan") -> Path:
    """As a run that stops leaves it, as far as it is read here."""
    folder = run / "dumps" / "step-00000005"
    folder.mkdir(parents=True)
    clips = [{"clip_id": clip, "loss": value if index == 1 else 2.5} for index, clip in enumerate(ids)]
    gradients = {"parameters": [{"name": "dit.x", "nonfinite": 3}, {"name": "dit.y", "nonfinite": 0}]}
    dump = {"kind": "loss", "value": value, "clips": clips, "gradients": gradients}
    (folder / "dump.json").write_text(json.dumps(dump))
    return folder


def test_the_dump_of_a_step_that_stopped_the_run_is_told(
    run: Path, damaged: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, plan, _ = damaged
    ids = [clip for use in plan.uses if use["step"] == 5 for clip in use["clip_ids"]]
    folder = write_dump(run, ids)
    assert ask(run, "--step", 5, "--json", tmp_path / "step.json", "--html", tmp_path / "page.html") == 0
    said = capsys.readouterr().out
    broken = "gradients of 1 parameters are not finite"
    expected = (
        f"the run stopped at this step: the loss was nan; {broken}; look closer with reelyard-train dump {folder}"
    )
    assert expected in said and "not trained yet" not in said
    (step,) = json.loads((tmp_path / "step.json").read_text())["steps"]
    assert [clip["loss"] for clip in step["clips"]] == [None if index == 1 else 2.5 for index in range(len(ids))]
    assert [clip["notes"] for clip in step["clips"] if clip["notes"]] == [["its loss was nan"]]
    assert "its loss was nan" in (tmp_path / "page.html").read_text()


def test_a_dump_of_other_clips_gives_no_losses_and_a_broken_one_is_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_dump(run, ["0" * 24])
    assert ask(run, "--step", 5) == 0
    said = capsys.readouterr().out
    assert "the run stopped at this step" in said and "loss 2.5" not in said
    (folder / "dump.json").write_text("{}")
    assert ask(run, "--step", 5) == 1
    assert f"{folder / 'dump.json'} is no dump of a step (KeyError" in capsys.readouterr().err


def test_a_step_that_was_left_out_says_why(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = {"step": 5, "rank": 0, "kind": "loss", "value": "inf", "clips": ["abc (rank 0): loss inf"]}
    (run / "skipped.jsonl").write_text(json.dumps(line) + "\n")
    assert ask(run, "--step", 5) == 0
    said = capsys.readouterr().out
    assert "the run went on without this step: its loss was inf; not finite: abc (rank 0): loss inf" in said


def test_clips_that_come_back_in_spikes_are_named(
    damaged: Any, train_on: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps that share clips get a high loss by hand."""
    story, plan, _ = damaged
    run = train_on(tmp_path / "run", plan.folder, story.folder)
    by_step = {
        step: {clip for use in plan.uses if use["step"] == step for clip in use["clip_ids"]} for step in range(6)
    }
    first, second = next((a, b) for a in range(1, 6) for b in range(a + 1, 6) if by_step[a] & by_step[b])
    lines = read_lines(run / "metrics.jsonl")
    for line in lines:
        if line["step"] in (first, second):
            raised = {bucket: loss + 3 for bucket, loss in line["loss_by_bucket"].items()}
            line |= {"loss": line["loss"] + 3, "flow_loss": line["flow_loss"] + 3, "loss_by_bucket": raised}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ask(run, "--spikes", 2, "--json", tmp_path / "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert {spike["step"] for spike in found["spikes"]} == {first, second}
    clips = {one["name"]: one for one in found["recurring"] if one["kind"] == "clip"}
    there = [{clip["clip_id"] for clip in step["clips"]} for step in found["steps"]]
    assert clips.keys() == there[0] & there[1] != set()
    for name, one in clips.items():
        everywhere = {step for step, ids in by_step.items() if name in ids}
        assert one["steps"] == [first, second]
        assert one["steps_in_run"] >= len(everywhere & {first, second})
        assert f"clip {name} is in 2 of these 2 steps ({first}, {second})" in capsys.readouterr().out or len(clips) > 1
