"""The network of a training run's checkpoint, whole, on the CPU: with its averaged weights or with the trained ones.

A checkpoint of any world size is read in one process; its files are checked first. Price: the network in float32 must fit into memory (8 GB for 2 B).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from schemas.config import build_config
from schemas.errors import UsageError
from training.checkpoint import find_checkpoint, load_tensors, read_record
from training.config import TrainConfig
from training.model import MotifVideoDiT
from training.parallel import open_world

__all__ = ["RunWeights", "load_run_weights", "read_run_config"]

RunWeights = Literal["ema", "trained"]
"""`ema`: the first of the run's averages. `trained`: what the optimizer moved."""


def read_run_config(run: Path, checkpoint: int | None) -> tuple[Path, TrainConfig]:
    """The checkpoint's folder (None: the latest) and the configuration that it was written under; UsageError when there is none."""
    folder = find_checkpoint(run, checkpoint)
    return folder, build_config(TrainConfig, read_record(folder).config, source=str(folder / "record.json"))


def load_run_weights(run: Path, checkpoint: int | None, which: RunWeights) -> tuple[MotifVideoDiT, TrainConfig]:
    """The network in evaluation mode, float32 on the CPU, and the run's configuration.

    Raises:
        UsageError: if there is no such checkpoint, or averages are asked for and the run keeps none.
        DataError: if the checkpoint is damaged.
    """
    folder, config = read_run_config(run, checkpoint)
    if which == "ema" and not config.ema_decays:
        raise UsageError(f"{folder} holds no averaged weights (ema_decays is empty); ask for the trained ones")
    with torch.device("meta"):
        model = MotifVideoDiT(config.model)
    model.to_empty(device="cpu")
    source = f"ema_{config.ema_decays[0]}" if which == "ema" else "model"
    tensors = {f"{source}/dit.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    with open_world(torch.device("cpu")) as world:
        load_tensors(folder, tensors, world=world)
    return model.eval(), config
