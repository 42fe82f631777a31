"""The weights of a run's checkpoint: which, of which step, and what is said when there are none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from schemas.errors import DataError, UsageError
from training.checkpoints.whole_network import load_run_network
from training.cli import main
from training.config import TrainConfig


@pytest.fixture(scope="module")
def kept_run(tmp_path_factory: pytest.TempPathFactory, run_arguments: Callable[..., list[str]]) -> Path:
    """Three steps, with checkpoints of steps 2 and 3; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "kept"
    assert main(["run", *run_arguments(run, steps=3, checkpoint={"every_steps": 2, "keep": 3})]) == 0
    return run


def test_averaged_and_trained_weights_of_each_checkpoint_differ(kept_run: Path) -> None:
    found = {}
    for step in (2, 3):
        for which in ("ema", "trained"):
            model, config = load_run_network(kept_run, step, which)  # type: ignore[arg-type]
            assert isinstance(config, TrainConfig) and config.model == model.shape and not model.training
            assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
            found[step, which] = model.patch_embed.proj.weight
    different = [not torch.equal(a, b) for a in found.values() for b in found.values() if a is not b]
    assert all(different)
    latest = load_run_network(kept_run, None, "trained")[0].patch_embed.proj.weight
    assert torch.equal(latest, found[3, "trained"])


def test_what_is_not_there_is_said(tmp_path: Path, kept_run: Path) -> None:
    with pytest.raises(UsageError, match="has no checkpoint of step 7; it has 2, 3"):
        load_run_network(kept_run, 7, "ema")
    with pytest.raises(UsageError, match="holds no checkpoint"):
        load_run_network(tmp_path, None, "ema")
    shutil.copytree(kept_run, tmp_path / "run")
    record = tmp_path / "run/checkpoints/step-00000003/record.json"
    text = record.read_text()
    assert "0.99" in text
    record.write_text(text.replace("0.99", "0.9", 1))
    with pytest.raises(DataError, match=r"tensor ema_0\.9/dit\..* is missing"):
        load_run_network(tmp_path / "run", 3, "ema")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, kept_run: Path) -> None:
    shutil.copytree(kept_run, tmp_path / "run")
    file = next((tmp_path / "run/checkpoints/step-00000003").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match="it is damaged"):
        load_run_network(tmp_path / "run", None, "ema")
