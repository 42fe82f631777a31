"""Evaluation on the way: it changes no bit of training, on one rank and on two; what it writes; how it goes on after an interruption."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from training import parallel
from training.checkpoints.checkpoint import checkpoint_steps
from training.cli import main
from training.evaluation.validation import Validation
from training.metrics import read_lines

SECTIONS: dict[str, Any] = {
    "steps": 4,
    "ema_decays": [0.5],
    "checkpoint": {"every_steps": 2, "keep": 9},
    "evaluation": {
        "every_steps": 2,
        "prompts": ["a cat", "a red bus in the rain"],
        "seeds": [0, 5],
        "frames": 5,
        "height": 32,
        "width": 48,
        "sampler": {"num_steps": 2, "negative_prompt": "blurred"},
    },
    "validation": {"every_steps": 2, "clips_per_bucket": 3, "num_timesteps": 3},
}
OFF = ("--set", "validation=null", "--set", "evaluation=null")
Arguments = Callable[..., list[str]]


@pytest.fixture(scope="module")
def held_out_set(
    tmp_path_factory: pytest.TempPathFactory, make_set: Callable[..., Path], clip_type: Callable[..., Any]
) -> Path:
    """Other clips than those of `text_set`: their ids count on from there."""
    folder = tmp_path_factory.mktemp("held") / "set"
    return make_set(folder, [clip_type(33), clip_type(1), clip_type(65)] * 5, seed=9, first=1000, text_width=384)


@pytest.fixture(scope="module")
def arguments(
    text_set: tuple[Path, Path], text_model: dict[str, Any], config_file: Callable[..., Path], held_out_set: Path
) -> Arguments:
    """Arguments of a run with both sections on; `changes` go into the configuration."""

    def build(output: Path, *extra: object, validation: Path | None = held_out_set, **changes: Any) -> list[str]:
        config = config_file(model=text_model, **{**SECTIONS, **changes})
        held = [] if validation is None else ["--validation", validation]
        paths = ["--plan", text_set[1], "--samples", text_set[0], "--output", output, *held]
        return [str(part) for part in ["--config", config, *paths, *extra]]

    return build


@pytest.fixture(scope="module")
def measured_run(tmp_path_factory: pytest.TempPathFactory, arguments: Arguments) -> Path:
    run = tmp_path_factory.mktemp("runs") / "measured"
    assert main(["run", *arguments(run)]) == 0
    return run


def losses(run: Path) -> list[str]:
    return [line["loss_hex"] for line in read_lines(run / "metrics.jsonl")]


def validation_lines(run: Path) -> dict[tuple[int, str], dict[str, Any]]:
    lines = read_lines(run / "validation.jsonl")
    found = {(line["steps_done"], line["weights"]): line for line in lines}
    assert len(found) == len(lines), "something was measured twice"
    return found


def test_evaluation_changes_no_bit_of_training(measured_run: Path, arguments: Arguments, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    assert main(["run", *arguments(plain, *OFF, validation=None)]) == 0
    assert losses(plain) == losses(measured_run) and len(losses(plain)) == 4
    assert not (plain / "samples").exists() and not (plain / "validation.jsonl").exists()


def test_two_ranks_measure_and_train_what_one_does(
    measured_run: Path,
    arguments: Arguments,
    tmp_path: Path,
    start_training: Callable[..., subprocess.Popen[str]],
) -> None:
    process = start_training(*arguments(tmp_path / "with"), processes=2)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    one_loss, two_loss = (
        [line["loss"] for line in read_lines(run / "metrics.jsonl")] for run in (measured_run, tmp_path / "with")
    )
    assert two_loss == pytest.approx(one_loss, rel=1e-6), "averages were trained on"
    one, two = validation_lines(measured_run), validation_lines(tmp_path / "with")
    assert one.keys() == two.keys()
    for key, line in one.items():
        assert two[key]["loss"] == pytest.approx(line["loss"], rel=1e-5)
        assert two[key]["buckets"].keys() == line["buckets"].keys()
    names = sorted(path.name for path in (measured_run / "samples/step-00000004").iterdir())
    assert sorted(path.name for path in (tmp_path / "with/samples/step-00000004").iterdir()) == names
    for index in (1, 2, 3, 4):
        mine, theirs = (
            frames(run / f"samples/step-00000000/{index:04d}.mp4").astype(int)
            for run in (measured_run, tmp_path / "with")
        )
        assert np.abs(mine - theirs).mean() < 1.0


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_videos_of_every_prompt_and_seed_are_written_before_between_and_after(measured_run: Path) -> None:
    folders = sorted((measured_run / "samples").iterdir())
    assert [folder.name for folder in folders] == ["step-00000000", "step-00000002", "step-00000004"]
    for folder in folders:
        listed = json.loads((folder / "samples.json").read_text())
        assert [(clip["prompt"], clip["seed"]) for clip in listed["clips"]] == [
            ("a cat", 0),
            ("a cat", 5),
            ("a red bus in the rain", 0),
            ("a red bus in the rain", 5),
        ]
        assert listed["weights"] == "ema" and "not the one" in listed["notes"][0]
        for clip in listed["clips"]:
            assert frames(folder / clip["file"]).shape == (5, 32, 48, 3)
        assert (folder / "contact-sheet.png").stat().st_size > 0
    assert (folders[0] / "contact-sheet.png").read_bytes() != (folders[2] / "contact-sheet.png").read_bytes(), (
        "the network did not move"
    )


def test_a_video_on_the_way_is_the_one_that_the_command_makes(measured_run: Path, tmp_path: Path) -> None:
    arguments = ["--run", measured_run, "--prompt", "a cat", "--seed", 5, "--output", tmp_path / "again.mp4"]
    arguments += [
        "--frames",
        5,
        "--height",
        32,
        "--width",
        48,
        "--set",
        "num_steps=2",
        "--set",
        "negative_prompt=blurred",
    ]
    assert main(["sample", *map(str, arguments)]) == 0
    again = frames(tmp_path / "again.mp4").astype(int)
    assert np.abs(again - frames(measured_run / "samples/step-00000004/0002.mp4")).mean() < 1.0


def test_validation_has_a_line_for_each_set_of_weights(measured_run: Path) -> None:
    lines = validation_lines(measured_run)
    assert set(lines) == {(done, weights) for done in (0, 2, 4) for weights in ("ema", "trained")}
    assert lines[0, "ema"]["loss_hex"] == lines[0, "trained"]["loss_hex"], "both start alike"
    assert lines[4, "ema"]["loss_hex"] != lines[4, "trained"]["loss_hex"]
    for line in lines.values():
        assert line["clips"] == 6 and set(line["buckets"]) == {"1x32x48", "33x32x48"}  # no bucket of 65 in the plan
        by_bucket = [bucket["loss"] * bucket["clips"] for bucket in line["buckets"].values()]
        assert line["loss"] == pytest.approx(sum(by_bucket) / 6)
        assert float.fromhex(line["loss_hex"]) == line["loss"]


def test_a_continued_run_measures_what_it_lacks_and_nothing_twice(
    measured_run: Path, arguments: Arguments, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(measured_run, tmp_path / "run"))
    (run / "samples/step-00000002/samples.json").unlink()  # as a kill in the midst of it leaves it
    assert main(["run", *arguments(run, "--checkpoint", 2)]) == 0
    assert losses(run) == losses(measured_run)
    assert validation_lines(run) == validation_lines(measured_run)
    names = sorted(path.name for path in (run / "samples").iterdir())
    assert names == ["abandoned-step-00000004", "step-00000000", "step-00000002", "step-00000004"]
    for name in names[1:]:
        for file in ("contact-sheet.png", "samples.json"):  # an encoder's bytes are not the same on a busy machine
            assert (run / "samples" / name / file).read_bytes() == (measured_run / "samples" / name / file).read_bytes()


def test_a_rank_that_cannot_write_ends_both_with_one_message(
    arguments: Arguments, tmp_path: Path, start_training: Callable[..., subprocess.Popen[str]]
) -> None:
    run = tmp_path / "run"
    (run / "samples/step-00000000/0002.mp4").mkdir(parents=True)  # the clip of rank 1
    given = [*arguments(run, "--set", "validation=null", validation=None), "--processes", "2"]
    process = start_training(*given)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 1
    assert said.count("cannot be written (Is a directory)") == 1 and "0002.mp4" in said, said
    assert "Traceback" not in said and "another rank" not in said
    assert not (run / "metrics.jsonl").exists()


def test_a_sigterm_during_evaluation_saves_and_leaves_it_for_the_continuation(
    arguments: Arguments, tmp_path: Path, start_training: Callable[..., subprocess.Popen[str]]
) -> None:
    run = tmp_path / "run"
    (run / "samples/step-00000000").mkdir(parents=True)
    (run / "samples/step-00000000/samples.json").write_text("{}")  # as if it were done
    many = {**SECTIONS["evaluation"], "every_steps": 1, "seeds": list(range(5000))}
    checkpoint = {"every_steps": 100, "keep": 9}
    given = arguments(run, "--set", "validation=null", validation=None, evaluation=many, checkpoint=checkpoint)
    process = start_training(*given, "--processes", "2")
    deadline = time.monotonic() + 80
    while not (run / "samples/step-00000001/0002.mp4").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in said, said
    assert "the evaluation after 1 steps is left" in said and "resumable" in said
    assert checkpoint_steps(run) == [1] and len(losses(run)) == 1
    assert not (run / "samples/step-00000001/samples.json").exists()
    few = {**many, "seeds": [0]}
    assert main(["run", *arguments(run, "--set", "validation=null", validation=None, evaluation=few, steps=2)]) == 0
    assert len(json.loads((run / "samples/step-00000001/samples.json").read_text())["clips"]) == 2


def test_a_run_from_other_weights_is_measured_before_its_first_step_whatever_its_number(
    arguments: Arguments, measured_run: Path, text_set: tuple[Path, Path], make_plan: Callable[..., Any], tmp_path: Path
) -> None:
    plan = make_plan(tmp_path / "plan", [text_set[0]], lanes=2, micro=1, steps=3, batch={1: 1, 33: 1}, first_step=3)
    given = ["--plan", plan.folder, "--init-from", measured_run, "--set", "evaluation=null"]
    assert main(["run", *arguments(tmp_path / "run", *given, steps=5)]) == 0
    assert [done for done, _ in validation_lines(tmp_path / "run")] == [3, 3, 4, 4, 5, 5]


def test_a_loss_that_is_not_finite_is_null_and_said(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = Validation._losses
    monkeypatch.setattr(
        Validation,
        "_losses",
        lambda *given: [math.nan, *measure(*given)[1:]] if given[2][0] == (0, 0) else measure(*given),
    )
    assert main(["run", *arguments(tmp_path / "run", "--set", "evaluation=null", steps=1)]) == 0
    line = validation_lines(tmp_path / "run")[0, "ema"]
    assert line["loss"] is None and line["loss_hex"] is None and line["by_share"][0] is None
    assert all(value > 0 for value in line["by_share"][1:]), "the other times are told"
    assert "1 of 18 validation losses (ema) are not finite" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
def test_evaluation_of_a_compiled_run_makes_no_graph(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_block, graphs = parallel.compile_block, []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(1)
        return graph

    monkeypatch.setattr(parallel, "compile_block", lambda block: compile_block(block, backend))
    counts = {}
    for name, extra in (("plain", OFF), ("measured", ())):
        torch.compiler.reset()
        graphs.clear()
        held = {"validation": None} if extra else {}
        assert main(["run", *arguments(tmp_path / name, *extra, steps=2, compile=True, **held)]) == 0
        counts[name] = len(graphs)
    torch.compiler.reset()
    assert counts["measured"] == counts["plain"] > 0
    assert losses(tmp_path / "measured") == losses(tmp_path / "plain")
    assert len(validation_lines(tmp_path / "measured")) == 4


@pytest.mark.parametrize(
    ("extra", "changes", "message"),
    [
        ((), {"validation": None}, "validation is on, but no set is given"),
        (("--set", "validation=null"), {}, "has no section `validation`"),
        (("--set", "evaluation.frames=32"), {}, "frames is 32, expected 4k + 1"),
        (("--set", "evaluation.height=60"), {}, "height is 60, expected a positive multiple of 16"),
        (("--set", "evaluation.prompts=[]"), {}, "evaluation.prompts"),
        (("--set", "validation.weights=[best]"), {}, "validation.weights"),
        (("--text-encoder-path", "nowhere"), {}, "--set evaluation=null"),
    ],
)
def test_mistakes_are_said_before_a_step_is_taken(
    arguments: Arguments,
    tmp_path: Path,
    extra: tuple[str, ...],
    changes: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", *arguments(tmp_path / "run", *extra, **changes)]) in (1, 2)
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_clips_that_are_trained_on_are_refused(
    arguments: Arguments, text_set: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments(tmp_path / "run", validation=text_set[0])]) == 2
    assert "8 of 8 clips of --validation" in capsys.readouterr().err


def test_the_command_measures_what_the_run_did(
    measured_run: Path, held_out_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run", measured_run, "--samples", held_out_set, "--checkpoint", 2, "--clips", 3, "--timesteps", 3]
    arguments += ["--max-frames", 33, "--output", tmp_path / "loss.json"]
    assert main(["evaluate", "validation", *map(str, arguments)]) == 0
    told = validation_lines(measured_run)
    for line in json.loads((tmp_path / "loss.json").read_text()):
        assert line["steps_done"] == 2
        assert line["loss"] == pytest.approx(told[2, line["weights"]]["loss"], rel=1e-5)
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["clips", "ema", "trained"]
    assert [line.split()[0] for line in table[1:4]] == ["1x32x48", "33x32x48", "all"]


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--weights", "best"], 2, "weights"),
        (["--checkpoint", "3"], 2, "has no checkpoint of step 3"),
        (["--max-frames", "0"], 2, "--max-frames is 0"),
        (["--samples", "nowhere"], 1, "nowhere"),
    ],
)
def test_mistakes_of_the_command_are_said_in_words(
    measured_run: Path,
    held_out_set: Path,
    extra: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--run", measured_run, "--samples", held_out_set, *extra]
    assert main(["evaluate", "validation", *map(str, given)]) == code
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
