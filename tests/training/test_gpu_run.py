"""Whole runs on a GPU: bits that come again after a resume, copies of the state beside the next step, losses like a CPU's.

Marked `gpu`; without one each says in a line that it did not run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from schemas.model_shape import TINY
from training.checkpoints.checkpoint import find_checkpoint
from training.checkpoints.parts import HostCopy, Part
from training.cli import main
from training.metrics import read_lines

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: runs on a GPU were NOT exercised"),
    pytest.mark.filterwarnings("default"),
]

Arguments = Callable[..., list[str]]

WIDE = {
    **TINY.model_dump(mode="json"),
    "width": 256,
    "heads": 4,
    "head_width": 64,
    "rope_axes": [16, 24, 24],
    "text_width": 16,
    "image_width": None,
}
"""Wide enough for moments in 8 bits."""


def losses(run: Path) -> list[str]:
    return [line["loss_hex"] for line in read_lines(run / "metrics.jsonl")]


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    (file,) = find_checkpoint(run, step).glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation_checkpointing": True},
        {"optimizer": {"name": "adamw8bit", "lr": 1e-3}, "model": WIDE},
        {"optimizer": {"name": "muon", "lr": 1e-3}},
        {"precision": "fp32"},
    ],
    ids=["eager", "recomputed", "8-bit", "muon", "fp32"],
)
def test_ten_steps_in_two_parts_are_the_same_bits(
    tmp_path: Path, run_arguments: Arguments, changes: dict[str, Any]
) -> None:
    if changes.get("optimizer", {}).get("name") == "adamw8bit":
        pytest.importorskip("torchao", reason="torchao is not installed: resuming adamw8bit was NOT exercised on a GPU")
    assert_same_in_parts(tmp_path, run_arguments, **changes)


@pytest.mark.timeout(900)
def test_compiled_steps_in_two_parts_are_the_same_bits(
    tmp_path: Path, run_arguments: Arguments, make_set: Any, make_plan: Any, clip_type: Any
) -> None:
    """One bucket and texts of one length: compiling is what takes the time here."""
    samples = make_set(tmp_path / "set", [clip_type(33)] * 8)
    plan = make_plan(tmp_path / "plan", [samples], lanes=1, micro=1).folder
    text = {"length_multiple": 16, "dropout_probability": 0.0}
    assert_same_in_parts(tmp_path, run_arguments, plan=plan, samples=samples, compile=True, text=text)


def assert_same_in_parts(folder: Path, run_arguments: Arguments, **changes: Any) -> None:
    """Ten steps, and five and five, with ordered kernels: equal losses and equal tensors, to the last bit."""
    fixed = {"device": "cuda", "deterministic": True, **changes}
    whole, parts = folder / "whole", folder / "parts"
    assert main(["run", *run_arguments(whole, **fixed)]) == 0
    assert main(["run", *run_arguments(parts, **{**fixed, "steps": 5})]) == 0
    assert main(["run", *run_arguments(parts, **fixed)]) == 0
    assert len(losses(whole)) == 10 and losses(parts) == losses(whole)
    left, right = tensors(whole, 10), tensors(parts, 10)
    assert left.keys() == right.keys()
    assert [name for name, value in left.items() if not torch.equal(value, right[name])] == []


def test_saving_in_the_background_changes_no_bit(tmp_path: Path, run_arguments: Arguments, make_set: Any) -> None:
    """A validation with the averages swapped in comes right behind each save."""
    held_out = make_set(tmp_path / "held-out", first=1000)
    validation = {"every_steps": 1, "clips_per_bucket": 1, "weights": ["ema"]}
    for name, asynchronous in (("background", True), ("waiting", False)):
        keeping = {"every_steps": 1, "keep": 10, "asynchronous": asynchronous}
        changes = {"device": "cuda", "deterministic": True, "validation": validation, "checkpoint": keeping}
        arguments = run_arguments(tmp_path / name, "--validation", held_out, steps=6, **changes)
        assert main(["run", *arguments]) == 0
    for step in range(1, 7):
        left, right = tensors(tmp_path / "background", step), tensors(tmp_path / "waiting", step)
        assert all(torch.equal(value, right[name]) for name, value in left.items()), step


def test_losses_are_those_of_a_cpu(tmp_path: Path, run_arguments: Arguments) -> None:
    for device in ("cpu", "cuda"):
        assert main(["run", *run_arguments(tmp_path / device, device=device, precision="fp32")]) == 0
    on_cpu, on_gpu = (
        [line["loss"] for line in read_lines(tmp_path / device / "metrics.jsonl")] for device in ("cpu", "cuda")
    )
    assert on_gpu == pytest.approx(on_cpu, rel=1e-4)


def test_a_copy_is_of_the_state_when_it_was_asked_for() -> None:
    """The update behind it is queued at once, and waits on the device; what only reads the state does not wait."""
    state = torch.full((64 << 20,), 1.0, device="cuda")
    part = Part(name="state", offsets=(0,), shape=tuple(state.shape), dtype=state.dtype)
    copy, busy = HostCopy((part,), state.device), torch.randn(4096, 4096, device="cuda")
    copy.take([state])
    copy.wait()
    for value in (2.0, 3.0):
        for _ in range(50):
            busy = busy @ busy / 4096
        state.fill_(value)
        (taken,) = copy.take([state])
        read = state.sum()
        copy.hold_device()
        state.fill_(-1.0)
        copy.wait()
        assert torch.equal(taken, torch.full_like(taken, value))
        assert float(read) == pytest.approx(value * state.numel())
        assert float(state.max()) == -1.0
