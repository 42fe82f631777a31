"""Stages that run: weights pass on through the command line, on one process and on two, to the bit; nothing else does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from schemas.config import build_config, load_config
from training.checkpoints.checkpoint import find_checkpoint, read_record
from training.cli import main
from training.config import TrainConfig
from training.dit.initialization import build_model
from training.dit.model import MotifVideoDiT
from training.metrics import read_lines
from training.parallel import open_world
from training.run_setup import PreparedRun, RunRequest, prepare_run
from training.train_state import TrainState
from training.weights import write_weights


def stored(checkpoint: Path, prefix: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint of however many ranks, their rows put together."""
    parts: dict[str, list[Tensor]] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118  (not a mapping)
                if name.startswith(prefix):
                    parts.setdefault(name.removeprefix(prefix), []).append(stream.get_tensor(name))
    return {name: torch.cat(pieces) if pieces[0].ndim else pieces[0] for name, pieces in parts.items()}


def request_of(arguments: list[str]) -> RunRequest:
    values = dict(zip(arguments[::2], arguments[1::2], strict=True))
    return RunRequest(
        config=Path(values["--config"]),
        plan=Path(values["--plan"]),
        samples=(Path(values["--samples"]),),
        output=Path(values["--output"]),
        init_from=Path(values["--init-from"]) if "--init-from" in values else None,
    )


@contextmanager
def started(arguments: list[str]) -> Iterator[tuple[PreparedRun, TrainState]]:
    """The state of a run before its first step."""
    prepared = prepare_run(request_of(arguments))
    with open_world(torch.device("cpu")) as world:
        yield prepared, TrainState(prepared, {}, world)


