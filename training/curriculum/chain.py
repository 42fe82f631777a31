"""The chain of stages: every file, every module between one stage and the next, every set, looked at before anything is trained.

Networks are built on the meta device at their full size, so ten stages of 2 B parameters take seconds and no memory. All problems are collected
and said together: a curriculum is mended in an editor, not one message at a time. Widths of text encoders and teachers come from the sets where these
are given, else from the published weights that the registry names.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from schemas.config import load_config
from schemas.errors import ConfigError, UsageError
from training.config import TrainConfig
from training.curriculum.stage import FROM_WEIGHTS, StageConfig
from training.curriculum.stage_data import PackedSet, look_at_part
from training.curriculum.starting import network_shapes
from training.curriculum.transition import Shapes, Transition, account, check_text_encoder, declarations_of

__all__ = ["TEACHER_WIDTHS", "TEXT_WIDTHS", "Chain", "StageFile", "check_chain", "choose_stages", "read_stages"]

TEXT_WIDTHS = {"minilm": 384, "t5gemma2": 2560}
"""Of the published weights that the registry names."""
TEACHER_WIDTHS = {"efficientnet_lite0": 320, "dinov2": 768, "vjepa2": 1024}
"""Likewise: DINOv2 ViT-B/14, V-JEPA 2 ViT-L."""


@dataclass(frozen=True, kw_only=True)
class StageFile:
    """One stage of the chain."""

    path: Path
    config: TrainConfig
    stage: StageConfig


@dataclass(kw_only=True)
class Chain:
    """What the check found."""

    files: tuple[StageFile, ...]
    transitions: dict[str, Transition] = field(default_factory=dict)
    """By the name of the stage; where its modules are accounted for."""
    parameters: dict[str, int] = field(default_factory=dict)
    """Of the DiT, by the name of the stage."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is well but worth knowing."""


def read_stages(folder: Path) -> Chain:
    """Load every `stage*.yaml` of a folder, in the order of their numbers; files that do not load become problems.

    Raises:
        UsageError: if there is none.
    """
    paths = sorted(folder.glob("stage*.yaml"))
    if not paths:
        place = folder.resolve()
        what = "has no file stage*.yaml" if place.is_dir() else "is no folder"
        raise UsageError(
            f"--stages is {folder}: {place} {what}; give the folder of the stage files "
            "(without --stages it is configs/train of the folder you are in, which suits the top of a checkout of the project)"
        )
    files, problems = [], []
    for path in paths:
        try:
            config = load_config(TrainConfig, path)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if config.stage is None:
            problems.append(f"{path}: stage is null, expected a section that says where the stage starts from; add it")
            continue
        files.append(StageFile(path=path, config=config, stage=config.stage))
    files.sort(key=lambda file: (file.stage.number, file.path))
    return Chain(files=tuple(files), problems=problems)


def choose_stages(chain: Chain, wanted: Sequence[str]) -> frozenset[str]:
    """Names of the stages that are meant, each given by its name or its number.

    Raises:
        UsageError: for one that there is not.
    """
    names = {key: file.stage.name for file in chain.files for key in (file.stage.name, str(file.stage.number))}
    for word in wanted:
        if word not in names:
            known = ", ".join(f"{file.stage.number} {file.stage.name}" for file in chain.files) or "none that loads"
            raise UsageError(f"--stage is {word!r}, expected the name or number of a stage; there are: {known}")
    return frozenset(names[word] for word in wanted)


def check_chain(chain: Chain, sets: Sequence[PackedSet] | None = None, *, only: Collection[str] | None = None) -> None:
    """Add to the chain what its stages are and everything that is wrong with them; the sets are looked at where they are given.

    `only` names the stages to look at; the others are then taken out of the chain, and the sources of these are built but not judged.
    """
    by_name: dict[str, StageFile] = {}
    shapes: dict[str, Shapes] = {}
    chosen = [file for file in chain.files if only is None or file.stage.name in only]
    sources = {file.stage.init_from for file in chosen}
    for file in chain.files:
        if file in chosen:
            chain.problems += _file_problems(file, by_name)
        if file in chosen or file.stage.name in sources:
            try:
                shapes[file.stage.name] = network_shapes(file.config, _teacher_widths(file, sets or ()))
            except ConfigError as error:
                chain.problems.append(f"{file.path}: {error}")
            else:
                if file in chosen:
                    _account(chain, file, by_name, shapes)
        by_name[file.stage.name] = file
    chain.files = tuple(chosen)
    if sets is not None:
        _look_at_data(chain, sets)


