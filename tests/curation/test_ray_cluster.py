"""`ray_cluster.yaml`: Ray's own launcher takes it, and every node gets the token and uses it."""

from __future__ import annotations

import inspect
import logging
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from curation.config import load_curate_config
from curation.engine import workers_for
from curation.preflight import needed_models
from encoders.wan import WanCodec

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text(encoding="utf-8"))
    assert isinstance(config, dict)
    return config


def test_ray_accepts_it_as_ray_up_would(cluster: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    with caplog.at_level(logging.WARNING):
        prepared = prepare_config(cluster)
        validate_config(prepared)
    assert {name for name in prepared["available_node_types"]} == {"head", "cpu_worker", "gpu_worker"}
    assert prepared["available_node_types"]["cpu_worker"]["min_workers"] >= 1


def test_the_gpu_example_of_its_comments_can_run(cluster: dict[str, Any]) -> None:
    text = (ROOT / "ray_cluster.yaml").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if "encode.codec=wan" in line]
    words = shlex.split(line.lstrip("# "))
    config = load_curate_config(ROOT / "configs" / "curate.yaml", ["output=/data/run1", *words[1::2]])
    assert words[::2] == ["--set"] * len(words[1::2]) and "latents.wan" in needed_models(config, ("encode",))
    node = cluster["available_node_types"]["gpu_worker"]
    wanted = {stage: config.stage_resources(stage) for stage in ("latents", "text")}
    assert workers_for(wanted, 16.0, float(node["min_workers"]), 100) == {"latents": node["min_workers"], "text": 1}
    options = set(config.encode.codec_options)
    assert options <= set(inspect.signature(WanCodec).parameters) and "device" in options


def test_ray_refuses_an_unknown_key(cluster: dict[str, Any]) -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError, match="workers_min"):
        validate_config(prepare_config({**cluster, "workers_min": 2}))


def test_every_node_gets_the_token_and_asks_for_it(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        starts = [command for command in commands if "ray start" in command]
        assert len(starts) == 1 and "RAY_AUTH_MODE=token ray start" in starts[0]
