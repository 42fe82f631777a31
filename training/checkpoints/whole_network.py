"""A checkpoint to a network that can be asked: averaged or trained weights, unsharded, from a checkpoint of any world size.

Price: the weights pass through the CPU in float32, 8 GB for 2 B.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from schemas.config import build_config
from schemas.errors import UsageError
from training.checkpoints.checkpoint import find_checkpoint, load_tensors, read_record
from training.config import TrainConfig
from training.dit.model import MotifVideoDiT
from training.parallel import open_world

__all__ = ["WeightsKind", "load_network", "load_run_network", "read_run_config"]

WeightsKind = Literal["ema", "trained"]


def read_run_config(run: Path, checkpoint: int | None) -> tuple[Path, TrainConfig]:
    """The checkpoint's folder (None: the latest) and the configuration that it was written under; UsageError when there is none."""
    folder = find_checkpoint(run, checkpoint)
    return folder, build_config(TrainConfig, read_record(folder).config, source=str(folder / "record.json"))


def load_run_network(run: Path, checkpoint: int | None, which: WeightsKind) -> tuple[MotifVideoDiT, TrainConfig]:
    """`load_network` by run and step, with the run's configuration."""
    folder, config = read_run_config(run, checkpoint)
    return load_network(folder, config, which), config


def load_network(checkpoint: Path, config: TrainConfig, weights: WeightsKind = "ema") -> MotifVideoDiT:
    """The network in evaluation mode, float32 on the CPU, with a checkpoint's first average or with its trained weights.

    Raises:
        UsageError: when averages are asked for that the run does not keep.
        DataError: if the checkpoint is damaged.
    """
    if weights == "ema" and not config.ema_decays:
        raise UsageError(
            f"{checkpoint} holds no averages: the run was trained with ema_decays: []; take the trained weights (--weights trained)"
        )
    with torch.device("meta"):
        network = MotifVideoDiT(config.model)
    network.to_empty(device="cpu")
    source = f"ema_{config.ema_decays[0]}" if weights == "ema" else "model"
    tensors = {f"{source}/dit.{name}": parameter.detach() for name, parameter in network.named_parameters()}
    with open_world(torch.device("cpu")) as world:
        load_tensors(checkpoint, tensors, world=world)
    return network.eval()
