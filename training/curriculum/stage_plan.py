"""The plan of a stage: the planner's settings that a stage asks for, as a file before there is a plan, and against the plan before a run.

Written as text, for training imports nothing of the planner: the file is the contract, and a test loads it with the planner's own classes. A plan is
the stage's if it agrees in all that decides which clips train, how often and how many together; seed, policy, buffers and predicted costs are free,
for they decide the order alone. Price: a setting that is changed in the planner's file must be changed in the stage's as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from schemas.errors import ConfigError, PlanError
from schemas.files import write_bytes
from schemas.plan import PlanMeta
from schemas.shards import SetInfo
from schemas.tables import SAMPLES
from training.config import TrainConfig
from training.curriculum.stage import StageConfig, StagePart
from training.curriculum.stage_data import set_problems

__all__ = ["check_plan", "plan_settings", "plan_text", "write_plan_files"]

_PLANNER_DEFAULTS: dict[str, Any] = {"epochs": 1, "max_steps": None, "frames": {}, "mix": []}
"""What a plan has of these if its file does not say."""


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
        "rules": [rule.model_dump(mode="json", exclude_defaults=True) for rule in part.rules],
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
    scores = (
        "" if all(rule.column in SAMPLES.names for rule in part.rules) else " --scores curated/tables/labels.parquet"
    )
    head = (
        f"# {stage.name}, part {part.name}; written by `reelyard-train plan-curriculum --write-plans` from the stage's file.\n"
        f"# reelyard-plan build {sets}{scores} --config {_file_name(stage, part)} --output plans/{stage.name}_{part.name}\n"
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


def check_plan(config: TrainConfig, stage: StageConfig, meta: PlanMeta, infos: tuple[SetInfo, ...]) -> None:
    """Refuse a plan that is not of the stage's data.

    Raises:
        PlanError: with every setting in which the plan is another than the stage asks for.
        ConfigError: for sets of other encoders or teachers.
    """
    part = stage.chosen_part
    where = f"{stage.name}, part {part.name}"
    wrong = [problem for info in infos for problem in set_problems(config, stage, info)]
    different = [*_differences(config, stage, part, meta, infos), *_batch_differences(part, meta)]
    if different:
        listed = "\n  ".join([*different, *wrong])
        raise PlanError(
            f"{where}: the plan is not the stage's:\n  {listed}\n"
            "build it from the file that `reelyard-train plan-curriculum --write-plans` wrote, or change the stage's file (stage.parts)"
        )
    if wrong:
        raise ConfigError(f"{where}: " + "\n  ".join(wrong))


def _differences(
    config: TrainConfig, stage: StageConfig, part: StagePart, meta: PlanMeta, infos: tuple[SetInfo, ...]
) -> Iterator[str]:
    asked = {"sets": sorted(part.frames), **_what_decides(plan_settings(config, stage, part, text_tokens=0))}
    built = {
        "sets": sorted({info.set_name for info in infos}),
        **_what_decides(
            _PLANNER_DEFAULTS
            | meta.config
            | {
                "lanes": meta.num_lanes,
                "micro_per_step": meta.micro_per_step,
                "admission": meta.admission,
                "rules": [rule.model_dump(mode="json", exclude_defaults=True) for rule in meta.rules],
                "domain_column": meta.domain_column,
            }
        ),
    }
    if (
        meta.continues is not None
    ):  # the planner has said how its step differs; another number of lanes is what it is for
        for key in ("lanes", "micro_per_step"):
            del asked[key]
    for key, value in asked.items():
        if built[key] != value:
            yield f"{key}: the stage has {value}, the plan {built[key]}"


def _what_decides(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what is trained on; of several phases of a mix, all."""
    mix = settings["mix"]
    phase = mix[0] if len(mix) == 1 else {}
    keys = ("lanes", "micro_per_step", "epochs", "max_steps", "admission", "rules", "frames", "domain_column")
    return {
        **{key: settings[key] for key in keys},
        "images_per_video": phase.get("images_per_video") if len(mix) < 2 else mix,
        "domain_weights": phase.get("domain_weights", {}) if len(mix) < 2 else mix,
    }


def _batch_differences(part: StagePart, meta: PlanMeta) -> Iterator[str]:
    for entry in meta.batches:
        batch = part.batch_clips.get(entry.bucket)
        if batch != entry.clips_per_lane:
            has = "no such bucket" if batch is None else batch
            yield f"batch_clips.{entry.bucket}: the stage has {has}, the plan {entry.clips_per_lane}"
