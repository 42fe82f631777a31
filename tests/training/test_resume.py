"""Continuing a run: the same bits as without interruption, or a refusal that names the difference."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from training.checkpoints.checkpoint import checkpoint_steps, find_checkpoint, read_record
from training.cli import main
from training.metrics import read_lines, rewind

Arguments = Callable[..., list[str]]
Start = Callable[..., subprocess.Popen[str]]


def losses(run: Path) -> list[str]:
    """Losses as hexadecimal floats, by step."""
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(len(lines)))
    return [line["loss_hex"] for line in lines]


def wait_for(done: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 80) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


@pytest.fixture
def killed_run(
    tmp_path: Path,
    run_arguments: Arguments,
    start_training: Start,
    kill_tree: Callable[[subprocess.Popen[str]], None],
) -> Path:
    """A run on two ranks, SIGKILLed some time after its fourth step."""
    run = tmp_path / "run"
    process = start_training(*run_arguments(run), processes=2)
    wait_for(lambda: len(read_lines(run / "metrics.jsonl")) > 4, process)
    kill_tree(process)
    process.communicate()
    assert checkpoint_steps(run)[0] == 4 and 10 not in checkpoint_steps(run), "the kill came too late to test anything"
    return run


def test_killed_and_continued_on_two_ranks_gives_the_same_bits(
    killed_run: Path, two_rank_run: Path, run_arguments: Arguments, start_training: Start
) -> None:
    for checkpoint in killed_run.glob("checkpoints/step-0000000[!4]"):
        shutil.rmtree(checkpoint)
    (killed_run / "checkpoints" / ".tmp-step-00000008").mkdir(
        exist_ok=True
    )  # as a kill in the middle of saving leaves it
    process = start_training(*run_arguments(killed_run), processes=2)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert "steps 4 to 9 of 10, from" in errors
    assert "not exact" not in errors
    assert losses(killed_run) == losses(two_rank_run)
    assert checkpoint_steps(killed_run) == [4, 8, 10]
    left, right = tensors(killed_run / "checkpoints/step-00000010"), tensors(two_rank_run / "checkpoints/step-00000010")
    assert left.keys() == right.keys()
    different = [name for name, value in left.items() if not torch.equal(value, right[name])]
    assert different == [], "weights, moments or averages differ"


def tensors(checkpoint: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Every part of every tensor, by (file, name)."""
    return {
        (path.name, name): value
        for path in sorted(checkpoint.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, run_arguments: Arguments) -> Path:
    """Seven steps on one rank, a checkpoint after each."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["run", *run_arguments(run, steps=7, checkpoint={"every_steps": 1, "keep": 7})]) == 0
    return run


def test_continuing_twice_and_across_the_end_of_a_shorter_run_gives_the_same_bits(
    whole_run: Path, tmp_path: Path, run_arguments: Arguments
) -> None:
    run = tmp_path / "run"
    for steps in (2, 3, 7, 7):
        assert main(["run", *run_arguments(run, steps=steps)]) == 0
    assert losses(run) == losses(whole_run)


@pytest.mark.parametrize("step", [1, 5])
def test_continuing_from_a_named_checkpoint_rewinds_the_metrics(
    whole_run: Path, tmp_path: Path, run_arguments: Arguments, step: int
) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    assert main(["run", *run_arguments(run, "--checkpoint", step, steps=6)]) == 0
    assert losses(run) == losses(whole_run)[:6]


def test_continuing_from_an_earlier_checkpoint_keeps_the_new_training(
    whole_run: Path, tmp_path: Path, run_arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    few: dict[str, Any] = {"checkpoint": {"every_steps": 1, "keep": 2}}
    changed: dict[str, Any] = {"optimizer": {"lr": 5e-4, "warmup_steps": 3}, **few}
    allow = ("--allow-change", "optimizer")
    assert main(["run", *run_arguments(run, "--checkpoint", 4, *allow, steps=5, **changed)]) == 0
    assert "checkpoints of steps 5, 6, 7 are of the abandoned continuation" in capsys.readouterr().err
    assert checkpoint_steps(run) == [4, 5]
    assert {path.name for path in (run / "checkpoints").glob("abandoned-*")} == {
        f"abandoned-step-0000000{step}" for step in (5, 6, 7)
    }
    assert read_record(find_checkpoint(run, None)).config["optimizer"]["lr"] == 5e-4
    assert main(["run", *run_arguments(run, steps=7, **changed)]) == 0
    assert "from " + str(run / "checkpoints" / "step-00000005") in capsys.readouterr().err
    assert checkpoint_steps(run) == [6, 7]
    assert losses(run)[:5] == losses(whole_run)[:5] and losses(run)[6] != losses(whole_run)[6]


def test_nothing_to_do_from_an_earlier_checkpoint_drops_nothing(
    whole_run: Path, tmp_path: Path, run_arguments: Arguments
) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    assert main(["run", *run_arguments(run, "--checkpoint", 4, steps=4)]) == 0
    assert checkpoint_steps(run) == [1, 2, 3, 4, 5, 6, 7]
    assert losses(run) == losses(whole_run)


def test_sigterm_finishes_the_step_saves_and_says_how_to_go_on(
    whole_run: Path, tmp_path: Path, run_arguments: Arguments, start_training: Start
) -> None:
    run = tmp_path / "run"
    process = start_training(*run_arguments(run, checkpoint={"every_steps": 100, "keep": 1}))
    wait_for(lambda: (run / "metrics.jsonl").is_file(), process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "resumable, run the same command again" in errors
    done = len(losses(run))
    assert checkpoint_steps(run) == [done] and done < 10
    assert main(["run", *run_arguments(run, checkpoint={"every_steps": 100, "keep": 1}, steps=max(7, done))]) == 0
    assert losses(run)[:7] == losses(whole_run)


def test_a_change_of_the_maths_is_refused_unless_it_is_named(
    whole_run: Path, tmp_path: Path, run_arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    changed = {"optimizer": {"lr": 5e-4, "warmup_steps": 3}, "seed": 8, "steps": 8}
    assert main(["run", *run_arguments(run, **changed)]) == 2
    said = capsys.readouterr().err
    assert "optimizer.lr: was 0.001, is 0.0005" in said and "seed: was 7, is 8" in said and "--allow-change" in said
    assert main(["run", *run_arguments(run, "--allow-change", "seed", **changed)]) == 2
    said = capsys.readouterr().err
    assert "optimizer.lr" in said and "seed:" not in said
    assert main(["run", *run_arguments(run, "--allow-change", "seed", "--allow-change", "optimizer", **changed)]) == 0
    assert losses(run)[:7] == losses(whole_run) and len(losses(run)) == 8


def test_another_precision_is_refused_unless_it_is_named_also_where_auto_came_to_another(
    whole_run: Path, tmp_path: Path, run_arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    assert main(["run", *run_arguments(run, steps=7, precision="fp32")]) == 0, "what auto was"
    assert "precision: was" not in capsys.readouterr().err
    assert main(["run", *run_arguments(run, steps=8, precision="bf16")]) == 2
    assert "precision: was 'float32', is 'bfloat16'" in capsys.readouterr().err
    path = run / "checkpoints" / "step-00000007" / "record.json"
    record = json.loads(path.read_text())
    assert record["environment"]["precision"] == "float32" and record["config"]["precision"] == "auto"
    record["environment"]["precision"] = "bfloat16"  # as a GPU would have left it
    path.write_text(json.dumps(record))
    assert main(["run", *run_arguments(run, steps=8)]) == 2
    assert "precision: was 'bfloat16', is 'float32'" in capsys.readouterr().err
    assert main(["run", *run_arguments(run, "--allow-change", "precision", steps=8)]) == 0
    said = capsys.readouterr().err
    assert "precision: was 'bfloat16', is 'float32': changes what is computed" in said and len(losses(run)) == 8


def test_another_plan_is_refused_unless_it_is_named(
    whole_run: Path,
    tmp_path: Path,
    run_arguments: Arguments,
    make_plan: Callable[..., Any],
    tiny_set: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    other = make_plan(tmp_path / "plan", [tiny_set], steps=9).folder
    assert main(["run", *run_arguments(run, plan=other, steps=8)]) == 2
    assert "plan: was" in capsys.readouterr().err
    assert main(["run", *run_arguments(run, "--allow-change", "plan", plan=other, steps=8)]) == 0


def test_a_damaged_checkpoint_is_refused_and_an_older_one_taken_on_request(
    whole_run: Path, tmp_path: Path, run_arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    file = next((run / "checkpoints" / "step-00000007").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-8])
    assert main(["run", *run_arguments(run, steps=8)]) == 1
    assert "is damaged: copy it again, or take another with --checkpoint STEP" in capsys.readouterr().err
    assert main(["run", *run_arguments(run, "--checkpoint", 6, steps=7)]) == 0
    assert losses(run) == losses(whole_run)


def test_rewinding_drops_later_lines_and_a_cut_off_one(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger" / "lane-0001.jsonl"
    ledger.parent.mkdir()
    for path in (tmp_path / "metrics.jsonl", ledger):
        path.write_text("".join(json.dumps({"step": step, "x": "ü"}) + "\n" for step in range(4)) + '{"step": 4, "x"')
    rewind(tmp_path, 2)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [0, 1]
    assert [line["step"] for line in read_lines(ledger)] == [0, 1]
    assert read_lines(tmp_path / "none.jsonl") == []


def test_a_run_goes_on_with_a_plan_that_continues_its_own_on_other_lanes(
    tiny_set: Path,
    make_plan: Callable[..., Any],
    run_arguments: Arguments,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Four steps on two lanes, then a plan of one lane whose first step is the fourth."""
    run = tmp_path / "run"
    rest = make_plan(tmp_path / "rest", [tiny_set], lanes=1, micro=4, steps=3, first_step=4)
    assert main(["run", *run_arguments(tmp_path / "new", plan=rest.folder)]) == 1
    assert "has steps 4 to 6, but the run goes on with step 0 (there is no checkpoint)" in capsys.readouterr().err
    assert main(["run", *run_arguments(run, steps=4)]) == 0
    assert main(["run", *run_arguments(run, plan=rest.folder, steps=7)]) == 2
    assert "plan: was" in capsys.readouterr().err
    assert main(["run", *run_arguments(run, "--allow-change", "plan", plan=rest.folder, steps=7)]) == 0
    assert len(losses(run)) == 7
