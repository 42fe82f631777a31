"""The command line: mistakes end with one message and an exit code, on every rank; the script and the command are the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.tables import SAMPLES, read_table
from training.cli import main
from training.metrics import read_lines

PROJECT = Path(__file__).resolve().parents[2]
Arguments = Callable[..., list[str]]


def replaced(arguments: list[str], flag: str, value: object) -> list[str]:
    changed = list(arguments)
    changed[changed.index(flag) + 1] = str(value)
    return changed


@pytest.fixture
def wrong_arguments(
    run_arguments: Arguments, tmp_path: Path, make_set: Callable[..., Path], request: pytest.FixtureRequest
) -> list[str]:
    """A good command line with the named thing made wrong."""
    good = run_arguments(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    if request.param == "other samples":
        return replaced(good, "--samples", make_set(tmp_path / "other", seed=5))
    changes: dict[str, list[str]] = {
        "missing config": replaced(good, "--config", tmp_path / "none.yaml"),
        "missing plan": replaced(good, "--plan", tmp_path / "none"),
        "empty plan": replaced(good, "--plan", tmp_path / "empty"),
        "missing samples": replaced(good, "--samples", tmp_path / "none"),
        "empty samples": replaced(good, "--samples", tmp_path / "empty"),
        "unknown key": [*good, "--set", "optimizer.learning_rate=1"],
        "not key=value": [*good, "--set", "optimizer.lr"],
        "wrong value": [*good, "--set", "steps=many"],
        "too many steps": [*good, "--set", "steps=11"],
        "missing checkpoint": [*good, "--checkpoint", "4"],
        "three processes": [*good, "--processes", "3"],
        "text width": [*good, "--set", "model.text_width=384"],
        "channels": [*good, "--set", "model.out_channels=4", "--set", "model.in_channels=9"],
        "output is a file": replaced(good, "--output", good[1]),
        "output below a file": replaced(good, "--output", Path(good[1]) / "run"),
        "no cuda": [*good, "--set", "device=cuda"],
    }
    return changes[request.param]


@pytest.mark.parametrize(
    ("wrong_arguments", "code", "message"),
    [
        ("missing config", 2, "none.yaml cannot be read"),
        ("missing plan", 1, "plan.json is missing; make one with `reelyard-plan build`"),
        ("empty plan", 1, "plan.json is missing"),
        ("missing samples", 1, "set.json is missing"),
        ("empty samples", 1, "set.json is missing"),
        ("other samples", 1, "the plan was built for other samples"),
        ("unknown key", 2, "optimizer.learning_rate: unknown key"),
        ("not key=value", 2, "is not of the form key=value"),
        ("wrong value", 2, "steps: "),
        ("too many steps", 1, "steps is 11, the plan"),
        ("missing checkpoint", 2, "holds no checkpoint"),
        ("three processes", 1, "world size 3 cannot run a plan of 2 lanes"),
        ("text width", 2, "set model.text_width=16"),
        ("channels", 2, "set model.out_channels=16"),
        ("output is a file", 2, "train.yaml, which is a file; expected the folder of a run"),
        ("output below a file", 2, "train.yaml/run, which cannot be made (Not a directory)"),
        ("no cuda", 2, "torch sees no CUDA device"),
    ],
    indirect=["wrong_arguments"],
)
def test_mistakes_end_with_one_message(
    wrong_arguments: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "device=cuda" in wrong_arguments:
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device here, so asking for it is no mistake")
    assert main(["run", *wrong_arguments]) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("error:") == 1 and "Traceback" not in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_under_a_launcher_every_rank_ends_alike_and_only_the_first_speaks(
    run_arguments: Arguments, tmp_path: Path, rank: int
) -> None:
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": str(rank)}
    done = subprocess.run(
        [sys.executable, "training/train.py", *run_arguments(tmp_path / "run")],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    if rank == 0:
        assert "error: rank 0 of world size 3 cannot run a plan of 2 lanes" in done.stderr
        assert "Traceback" not in done.stderr
    else:
        assert done.stderr == ""


def two_processes(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "training/train.py", *arguments, "--processes", "2"],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_a_damaged_null_text_ends_with_one_message(
    tiny_set: Path, run_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_set, tmp_path / "tiny"))
    whole = (folder / "null_text.npy").read_bytes()
    for damaged in (whole[:6], whole.replace(b"'descr'", b"'desk' "), whole.replace(b"}", b" ")):
        (folder / "null_text.npy").write_bytes(damaged)
        assert main(["run", *replaced(run_arguments(tmp_path / "run"), "--samples", folder)]) == 1
        said = capsys.readouterr().err
        assert "null_text.npy: cannot be read as the null text's states" in said
        assert said.count("error:") == 1 and "Traceback" not in said


def test_a_loss_that_is_not_finite_is_said_once_for_all_ranks(run_arguments: Arguments, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optimizer": {"lr": 1e30, "warmup_steps": 0}}
    done = two_processes(run_arguments(tmp_path / "run", **changes))
    assert done.returncode == 1, done.stderr
    assert "step 1: the loss is nan" in done.stderr
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr


def test_a_checkpoint_of_another_network_is_said_once_for_all_ranks(
    two_rank_run: Path, run_arguments: Arguments, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(two_rank_run, tmp_path / "run"))
    arguments = run_arguments(run, "--checkpoint", 8, "--allow-change", "ema_decays", ema_decays=[0.99, 0.9])
    done = two_processes(arguments)
    assert done.returncode == 1, done.stderr
    assert "ema_0.9/" in done.stderr and "is missing" in done.stderr
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr


@pytest.fixture
def broken_set(tiny_plan: Any, tiny_set: Path, tmp_path: Path) -> Path:
    """A copy of the set in which every clip that lane 1 uses is damaged."""
    folder = Path(shutil.copytree(tiny_set, tmp_path / "tiny"))
    doomed = {name for use in tiny_plan.uses if use["lane"] == 1 for name in use["clip_ids"]}
    for row in read_table(folder / "samples.parquet", SAMPLES).to_pylist():
        if row["clip_id"] in doomed:
            with (folder / f"shard-{row['shard_index']:06d}.tar").open("r+b") as stream:
                stream.seek(row["members"][0]["offset"] + 200)
                stream.write(b"broken")
    return folder


def test_data_that_fails_on_one_rank_ends_all_in_order(
    broken_set: Path, run_arguments: Arguments, tmp_path: Path
) -> None:
    arguments = replaced(run_arguments(tmp_path / "run"), "--samples", broken_set)
    done = two_processes(arguments)
    assert done.returncode == 1, done.stderr
    assert "step 0, lane 1: clip" in done.stderr and "no readable spare" in done.stderr
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr


def test_replaced_clips_are_in_the_ledger_of_the_lane(
    tiny_plan: Any, tiny_set: Path, run_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_set, tmp_path / "tiny"))
    first_step = {name: use["step"] for use in reversed(tiny_plan.uses) for name in use["clip_ids"] if use["lane"] == 1}
    victim = next(name for name, step in first_step.items() if 2 <= step <= 4)
    for row in read_table(folder / "samples.parquet", SAMPLES).to_pylist():
        if row["clip_id"] == victim:
            with (folder / f"shard-{row['shard_index']:06d}.tar").open("r+b") as stream:
                stream.seek(row["members"][0]["offset"] + 200)
                stream.write(b"broken")
    arguments = replaced(run_arguments(tmp_path / "run", steps=5), "--samples", folder)
    assert main(["run", *arguments]) == 0
    lines = read_lines(tmp_path / "run" / "ledger" / "lane-0001.jsonl")
    assert victim in {line["clip_id"] for line in lines}
    assert all(line["replacement"] == "earlier" and "crc32" in line["reason"] for line in lines)
    assert f"{len(lines)} damaged clip" in capsys.readouterr().err
    assert [line["clips"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")] == [12, 6, 12, 6, 12]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nowhere", "--prompt", "x", "--output", "out.mp4"], "nowhere is not a training run"),
        (["--run", "nowhere", "--prompt", "x", "--output", "out.gif"], "expected a file name that ends in .mp4"),
        (
            ["--run", "nowhere", "--prompt", "x", "--output", "o.mp4", "--weights", "best"],
            "expected one of ema, trained",
        ),
    ],
)
def test_sampling_mistakes_end_with_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_help_needs_no_torch() -> None:
    script = (
        "import sys; from training.cli import main; code = main(['run', '--help']); "
        "sys.exit(code or ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--allow-change" in done.stdout
