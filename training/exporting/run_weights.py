"""The network of a training run's checkpoint, whole, on the CPU: with its averaged weights or with the trained ones.

Price: the network in float32 must fit into memory (8 GB for 2 B).
"""

from __future__ import annotations

from pathlib import Path

from schemas.config import build_config
from training.checkpoint import find_checkpoint, read_record
from training.config import TrainConfig
from training.model import MotifVideoDiT
from training.sampling.weights import WeightsKind, load_network

__all__ = ["load_run_weights", "read_run_config"]


def read_run_config(run: Path, checkpoint: int | None) -> tuple[Path, TrainConfig]:
    """The checkpoint's folder (None: the latest) and the configuration that it was written under; UsageError when there is none."""
    folder = find_checkpoint(run, checkpoint)
    return folder, build_config(TrainConfig, read_record(folder).config, source=str(folder / "record.json"))


def load_run_weights(run: Path, checkpoint: int | None, which: WeightsKind) -> tuple[MotifVideoDiT, TrainConfig]:
    """The network in evaluation mode, float32 on the CPU, and the run's configuration.

    Raises:
        UsageError: if there is no such checkpoint, or averages are asked for and the run keeps none.
        DataError: if the checkpoint is damaged.
    """
    folder, config = read_run_config(run, checkpoint)
    return load_network(folder, config, which), config