def whole(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Plain copies of the tensors whose names begin so."""
    return {
        name.removeprefix(prefix): (value.full_tensor() if isinstance(value, DTensor) else value).clone()
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def test_carried_is_carried_to_the_bit_and_the_rest_starts_anew(
    tiny_chain: Any, run_of_a: Path, tmp_path: Path
) -> None:
    averaged = stored(find_checkpoint(run_of_a, None), "ema_0.99/")
    with started(tiny_chain.arguments("b", "--init-from", run_of_a, output=tmp_path / "run")) as (prepared, state):
        weights, averages = whole(state.tensors(), "model/"), whole(state.tensors(), "ema_0.99/")
        moments = whole(state.tensors(), "exp_avg/") | whole(state.tensors(), "exp_avg_sq/")
    fresh = build_model(prepared.config.model, seed=prepared.config.seed)
    compared = 0
    for name, value in fresh.named_parameters():
        begins = value.detach() if name.startswith("text_embed") else averaged[f"dit.{name}"]
        assert torch.equal(weights[f"dit.{name}"], begins), name
        assert torch.equal(averages[f"dit.{name}"], begins), f"the average of {name} begins as the weights"
        compared += not torch.equal(begins, value)
    assert compared > 20, "nothing was carried that had been trained"
    assert not any(value.any() for value in moments.values()), "the optimizer begins at zero"
    assert not [name for name in weights if name.startswith("projector")]


def test_trained_weights_are_taken_if_the_stage_says_so(tiny_chain: Any, run_of_a: Path, tmp_path: Path) -> None:
    trained = stored(find_checkpoint(run_of_a, None), "model/")
    arguments = tiny_chain.arguments(
        "b", "--init-from", run_of_a, output=tmp_path / "run", stage={"init_weights": "trained"}
    )
    with started(arguments) as (_, state):
        weights = whole(state.tensors(), "model/")
    for name in ("dit.patch_embed.proj.weight", "dit.final.proj.weight", "dit.decoder_blocks.0.out.weight"):
        assert torch.equal(weights[name], trained[name])


def test_two_processes_start_from_the_weights_that_one_left(run_of_a: Path, run_of_b: Path) -> None:
    """B's rate is too small to move a weight, so its last checkpoint shows what it began with."""
    averaged = stored(find_checkpoint(run_of_a, None), "ema_0.99/")
    checkpoint = find_checkpoint(run_of_b, None)
    assert read_record(checkpoint).environment["world_size"] == 2
    carried = [name for name in averaged if not name.startswith("dit.text_embed")]
    assert sum(bool(averaged[name].any()) for name in carried) > 30
    for kind in ("model/", "ema_0.99/"):
        found = stored(checkpoint, kind)
        assert all((found[name] - averaged[name]).abs().max() < 1e-28 for name in carried)


def test_the_record_says_where_the_weights_came_from(tiny_chain: Any, run_of_a: Path, run_of_b: Path) -> None:
    origin = read_record(find_checkpoint(run_of_b, None)).origin
    assert origin is not None
    assert (origin.stage, origin.next_step, origin.weights, origin.first_step) == ("a", 2, "ema", 0)
    assert origin.folder == str(find_checkpoint(run_of_a, None)) and len(origin.sha256) == 64
    assert (origin.new, origin.reset, origin.dropped) == ((), ("dit.text_embed",), ("projectors",))
    assert read_record(find_checkpoint(run_of_a, None)).origin is None
    assert [line["step"] for line in read_lines(run_of_b / "metrics.jsonl")] == [0, 1], "the step counter begins anew"


def output_of(model: MotifVideoDiT, text_width: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    latent = torch.randn(2, 33, 3, 4, 6, generator=generator)
    text = torch.randn(2, 5, text_width, generator=generator)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    with torch.no_grad():
        return model.eval()(latent, torch.tensor([300.0, 850.0]), text, mask).velocity_BCTYX


def test_inserting_cross_attention_changes_no_bit_of_the_output(
    tiny_chain: Any, run_of_b: Path, tmp_path: Path
) -> None:
    """Stage 9, through the real transition: B's averages as they were, and C as it stands before its first step."""
    before = build_model(build_config(TrainConfig, tiny_chain.configs["b"], source="b").model, seed=0)
    averaged = stored(find_checkpoint(run_of_b, None), "ema_0.99/")
    before.load_state_dict({name.removeprefix("dit."): value for name, value in averaged.items()})
    with started(tiny_chain.arguments("c", "--init-from", run_of_b, output=tmp_path / "run")) as (prepared, state):
        weights = whole(state.tensors(), "model/dit.")
    assert prepared.start is not None
    new = [name.removeprefix("dit.") for name in prepared.start.transition.new]
    assert len(new) == 3 * 6 and all(".cross." in name for name in new)
    after = build_model(prepared.config.model, seed=0)
    after.load_state_dict(weights)
    assert torch.equal(output_of(before, 24), output_of(after, 24))
    with torch.no_grad():
        for block in after.single_blocks:
            for parameter in block.cross.parameters():  # type: ignore[union-attr, operator]
                parameter.add_(0.1)
    assert not torch.equal(output_of(before, 24), output_of(after, 24)), "cross-attention is not in the way at all"


def test_the_whole_chain_trains_and_goes_on_without_its_source(
    tiny_chain: Any, run_of_b: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(run_of_b, tmp_path / "b"))
    run = tmp_path / "c"
    given = ["--init-from", source]
    assert main(["run", *tiny_chain.arguments("c", *given, output=run, steps=2)]) == 0
    said = capsys.readouterr().err
    assert "18 new (dit.single_blocks.*.cross)" in said and "of b:" in said
    first = find_checkpoint(run, None)
    whole_run = tmp_path / "whole"
    assert main(["run", *tiny_chain.arguments("c", *given, output=whole_run, steps=4)]) == 0
    shutil.rmtree(source)
    assert main(["run", *tiny_chain.arguments("c", *given, output=run, steps=4)]) == 0
    assert "note:" not in capsys.readouterr().err.split(str(run))[-1]
    again, once = read_lines(run / "metrics.jsonl"), read_lines(whole_run / "metrics.jsonl")
    assert [line["loss_hex"] for line in again] == [line["loss_hex"] for line in once], "resumed to the bit"
    origins = [read_record(path).origin for path in (first, find_checkpoint(run, None))]
    assert origins[0] == origins[1] and origins[0] is not None and origins[0].stage == "b"
    trained = stored(find_checkpoint(run, None), "model/")
    assert trained["dit.single_blocks.1.cross.out.weight"].any(), "the inserted module learns"


def test_another_source_on_resuming_is_noted_and_not_read(
    tiny_chain: Any, run_of_a: Path, run_of_b: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(run_of_b, tmp_path / "b"))
    other = Path(shutil.copytree(run_of_a, tmp_path / "a"))
    record = find_checkpoint(other, None) / "record.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "plan_hash": "another"}))
    assert main(["run", *tiny_chain.arguments("b", "--init-from", other, output=run)]) == 0
    said = capsys.readouterr().err
    assert "is not read: the run began from" in said and "nothing to do" in said
    assert main(["run", *tiny_chain.arguments("b", "--init-from", run_of_a, output=run)]) == 0
    assert "is not read" not in capsys.readouterr().err


def test_a_plan_that_begins_later_counts_from_its_first_step(
    tiny_chain: Any, run_of_a: Path, make_plan: Any, tmp_path: Path
) -> None:
    """The optimizer's count begins there too: resumed in between, the same bits."""
    plan = make_plan(tmp_path / "plan", [tiny_chain.sets["wide"]], steps=4, first_step=3).folder
    lively = {"optimizer": {"lr": 1e-3, "warmup_steps": 0}}
    for name, stops in (("once", [7]), ("twice", [5, 7])):
        for stop in stops:
            arguments = tiny_chain.arguments("b", "--init-from", run_of_a, output=tmp_path / name, steps=stop, **lively)
            arguments[arguments.index("--plan") + 1] = str(plan)
            assert main(["run", *arguments]) == 0
    once, twice = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("once", "twice"))
    assert [line["step"] for line in once] == [3, 4, 5, 6]
    assert [line["loss_hex"] for line in twice] == [line["loss_hex"] for line in once]


def test_only_the_named_modules_are_trained(tiny_chain: Any, run_of_b: Path, tmp_path: Path) -> None:
    only = {"train_only": ["dit.single_blocks.*.cross"]}
    arguments = tiny_chain.arguments(
        "c", "--init-from", run_of_b, "--processes", 2, output=tmp_path / "run", stage=only, steps=3
    )
    assert main(["run", *arguments]) == 0
    before = stored(find_checkpoint(run_of_b, None), "ema_0.99/")
    checkpoint = find_checkpoint(tmp_path / "run", None)
    after, moments = stored(checkpoint, "model/"), stored(checkpoint, "exp_avg/")
    assert set(moments) == {name for name in after if ".cross." in name}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after["dit.single_blocks.0.cross.out.weight"].any()


def test_a_weights_folder_is_a_start(tiny_chain: Any, tmp_path: Path) -> None:
    config = build_config(TrainConfig, tiny_chain.configs["c"], source="c")
    model = build_model(config.model, seed=3)
    with torch.no_grad():
        model.final.proj.weight.normal_(generator=torch.Generator().manual_seed(1))
    write_weights(tmp_path / "weights", model.state_dict(), config.model, origin="a test")
    fresh = {"init_from": "weights", "new": []}
    arguments = tiny_chain.arguments("c", "--init-from", tmp_path / "weights", output=tmp_path / "run", stage=fresh)
    with started(arguments) as (prepared, state):
        weights = whole(state.tensors(), "model/dit.")
    assert prepared.origin is not None and prepared.origin.kind == "weights" and prepared.origin.next_step is None
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    damaged = bytearray((tmp_path / "weights" / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "weights" / "model.safetensors").write_bytes(damaged)
    assert main(["run", *arguments]) == 1


def test_a_later_part_starts_from_the_part_before_it(
    tiny_chain: Any, run_of_b: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = tiny_chain.configs["b"]["stage"]["parts"][0]
    stage = {"parts": [part, {**part, "name": "second"}]}
    second = {"stage": {**stage, "part": "second"}, "steps": 1}
    assert main(["run", *tiny_chain.arguments("b", "--init-from", run_of_b, output=tmp_path / "run", **second)]) == 0
    origin = read_record(find_checkpoint(tmp_path / "run", None)).origin
    assert origin is not None and origin.stage == "b" and not (origin.new or origin.reset or origin.dropped)
    arguments = tiny_chain.arguments("b", "--init-from", tmp_path / "run", output=tmp_path / "again", **second)
    assert main(["run", *arguments]) == 2
    assert "is part second of b, part second starts from part main" in capsys.readouterr().err
    np.testing.assert_equal(load_config(TrainConfig, Path(arguments[1])).stage.starts_from, "b")  # type: ignore[union-attr]
