"""One epoch as arrays: what its clips are, and what every lane needs of them. Made once, read by every step of the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.pricing.batches import BatchLine
from planner.samples import Corpus
from planner.schedule.demand import Demand
from planner.schedule.rows import Density
from planner.settings import PlanConfig

__all__ = ["EpochFacts", "EpochInput"]


@dataclass(frozen=True, kw_only=True)
class EpochInput:
    """What an epoch is made of."""

    number: int
    """In the plan."""
    first_row: int
    """Of the plan; a multiple of K."""
    num_rows: int
    """Rows that the plan takes of the epoch; fewer than the demand's where the plan ends."""
    clips: np.ndarray
    """Corpus positions of the chosen clips, ascending."""
    line: np.ndarray
    """Line of the batch table of each."""
    demand: Demand
    densities: tuple[Density, ...]
    """By group."""
    clip_lanes: np.ndarray | None = None
    """Lane of each clip where the policy has placed them already."""


@dataclass(frozen=True)
class EpochFacts:
    """The epoch's clips (positions count within them) and its settings."""

    corpus: Corpus
    item: EpochInput
    table: Sequence[BatchLine]
    group: np.ndarray
    """Group of each line: the line itself (uniform) or its tier."""
    config: PlanConfig

    @property
    def lanes(self) -> int:
        """V."""
        return len(self.item.demand.micro)

    @property
    def lines(self) -> int:
        """Lines of the batch table."""
        return len(self.table)

    @cached_property
    def batch(self) -> np.ndarray:
        """B_b of each line."""
        return np.array([line.clips_per_lane for line in self.table], dtype=np.int64)

    @cached_property
    def seconds(self) -> np.ndarray:
        """Predicted, of one micro-batch of each line."""
        return np.array([line.seconds for line in self.table])

    @cached_property
    def line(self) -> np.ndarray:
        """Line of each clip."""
        return self.item.line.astype(np.int64)

    @cached_property
    def shard(self) -> np.ndarray:
        """Of each clip."""
        return self.corpus.shard[self.item.clips]

    @cached_property
    def size(self) -> np.ndarray:
        """Bytes of each clip."""
        return self.corpus.length[self.item.clips]

    @cached_property
    def source(self) -> np.ndarray:
        """Of each clip."""
        return self.corpus.source[self.item.clips].astype(np.int64)

    @cached_property
    def domain(self) -> np.ndarray:
        """Of each clip."""
        return self.corpus.domain[self.item.clips].astype(np.int64)

    @cached_property
    def mean_bytes(self) -> np.ndarray:
        """Of the clips of each line."""
        total = np.bincount(self.line, minlength=self.lines)
        return np.bincount(self.line, self.size, self.lines) / np.maximum(total, 1)

    @cached_property
    def steps(self) -> np.ndarray:
        """Step of each row that the demand has, numbered within the plan."""
        rows = self.item.first_row + np.arange(self.item.demand.num_rows, dtype=np.int64)
        return rows // self.config.micro_per_step

    @cached_property
    def need(self) -> np.ndarray:
        """Uses by (lane, line)."""
        return self.item.demand.micro * self.batch

    @cached_property
    def targets(self) -> np.ndarray:
        """Different clips by (lane, line): the need less the lane's share of the repeated uses."""
        targets = self.need.copy()
        for line in np.flatnonzero(self.item.demand.repeated).tolist():
            repeated = int(self.item.demand.repeated[line])
            share = self.need[:, line] * repeated // int(self.need[:, line].sum())
            rest = repeated - int(share.sum())
            share[np.argsort(-self.need[:, line], kind="stable")[:rest]] += 1
            targets[:, line] -= share
        return targets

    def extra(self, lane: int) -> np.ndarray | None:
        """Uses of a lane by line beyond one of each of its clips; None for none."""
        extra: np.ndarray = self.need[lane] - self.targets[lane]
        return extra if extra.any() else None

    def rng(self, purpose: int) -> np.random.Generator:
        """Draws for one purpose of this epoch."""
        return np.random.default_rng([self.config.seed, self.item.number, purpose])

    def seed(self, purpose: int) -> int:
        """The same as one number, for annealers."""
        return int(self.rng(purpose).integers(2**63))
