"""A chain of three tiny stages, run through the command line: A with a projector, B with other text and none, C with cross-attention inserted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.shards import read_set_info, write_set_info

BATCHES = {"1x32x48": 3, "1x48x32": 3, "33x32x48": 2, "65x32x48": 1}
PROJECTOR = "projectors"
WIDE = 24
"""Text width of stages B and C."""


def stage_section(number: int, name: str, init_from: str | None, **values: Any) -> dict[str, Any]:
    """A stage that trains on the tiny set."""
    part = {
        "name": "main",
        "admission": "144p",
        "frames": {"tiny": [1, 33, 65]},
        "batch_clips": BATCHES,
        "lanes": 2,
        "micro_per_step": 2,
    }
    base = {"number": number, "name": name, "init_from": init_from, "text_encoder": "narrow", "parts": [part]}
    return {**base, **values}


@dataclass
class TinyChain:
    """Configurations, data and folders of the three stages."""

    root: Path
    sets: dict[str, Path]
    plans: dict[str, Path]
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """Of a stage's run."""
        return self.root / "runs" / name

    def arguments(self, name: str, *extra: object, output: Path | None = None, **changes: Any) -> list[str]:
        """Of `reelyard-train run` for a stage; `changes` replace sections of its file, `stage` key by key."""
        config = {**self.configs[name], **{key: value for key, value in changes.items() if key != "stage"}}
        config["stage"] = {**config["stage"], **changes.get("stage", {})}
        path = self.root / f"{name}-{abs(hash(yaml.safe_dump(config)))}.yaml"
        path.write_text(yaml.safe_dump(config))
        data = "narrow" if name == "a" else "wide"
        paths = ["--plan", self.plans[data], "--samples", self.sets[data], "--output", output or self.folder(name)]
        return [str(part) for part in ["--config", path, *paths, *extra]]


@pytest.fixture(scope="session")
def tiny_chain(
    tmp_path_factory: pytest.TempPathFactory,
    make_set: Callable[..., Path],
    make_plan: Callable[..., Any],
    small_config: Callable[..., dict[str, Any]],
) -> TinyChain:
    """Nothing of it has run yet."""
    root = tmp_path_factory.mktemp("chain")
    sets = {"narrow": make_set(root / "narrow"), "wide": make_set(root / "wide", seed=1, text_width=WIDE)}
    for name, folder in sets.items():
        info = read_set_info(folder)
        write_set_info(folder, info.model_copy(update={"text_encoder": name, "text_encoder_fingerprint": name}))
    plans = {name: make_plan(root / f"plan-{name}", [folder], steps=6).folder for name, folder in sets.items()}
    chain = TinyChain(root, sets, plans)
    plain = small_config()
    model = {**plain["model"], "shared_cross_attention": False}
    teachers = {"image_real": "random", "video_real": "random"}
    chain.configs["a"] = {**plain, "model": model, "stage": stage_section(1, "a", None), "steps": 2}
    chain.configs["a"]["repa"] = {**plain["repa"], "teacher_by_branch": teachers}
    model = {**model, "text_width": WIDE}
    chain.configs["b"] = {
        **plain,
        "model": model,
        "repa": None,
        "stage": stage_section(2, "b", "a", text_encoder="wide", reset=["dit.text_embed"], dropped=[PROJECTOR]),
        "steps": 2,
        "seed": 8,
        "optimizer": {
            "lr": 1e-30,
            "warmup_steps": 0,
        },  # moves no float32 weight: its checkpoints show what it began with
    }
    model = {**model, "shared_cross_attention": True}
    new = ["dit.single_blocks.*.cross"]
    chain.configs["c"] = {
        **chain.configs["b"],
        "model": model,
        "stage": stage_section(3, "c", "b", text_encoder="wide", new=new),
        "seed": 9,
        "optimizer": plain["optimizer"],
    }
    return chain


@pytest.fixture(scope="session")
def run_of_a(tiny_chain: TinyChain) -> Path:
    """Two steps of stage A on one process; not to be changed."""
    from training.cli import main

    assert main(["run", *tiny_chain.arguments("a")]) == 0
    return tiny_chain.folder("a")


@pytest.fixture(scope="session")
def run_of_b(tiny_chain: TinyChain, run_of_a: Path) -> Path:
    """Two steps of stage B from A, on two gloo processes; not to be changed."""
    command = [
        sys.executable,
        "training/train.py",
        *tiny_chain.arguments("b", "--init-from", run_of_a, "--processes", 2),
    ]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return tiny_chain.folder("b")
