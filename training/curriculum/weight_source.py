"""Where a run's first weights come from: a run, one of its checkpoints, or a weights folder; and what is written down about it.

What it holds is known from the headers of its files, so that all ranks account for every parameter before they meet. Loading goes through DCP: each
rank reads its own parts into the sharded parameters, at any world size, whatever world size wrote them. The checkpoint of the new run keeps an
`Origin`, so that going on with the run needs the source no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from schemas.errors import DataError, UsageError
from schemas.ids import content_hash
from training.checkpoints.checkpoint import (
    CheckpointRecord,
    check_files,
    checkpoint_steps,
    fill_tensors,
    find_checkpoint,
    is_checkpoint,
    read_record,
    stored_shapes,
)
from training.curriculum.origin import Origin
from training.curriculum.transition import Shapes, Transition, modules_of
from training.parallel import World
from training.weights import WEIGHTS_FILE, is_weights_folder, read_weights_info

__all__ = ["WeightSource", "carry_weights", "open_source", "origin_of"]

_IN_DIT = "dit."


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """Named tensors on disk that a run can start from."""

    folder: Path
    """Of the checkpoint, or the weights folder."""
    kind: Literal["checkpoint", "weights"]
    stored: Mapping[str, str]
    """Parameter of the network to the name under which the folder has it."""
    shapes: Shapes
    record: CheckpointRecord | None
    """Of a checkpoint."""
    files: Mapping[str, str]
    """File name to sha256, checked before loading."""

    @property
    def stage(self) -> str | None:
        """Name of the stage that trained it, if it was one."""
        return self._said_of_stage("name")

    @property
    def text_encoder(self) -> str | None:
        """Of the stage that trained it."""
        return self._said_of_stage("text_encoder")

    @property
    def part(self) -> str | None:
        """The part of that stage, by name."""
        stage = self._stage()
        return None if stage is None else str(stage["part"] or stage["parts"][0]["name"])

    def _stage(self) -> dict[str, Any] | None:
        return None if self.record is None else self.record.config.get("stage")

    def _said_of_stage(self, key: str) -> str | None:
        stage = self._stage()
        return None if stage is None else str(stage[key])

    def digest(self) -> str:
        """sha256 of the file that names the sha256 of all others: enough to tell one source from another."""
        with (self.folder / ("model.json" if self.kind == "weights" else "record.json")).open("rb") as stream:
            return content_hash(stream)

    def words(self) -> str:
        """For messages."""
        stage = "" if self.stage is None else f" of {self.stage}"
        return f"{'weights folder' if self.kind == 'weights' else 'checkpoint'} {self.folder}{stage}"


def open_source(folder: Path, which: Literal["ema", "trained"]) -> WeightSource:
    """The source at a run's folder (its latest checkpoint), a checkpoint's, or a weights folder.

    `which` chooses between averaged and trained weights of the DiT. Averages are of the first of the run's decays, the one that is sampled from.
    Raises:
        UsageError: if the folder is none of these.
        DataError: if its files are not what they should be.
    """
    if is_weights_folder(folder):
        info = read_weights_info(folder)
        found = stored_shapes(folder)
        stored = {f"{_IN_DIT}{name}": name for name in found}
        shapes = {name: found[at] for name, at in stored.items()}
        files = {WEIGHTS_FILE: info.sha256}
        return WeightSource(folder=folder, kind="weights", stored=stored, shapes=shapes, record=None, files=files)
    if is_checkpoint(folder):
        checkpoint = folder
    elif checkpoint_steps(folder):
        checkpoint = find_checkpoint(folder, None)
    else:
        raise UsageError(
            f"--init-from is {folder}, which is no run with a checkpoint, no checkpoint and no weights folder; "
            "give the --output of the run to start from, or a folder that `reelyard-train import` wrote"
        )
    record = read_record(checkpoint)
    found = stored_shapes(checkpoint)
    stored = {name.removeprefix("model/"): name for name in found if name.startswith("model/")}
    if which == "ema":
        prefix = f"ema_{record.config['ema_decays'][0]}/"
        averaged = {name.removeprefix(prefix): name for name in found if name.startswith(prefix)}
        if not averaged:
            raise DataError(f"{checkpoint} has no averages ({prefix}...); set stage.init_weights=trained")
        stored |= averaged
    shapes = {name: found[at] for name, at in stored.items()}
    return WeightSource(
        folder=checkpoint, kind="checkpoint", stored=stored, shapes=shapes, record=record, files=record.files
    )


def carry_weights(
    source: WeightSource, transition: Transition, parameters: Mapping[str, Tensor], *, world: World
) -> None:
    """Fill the carried parameters of a network from the source, in place; the others keep their starting weights. Every rank calls it.

    Raises:
        DataError: if a file of the source is damaged, or has changed since it was looked at.
    """
    check_files(source.folder, source.files, world=world)
    fill_tensors(source.folder, {source.stored[name]: parameters[name] for name in transition.carried})


def origin_of(
    source: WeightSource, transition: Transition, *, weights: Literal["ema", "trained"], first_step: int
) -> Origin:
    """What checkpoints of the new run say of it."""
    everything = [*transition.carried, *transition.new, *transition.reset, *transition.dropped]
    return Origin(
        kind=source.kind,
        folder=str(source.folder),
        stage=source.stage,
        next_step=None if source.record is None else source.record.next_step,
        weights=weights,
        sha256=source.digest(),
        first_step=first_step,
        carried=len(transition.carried),
        new=tuple(modules_of(transition.new, everything)),
        reset=tuple(modules_of(transition.reset, everything)),
        dropped=tuple(modules_of(transition.dropped, everything)),
    )
