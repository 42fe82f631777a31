"""When a run saves, what it saves beside the tensors, and which checkpoints it keeps."""

from __future__ import annotations

from pathlib import Path

from training.checkpoint import CheckpointRecord, current_environment, remove_old_checkpoints, save_checkpoint
from training.parallel import World, choose_precision
from training.run_setup import PreparedRun
from training.train_state import TrainState

__all__ = ["RunSaves"]


class RunSaves:
    """The checkpoints that a run writes; every rank calls the same methods in the same order."""

    def __init__(self, prepared: PreparedRun, world: World, state: TrainState) -> None:
        self._prepared = prepared
        self._world = world
        self._state = state
        self.latest: Path | None = prepared.resume_from
        """The newest complete checkpoint."""

    def due(self, next_step: int) -> bool:
        """Whether the configuration asks for one at this step."""
        return next_step % self._prepared.config.checkpoint.every_steps == 0

    def save(self, next_step: int) -> None:
        """Save the state as it is, `next_step` steps done."""
        prepared, config = self._prepared, self._prepared.config
        record = CheckpointRecord(
            next_step=next_step,
            plan_hash=prepared.meta.plan_hash,
            config=config.model_dump(mode="json"),
            environment=current_environment(self._world, choose_precision(config.precision, self._world.device)),
            origin=prepared.origin,
        )
        self.latest = save_checkpoint(prepared.output, self._state.tensors(), record, self._world)
        if self._world.rank == 0:
            remove_old_checkpoints(prepared.output, config.checkpoint.keep)

    def finish(self) -> None:
        """Wait until everything that was begun is complete."""
