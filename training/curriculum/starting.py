"""How a run gets its first weights: is it a start or a continuation, from what, and does every module have its place.

All of it is decided from configurations and file headers, on every rank alike, before the processes of a run meet. A stage that names where it starts
from is not started without; weights of another stage than the named one are refused; a run that has checkpoints goes on from them. Price: every
rank reads the headers of the source's files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import UsageError
from training.config import TrainConfig
from training.curriculum.origin import Origin
from training.curriculum.stage import FROM_WEIGHTS, StageConfig
from training.curriculum.transition import Shapes, Transition, account, check_text_encoder, declarations_of
from training.curriculum.weight_source import WeightSource, open_source, origin_of
from training.network import build_network

__all__ = ["Start", "find_start", "network_shapes", "start_note"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """Weights to start from, and what becomes of each parameter."""

    source: WeightSource
    transition: Transition
    origin: Origin


def find_start(
    config: TrainConfig, teacher_widths: Mapping[str, int | None], folder: Path | None, *, first_step: int
) -> Start | None:
    """What a run that has no checkpoint yet starts from; None for a fresh network.

    `teacher_widths` as `teachers.expected_widths` gives them. Where one is not known yet, the source's is taken: if the loaded teacher then has
    another, carrying the projector over is refused by shape.

    Raises:
        UsageError: if `--init-from` is missing, or given where nothing is to be started from, or is of another stage.
        ConfigError: if a module is not accounted for.
    """
    stage = config.stage
    wanted = None if stage is None else stage.starts_from
    if folder is None:
        if wanted is not None:
            raise UsageError(_missing(stage, wanted))
        return None
    if stage is not None and wanted is None:
        raise UsageError(
            f"--init-from is {folder}, but {stage.name} starts with a fresh network (stage.init_from is null); "
            "leave it out, or set stage.init_from to the stage that it comes from"
        )
    which = "ema" if stage is None else stage.init_weights
    source = open_source(folder, which)
    if stage is not None:
        _check_stage(stage, source)
    where = f"{'this run' if stage is None else stage.name} from {source.words()}"
    widths = {name: width or _width_in(source, name) for name, width in teacher_widths.items()}
    transition = account(source.shapes, network_shapes(config, widths), declarations_of(stage), where=where)
    if stage is not None:
        check_text_encoder(source.text_encoder, stage.text_encoder, transition, where=where)
    return Start(
        source=source,
        transition=transition,
        origin=origin_of(source, transition, weights=which, first_step=first_step),
    )


def network_shapes(config: TrainConfig, teacher_widths: Mapping[str, int]) -> Shapes:
    """Name and shape of every parameter that a run of this configuration trains, without memory for them."""
    return {
        name: tuple(parameter.shape) for name, parameter in build_network(config, teacher_widths).named_parameters()
    }


def _width_in(source: WeightSource, teacher: str) -> int:
    """Width of a teacher by its projector in the source; 1, whatever it is, where there is none."""
    return source.shapes.get(f"projectors.{teacher}.third.bias", (1,))[0]


def start_note(origin: Origin | None, folder: Path | None) -> str | None:
    """What to say when `--init-from` is given to a run that goes on from its own checkpoint; None when there is nothing to say."""
    if folder is None or not folder.exists():
        return None
    if origin is None:
        return (
            f"--init-from {folder} is not read: the run began with a fresh network, and goes on from its own checkpoint"
        )
    which = origin.weights
    try:
        found = open_source(folder, which).digest()
    except (OSError, ValueError):
        return None
    if found == origin.sha256:
        return None
    return f"--init-from {folder} is not read: the run began from {origin.folder}, and goes on from its own checkpoint"


def _missing(stage: StageConfig | None, wanted: str) -> str:
    assert stage is not None
    if wanted == FROM_WEIGHTS:
        return (
            f"{stage.name} starts from imported weights; give their folder with --init-from FOLDER "
            "(made by `reelyard-train import`), or set stage.init_from=null for a fresh network"
        )
    part = f", part {stage.source_part}" if stage.source_part is not None else ""
    return (
        f"{stage.name} starts from {wanted}{part}; give the --output of that run with --init-from FOLDER, "
        "or set stage.init_from=null (and new, reset, dropped to []) for a fresh network"
    )


def _check_stage(stage: StageConfig, source: WeightSource) -> None:
    """Refuse weights of another stage than the one that is named, or of another part of it."""
    wanted = stage.starts_from
    if (wanted == FROM_WEIGHTS) != (source.kind == "weights"):
        found = (
            "a weights folder"
            if source.kind == "weights"
            else f"a checkpoint of {source.stage or 'a run without a stage'}"
        )
        raise UsageError(
            f"--init-from {source.folder} is {found}, {stage.name} starts from {wanted} (stage.init_from); "
            f"give that, or set stage.init_from={FROM_WEIGHTS if source.kind == 'weights' else source.stage or 'null'}"
        )
    if source.kind == "weights":
        return
    if source.stage != wanted:
        raise UsageError(
            f"--init-from {source.folder} is of {source.stage or 'a run without a stage'}, {stage.name} starts from {wanted} (stage.init_from); "
            f"give the run of that stage, or set stage.init_from={source.stage or 'null'}"
        )
    if stage.source_part is not None and source.part != stage.source_part:
        raise UsageError(
            f"--init-from {source.folder} is part {source.part} of {stage.name}, part {stage.part} starts from part {stage.source_part}; "
            "give the run of that part"
        )
