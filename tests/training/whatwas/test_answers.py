"""What the command tells of real runs: the clips that were trained, the ones that stood in, the words that were given."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.cli import main
from training.metrics import read_lines
from training.whatwas.answer import clip_answer, steps_answer
from training.whatwas.run_folder import open_run_folder


def ask(run: Path, *arguments: object) -> int:
    return main([str(part) for part in ["whatwas", "--run", run, *arguments]])


def test_the_clips_of_each_step_are_those_of_plan_and_ledger(story_run: Path, damaged: Any) -> None:
    story, plan, broken = damaged
    answer = steps_answer(open_run_folder(story_run), range(5))
    ledger = {}
    for path in (story_run / "ledger").iterdir():
        for line in read_lines(path):
            ledger[line["step"], line["micro"], line["lane"], line["clip_id"]] = line["replaced_by"]
    assert broken == {clip for _, _, _, clip in ledger}
    for record in answer.records:
        assert record.trained and record.digest_matches, record.digest
        planned = [
            (use["micro"], use["lane"], clip)
            for use in plan.uses
            if use["step"] == record.step
            for clip in use["clip_ids"]
        ]
        expected = [(*place[:2], ledger.get((record.step, *place), place[2])) for place in planned]
        assert [(clip.micro, clip.lane, clip.clip_id) for clip in record.clips] == expected
        assert record.replaced == sum((record.step, *place) in ledger for place in planned)
    stood_in = {clip.planned.clip_id: clip for record in answer.records for clip in record.clips if clip.planned}
    assert stood_in.keys() == broken
    assert {clip.planned.replacement for clip in stood_in.values() if clip.planned} == {"spare", "earlier"}
    assert all("damaged" in clip.planned.reason for clip in stood_in.values() if clip.planned)
    for record in answer.records:
        for clip in record.clips:
            told = story.clips[clip.clip_id]
            assert (clip.captions, clip.domain, clip.stored_frames) == (told.captions, told.domain, told.frames)
            assert clip.caption == ("" if clip.text == "dropped" else told.captions[clip.text])
            assert clip.end_us == clip.start_us + 1000 and clip.subject == "bus"
            assert clip.notes == ()


def test_every_kind_of_text_is_told(story_run: Path) -> None:
    answer = steps_answer(open_run_folder(story_run), range(5))
    kinds = Counter(clip.text for record in answer.records for clip in record.clips)
    assert set(kinds) == {"long", "short", "first", "dropped"}
    tokens = {(clip.text, clip.text_tokens) for record in answer.records for clip in record.clips}
    assert tokens == {("long", 7), ("short", 5), ("first", 3), ("dropped", None)}


def test_the_table_names_what_stood_in_and_nothing_steers_the_terminal(
    story_run: Path, damaged: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, broken = damaged
    assert ask(story_run, *(part for step in range(5) for part in ("--step", step))) == 0
    output = capsys.readouterr().out
    assert output.count("these are the clips that were trained (clips_digest matches)") == 5
    for clip in broken:
        assert f"in place of {clip}: " in output
    assert "\x1b" not in output and "<script>" in output
    assert "first frame given" in output and "27 of 54 tokens kept" in output and "aligned to random" in output


def test_the_json_file_has_everything(story_run: Path, tmp_path: Path) -> None:
    assert ask(story_run, "--step", 3, "--json", tmp_path / "found.json") == 0
    (step,) = json.loads((tmp_path / "found.json").read_text())["steps"]
    (line,) = [line for line in read_lines(story_run / "metrics.jsonl") if line["step"] == 3]
    assert step["metrics"] == line and step["digest_matches"] is True
    assert len(step["clips"]) == line["clips"]
    assert {"sigma", "first_frame_given", "kept_tokens", "blur_factor"} <= step["clips"][0]["draws"].keys()


def test_a_step_that_was_not_trained_is_told_as_planned(
    story_run: Path, damaged: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _, plan, _ = damaged
    assert ask(story_run, "--step", 5) == 0
    assert "not trained yet: told as planned" in capsys.readouterr().out
    (record,) = steps_answer(open_run_folder(story_run), [5]).records
    assert not record.trained and record.digest_matches is None
    planned = [clip for use in plan.uses if use["step"] == 5 for clip in use["clip_ids"]]
    assert [clip.clip_id for clip in record.clips] == planned


def test_dense_unaligned_text_to_video(damaged: Any, train_on: Callable[..., Path], tmp_path: Path) -> None:
    story, plan, _ = damaged
    changes = {"tread": None, "repa": None, "i2v": {"probability": 0.0}, "text": {"dropout_probability": 0.0}}
    run = train_on(tmp_path / "run", plan.folder, story.folder, steps=1, **changes)
    (record,) = steps_answer(open_run_folder(run), [0]).records
    assert record.digest_matches
    for clip in record.clips:
        assert clip.teacher is None and not clip.draws.first_frame_given and clip.text != "dropped"
        assert clip.draws.kept_tokens == clip.draws.video_tokens


def test_image_to_video_with_tokens_and_blur(
    damaged: Any, train_on: Callable[..., Path], small_config: Callable[..., Any], tmp_path: Path
) -> None:
    story, plan, _ = damaged
    i2v = {"probability": 1.0, "image_tokens": True, "blur": {"probability": 1.0, "factor_at_noise": 0.5}}
    model = {**small_config()["model"], "image_width": 8}
    run = train_on(tmp_path / "run", plan.folder, story.folder, steps=2, i2v=i2v, model=model)
    for record in steps_answer(open_run_folder(run), [0, 1]).records:
        for clip in record.clips:
            video = clip.bucket.startswith("33x")
            assert clip.draws.first_frame_given is clip.image_tokens_given is video
            blur = clip.draws.blur_factor
            assert blur is None if not video else blur == pytest.approx(1 - 0.5 * clip.draws.sigma)
            assert (clip.teacher == "random") is video


def test_two_ranks_trained_what_one_is_told(two_rank_run: Path, tiny_plan: Any) -> None:
    answer = steps_answer(open_run_folder(two_rank_run), range(10))
    assert all(record.digest_matches for record in answer.records)
    for record in answer.records:
        expected = [clip for use in tiny_plan.uses if use["step"] == record.step for clip in use["clip_ids"]]
        assert [clip.clip_id for clip in record.clips] == expected
        assert record.notes == ("captions are not known: the .json members of the set hold none, or cannot be read",)


def test_a_clip_is_followed_through_the_run(
    story_run: Path, damaged: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, plan, broken = damaged
    run = open_run_folder(story_run)
    for clip in sorted(broken):
        uses = clip_answer(run, clip).uses
        planned = [use["step"] for use in plan.uses if clip in use["clip_ids"]]
        assert [use.step for use in uses] == planned
        assert {use.role for use in uses if use.step < 5} == {"replaced"}
        (other,) = {use.other for use in uses if use.other}
        stood_in = [use for use in clip_answer(run, other).uses if use.role == "stand_in"]
        assert [use.other for use in stood_in] == [clip] * len(stood_in) != []
    assert ask(story_run, "--clip", other, "--json", tmp_path / "clip.json") == 0
    assert f"in place of {clip}" in capsys.readouterr().out
    found = json.loads((tmp_path / "clip.json").read_text())["clip"]
    lines = {line["step"]: line for line in read_lines(story_run / "metrics.jsonl")}
    assert all(use["metrics"] == lines.get(use["step"]) for use in found["uses"])


def test_a_lost_ledger_line_is_found_out(story_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(story_run, tmp_path / "run"))
    (path, *_) = sorted((run / "ledger").glob("*.jsonl"))
    step = read_lines(path)[0]["step"]
    path.write_text("")
    assert ask(run, "--step", step) == 0
    assert "these are NOT the clips that were trained: clips_digest is" in capsys.readouterr().out


def test_the_losses_of_clips_are_those_of_the_step(
    story_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = {line["step"]: line for line in read_lines(story_run / "metrics.jsonl")}
    asked = [part for step in (2, 3, 4) for part in ("--step", step)]
    assert ask(story_run, *asked, "--losses", "--json", tmp_path / "found.json") == 0
    steps = json.loads((tmp_path / "found.json").read_text())["steps"]
    for record, before in zip(steps, (0, 1, 0), strict=True):
        assert all(
            (clip["loss"] > 0 and clip["usual_loss"] is None) or clip["usual_loss"] > 0 for clip in record["clips"]
        )
        means = {
            bucket: sum(losses) / len(losses)
            for bucket in {clip["bucket"] for clip in record["clips"]}
            for losses in [[clip["loss"] for clip in record["clips"] if clip["bucket"] == bucket]]
        }
        exact = means == pytest.approx(lines[record["step"]]["loss_by_bucket"], rel=1e-5)
        assert exact is (before == 0), "by the checkpoint right before the step, and by no other"
    said = capsys.readouterr().out
    assert "by the weights of checkpoint 2, right before it" in said and "checkpoint 2, 1 steps before it" in said
    assert "is usual around its time" in said
    assert ask(story_run, "--step", 3, "--losses", "--checkpoint", 4) == 0
    assert "by the weights of checkpoint 4, 1 steps after it" in capsys.readouterr().out
