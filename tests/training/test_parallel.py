"""One rank or two, checkpointed blocks or not: the same optimizer steps; and no rank is left waiting."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from schemas.config import build_config
from schemas.errors import ConfigError, DataError
from training import parallel
from training.batch import BatchMaker, TrainingBatch
from training.checkpoints.checkpoint import find_checkpoint
from training.checkpoints.whole_network import load_network
from training.config import TrainConfig
from training.dit.initialization import initialize_weights
from training.metrics import METRICS, read_lines
from training.network import build_network
from training.parallel import choose_device, open_world
from training.run_setup import RunRequest, check_same_start, prepare_run
from training.sync import micro_batch
from training.teachers import StoredTeachers


@pytest.fixture(scope="module")
def one_rank_run(tmp_path_factory: pytest.TempPathFactory, run_arguments: Callable[..., list[str]]) -> Path:
    from training.cli import main

    output = tmp_path_factory.mktemp("runs") / "one"
    assert main(["run", *run_arguments(output)]) == 0
    return output


def test_one_and_two_ranks_take_the_same_optimizer_steps(one_rank_run: Path, two_rank_run: Path) -> None:
    one, two = read_lines(one_rank_run / "metrics.jsonl"), read_lines(two_rank_run / "metrics.jsonl")
    assert len(one) == len(two) == 10
    for key in ("loss", "flow_loss", "repa_loss", "grad_norm"):
        assert [line[key] for line in two] == pytest.approx([line[key] for line in one], rel=1e-6), key
    for key in ("step", "clips", "buckets", "lr"):
        assert [line[key] for line in two] == [line[key] for line in one], key


def test_one_and_two_ranks_end_with_the_same_averages(
    one_rank_run: Path, two_rank_run: Path, small_config: Callable[..., dict[str, Any]]
) -> None:
    config = build_config(TrainConfig, small_config(), source="test")
    start = build_network(config.model_copy(update={"repa": None}), {}).dit.to_empty(device="cpu")
    one, two = (load_network(find_checkpoint(run, None), config) for run in (one_rank_run, two_rank_run))
    initialize_weights(start, config.seed)
    pairs = zip(one.named_parameters(), two.named_parameters(), start.parameters(), strict=True)
    moved = 0
    for (name, left), (_, right), first in pairs:
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6, msg=name)
        moved += not torch.equal(left, first)
    assert moved > 50, "the averages never left the start"


def test_a_device_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="device is 'gpu', expected auto, cpu or cuda"):
        choose_device("gpu")
    assert choose_device("cpu").type == "cpu"


def test_metrics_have_fixed_keys_and_exact_losses(one_rank_run: Path) -> None:
    for line in read_lines(one_rank_run / "metrics.jsonl"):
        assert tuple(line) == tuple(METRICS)
        assert float.fromhex(line["loss_hex"]) == line["loss"]
        assert line["clips"] == sum(line["buckets"].values())
        assert line["loss"] == pytest.approx(line["flow_loss"] + 0.5 * line["repa_loss"])
        assert line["mfu_pct"] is None and line["tokens_per_s"] > 0 and line["data_wait_ms"] >= 0
    rates = [line["lr"] for line in read_lines(one_rank_run / "metrics.jsonl")]
    assert rates[:4] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])


def test_ranks_that_see_different_checkpoints_do_not_start(tmp_path: Path) -> None:
    check_same_start([4, 4, 4], tmp_path)
    with pytest.raises(
        DataError, match=r"different steps \(4, 4, 0, by rank\).*start again when the files are the same"
    ):
        check_same_start([4, 4, 0], tmp_path)


@pytest.fixture
def batches(tiny_plan: Any, tiny_set: Path, config_file: Callable[..., Path], tmp_path: Path) -> list[TrainingBatch]:
    """The micro-batches of step 1 on one rank."""
    from training.loader import PlannedLoader

    request = RunRequest(config=config_file(), plan=tiny_plan.folder, samples=(tiny_set,), output=tmp_path / "unused")
    prepared = prepare_run(request)
    loader = PlannedLoader(
        prepared.plan,
        samples=prepared.sets,
        prepare=BatchMaker(prepared.config, prepared.null_text_ED, StoredTeachers({"random": 12})),
        start_step=1,
        stop_step=2,
        with_teacher=True,
    )
    return list(next(iter(loader)).batches)


def test_accumulated_sharded_gradients_are_those_of_the_plain_network(
    batches: list[TrainingBatch], small_config: Callable[..., dict[str, Any]]
) -> None:
    config = build_config(TrainConfig, small_config(), source="test")
    widths = {"random": 12}
    plain = build_network(config, widths).to_empty(device="cpu")
    initialize_weights(plain.dit, config.seed)
    initialize_weights(plain.projectors, config.seed)
    for batch in batches:
        losses = plain(batch)
        (losses.flow_total + losses.repa_total).backward()
    with open_world(torch.device("cpu")) as world:
        # One rank in float32 is not wrapped by `shard_network`; here it is.
        sharded = build_network(config, widths)
        parallel._shard(sharded, torch.float32, world)
        sharded.to_empty(device="cpu")
        initialize_weights(sharded.dit, config.seed)
        initialize_weights(sharded.projectors, config.seed)
        for index, batch in enumerate(batches):
            micro_batch(sharded, "micro", last=index == len(batches) - 1)
            losses = sharded(batch)
            (losses.flow_total + losses.repa_total).backward()
        compared = 0
        for (name, left), right in zip(plain.named_parameters(), sharded.parameters(), strict=True):
            assert (left.grad is None) == (right.grad is None), name
            if left.grad is not None:
                assert isinstance(right.grad, DTensor)
                torch.testing.assert_close(right.grad.full_tensor(), left.grad, rtol=1e-5, atol=1e-7, msg=name)
                compared += 1
    assert compared > 50


def test_recomputing_blocks_changes_no_bit(
    one_rank_run: Path, run_arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    from training.cli import main

    arguments = run_arguments(tmp_path / "run", activation_checkpointing=True, steps=3)
    assert main(["run", *arguments]) == 0
    plain = read_lines(one_rank_run / "metrics.jsonl")[:3]
    again = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["loss_hex"] for line in again] == [line["loss_hex"] for line in plain]
    names = json.dumps(sorted(_tensor_names(find_checkpoint(tmp_path / "run", None))))
    assert "_checkpoint_wrapped_module" not in names
    assert _tensor_names(find_checkpoint(tmp_path / "run", None)) == _tensor_names(find_checkpoint(one_rank_run, None))


def test_bf16_compute_follows_fp32_and_keeps_fp32_weights(
    one_rank_run: Path, tmp_path: Path, run_arguments: Callable[..., list[str]]
) -> None:
    from training.cli import main

    assert main(["run", *run_arguments(tmp_path / "run", precision="bf16", steps=3)]) == 0
    half, full = read_lines(tmp_path / "run" / "metrics.jsonl"), read_lines(one_rank_run / "metrics.jsonl")[:3]
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in half] != [line[name] for line in full]
        assert [line[name] for line in half] == pytest.approx([line[name] for line in full], rel=0.05)
    files = sorted(find_checkpoint(tmp_path / "run", None).glob("*.safetensors"))
    assert files
    for path in files:
        assert {tensor.dtype for tensor in load_file(path).values() if tensor.is_floating_point()} == {torch.float32}


def _tensor_names(checkpoint: Path) -> set[str]:
    from safetensors import safe_open

    names: set[str] = set()
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as stream:
            names |= set(stream.keys())
    return names


@pytest.fixture(scope="module")
def uneven_set(tmp_path_factory: pytest.TempPathFactory, make_set: Callable[..., Path], clip_type: Any) -> Path:
    """Shards in turn with teachers and without: lane 0 reads the even ones, lane 1 the odd ones. Images and videos have teachers of their own."""
    teachers = {"video_real": "vjepa2", "image_real": "dinov2"}
    clips = [
        clip_type(frames, teacher=shard % 2 == 0) for shard in range(6) for frames in (1, 33, 65, 1, 33, 65, 1, 33)
    ]
    folder = tmp_path_factory.mktemp("sets") / "uneven"
    return make_set(folder, clips, per_shard=8, teacher_by_branch=teachers, image_shape=(5, 6))


@pytest.fixture(scope="module")
def uneven_runs(
    tmp_path_factory: pytest.TempPathFactory,
    uneven_set: Path,
    make_plan: Callable[..., Any],
    run_arguments: Callable[..., list[str]],
    small_config: Callable[..., dict[str, Any]],
    start_training: Callable[..., Any],
    kill_tree: Callable[[Any], None],
) -> list[Path]:
    """Six steps of one rank and of two, the alignment over from step 3 on, under a watchdog."""
    root = tmp_path_factory.mktemp("runs")
    plan = make_plan(root / "plan", [uneven_set], steps=6, batch={1: 2, 33: 2, 65: 1})
    changes: dict[str, Any] = {
        "model": {**small_config()["model"], "image_width": 6},
        "repa": {"tap_block": 1, "weight": 0.5, "until_step": 3, "hidden_width": 24},
        "i2v": {"probability": 0.5, "image_tokens": True, "blur": {"probability": 0.5}},
    }
    from training.cli import main

    one, two = (run_arguments(root / name, plan=plan.folder, samples=uneven_set, **changes) for name in ("one", "two"))
    assert main(["run", *one]) == 0
    process = start_training(*two, processes=2)
    try:
        _, errors = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        kill_tree(process)
        raise
    assert process.returncode == 0, errors
    return [root / "one", root / "two"]


def test_ranks_that_differ_in_teachers_and_image_tokens_wait_for_nobody(uneven_runs: list[Path]) -> None:
    """Rank 1 of 2 never has a teacher; from step 3 on nobody has; images and videos alternate. The loss is that of one rank."""
    one, two = (read_lines(run / "metrics.jsonl") for run in uneven_runs)
    assert [line["step"] for line in two] == list(range(6))
    for key in ("loss", "flow_loss", "grad_norm"):
        assert [line[key] for line in two] == pytest.approx([line[key] for line in one], rel=1e-6), key
    assert [line["repa_loss"] is None for line in two] == [False, False, False, True, True, True]
    for line in two:
        weighted = 0.0 if line["repa_loss"] is None else 0.5 * line["repa_loss"]
        assert line["loss"] == pytest.approx(line["flow_loss"] + weighted)


def test_each_teacher_has_its_projector_in_the_checkpoint(uneven_runs: list[Path]) -> None:
    names = _tensor_names(find_checkpoint(uneven_runs[1], None))
    for teacher in ("dinov2", "vjepa2"):
        for kind in ("model", "exp_avg"):
            assert f"{kind}/projectors.{teacher}.first.weight" in names
    assert not [name for name in names if name.startswith("ema_") and "projectors" in name]
