"""A loss or gradient that is not finite: the clips are named, nothing is updated, the dump can be run again, and a skipped step is exact on
resume."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.shards import SetInfo, read_set_info, write_set_info
from schemas.tables import SAMPLES, read_table, table_from_rows, write_table
from training.checkpoints.checkpoint import checkpoint_steps
from training.cli import main
from training.control.batch_files import read_batches
from training.control.nonfinite_replay import replay
from training.metrics import read_lines
from training.optimizing.optimizer import StepOptimizer

PROJECT = Path(__file__).resolve().parents[2]
Arguments = Callable[..., list[str]]
EACH_STEP: dict[str, Any] = {"checkpoint": {"every_steps": 1, "keep": 20}}


@pytest.fixture(scope="module")
def poisoned(
    tiny_set: Path, make_plan: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, dict[str, Any]]:
    """A set in which the first clip of lane 1 in step 3 has a latent of infinities, whole by every checksum; a plan of it; the clip's use."""
    folder = tmp_path_factory.mktemp("poisoned")
    samples = Path(shutil.copytree(tiny_set, folder / "tiny"))
    uses = make_plan(folder / "first", [samples]).uses
    before = {name for use in uses if use["step"] < 3 for name in use["clip_ids"]}
    use = next(use for use in uses if use["step"] == 3 and use["lane"] == 1 and not before & set(use["clip_ids"]))
    victim = use["clip_ids"][0]
    rows = read_table(samples / "samples.parquet", SAMPLES).to_pylist()
    row = next(row for row in rows if row["clip_id"] == victim)
    latent = next(member for member in row["members"] if member["name"] == "latent.npy")
    stream = io.BytesIO()
    np.save(stream, np.full(row["latent_shape"], np.inf, np.float16), allow_pickle=False)
    data = stream.getvalue()
    assert len(data) == latent["length"]
    with (samples / f"shard-{row['shard_index']:06d}.tar").open("r+b") as shard:
        shard.seek(latent["offset"])
        shard.write(data)
    latent["crc32"] = zlib.crc32(data)
    write_table(samples / "samples.parquet", table_from_rows(SAMPLES, rows), SAMPLES)
    info: SetInfo = read_set_info(samples)
    write_set_info(samples, info)
    return samples, make_plan(folder / "plan", [samples]).folder, use


