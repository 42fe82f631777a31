"""`reelyard-plan simulate`: what a run of a plan would take on R ranks, in words and as arrays per step.

Times are the plan's predicted seconds, so they are as good as its cost table; reads are simulated one by one (planner.looking.read_events). Which
clips make a step does not depend on R: the lanes are the same, only who runs them changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planner.looking.held import lane_stays
from planner.looking.lane_arrays import LaneArrays, open_lanes
from planner.looking.places import sample_places
from planner.looking.read_events import RankReads, Storage, Trace, rank_reads, run_reads
from planner.looking.step_times import StepTimes, idle_share, lane_seconds, step_times
from planner.looking.wording import share_words, size_words, span_words, table_lines
from schemas.errors import UsageError
from schemas.plan import PlanMeta, lanes_of_rank, read_plan_meta

__all__ = ["FORMULAS", "Simulation", "simulate_plan", "simulation_lines", "simulation_values"]

_WORST_STEPS = 5
_MOST_WORLD_SIZES = 8

FORMULAS = {
    "compute_s": "predicted seconds of the step if no data were missing, under the plan's sync",
    "stall_s": "seconds by which missing data lengthen the step; of the first step, the wait for its data",
    "stall_rank": "rank that the step waited for, -1 if none",
    "idle_micro": "1 - sum over ranks of busy seconds / (ranks x sum over rows of the slowest rank's seconds), over all steps",
    "idle_step": "1 - sum over ranks of busy seconds / (ranks x sum over steps of the slowest rank's seconds)",
    "idle_every_micro_batch": "the same if the j-th lanes of all ranks wait for each other (parameters gathered anew in each micro-batch)",
    "ahead_bytes": "most bytes of later steps that a rank has read when the step ends",
    "memory_bytes": "most bytes of clips that a rank has read and not used up by the step before, when the step ends; needs the samples",
    "bytes": "bytes of the reads for the step, all ranks",
    "opens": "shards opened for the step, all ranks",
    "opens_per_second": "opens of all ranks that begin within one second, counted from the start of the run",
}
"""Definition of each number, in words."""


@dataclass(frozen=True)
class Simulation:
    """A simulated run."""

    meta: PlanMeta
    ranks: int
    sync: str
    storage: Storage
    seconds_VN: np.ndarray
    """(lanes, rows): predicted seconds."""
    times: StepTimes
    trace: Trace
    bytes: np.ndarray
    """Per step, all ranks."""
    opens: np.ndarray
    """Per step, all ranks."""
    requests: int
    bytes_of_rank: np.ndarray
    memory: np.ndarray | None
    """(ranks, steps): bytes in memory when the step ends, its own included; null without samples."""


def simulate_plan(
    plan: Path, samples: Sequence[Path], storage: Storage, *, ranks: int | None = None, sync: str | None = None
) -> Simulation:
    """Simulate all steps of a plan.

    Raises:
        UsageError: for a bandwidth that is not positive, or negative limits.
        PlanError: if `ranks` does not divide the lanes, or the samples are not the plan's.
    """
    _check(storage)
    meta = read_plan_meta(plan)
    ranks = meta.num_lanes if ranks is None else ranks
    per_rank = len(lanes_of_rank(0, ranks, meta.num_lanes))
    places = sample_places(meta, samples) if samples else None
    steps, micro = meta.num_steps, meta.micro_per_step
    bucket_VN = np.empty((meta.num_lanes, steps * micro), dtype=np.int32)
    lines: list[RankReads] = []
    released_RS = np.zeros((ranks, steps))
    own: list[LaneArrays] = []
    for lane in open_lanes(plan, meta):
        bucket_VN[lane.lane] = lane.bucket
        own.append(lane)
        if places is not None:
            stays = lane_stays(lane, places)
            gone = np.bincount(stays.last_row // micro, places.length[stays.position], minlength=steps)
            released_RS[lane.lane // per_rank] += gone
        if len(own) == per_rank:
            lines.append(rank_reads(own, micro))
            own = []
    seconds_VN = lane_seconds(bucket_VN, meta)
    times = step_times(seconds_VN, ranks, micro)
    trace = run_reads(lines, times, sync or meta.sync, storage)
    used_up_RS = np.concatenate([np.zeros((ranks, 1)), np.cumsum(released_RS, axis=1)[:, :-1]], axis=1)
    return Simulation(
        meta=meta,
        ranks=ranks,
        sync=sync or meta.sync,
        storage=storage,
        seconds_VN=seconds_VN,
        times=times,
        trace=trace,
        bytes=np.sum([np.bincount(line.step, line.bytes, minlength=steps) for line in lines], axis=0),
        opens=np.sum([np.bincount(line.step, line.opens, minlength=steps) for line in lines], axis=0),
        requests=sum(len(line.step) for line in lines),
        bytes_of_rank=np.array([int(line.bytes.sum()) for line in lines]),
        memory=None if places is None else trace.fetched - used_up_RS,
    )


def _check(storage: Storage) -> None:
    if not storage.bandwidth_mb_per_s > 0:
        raise UsageError(
            f"--bandwidth-mb-per-s {storage.bandwidth_mb_per_s:g} must be above 0: 10^6 bytes per second of one rank"
        )
    for name in ("open_latency_ms", "request_latency_ms", "prefetch_mb", "read_ahead_steps"):
        value = getattr(storage, name)
        if value is not None and value < 0:
            raise UsageError(f"--{name.replace('_', '-')} {value:g} must be at least 0")
    if storage.prefetch_mb is None and storage.read_ahead_steps is None:
        raise UsageError("nothing bounds what a rank reads ahead; give --read-ahead-steps, --prefetch-mb, or both")


def simulation_lines(sim: Simulation) -> Iterator[str]:
    """A short report."""
    meta, times, trace = sim.meta, sim.times, sim.trace
    own = times.under(sim.sync)
    total, first = float(trace.asked[-1]), meta.first_step
    later = trace.stall[1:]
    lanes = f"{meta.num_lanes // sim.ranks} lanes each" if sim.ranks < meta.num_lanes else "one lane each"
    yield f"plan {meta.plan_hash[:12]} on {sim.ranks} ranks ({lanes}), sync {sim.sync}; {meta.cost_model}"
    yield f"run            {span_words(total)}: compute {span_words(own.sum())}, waiting for data {span_words(trace.stall.sum())}"
    yield f"step           {span_words(np.median(own))} median, {span_words(np.quantile(own, 0.99))} p99, {span_words(own.max())} longest"
    yield (
        f"idle share     {_idle(times.busy, times.micro)} under sync micro, {_idle(times.busy, times.step)} under sync step"
        + (f", {_idle(times.busy, times.every)} if every micro-batch waits" if sim.ranks < meta.num_lanes else "")
    )
    yield f"reads          {size_words(sim.bytes.sum())} in {sim.requests:,} requests, {int(sim.opens.sum()):,} opens"
    yield f"storage        {_storage_words(sim.storage)}"
    need = sim.bytes_of_rank / max(float(own.sum()), 1e-12)
    yield f"bandwidth used {size_words(need.mean())}/s per rank over the compute time, {size_words(need.max())}/s by rank {int(need.argmax())}"
    yield f"first step     its data are there after {span_words(trace.ready[:, 0].max())}"
    stalled = int((later > 0).sum())
    yield f"stalls after   {span_words(later.sum())} in {stalled} of {len(later)} steps ({share_words(float(later.sum()), total)} of the run)"
    for step in (np.argsort(-later, kind="stable")[: min(_WORST_STEPS, stalled)] + 1).tolist():
        yield f"  step {first + step:<9} {span_words(trace.stall[step])}, waiting for rank {trace.stall_rank[step]}"
    yield _open_words(trace)
    rank, step = np.unravel_index(int(trace.ahead.argmax()), trace.ahead.shape)
    yield f"read ahead     at most {size_words(trace.ahead.max())} (rank {rank}, step {first + int(step)})"
    yield from _memory_lines(sim)
    yield from _world_size_lines(sim)


def _idle(busy: np.ndarray, waited: np.ndarray) -> str:
    return share_words(idle_share(busy, waited), 1.0)


def _storage_words(storage: Storage) -> str:
    parts = [
        f"{storage.bandwidth_mb_per_s:g} MB/s per rank",
        f"{storage.open_latency_ms:g} ms per open",
        f"{storage.request_latency_ms:g} ms per request",
    ]
    if storage.prefetch_mb is not None:
        parts.append(f"at most {storage.prefetch_mb:g} MB ahead")
    if storage.read_ahead_steps is not None:
        parts.append(f"at most {storage.read_ahead_steps} step{'s' * (storage.read_ahead_steps != 1)} ahead")
    return ", ".join(parts)


def opens_per_second(starts: np.ndarray) -> np.ndarray:
    """Opens that begin in each second of the run."""
    return np.bincount(starts.astype(np.int64)) if len(starts) else np.zeros(1, dtype=np.int64)


def _open_words(trace: Trace) -> str:
    counts = opens_per_second(trace.open_starts)
    after = counts[int(trace.asked[1]) + 1 :]
    steady = f", {int(after.max())} after the first step" if len(after) else ""
    return f"opens/s        {int(counts.max())} at most (second {int(counts.argmax())}){steady}, over all ranks"


def _memory_lines(sim: Simulation) -> Iterator[str]:
    if sim.memory is None:
        yield "memory         not known: give --samples to follow each clip from its read to its last use"
        return
    rank, step = np.unravel_index(int(sim.memory.argmax()), sim.memory.shape)
    yield f"memory         at most {size_words(sim.memory.max())} of clips on a rank (rank {rank}, step {sim.meta.first_step + int(step)})"
    lanes = sim.meta.num_lanes // sim.ranks
    caps = max(sum(sim.meta.peak_buffer_bytes[first : first + lanes]) for first in range(0, sim.meta.num_lanes, lanes))
    yield f"               (the plan's own buffer, without reading ahead: at most {size_words(caps)} on a rank)"


def _world_size_lines(sim: Simulation) -> Iterator[str]:
    lanes, micro = sim.meta.num_lanes, sim.meta.micro_per_step
    sizes = [count for count in range(1, lanes + 1) if lanes % count == 0]
    yield f"elastic        the same clips in each step on each of {len(sizes)} world sizes, by construction: a step is all lanes"
    rows = []
    for count in sizes[-_MOST_WORLD_SIZES:]:
        times = step_times(sim.seconds_VN, count, micro)
        hours = [f"{times.under(sync).sum() / 3600:,.4g}" for sync in ("micro", "step")]
        rows.append([f"{count:,}", *hours, _idle(times.busy, times.micro), _idle(times.busy, times.step)])
    yield from table_lines(["ranks", "hours micro", "hours step", "idle micro", "idle step"], rows)


def simulation_values(sim: Simulation) -> dict[str, Any]:
    """Everything as JSON: settings, totals, arrays per step, and the definition of each number."""
    times, trace = sim.times, sim.trace
    own = times.under(sim.sync)
    steps: dict[str, list[Any]] = {
        "step": list(sim.meta.steps),
        "asked_s": trace.asked[:-1].tolist(),
        "ready_s": trace.ready.max(axis=0).tolist(),
        "end_s": trace.asked[1:].tolist(),
        "compute_s": own.tolist(),
        "stall_s": trace.stall.tolist(),
        "stall_rank": trace.stall_rank.tolist(),
        "bytes": sim.bytes.astype(np.int64).tolist(),
        "opens": sim.opens.astype(np.int64).tolist(),
        "ahead_bytes": trace.ahead.max(axis=0).astype(np.int64).tolist(),
    }
    if sim.memory is not None:
        steps["memory_bytes"] = sim.memory.max(axis=0).astype(np.int64).tolist()
    return {
        "format_version": 1,
        "plan_hash": sim.meta.plan_hash,
        "ranks": sim.ranks,
        "sync": sim.sync,
        "storage": vars(sim.storage),
        "totals": {
            "run_s": float(trace.asked[-1]),
            "compute_s": float(own.sum()),
            "stall_s": float(trace.stall.sum()),
            "stall_after_first_step_s": float(trace.stall[1:].sum()),
            "first_step_ready_s": float(trace.ready[:, 0].max()),
            "idle_micro": idle_share(times.busy, times.micro),
            "idle_step": idle_share(times.busy, times.step),
            "idle_every_micro_batch": idle_share(times.busy, times.every),
            "bytes": int(sim.bytes.sum()),
            "requests": sim.requests,
            "opens": int(sim.opens.sum()),
            "opens_per_second": int(opens_per_second(trace.open_starts).max()),
        },
        "steps": steps,
        "formulas": FORMULAS,
    }
