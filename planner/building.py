"""Samples and settings to a planned run in memory: epoch by epoch, demand, selection, schedule, ledger.

Each epoch ends on a full step: a step over two epochs could name a clip twice, with the same noise, time and caption, since a trainer's randomness
hangs on (seed, step, clip). Price: up to K-1 rows of each epoch stay out; they are small ones, take turns, and stand in the ledger. A run may go on
from a part of an epoch that another plan has begun (`History`); everything else is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from planner.ledger import LedgerEntry, ledger_table, left_over_entries
from planner.pricing.batches import BatchLine, batch_table, table_curve
from planner.pricing.costs import CostModel, cost_model, cost_words
from planner.pricing.tiers import curve_points
from planner.samples import Corpus
from planner.schedule.demand import Demand, DemandMaker
from planner.schedule.epoch_facts import EpochInput
from planner.schedule.epochs import EpochPlan, plan_epoch
from planner.schedule.mixes import EpochMix, epoch_mix
from planner.schedule.paper import place_whole_tars
from planner.schedule.selection import LEFT_OVER, Selection
from planner.settings import PlanConfig
from schemas.command import progress
from schemas.errors import PlanError
from schemas.plan import PlanContinues, TierPoint

__all__ = ["History", "PlannedRun", "build_plan"]


@dataclass(frozen=True, kw_only=True)
class History:
    """What another plan has done, up to the step from which this one goes on."""

    continues: PlanContinues
    first_epoch: int
    used_now: np.ndarray
    """Clips (mask) that the epoch has used already."""
    uses: np.ndarray
    """Uses of each clip so far."""
    native_uses: np.ndarray
    """Those at its longest bucket."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A whole plan in memory."""

    corpus: Corpus
    config: PlanConfig
    lines: tuple[BatchLine, ...]
    curve: tuple[TierPoint, ...]
    cost_words: str
    cost_errors: dict[str, float]
    epochs: tuple[EpochPlan, ...]
    uses: np.ndarray
    """Per clip, in this plan."""
    shortened: int
    """Uses of a clip below its longest bucket."""
    left_over: np.ndarray
    """Epochs of this plan that do not use the clip."""
    demanded_rows: tuple[int, ...]
    """Rows that each epoch's clips fill; the last epoch of a plan may have fewer."""
    ledger: pa.Table
    history: History | None
    available: tuple[int, ...]
    """Admitted clips that each epoch could still use: all, but in the first epoch of a continuation."""

    @property
    def num_steps(self) -> int:
        """Full optimizer steps."""
        return sum(epoch.rows.shape[1] for epoch in self.epochs) // self.config.micro_per_step

    @property
    def first_step(self) -> int:
        """Number of the first step."""
        return 0 if self.history is None else self.history.continues.from_step


def build_plan(
    corpus: Corpus, config: PlanConfig, costs: CostModel | None = None, history: History | None = None
) -> PlannedRun:
    """Plan every epoch.

    Raises:
        PlanError: if the data fill no row or no step, or a buffer cap cannot hold.
    """
    return _Builder(corpus, config, costs or cost_model(config, None), history).build()


