"""`deterministic`: ordered kernels while a run goes on, the same bits on a CPU, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.buckets import Bucket
from schemas.errors import ConfigError
from training import profiling
from training.cli import main
from training.config import TrainConfig, is_free
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


def test_costs_are_measured_with_the_kernels_of_the_run_and_say_so(
    small_config: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    seen: list[bool] = []
    measure = profiling._Bench.measure

    def noted(self: Any, bucket: Bucket, clips: int) -> Any:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return measure(self, bucket, clips)

    monkeypatch.setattr(profiling._Bench, "measure", noted)
    config = TrainConfig.model_validate({**small_config(repa=None), "deterministic": True})
    table = profiling.profile(
        profiling.ProfileRequest(
            config=config,
            output=tmp_path / "costs.json",
            buckets=(Bucket(1, 32, 48),),
            batches=(1,),
            text_tokens=4,
            teacher_widths={},
            repeats=1,
        )
    )
    assert seen == [True] and table.model.endswith("ordered kernels")
