"""A step whose loss or gradient is not finite: nothing is updated, the clips are named, and the run stops with a dump or goes on without the step.

All ranks learn of it in sums that they exchange anyway (the loss before, the gradient's norm in the clipping), so all take the same way. Skipping
is exact on resume: weights, moments and averages stay as they are, and the count of updates goes on, because it is a function of the step. Price of
that: Adam's bias correction counts an update that was not made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from schemas.command import say
from schemas.errors import ReelyardError
from schemas.files import said_if_unwritten
from training.batch import TrainingBatch
from training.checkpoints.run_saves import RunSaves
from training.control.nonfinite_dump import DumpFacts, clip_entries, sentence, write_dump
from training.loader import LoadedStep
from training.network import BatchLosses
from training.parallel import OtherRankError, World
from training.run_setup import PreparedRun
from training.train_state import TrainState

__all__ = ["SKIPPED_STEPS", "BatchLoss", "NonFiniteStepError", "StepsNotTaken"]

SKIPPED_STEPS = "skipped.jsonl"
_MOST_IN_A_ROW = 10


@dataclass(frozen=True, kw_only=True)
class BatchLoss:
    """What one micro-batch gave, detached."""

    flow_per_clip_B: Tensor
    repa_total: Tensor | None

    @classmethod
    def of(cls, losses: BatchLosses) -> BatchLoss:
        """Of what the network returned; the graph is let go."""
        repa_total = None if losses.repa_total is None else losses.repa_total.detach()
        return cls(flow_per_clip_B=losses.flow_per_clip_B, repa_total=repa_total)


class NonFiniteStepError(Exception):
    """Raised on all ranks alike, before anything is updated."""

    def __init__(self, kind: str, value: float, of_batches: Sequence[BatchLoss]) -> None:
        super().__init__(f"the {kind} is {value}")
        self.kind = kind
        """loss or gradient."""
        self.value = value
        """The loss summed over clips, or the gradient's norm."""
        self.flow_losses = [batch.flow_per_clip_B.tolist() for batch in of_batches]
        """Per clip, micro-batch by micro-batch of this rank."""
        self.repa_losses = [
            None if batch.repa_total is None else float(batch.repa_total.detach()) for batch in of_batches
        ]


class StepsNotTaken:
    """What becomes of such steps; every rank calls the same methods in the same order."""

    def __init__(self, prepared: PreparedRun, world: World, state: TrainState, saves: RunSaves) -> None:
        self._prepared = prepared
        self._world = world
        self._state = state
        self._saves = saves
        self._in_a_row = 0
        self.skipped = 0

    def taken(self) -> None:
        """A step was finite."""
        self._in_a_row = 0

    def skip_or_stop(self, loaded: LoadedStep[TrainingBatch], trouble: NonFiniteStepError) -> None:
        """As `on_nonfinite` says; ReelyardError on rank 0 and OtherRankError on the others when the run ends."""
        self._in_a_row += 1
        if self._prepared.config.on_nonfinite == "skip" and self._in_a_row < _MOST_IN_A_ROW:
            self._skip(loaded, trouble)
            return
        self._saves.finish()
        lanes = self._prepared.meta.num_lanes // self._world.size
        facts = DumpFacts(
            kind=trouble.kind,
            value=trouble.value,
            flow_losses=trouble.flow_losses,
            repa_losses=trouble.repa_losses,
            checkpoint=self._saves.latest,
            lanes_per_rank=lanes,
        )
        words = write_dump(self._prepared, self._world, self._state, loaded, facts)
        if self._world.rank != 0:
            raise OtherRankError("rank 0 says which clips they are")
        raise ReelyardError(words)

    def _skip(self, loaded: LoadedStep[TrainingBatch], trouble: NonFiniteStepError) -> None:
        """Nothing is updated but the count of updates; each rank that has clips to blame writes a line."""
        self.skipped += 1
        self._state.optimizer.drop_gradients()
        self._state.optimizer.set_updates_done(loaded.step + 1 - self._prepared.first_step)
        lanes = self._prepared.meta.num_lanes // self._world.size
        clips = clip_entries(loaded, trouble.flow_losses, rank=self._world.rank, lanes_per_rank=lanes)
        blamed = [clip for clip in clips if not math.isfinite(clip["loss"])]
        if self._world.rank == 0:
            say(f"step {loaded.step} is skipped: the {trouble.kind} is {trouble.value} (on_nonfinite is skip)")
        if blamed or self._world.rank == 0:
            line = {"step": loaded.step, "rank": self._world.rank, "kind": trouble.kind, "value": str(trouble.value)}
            self._append(line | {"clips": [sentence(clip) for clip in blamed]})

    def _append(self, line: dict[str, Any]) -> None:
        path = self._prepared.output / SKIPPED_STEPS
        with said_if_unwritten(path), path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
