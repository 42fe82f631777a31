"""A checkpoint to a network that can be asked: averaged or trained weights, unsharded, from a checkpoint of any world size.

Price: the weights pass through the CPU in float32, 8 GB for 2 B.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from schemas.errors import UsageError
from training.checkpoint import load_tensors
from training.config import TrainConfig
from training.model import MotifVideoDiT
from training.parallel import open_world

__all__ = ["WeightsKind", "load_network"]

WeightsKind = Literal["ema", "trained"]


def load_network(checkpoint: Path, config: TrainConfig, weights: WeightsKind = "ema") -> MotifVideoDiT:
    """The network in evaluation mode, float32 on the CPU, with a checkpoint's first average or with its trained weights.

    Raises:
        UsageError: when averages are asked for that the run does not keep.
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
