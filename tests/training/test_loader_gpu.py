"""Latents in page-locked memory and copies that wait for nothing: only a GPU shows them; without one each test says in a line that it did not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.batch import BatchMaker, TrainingBatch
from training.config import TrainConfig
from training.loader import PlannedLoader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device: page-locked reads were NOT exercised"
    ),
    pytest.mark.filterwarnings("default"),
]


def config(small: dict[str, Any]) -> TrainConfig:
    return TrainConfig.model_validate({**small, "repa": None, "device": "cuda"})


def batches(plan: Path, samples: Path, settings: TrainConfig, device: str) -> list[TrainingBatch]:
    null_text = np.zeros((2, settings.model.text_width), np.float16)
    maker = BatchMaker(settings, null_text, None, device=torch.device(device))
    loader = PlannedLoader(plan, samples=[samples], prepare=maker, device=device)
    return [batch for step in loader for batch in step.batches]


def test_what_arrives_is_what_a_cpu_would_make(tiny_plan: Any, tiny_set: Path, small_config: Any) -> None:
    settings = config(small_config())
    ours = batches(tiny_plan.folder, tiny_set, settings, "cuda")
    plain = batches(tiny_plan.folder, tiny_set, settings, "cpu")
    for pinned, other in zip(ours, plain, strict=True):
        assert pinned.clean_BCTYX.is_pinned() and pinned.noise_BCTYX.is_pinned() and pinned.text_BED.is_pinned()
        assert pinned.clean_BCTYX.dtype == torch.float16
        moved = pinned.to(torch.device("cuda"))
        assert moved.clean_BCTYX.dtype == torch.float32 and moved.clean_BCTYX.is_contiguous()
        for name in ("clean_BCTYX", "noise_BCTYX", "condition_BCTYX", "text_BED", "sigma_B"):
            assert torch.equal(getattr(moved, name).cpu(), getattr(other, name)), name


def test_moving_a_batch_does_not_wait_for_the_device(tiny_plan: Any, tiny_set: Path, small_config: Any) -> None:
    found = batches(tiny_plan.folder, tiny_set, config(small_config()), "cuda")
    found[0].to(torch.device("cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in found:
            batch.to(torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_page_locked_memory_is_not_overwritten_while_a_copy_runs(tiny_plan: Any, tiny_set: Path) -> None:
    """Batches are dropped right after their copy was started; the copies still hold what was read."""
    expected = [
        batch.latent_BTCHW.copy()
        for step in PlannedLoader(tiny_plan.folder, samples=[tiny_set])
        for batch in step.batches
    ]
    busy = torch.zeros(1 << 26, device="cuda")
    copies = []
    for step in PlannedLoader(tiny_plan.folder, samples=[tiny_set], device="cuda"):
        for _ in range(20):
            busy.add_(1.0)
        copies += [batch.latents().to("cuda", non_blocking=True) for batch in step.batches]
    assert all(np.array_equal(copy.cpu().numpy(), array) for copy, array in zip(copies, expected, strict=True))
