"""What a run's checkpoints remember of the weights that it started from.

A module of its own: `training.checkpoints.checkpoint` writes it, and `training.curriculum.weight_source`, which makes it, reads checkpoints.
"""

from __future__ import annotations

from typing import Literal

from schemas.config import StrictConfig

__all__ = ["Origin"]


class Origin(StrictConfig):
    """Written into every checkpoint of a run that was started with `--init-from`; going on with the run reads the source no more."""

    kind: Literal["checkpoint", "weights"]
    folder: str
    """As it was when the run started."""
    stage: str | None
    """That trained the weights."""
    next_step: int | None
    """Steps that the source had done; null for a weights folder."""
    weights: Literal["ema", "trained"]
    sha256: str
    """Of the checkpoint's record.json, which holds the sha256 of its tensors, or of the weights folder's model.json, likewise."""
    first_step: int
    """The plan's step at which this run began, with a fresh optimizer."""
    carried: int
    """Parameters (tensors) taken over."""
    new: tuple[str, ...]
    """Modules, as patterns."""
    reset: tuple[str, ...]
    dropped: tuple[str, ...]
