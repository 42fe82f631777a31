"""One way to measure every schedule, ours or a baseline's: which clips each micro-batch holds, what each lane read, and when.

A strategy returns a `Schedule` and nothing else; all figures are taken from it by `measure`, so none is a strategy's own claim. Only full steps
count. Price: a schedule holds some integers per clip in memory, so comparisons are for sets of up to some ten million clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from planner.mixing import MIXING_FORMULAS, mix_index, shared_source_ratio, waste

__all__ = ["METRICS", "WINDOWS", "Outcome", "Reads", "Schedule", "Setup", "Uses", "full_steps", "measure"]

WINDOWS = (1, 8, 64)
"""Steps of the windows that mixing is measured over."""

METRICS = {
    "used_share": "clips that some full step names / all clips",
    "steps": "full optimizer steps of the epoch",
    "waste_micro": MIXING_FORMULAS["waste_micro"],
    "waste_step": MIXING_FORMULAS["waste_step"],
    "mix_bucket_1": f"buckets, w = 1: {MIXING_FORMULAS['mix_index']}",
    **{f"mix_bucket_{window}": f"the same, w = {window}" for window in WINDOWS[1:]},
    **{f"mix_domain_{window}": f"the same over domains, w = {window}" for window in WINDOWS},
    "shared_source_ratio": MIXING_FORMULAS["shared_source_ratio"],
    "sequential_share": (
        "bytes of reads that do not go back in their shard, within a lane / bytes of all reads; a jump forward counts as forward, "
        "so random access has about one half"
    ),
    "read_amplification": "bytes of all reads / distinct bytes among them",
    "unused_read_share": "bytes read of clips that no full step names / bytes of all reads",
    "opens_per_shard": "(lane, shard) pairs that are read / shards",
    "ranges_per_shard": "runs of clips that lie one after another, each read front to back by one lane without a gap / shards",
    "peak_buffer_clips": "most clips that a lane holds at once: read and not yet used, those of the present row included",
    "peak_buffer_mb": "the same in 10^6 bytes",
    "seconds_to_plan": "wall clock of making the schedule, reading of tables and measuring left out",
}
"""Metric to definition, in the order of the table."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every strategy gets: the same clips, lanes and batches. Clips are ordered by shard, then by place; C of them."""

    bucket: np.ndarray
    """Index into `clips_per_batch`, per clip."""
    shard: np.ndarray
    length: np.ndarray
    """Bytes."""
    source: np.ndarray
    domain: np.ndarray
    clips_per_batch: np.ndarray
    """B_b, per bucket."""
    seconds: np.ndarray
    """Of one micro-batch, per bucket."""
    lanes: int
    micro_per_step: int = 1
    seed: int = 0

    @property
    def num_clips(self) -> int:
        """Clips of the epoch."""
        return len(self.bucket)

    @property
    def num_buckets(self) -> int:
        """Buckets of the batch table."""
        return len(self.clips_per_batch)

    def rng(self, *purpose: int) -> np.random.Generator:
        """Draws for one purpose; the same for every strategy that names it."""
        return np.random.default_rng([self.seed, *purpose])


@dataclass(frozen=True)
class Uses:
    """Each use of a clip, in any order."""

    lane: np.ndarray
    row: np.ndarray
    clip: np.ndarray


@dataclass(frozen=True)
class Reads:
    """Each read of a clip; those of one lane in the order in which it reads them."""

    lane: np.ndarray
    row: np.ndarray
    """The clip is in memory from this row."""
    until: np.ndarray
    """To the end of this one: its last use, or where it is thrown away; the last row of the epoch if it is never either."""
    clip: np.ndarray


@dataclass(frozen=True)
class Schedule:
    """An epoch of full steps."""

    bucket_VxM: np.ndarray
    """Bucket of each lane's micro-batch in each row."""
    uses: Uses
    reads: Reads


@dataclass(frozen=True)
class Outcome:
    """The figures of one strategy. A metric that makes no sense for it is None, with the reason in `notes`."""

    name: str
    values: Mapping[str, float | None]
    notes: Mapping[str, str] = field(default_factory=dict)


def full_steps(rows: int, micro_per_step: int) -> int:
    """Rows that fill steps: `full_steps(7, 2) == 6`."""
    return rows // micro_per_step * micro_per_step


