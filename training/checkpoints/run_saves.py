"""When a run saves, what it saves beside the tensors, and which checkpoints it keeps.

With `checkpoint.asynchronous` a save is a copy of the state into memory of the host, in the training thread; a background thread writes the
copy. One save at most is under way: the next one waits for it. What goes wrong in the background is raised at the next step or save, on
all ranks. The thread gives way to others (it is nicer by 10), computes nothing with torch and draws no random numbers, so a run's bits are the
same with and without it. Price: memory for one more copy of the state, and for the length of a write the cores and disk that it takes.

torch's `dcp.async_save` does the same in principle. Why it is not used, with numbers: docs/decisions/001-checkpoint-format.md.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from schemas.command import say
from schemas.errors import ReelyardError
from training.checkpoints.checkpoint import CheckpointRecord
from training.checkpoints.environment import current_environment
from training.checkpoints.folders import remove_leftovers, remove_old_checkpoints
from training.checkpoints.parts import HostCopy, plan_parts, tensors_of
from training.checkpoints.writer import write_checkpoint
from training.loading.set_folders import absolute_place
from training.parallel import World, choose_precision
from training.run_setup import PreparedRun
from training.train_state import TrainState

__all__ = ["RunSaves"]

_NICER_BY = 10


class RunSaves:
    """The checkpoints that a run writes; every rank calls the same methods in the same order.

    Raises:
        ReelyardError: on all ranks, if one has not the memory for a copy.
    """

    def __init__(self, prepared: PreparedRun, world: World, state: TrainState) -> None:
        self._prepared, self._world, self._state = prepared, world, state
        self.latest: Path | None = prepared.resume_from
        """The newest complete checkpoint."""
        self._under_way: Future[Path] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=_give_way)
        config = prepared.config
        self._environment = current_environment(world, choose_precision(config.precision, world.device))
        self._parts = plan_parts(state.tensors(), world)
        self._copy: HostCopy | None = None
        if config.checkpoint.asynchronous and prepared.start_step < prepared.stop_step:
            with world.failing_together():
                self._copy = state.copy = HostCopy(self._parts, world.device)
        if world.rank == 0 and prepared.start_step < prepared.stop_step:
            remove_leftovers(prepared.output)

    @property
    def copy_bytes(self) -> int:
        """Host memory that this process holds for copies of the state."""
        return 0 if self._copy is None else self._copy.num_bytes

    def due(self, next_step: int) -> bool:
        """Whether the configuration asks for one at this step."""
        return next_step % self._prepared.config.checkpoint.every_steps == 0

    @property
    def failed(self) -> bool:
        """Whether the save under way has come to a bad end, as far as this rank knows; `finish` raises it."""
        return self._under_way is not None and self._under_way.done() and self._under_way.exception() is not None

    def save(self, next_step: int, clips_digest: str | None = None) -> None:
        """Save the state as it is, `next_step` steps done; `clips_digest` is of the last of them.

        Raises:
            ReelyardError: on all ranks, if this save (not asynchronous) or the one before could not be completed.
        """
        self.finish()
        record = self._record(next_step, clips_digest)
        live = tensors_of(self._parts, self._state.tensors())
        tensors = live if self._copy is None else self._copy.take(live)
        self._under_way = self._thread.submit(self._write, tensors, record)
        if self._copy is None:
            self.finish()

    def finish(self) -> None:
        """Wait until what was begun is complete.

        Raises:
            ReelyardError: on all ranks, if it could not be completed.
        """
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            self.latest = under_way.result()

    def close(self) -> None:
        """The end of the run, good or bad: what is under way is completed. A failure is said, since another may be on its way up; a defect is raised
        if none is."""
        under_way = sys.exception()
        try:
            self.finish()
        except ReelyardError as error:
            if self._world.rank == 0:
                say(f"error: {error}")
        except Exception as error:
            if under_way is None:
                raise
            say(
                f"error: rank {self._world.rank} could not complete the last checkpoint: {type(error).__name__}: {error}"
            )
        finally:
            self._thread.shutdown()

    def _record(self, next_step: int, clips_digest: str | None) -> CheckpointRecord:
        prepared = self._prepared
        return CheckpointRecord(
            next_step=next_step,
            plan_hash=prepared.meta.plan_hash,
            config=prepared.config.model_dump(mode="json"),
            environment=self._environment,
            clips_digest=clips_digest,
            plan=str(prepared.plan.resolve()),
            samples=tuple(map(absolute_place, prepared.sets.folders)),
            origin=prepared.origin,
        )

    def _write(self, tensors: list[torch.Tensor], record: CheckpointRecord) -> Path:
        """In the background: wait for the copy, write it, and remove what is no longer kept."""
        if self._copy is not None:
            self._copy.wait()
        keeping, output = self._prepared.config.checkpoint, self._prepared.output

        def remove_old() -> None:
            remove_old_checkpoints(output, keeping.keep, keeping.keep_every_steps)

        return write_checkpoint(output, self._parts, tensors, record, self._world, then=remove_old)


def _give_way() -> None:
    """Let other threads of the machine go first; Linux keeps a niceness for each thread."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICER_BY)
