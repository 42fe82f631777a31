"""A stage's planner configuration as a YAML file: the same sets, lengths, batches and balance that the trainer will ask the plan for.

Written as text, for training imports nothing of the planner: the file is the contract, and a test loads it with the planner's own classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from schemas.files import write_bytes
from training.config import TrainConfig
from training.curriculum.stage import StageConfig, StagePart

__all__ = ["plan_settings", "plan_text", "write_plan_files"]


def plan_settings(config: TrainConfig, stage: StageConfig, part: StagePart, *, text_tokens: int) -> dict[str, Any]:
    """Keys of `planner/settings.py` that the part decides; the rest keeps the planner's defaults."""
    mix = []
    if part.images_per_video is not None or part.domain_weights:
        mix = [{"until": 1.0, "images_per_video": part.images_per_video, "domain_weights": dict(part.domain_weights)}]
    route = None
    if config.tread is not None:
        route = {
            "first_block": config.tread.start_block,
            "last_block": config.tread.end_block,
            "drop_ratio": config.tread.drop_ratio,
        }
    return {
        "lanes": part.lanes,
        "micro_per_step": part.micro_per_step,
        "epochs": part.epochs,
        "max_steps": part.max_steps,
        "policy": "tiers",
        "admission": part.admission,
        "frames": {name: list(lengths) for name, lengths in part.frames.items()},
        "domain_column": part.domain_column,
        "mix": mix,
        "seed": stage.number,
        "batch_clips": dict(part.batch_clips),
        "shorten_left_over": False,
        "cost": {"shape": config.model.model_dump(mode="json"), "text_tokens": text_tokens, "route": route},
    }


def plan_text(config: TrainConfig, stage: StageConfig, part: StagePart, *, text_tokens: int) -> str:
    """The file's text."""
    sets = " ".join(f"--samples sets/{name}" for name in part.frames)
    head = (
        f"# {stage.name}, part {part.name}; written by `reelyard-train plan-curriculum --write-plans` from the stage's file.\n"
        f"# reelyard-plan build {sets} --config {_file_name(stage, part)} --output plans/{stage.name}_{part.name}\n"
    )
    settings = plan_settings(config, stage, part, text_tokens=text_tokens)
    return head + yaml.safe_dump(settings, sort_keys=False, width=120)


def write_plan_files(config: TrainConfig, stage: StageConfig, folder: Path, *, text_tokens: int) -> list[Path]:
    """Write a file for each part; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for part in stage.parts:
        path = folder / _file_name(stage, part)
        write_bytes(path, plan_text(config, stage, part, text_tokens=text_tokens).encode())
        paths.append(path)
    return paths


def _file_name(stage: StageConfig, part: StagePart) -> str:
    return f"{stage.name}_{part.name}.yaml"
