"""Draws as facts against the micro-batches that a run trains on: the same time, text, first frame and route for every clip."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.config import build_config
from training.batch import BatchMaker, TrainingBatch
from training.config import TrainConfig
from training.draws import clip_draws
from training.loader import LaneBatch, PlannedLoader
from training.low_pass import low_pass

CHANGES: dict[str, dict[str, Any]] = {
    "routed": {"text": {"dropout_probability": 0.3}},
    "dense": {"tread": None, "repa": None, "i2v": {"probability": 0.0}},
    "shifted": {
        "flow": {"time_density": "uniform", "shift": 3.0, "shift_base_tokens": 54},
        "tread": {"start_block": 1, "end_block": 2, "drop_ratio": 0.3, "until_step": 1},
        "text": {"long_share": 0.0, "short_share": 0.2, "first_share": 0.8, "dropout_probability": 0.0},
    },
    "blurred": {"i2v": {"probability": 0.7, "blur": {"probability": 0.5}}},
}


def loaded(config: TrainConfig, plan: Path, samples: Path) -> list[tuple[LaneBatch, TrainingBatch]]:
    """Every micro-batch of three steps: the arrays, copied, and what is trained on."""
    maker = BatchMaker(config, np.zeros((2, 16), np.float16), None)
    loader = PlannedLoader(
        plan,
        samples=[samples],
        prepare=lambda batch: (_copied(batch), maker(batch)),
        stop_step=3,
    )
    with closing(iter(loader)) as steps:
        return [pair for step in steps for pair in step.batches]


def _copied(batch: LaneBatch) -> dict[str, dict[str, np.ndarray]]:
    return {clip.clip_id: {kind: np.array(text) for kind, text in clip.text_by_kind.items()} for clip in batch.clips}


@pytest.mark.parametrize("name", CHANGES)
def test_facts_are_what_is_trained_on(
    name: str, small_config: Callable[..., dict[str, Any]], tiny_plan: Any, tiny_set: Path
) -> None:
    config = build_config(TrainConfig, small_config(**CHANGES[name]), source="test")
    seen = set()
    for texts, batch in loaded(config, tiny_plan.folder, tiny_set):
        for index, draws in enumerate(clip_draws(config, batch.step, batch.bucket, batch.clip_ids)):
            clip = batch.clip_ids[index]
            assert draws.sigma == float(batch.sigma_B[index])
            assert draws.first_frame_given == bool(batch.first_frame_given_B[index])
            given = batch.text_BED[index][batch.text_mask_BE[index]].numpy()
            expected = np.zeros((2, 16), np.float16) if draws.text is None else texts[clip][draws.text]
            assert np.array_equal(given, expected)
            route = batch.route
            assert draws.kept_tokens == (batch.bucket.video_tokens if route is None else route.kept_BK.shape[1])
            clean = batch.clean_BCTYX[index, :, :1]
            blurred = clean if draws.blur_factor is None else low_pass(clean, draws.blur_factor)
            assert torch.equal(batch.condition_BCTYX[index], blurred)
            seen.add((draws.text, draws.first_frame_given, draws.blur_factor is None, route is None))
    assert len(seen) > 2, "the draws hardly differ: nothing was compared"
