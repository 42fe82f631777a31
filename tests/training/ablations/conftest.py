"""A small set of ablations on the packed tiny set: a base and two variants, three steps each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture(scope="session")
def tiny_ablations(small_config: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Values of an ablation file; `changes` replace its keys."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "steps": 5,
            "seeds": 2,
            "text_tokens": 8,
            "base": small_config(),
            "data": {"half": {"share": 0.5}},
            "variants": [
                {
                    "name": "dense",
                    "group": "TREAD <ratio>",
                    "question": "What does routing cost & give?",
                    "changes": {"tread": None},
                },
                {
                    "name": "flat",
                    "group": "Depth",
                    "question": "And no decoder?",
                    "changes": {"model.decoder_blocks": 0, "model.single_blocks": 4},
                },
            ],
            **changes,
        }

    return make


@pytest.fixture
def ablation_file(tiny_ablations: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """Write `tiny_ablations(**changes)` as YAML."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "ablations.yaml"
        path.write_text(yaml.safe_dump(tiny_ablations(**changes)))
        return path

    return write
