"""`ray_cluster.yaml`: Ray's own launcher takes it, and every node gets the token and uses it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

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
