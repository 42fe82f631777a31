"""The training configuration: the shipped file, refusals, and what counts as a change of the maths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.buckets import Bucket
from schemas.config import build_config, load_config
from schemas.errors import ConfigError
from schemas.model_shape import TINY, ModelShape
from training.config import FlowConfig, RepaConfig, TrainConfig, config_differences, is_free

DEMO = Path(__file__).resolve().parents[2] / "configs" / "train" / "demo.yaml"


def test_the_demo_config_is_written_out_in_full_and_trains_the_tiny_network() -> None:
    written = yaml.safe_load(DEMO.read_text())
    assert set(written) == set(TrainConfig.model_fields)
    assert set(written["model"]) == set(ModelShape.model_fields)
    config = load_config(TrainConfig, DEMO)
    assert config.model == TINY
    assert config.steps == 20
    assert config.tread is not None and config.repa is not None
    assert config.tread.start_block <= config.repa.tap_block <= config.tread.end_block


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimiser": {}}, "optimiser: unknown key; did you mean 'optimizer'"),
        ({"optimizer": {"learning_rate": 1}}, "optimizer.learning_rate: unknown key"),
        ({"tread": {"start_block": 2, "end_block": 4, "drop_ratio": 0.5}}, "cross from the encoder"),
        ({"tread": {"start_block": 1, "end_block": 2, "drop_ratio": 1.0}}, "tread.drop_ratio"),
        ({"repa": {"tap_block": 4, "weight": 0.5}}, "repa.tap_block 4 must be an encoder block, 0 to 3"),
        ({"tread": {"start_block": 1, "end_block": 2, "drop_ratio": 0.5, "until_step": 0}}, "tread.until_step"),
        ({"repa": {"tap_block": 0, "weight": 0.5, "until_step": 0}}, "repa.until_step"),
        ({"repa": {"tap_block": 0, "weight": 0.5, "source": "live"}}, "repa.source"),
        (
            {"repa": {"tap_block": 0, "weight": 0.5, "teacher_by_branch": {"video": "dinov2"}}},
            "repa: teacher_by_branch names branch 'video', expected one of image_real",
        ),
        (
            {"repa": {"tap_block": 0, "weight": 0.5, "teacher_by_branch": {"video_real": None}}},
            "repa: teacher_by_branch gives no branch a teacher; name one, or set repa=null",
        ),
        ({"i2v": {"image_tokens": True}}, "i2v: image_tokens is set, but probability is 0"),
        ({"i2v": {"blur": {"probability": 1.0}}}, "i2v: blur is set, but probability is 0"),
        (
            {"i2v": {"probability": 0.1, "image_tokens": True}},
            "i2v.image_tokens is true, but model.image_width is null",
        ),
        ({"i2v": {"probability": 0.1, "blur": {"probability": 1, "factor_at_noise": 0}}}, "i2v.blur.factor_at_noise"),
        ({"i2v_probability": 0.1}, "i2v_probability: unknown key"),
        ({"text": {"length_multiple": 0}}, "text.length_multiple"),
        ({"text": {"long_share": 0.9}}, "add up to 1.4, expected 1"),
        ({"i2v": {"probability": 1.5}}, "i2v.probability"),
        ({"steps": 0}, "steps"),
        ({"ema_decays": [1.0]}, "ema_decays"),
        ({"precision": "fp16"}, "precision"),
    ],
)
def test_wrong_values_are_refused_by_key(
    small_config: Callable[..., dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(TrainConfig, small_config(**changes), source="train.yaml")
    assert message in str(caught.value)
    assert "train.yaml" in str(caught.value)


def test_input_channels_must_hold_latent_condition_and_mask(small_config: Callable[..., dict[str, Any]]) -> None:
    values = small_config()
    values["model"]["in_channels"] = 32
    with pytest.raises(ConfigError, match=r"in_channels 32 must be 2 x model\.out_channels 16 \+ 1"):
        build_config(TrainConfig, values, source="train.yaml")


def test_differences_name_every_key_but_the_free_ones(small_config: Callable[..., dict[str, Any]]) -> None:
    old = build_config(TrainConfig, small_config(), source="a").model_dump(mode="json")
    changed = small_config(
        seed=8, steps=3, checkpoint={"every_steps": 1, "keep": 9}, loader={"reader_threads": 4}, tread=None
    )
    changed["evaluation"] = {"prompts": ["a cat"]}
    changed["optimizer"]["lr"] = 0.5
    new = build_config(TrainConfig, changed, source="b").model_dump(mode="json")
    assert config_differences(old, old) == {}
    found = config_differences(old, new)
    assert found["steps"] == (None, 3)
    assert {key.split(".")[0] for key in found if is_free(key)} == {
        "checkpoint",
        "evaluation",
        "loader",
        "steps",
    }
    found = {key: values for key, values in found.items() if not is_free(key)}
    assert found["seed"] == (7, 8)
    assert found["optimizer.lr"] == (1e-3, 0.5)
    assert found["tread.drop_ratio"] == (0.5, "(not there)")
    assert {key.split(".")[0] for key in found} == {"seed", "optimizer", "tread"}


def test_schedules_are_functions_of_step_and_size(small_config: Callable[..., dict[str, Any]]) -> None:
    repa = RepaConfig(tap_block=1, weight=0.5, until_step=3)
    assert [repa.weight_at(step) for step in (0, 2, 3, 9)] == [0.5, 0.5, 0.0, 0.0]
    flow = FlowConfig(shift=2.0, shift_base_tokens=100)
    assert flow.shift_of(400) == pytest.approx(4.0)
    assert FlowConfig(shift=2.0).shift_of(400) == 2.0
    dense = build_config(TrainConfig, small_config(tread=None), source="a")
    routed = build_config(TrainConfig, small_config(), source="a")
    bucket = Bucket(33, 32, 48)
    assert routed.forward_flops(bucket, 8) < dense.forward_flops(bucket, 8)
