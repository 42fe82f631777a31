"""Whether the data is the stage's: sets, encoders and teachers, and a plan built with the stage's batches.

The same questions are asked of a plan before a run and, by `reelyard-train plan-curriculum`, of the sets before there is a plan.
"""

from __future__ import annotations

from schemas.errors import ConfigError, DataError, PlanError
from schemas.plan import PlanMeta
from schemas.shards import SetInfo
from training.config import TrainConfig
from training.curriculum.stage import StageConfig
from training.teachers import check_teachers

__all__ = ["check_plan", "set_problems"]


def set_problems(config: TrainConfig, stage: StageConfig, info: SetInfo) -> list[str]:
    """What keeps a set from being used by a stage, each with what to do; empty when all is well."""
    found = []
    if info.text_encoder != stage.text_encoder:
        found.append(
            f"stage.text_encoder is {stage.text_encoder!r}, the set {info.set_name!r} has text of {info.text_encoder!r} (set.json); "
            "pack it with the stage's encoder"
        )
    for key, value, has in (
        ("model.out_channels", config.model.out_channels, info.latent_channels),
        ("model.text_width", config.model.text_width, info.text_width),
    ):
        if value != has:
            found.append(f"{key} is {value}, the set {info.set_name!r} has {has} (set.json); set {key}={has}")
    width = config.model.image_width
    if config.i2v.image_tokens and info.image_width != width:
        found.append(
            f"i2v.image_tokens is true and model.image_width {width}, the image tokens of set {info.set_name!r} have the width {info.image_width} "
            "(set.json: image_width); pack it with that image encoder, or set i2v.image_tokens=false"
        )
    try:
        check_teachers(config.repa, [info])
    except (ConfigError, DataError) as error:
        found.append(str(error))
    return found


def check_plan(config: TrainConfig, stage: StageConfig, meta: PlanMeta, infos: tuple[SetInfo, ...]) -> None:
    """Refuse a plan that is not of the stage's data.

    Raises:
        ConfigError: for a set of other encoders.
        PlanError: for a plan of other sets, another admission level or other batches.
    """
    part = stage.chosen_part
    where = f"{stage.name}, part {part.name}"
    names = {info.set_name for info in infos}
    if names - set(part.frames):
        raise PlanError(
            f"{where} trains on {', '.join(sorted(part.frames))}, the plan reads {', '.join(sorted(names))}; "
            "give the plan of this stage and part"
        )
    problems = [problem for info in infos for problem in set_problems(config, stage, info)]
    if problems:
        raise ConfigError(f"{where}: " + "\n  ".join(problems))
    if meta.admission != part.admission:
        raise PlanError(
            f"{where} takes clips admitted at {part.admission}, the plan those at {meta.admission}; "
            "build the plan from the file that `reelyard-train plan-curriculum --write-plans` wrote"
        )
    for entry in meta.batches:
        batch = part.batch_clips.get(entry.bucket)
        if batch != entry.clips_per_lane:
            raise PlanError(
                f"{where}: the plan has {entry.clips_per_lane} clips of {entry.bucket} in a micro-batch, stage.parts (batch_clips) has "
                f"{'no such bucket' if batch is None else batch}; build the plan from the file that "
                "`reelyard-train plan-curriculum --write-plans` wrote"
            )
