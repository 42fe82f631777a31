"""`deterministic`: ordered kernels while a run goes on, the same bits on a CPU, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from schemas.errors import ConfigError
from training.cli import main
from training.config import is_free
from training.deterministic import deterministic_kernels
from training.metrics import read_lines
from training.optimizing.optimizer import StepOptimizer


def test_torch_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic_kernels(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ZeroDivisionError), deterministic_kernels(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        1 / 0  # noqa: B018
    assert not torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory


def test_a_run_may_be_continued_with_it_and_has_the_same_bits_on_a_cpu(
    tmp_path: Path, run_arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # so that the run leaves nothing in this process
    seen: list[bool] = []
    update = StepOptimizer.update

    def noted(self: StepOptimizer, norm: float, rate: float) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        update(self, norm, rate)

    monkeypatch.setattr(StepOptimizer, "update", noted)
    assert is_free("deterministic")
    plain, ordered = tmp_path / "plain", tmp_path / "ordered"
    assert main(["run", *run_arguments(plain)]) == 0
    assert main(["run", *run_arguments(ordered, steps=5)]) == 0
    assert main(["run", *run_arguments(ordered, deterministic=True)]) == 0
    assert seen == [False] * 15 + [True] * 5
    assert [line["loss_hex"] for line in read_lines(plain / "metrics.jsonl")] == [
        line["loss_hex"] for line in read_lines(ordered / "metrics.jsonl")
    ]


def test_an_environment_that_keeps_cublas_from_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ConfigError, match="CUBLAS_WORKSPACE_CONFIG is ':0:0'"), deterministic_kernels(True):
        pass
    assert not torch.are_deterministic_algorithms_enabled()
