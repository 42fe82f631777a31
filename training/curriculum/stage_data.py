"""Whether the data is the stage's: sets, encoders and teachers, and a plan built with the stage's batches.

The same questions are asked of a plan before a run and, by `reelyard-train plan-curriculum`, of the sets before there is a plan.
"""

from __future__ import annotations

from schemas.errors import ConfigError, DataError, PlanError
from schemas.plan import PlanMeta
from schemas.shards import SetInfo
from training.config import TrainConfig
from training.curriculum.stage import StageConfig
from training.set_encoders import width_problems
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
    found += width_problems(config, info)
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