def two_processes(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "training/train.py", *arguments, "--processes", "2", "--max-restarts", "2"]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def stopped(
    poisoned: tuple[Path, Path, dict[str, Any]], run_arguments: Arguments, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A run on two ranks that met the clip, and what it said."""
    samples, plan, _ = poisoned
    run = tmp_path_factory.mktemp("runs") / "run"
    done = two_processes(run_arguments(run, plan=plan, samples=samples, **EACH_STEP))
    assert done.returncode == 1, done.stderr
    return run, done.stderr


def test_the_clips_of_the_micro_batch_are_named_once_and_nothing_is_updated(
    stopped: tuple[Path, str], poisoned: tuple[Path, Path, dict[str, Any]]
) -> None:
    run, said = stopped
    use = poisoned[2]
    assert said.count("error:") == 1 and "Traceback" not in said and "Warning" not in said
    assert "step 3: the loss is nan, expected a finite number; nothing was updated" in said
    listed = [line for line in said.splitlines() if "(rank " in line]
    assert [line.split()[0] for line in listed] == use["clip_ids"]
    assert f"(rank 1, lane 1, micro-batch {use['micro']}, {use['bucket']}" in listed[0] and "loss nan" in listed[0]
    assert checkpoint_steps(run) == [1, 2, 3] and len(read_lines(run / "metrics.jsonl")) == 3
    assert "not started again: a run that continues would meet the same numbers" in said
    assert said.count("training 1") == 1, "it was started once"


def test_the_dump_holds_the_step_and_can_be_run_again(
    stopped: tuple[Path, str], poisoned: tuple[Path, Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, use = stopped[0], poisoned[2]
    folder = run / "dumps" / "step-00000003"
    assert [path.name for path in folder.parent.iterdir()] == ["step-00000003"]
    dump = json.loads((folder / "dump.json").read_text())
    assert dump["step"] == 3 and dump["kind"] == "loss"
    assert set(use["clip_ids"]) <= {clip["clip_id"] for clip in dump["clips"]}
    stored = [batch for batch in dump["batches"] if batch["file"] is not None]
    assert [(batch["rank"], batch["lane"], batch["micro"]) for batch in stored] == [(1, 1, use["micro"])]
    assert {path.name for path in folder.iterdir()} == {"dump.json", "batches-rank-0001.safetensors", "weights"}
    (batch,) = read_batches(folder / "batches-rank-0001.safetensors").values()
    assert list(batch.clip_ids) == use["clip_ids"] and torch.isinf(batch.clean_BCTYX[0]).all()
    assert all(entry["nonfinite"] == entry["entries"] for entry in dump["gradients"]["parameters"][:3])
    (again,) = replay(folder, "cpu")
    assert again.first_module == "dit.patch_embed.proj" and again.gradients
    finite = [loss for loss in again.losses if np.isfinite(loss)]
    assert finite == [loss for loss in again.recorded if np.isfinite(loss)] and again.is_same
    assert main(["dump", str(folder), "--replay"]) == 0
    assert "first not finite: dit.patch_embed.proj" in capsys.readouterr().out


def test_a_restart_by_torchrun_does_not_repeat_the_step(
    stopped: tuple[Path, str],
    poisoned: tuple[Path, Path, dict[str, Any]],
    run_arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples, plan, _ = poisoned
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(["run", *run_arguments(stopped[0], plan=plan, samples=samples, **EACH_STEP)]) == 1
    said = capsys.readouterr().err
    assert "restarted at step 3, but step 3 would meet the same numbers as in" in said and "training 1" not in said


def test_no_dump_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", str(tmp_path)]) == 2
    assert "is no dump: dump.json is missing" in capsys.readouterr().err


def test_a_gradient_that_is_not_finite_names_parameters_and_keeps_every_micro_batch(
    run_arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import network

    loss = network.flow_loss

    def steep(*arguments: Any) -> Any:
        """Finite, with a gradient that is not."""
        found = loss(*arguments)
        return dataclasses.replace(found, total=found.total + (found.total - found.total.detach()).sqrt())

    monkeypatch.setattr(network, "flow_loss", steep)
    run = tmp_path / "run"
    assert main(["run", *run_arguments(run, steps=2, **EACH_STEP)]) == 1
    said = capsys.readouterr().err
    assert "step 0: the gradient norm is nan" in said or "step 0: the gradient norm is inf" in said
    assert (
        "every clip's loss is finite; the highest:" in said and "parameters have gradients that are not finite" in said
    )
    dump = json.loads((run / "dumps" / "step-00000000" / "dump.json").read_text())
    assert dump["kind"] == "gradient" and all(batch["file"] for batch in dump["batches"])
    assert checkpoint_steps(run) == []


def test_a_dump_that_cannot_be_written_still_names_the_clips(
    poisoned: tuple[Path, Path, dict[str, Any]],
    run_arguments: Arguments,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk fills up where the weights are written, inside DCP."""
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", full)
    samples, plan, use = poisoned
    run = tmp_path / "run"
    assert main(["run", *run_arguments(run, plan=plan, samples=samples, checkpoint={"every_steps": 100})]) == 1
    said = capsys.readouterr().err
    assert "step 3: the loss is nan; clips whose loss is not finite:" in said
    assert f"  {use['clip_ids'][0]} (rank 0, lane 1" in said
    assert said.count("error:") == 1 and "No space left on device" in said and "weights cannot be written" in said
    assert "Traceback" not in said


def test_a_skipped_step_updates_nothing_and_is_exact_on_resume(
    poisoned: tuple[Path, Path, dict[str, Any]],
    stopped: tuple[Path, str],
    run_arguments: Arguments,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples, plan, use = poisoned
    run = tmp_path / "whole"
    skip = {"on_nonfinite": "skip", **EACH_STEP}
    drop, dropped = StepOptimizer.drop_gradients, []

    def noted(self: StepOptimizer) -> None:
        dropped.append(drop(self))

    with monkeypatch.context() as patch:
        patch.setattr(StepOptimizer, "drop_gradients", noted)
        assert main(["run", *run_arguments(run, plan=plan, samples=samples, **skip)]) == 0
    assert len(dropped) == 10, "a skipped step's gradients are let go of as well"
    assert "step 3 is skipped: the loss is nan" in capsys.readouterr().err
    whole = read_lines(run / "metrics.jsonl")
    skipped = {line["step"] for line in read_lines(run / "skipped.jsonl")}
    assert 3 in skipped and {line["step"] for line in whole} == set(range(10)) - skipped
    assert use["clip_ids"][0] in str(read_lines(run / "skipped.jsonl")[0]["clips"])
    left, right = tensors(run, 3), tensors(run, 4)
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    # The run that stopped at that step goes on with skipping, twice interrupted; on one rank the bits are those of one rank.
    other = tmp_path / "parts"
    for steps in (3, 4, 6, 10):
        assert main(["run", *run_arguments(other, plan=plan, samples=samples, steps=steps, **skip)]) == 0
    parts = read_lines(other / "metrics.jsonl")
    assert [line["loss_hex"] for line in parts] == [line["loss_hex"] for line in whole]
    assert [line["step"] for line in read_lines(other / "skipped.jsonl")] == sorted(skipped)
    assert main(["run", *run_arguments(other, "--checkpoint", 3, plan=plan, samples=samples, steps=4, **skip)]) == 0
    assert {line["step"] for line in read_lines(other / "skipped.jsonl")} == {3}


def test_clips_replaced_in_a_skipped_step_are_in_the_ledger(
    poisoned: tuple[Path, Path, dict[str, Any]],
    make_plan: Callable[..., Any],
    run_arguments: Arguments,
    tmp_path: Path,
) -> None:
    samples = Path(shutil.copytree(poisoned[0], tmp_path / "tiny"))
    plan = make_plan(tmp_path / "plan", [samples])
    use = next(use for use in plan.uses if use["step"] == 3 and use["lane"] == 0)
    row = next(
        row
        for row in read_table(samples / "samples.parquet", SAMPLES).to_pylist()
        if row["clip_id"] == use["clip_ids"][0]
    )
    text = next(member for member in row["members"] if member["name"] == "text_long.npy")
    with (samples / f"shard-{row['shard_index']:06d}.tar").open("r+b") as shard:
        shard.seek(text["offset"] + text["length"] - 1)
        shard.write(b"\x55")
    run = tmp_path / "run"
    arguments = run_arguments(run, plan=plan.folder, samples=samples, steps=5, on_nonfinite="skip")
    assert main(["run", *arguments]) == 0
    assert 3 in {line["step"] for line in read_lines(run / "skipped.jsonl")}
    assert (3, use["clip_ids"][0]) in {
        (line["step"], line["clip_id"]) for line in read_lines(run / "ledger" / "lane-0000.jsonl")
    }


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (path,) = (run / "checkpoints" / f"step-{step:08d}").glob("*.safetensors")
    return load_file(path)