def measure(name: str, setup: Setup, schedule: Schedule, seconds_to_plan: float) -> Outcome:
    """Every metric of METRICS from what the lanes read and use."""
    rows = schedule.bucket_VxM.shape[1]
    if rows == 0:
        return _nothing(name, seconds_to_plan)
    steps = rows // setup.micro_per_step
    assert steps * setup.micro_per_step == rows, "a schedule holds full steps"
    used = np.zeros(setup.num_clips, dtype=bool)
    used[schedule.uses.clip] = True
    seconds = setup.seconds[schedule.bucket_VxM]
    values: dict[str, float | None] = {
        "used_share": float(used.mean()),
        "steps": float(steps),
        "waste_micro": waste(seconds, setup.micro_per_step, "micro"),
        "waste_step": waste(seconds, setup.micro_per_step, "step"),
        **_mixing(setup, schedule, steps),
        **_reading(setup, schedule.reads, used),
        **_buffering(setup, schedule.reads, rows),
        "seconds_to_plan": seconds_to_plan,
    }
    notes = _meaningless(setup, steps)
    return Outcome(name, {metric: None if metric in notes else values[metric] for metric in METRICS}, notes)


def _meaningless(setup: Setup, steps: int) -> dict[str, str]:
    """Metrics of mixing that say nothing here, with the reason."""
    notes: dict[str, str] = {}
    for window in WINDOWS:
        names = (f"mix_bucket_{window}", f"mix_domain_{window}")
        if 2 * window > steps:
            notes |= dict.fromkeys(
                names, f"windows of {window} steps need a plan of at least {2 * window}: all are nearly the whole"
            )
        elif setup.domain.max(initial=0) == setup.domain.min(initial=0):
            notes[names[1]] = "the set has one domain"
    return notes


def _nothing(name: str, seconds_to_plan: float) -> Outcome:
    """A strategy that fills no step: the epoch is empty, and nothing else can be said of it."""
    reason = "no full step on all lanes"
    known = {"used_share": 0.0, "steps": 0.0, "seconds_to_plan": seconds_to_plan}
    return Outcome(
        name, {metric: known.get(metric) for metric in METRICS}, {m: reason for m in METRICS if m not in known}
    )


def _mixing(setup: Setup, schedule: Schedule, steps: int) -> dict[str, float]:
    rows = schedule.bucket_VxM.shape[1]
    step_of_row = np.arange(rows) // setup.micro_per_step
    use_step = schedule.uses.row // setup.micro_per_step
    batches = _count(
        np.broadcast_to(step_of_row, schedule.bucket_VxM.shape).ravel(), schedule.bucket_VxM.ravel(), steps
    )
    domains = _count(use_step, setup.domain[schedule.uses.clip], steps)
    return {
        **{f"mix_bucket_{window}": mix_index(batches, window) for window in WINDOWS},
        **{f"mix_domain_{window}": mix_index(domains, window) for window in WINDOWS},
        "shared_source_ratio": shared_source_ratio(use_step, setup.source[schedule.uses.clip]),
    }


def _count(step: np.ndarray, group: np.ndarray, steps: int) -> np.ndarray:
    groups = int(group.max()) + 1
    return np.bincount(step.astype(np.int64) * groups + group, minlength=steps * groups).reshape(steps, groups)


def _reading(setup: Setup, reads: Reads, used: np.ndarray) -> dict[str, float]:
    shard = setup.shard[reads.clip].astype(np.int64)
    pair = reads.lane.astype(np.int64) * (int(setup.shard.max()) + 1) + shard
    order = np.argsort(pair, kind="stable")  # each lane's reads of a shard together, in the order of reading
    pair, clip = pair[order], reads.clip[order].astype(np.int64)
    size = setup.length[clip].astype(np.float64)
    same = pair[1:] == pair[:-1]
    back = same & (clip[1:] <= clip[:-1])
    runs_on = same & (clip[1:] == clip[:-1] + 1)
    touched = np.zeros(setup.num_clips, dtype=bool)
    touched[clip] = True
    shards = len(np.unique(setup.shard))
    return {
        "sequential_share": 1.0 - float(size[1:][back].sum()) / float(size.sum()),
        "read_amplification": float(size.sum()) / float(setup.length[touched].sum()),
        "unused_read_share": float(size[~used[clip]].sum()) / float(size.sum()),
        "opens_per_shard": float(len(pair) - same.sum()) / shards,
        "ranges_per_shard": float(len(pair) - runs_on.sum()) / shards,
    }


def _buffering(setup: Setup, reads: Reads, rows: int) -> dict[str, float]:
    start = reads.lane.astype(np.int64) * (rows + 1) + reads.row
    end = reads.lane.astype(np.int64) * (rows + 1) + reads.until + 1
    peaks = []
    for weight in (np.ones(len(start)), setup.length[reads.clip].astype(np.float64)):
        cells = setup.lanes * (rows + 1)
        change = np.bincount(start, weight, cells) - np.bincount(end, weight, cells)
        peaks.append(float(change.reshape(setup.lanes, rows + 1).cumsum(axis=1).max()))
    return {"peak_buffer_clips": peaks[0], "peak_buffer_mb": peaks[1] / 1e6}