@dataclass
class _Builder:
    corpus: Corpus
    config: PlanConfig
    costs: CostModel
    history: History | None
    entries: list[LedgerEntry] = field(default_factory=list)

    def __post_init__(self) -> None:
        made_for = _lines(self.corpus, self.config, self.costs)
        # Of the clips that the tiers were chosen for: domains that rest make them fewer than the set's.
        self.curve = curve_points(*table_curve(made_for, self.config))
        admitted = np.bincount(self.corpus.bucket, minlength=len(self.corpus.buckets))
        in_set = dict(zip(self.corpus.buckets, admitted.tolist(), strict=True))
        self.lines = tuple(replace(line, clips_in_set=in_set.get(line.bucket, 0)) for line in made_for)
        self.demands = DemandMaker(self.lines, self.config)
        self.selection = Selection(self.corpus, self.lines, self.demands.chains, self.config)
        if self.history is not None:
            self.selection.uses += self.history.uses
            self.selection.native_uses += self.history.native_uses
        self.left_over = np.zeros(self.corpus.num_clips, dtype=np.int32)

    def build(self) -> PlannedRun:
        first_uses = self.selection.uses.copy()
        epochs: list[EpochPlan] = []
        demanded: list[int] = []
        available: list[int] = []
        for number in progress(self._numbers(), what="planning epochs", total=self.config.epochs):
            done = sum(epoch.rows.shape[1] for epoch in epochs)
            most = self._rows_left(done)
            if most == 0:
                break
            try:
                plan, rows, clips = self._epoch(number, done, most)
            except PlanError as error:
                if not self._resumes(number):
                    raise
                raise type(error)(
                    f"what is left of epoch {number} cannot be planned by itself, and an epoch may not end with clips that no ledger names: {error}; "
                    "or go on on fewer lanes"
                ) from error
            epochs.append(plan)
            demanded.append(rows)
            available.append(clips)
        if not epochs:
            raise PlanError("nothing is left to plan: no epoch and no step remains; set epochs or max_steps higher")
        return PlannedRun(
            corpus=self.corpus,
            config=self.config,
            lines=self.lines,
            curve=self.curve,
            cost_words=cost_words(self.costs, ((line.bucket, line.clips_per_lane) for line in self.lines)),
            cost_errors=dict(self.costs.errors),
            epochs=tuple(epochs),
            uses=self.selection.uses - first_uses,
            shortened=self.selection.shortened,
            left_over=self.left_over,
            demanded_rows=tuple(demanded),
            ledger=ledger_table(self.entries, self.corpus),
            history=self.history,
            available=tuple(available),
        )

    def _numbers(self) -> Iterator[int]:
        number = 0 if self.history is None else self.history.first_epoch
        while self.config.epochs is None or number < self.config.epochs:
            yield number
            number += 1

    def _resumes(self, number: int) -> bool:
        """Whether it is an epoch that another plan has begun."""
        return self.history is not None and number == self.history.first_epoch and bool(self.history.used_now.any())

    def _rows_left(self, done: int) -> int:
        if self.config.max_steps is None:
            return 1 << 62
        first = 0 if self.history is None else self.history.continues.from_step
        return max(0, (self.config.max_steps - first) * self.config.micro_per_step - done)

    def _epoch(self, number: int, done: int, most: int) -> tuple[EpochPlan, int, int]:
        """(plan, rows that its clips fill, clips that it could use)."""
        mix = self._mix(number, done)
        resumed = self._resumes(number)
        used_before = self.history.used_now if resumed and self.history is not None else None
        available = self.selection.eligible(number, mix.domain_weights)
        if used_before is not None:
            available = ~used_before if available is None else available & ~used_before
        without: frozenset[int] = frozenset()
        while True:
            demand, chosen, lanes = self._chosen(number, mix, available, without)
            item = self._input(number, done, most, demand, chosen, lanes, mix)
            plan = plan_epoch(self.corpus, item, self.lines, self.demands.group, self.config)
            if plan is not None:
                break
            # Most likely in the way: the line that repeats the largest share of its clips.
            share = demand.repeated / np.maximum(demand.distinct, 1)
            without = without | {int(np.argmax(share))}
        self._refuse_over_cap(plan)
        self._record(plan, demand, chosen, available, used_before, mix, ends=most <= demand.num_rows)
        return plan, demand.num_rows, int(self.corpus.num_clips - (0 if used_before is None else used_before.sum()))

    def _mix(self, number: int, done: int) -> EpochMix:
        if not self.config.mix:
            return epoch_mix((), 0.0, 1.0)
        begun = float(self.history.used_now.mean()) if self.history is not None and self._resumes(number) else 0.0
        if self.config.max_steps is None:
            assert self.config.epochs is not None
            return epoch_mix(self.config.mix, (number + begun) / self.config.epochs, (number + 1) / self.config.epochs)
        total = self.config.max_steps * self.config.micro_per_step
        start = done + (0 if self.history is None else self.history.continues.from_step) * self.config.micro_per_step
        per_epoch = max(1.0, (1.0 - begun) * sum(line.rows_per_epoch for line in self.lines))
        return epoch_mix(self.config.mix, start / total, (start + per_epoch) / total)

    def _chosen(
        self, number: int, mix: EpochMix, available: np.ndarray | None, without: frozenset[int]
    ) -> tuple[Demand, np.ndarray, np.ndarray | None]:
        """(demand, line of each clip, lane of each clip where the policy places first)."""
        if self.config.policy == "paper":
            return place_whole_tars(self.corpus, self.selection.native, self.demands, self.config, number, available)
        own = self.selection.own_counts(available, len(self.lines))
        demand = self.demands.make(own, mix.images_per_video, number, without)
        return demand, self.selection.choose(number, demand, available), None

    def _input(
        self,
        number: int,
        done: int,
        most: int,
        demand: Demand,
        chosen: np.ndarray,
        lanes: np.ndarray | None,
        mix: EpochMix,
    ) -> EpochInput:
        clips = np.flatnonzero(chosen != LEFT_OVER)
        image = np.zeros(self.demands.num_groups, dtype=bool)
        image[self.demands.group[self.demands.is_image]] = True
        return EpochInput(
            number=number,
            first_row=done
            + (0 if self.history is None else self.history.continues.from_step) * self.config.micro_per_step,
            num_rows=min(most, demand.num_rows),
            clips=clips,
            line=chosen[clips],
            demand=demand,
            densities=tuple(mix.image_density if is_image else mix.video_density for is_image in image.tolist()),
            clip_lanes=None if lanes is None else lanes[clips],
        )

    def _record(
        self,
        plan: EpochPlan,
        demand: Demand,
        chosen: np.ndarray,
        available: np.ndarray | None,
        used_before: np.ndarray | None,
        mix: EpochMix,
        *,
        ends: bool,
    ) -> None:
        """Count uses, and put what was not used, or used again, into the ledger."""
        times = np.bincount(plan.use_clip, minlength=self.corpus.num_clips)
        used = np.flatnonzero(times)
        self.selection.record(used, times[used], chosen)
        unused = times == 0
        if used_before is not None:
            unused &= ~used_before
        self.left_over += unused
        last = ends or plan.number + 1 == self.config.epochs
        event = "carried" if self.config.left_over == "carry" and not last else "left_over"
        number = plan.number
        if available is not None and mix.domain_weights:
            resting = np.flatnonzero(unused & ~available)
            for index, name in enumerate(self.corpus.domains):
                clips = resting[self.corpus.domain[resting] == index]
                if len(clips):
                    weight = mix.domain_weights.get(name, 1.0)
                    reason = f"domain {name!r} takes part in {weight:.4g} of the epochs (mix)"
                    self.entries.append(LedgerEntry(number, clips, "left_over", reason))
        free = unused if available is None else unused & available
        self.entries += left_over_entries(
            number,
            np.flatnonzero(free & (chosen == LEFT_OVER)),
            self.selection.native,
            self.demands.chains,
            demand,
            event,
            self.config.lanes,
        )
        planned = np.flatnonzero(unused & (chosen != LEFT_OVER))
        if len(planned):
            reason = f"the plan ends after max_steps {self.config.max_steps}"
            self.entries.append(LedgerEntry(number, planned, "left_over", reason))
        again = np.repeat(used, times[used] - 1)
        if len(again):
            reason = "used once more to fill the rows of its bucket"
            self.entries.append(LedgerEntry(number, again, "repeated", reason))

    def _refuse_over_cap(self, plan: EpochPlan) -> None:
        """PlanError with numbers if the plan needs more buffer than a cap."""
        config = self.config
        largest = max(
            (line.clips_per_lane * self._mean_bytes(index) for index, line in enumerate(self.lines)), default=0.0
        )
        advice = (
            f"or make micro-batches smaller, or raise max_open_shards (now {config.max_open_shards}), "
            "or pack more and smaller shards, each like the whole"
        )
        peak, cap = int(plan.peak_bytes.max()), config.max_buffer_bytes
        if peak > cap:
            raise PlanError(
                f"lane {int(plan.peak_bytes.argmax())} needs a buffer of {peak:,} bytes in epoch {plan.number}, the cap is {cap:,} "
                f"(config: max_buffer_mb {config.max_buffer_mb:g}); one micro-batch alone takes up to {largest:,.0f}. "
                f"Set max_buffer_mb to {math.ceil(peak / 1000) / 1000:.3f} or more, {advice}"
            )
        clips = int(plan.peak_clips.max())
        if config.max_buffer_clips is not None and clips > config.max_buffer_clips:
            raise PlanError(
                f"lane {int(plan.peak_clips.argmax())} needs a buffer of {clips:,} clips in epoch {plan.number}, "
                f"the cap is {config.max_buffer_clips:,} (config: max_buffer_clips); set it to {clips} or more, {advice}"
            )

    def _mean_bytes(self, line: int) -> float:
        own = self.selection.native == line
        return float(self.corpus.length[own].mean()) if own.any() else 0.0


def _lines(corpus: Corpus, config: PlanConfig, costs: CostModel) -> tuple[BatchLine, ...]:
    """The batch table for the clips that an epoch has at least: domains that rest leave fewer to fill rows with. `clips_in_set` are those."""
    buckets = len(corpus.buckets)
    lowest = np.array(
        [min([1.0, *(phase.domain_weights.get(name, 1.0) for phase in config.mix)]) for name in corpus.domains]
    )
    whole = np.bincount(corpus.bucket, minlength=buckets)
    expected = np.floor(np.bincount(corpus.bucket, lowest[corpus.domain], buckets) + 1e-6).astype(np.int64)
    expected = np.maximum(expected, whole > 0)  # a bucket of few clips has a line all the same
    return batch_table(dict(zip(corpus.buckets, expected.tolist(), strict=True)), config, costs)