def _look_at_data(chain: Chain, sets: Sequence[PackedSet]) -> None:
    for file in chain.files:
        for part in file.stage.parts:
            found = look_at_part(file.config, file.stage, part, sets)
            chain.problems += [f"{file.path}: {text}" for text in found.problems]
            chain.notes += [f"{file.stage.name}: {text}" for text in found.notes]


def _file_problems(file: StageFile, before: dict[str, StageFile]) -> list[str]:
    """What is wrong with one file in its place among the others."""
    stage, found = file.stage, []
    if file.path.stem != stage.name:
        found.append(f"stage.name is {stage.name!r}, the file is {file.path.name}; give both the same name")
    if any(other.stage.number == stage.number for other in before.values()):
        found.append(f"stage.number {stage.number} is taken by an earlier file; number the stages 1, 2, ...")
    if stage.part is not None:
        found.append(
            f"stage.part is {stage.part!r}, expected null in a file: a run chooses its part with --set stage.part"
        )
    if stage.init_from is not None and stage.init_from != FROM_WEIGHTS and stage.init_from not in before:
        known = ", ".join(before) or "none"
        found.append(f"stage.init_from is {stage.init_from!r}, which is no earlier stage; earlier ones are: {known}")
    if stage.text_encoder in TEXT_WIDTHS and file.config.model.text_width != TEXT_WIDTHS[stage.text_encoder]:
        width = TEXT_WIDTHS[stage.text_encoder]
        found.append(
            f"model.text_width is {file.config.model.text_width}, {stage.text_encoder} has {width}; set it to {width}"
        )
    return [f"{file.path}: {text}" for text in found]


def _account(chain: Chain, file: StageFile, before: dict[str, StageFile], shapes: dict[str, Shapes]) -> None:
    """Account for the modules of one stage."""
    stage = file.stage
    mine = shapes[stage.name]
    chain.parameters[stage.name] = file.config.model.parameter_count()
    if stage.init_from is None:
        chain.transitions[stage.name] = Transition(new=tuple(mine))
        return
    if stage.init_from == FROM_WEIGHTS:
        chain.notes.append(
            f"{stage.name} starts from imported weights, whose modules are looked at when the run starts"
        )
        return
    if stage.init_from not in shapes:
        return
    where = f"{file.path}: {stage.name} from {stage.init_from}"
    try:
        transition = account(shapes[stage.init_from], mine, declarations_of(stage), where=where)
        check_text_encoder(before[stage.init_from].stage.text_encoder, stage.text_encoder, transition, where=where)
    except ConfigError as error:
        chain.problems.append(str(error))
        return
    chain.transitions[stage.name] = transition


def _teacher_widths(file: StageFile, sets: Sequence[PackedSet]) -> dict[str, int]:
    """The stage's teachers: their widths in the sets where these are given, else those of the published weights.

    Raises:
        ConfigError: for a teacher whose width nothing tells, or none where there should be one.
    """
    repa = file.config.repa
    if repa is None:
        return {}
    infos = [packed.info for packed in sets]
    by_branch = repa.teacher_by_branch
    if by_branch is None:
        raise ConfigError("repa.teacher_by_branch is null, expected the teacher of each branch; a stage names its own")
    widths = TEACHER_WIDTHS | {
        name: info.teacher_width
        for info in infos
        if info.teacher_width is not None
        for name in info.teacher_by_branch.values()
        if name is not None
    }
    names = sorted({name for name in by_branch.values() if name is not None})
    unknown = [name for name in names if name not in widths]
    if unknown:
        raise ConfigError(
            f"repa.teacher_by_branch names {unknown[0]!r}, whose width is not known here; give the stage's sets with --samples, "
            f"or one of {', '.join(TEACHER_WIDTHS)}"
        )
    return {name: widths[name] for name in names}
