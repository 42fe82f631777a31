"""A plan against the stage: what must agree, what is free, and plans that go on from others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.config import load_config
from schemas.errors import ConfigError, PlanError
from schemas.plan import PlanContinues, PlanMeta, read_plan_meta
from schemas.shards import SetInfo, read_set_info
from training.config import TrainConfig
from training.curriculum.stage import StageConfig
from training.curriculum.stage_plan import check_plan


@pytest.fixture
def stage_and_plan(tiny_chain: Any, tmp_path: Path) -> tuple[TrainConfig, StageConfig, PlanMeta, SetInfo]:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(tiny_chain.configs["a"]))
    config = load_config(TrainConfig, path)
    assert config.stage is not None
    return config, config.stage, read_plan_meta(tiny_chain.plans["narrow"]), read_set_info(tiny_chain.sets["narrow"])


def test_what_decides_only_the_order_is_free(stage_and_plan: Any) -> None:
    config, stage, meta, info = stage_and_plan
    other = meta.model_copy(
        update={
            "seed": 5,
            "policy": "tiers",
            "config": {**meta.config, "max_buffer_mb": 1.0, "cost": {"text_tokens": 1}},
        }
    )
    check_plan(config, stage, other, (info,))


def test_a_plan_of_fewer_sets_than_the_stage_is_refused(stage_and_plan: Any) -> None:
    config, stage, meta, info = stage_and_plan
    part = stage.chosen_part.model_copy(update={"frames": {"tiny": (33, 65), "other": (1,)}})
    with pytest.raises(PlanError, match=r"sets: the stage has \['other', 'tiny'\], the plan \['tiny'\]"):
        check_plan(config, stage.model_copy(update={"parts": (part,)}), meta, (info,))


def test_a_mix_of_phases_is_not_the_stages(stage_and_plan: Any) -> None:
    config, stage, meta, info = stage_and_plan
    half = {"images_per_video": None, "domain_weights": {}}
    mix = [{"until": 0.5, **half}, {"until": 1.0, **half}]
    phased = meta.model_copy(update={"config": {**meta.config, "mix": mix}})
    with pytest.raises(PlanError, match=r"images_per_video: the stage has None, the plan \[{'until': 0.5"):
        check_plan(config, stage, phased, (info,))


def test_a_plan_that_goes_on_from_another_may_have_other_lanes_and_nothing_else(stage_and_plan: Any) -> None:
    config, stage, meta, info = stage_and_plan
    fewer = meta.model_copy(update={"num_lanes": 1, "micro_per_step": 4})
    with pytest.raises(
        PlanError, match=r"lanes: the stage has 2, the plan 1\n  micro_per_step: the stage has 2, the plan 4"
    ):
        check_plan(config, stage, fewer, (info,))
    before = PlanContinues(plan_hash="0" * 64, from_step=3, num_lanes=2)
    continued = fewer.model_copy(update={"continues": before})
    check_plan(config, stage, continued, (info,))
    with pytest.raises(PlanError, match="domain_column: the stage has domain, the plan style"):
        check_plan(config, stage, continued.model_copy(update={"domain_column": "style"}), (info,))


def test_sets_of_other_encoders_are_said_with_the_rest(stage_and_plan: Any) -> None:
    config, stage, meta, info = stage_and_plan
    other = info.model_copy(update={"text_encoder": "t5gemma2"})
    with pytest.raises(ConfigError, match="has text of 't5gemma2'"):
        check_plan(config, stage, meta, (other,))
    with pytest.raises(PlanError, match=r"(?s)admission: the stage has 144p, the plan sft.*has text of 't5gemma2'"):
        check_plan(config, stage, meta.model_copy(update={"admission": "sft"}), (other,))
