"""Headline metrics of a build, and their definitions in words, which go into `plan.json` beside them. The same plan gives the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.building import PlannedRun
from planner.mixing import MIXING_FORMULAS, mix_index, waste
from planner.samples import Corpus
from planner.schedule.epochs import EpochPlan
from planner.schedule.kernels import kernel
from schemas.command import progress

__all__ = ["FORMULAS", "WINDOWS", "measure"]

WINDOWS = (1, 8, 64, 512)
"""Steps of the windows that mixing is measured over."""

_ANNEALED = {
    "share_before_repair": (
        "clips that whole ranges bring to the lanes that need them / clips chosen; the rest the repair hands over; mean over epochs"
    ),
    "opens": "(lane, shard) pairs read over all epochs",
    "handed_over": "clips moved by the repair over all epochs",
    "order_energy": "energy of the reading orders (peaks, sources at once, domains over time); sum over epochs",
    "peak_buffer_bytes": (
        "largest buffer of a lane over all epochs, before clips change places; may rise where it is well below the cap, for better mixing"
    ),
    "bucket_mix_energy": "sum over steps and buckets of (micro-batches - expected)^2 / expected; sum over epochs",
    "row_seconds": "predicted seconds of all rows, each as slow as its slowest lane (tiers: rows of a step put in order of cost); sum over epochs",
    "window_energy": "energy of which clip is used when (pairs of a source in a step, domains of steps); sum over epochs",
    "source_pairs": "pairs of clips of one source in the same step and window; sum over epochs",
}

FORMULAS = {
    "used_share": "clips that some step of the epoch names / admitted clips (of the rest of the epoch, in a plan that continues one)",
    "used_share_full_epochs": "used share over the epochs of which all full steps are in the plan; absent if there is none",
    "clips_ever_used_share": "clips that some step of the plan names / admitted clips",
    "use_count_min": "fewest uses of an admitted clip over the plan",
    "use_count_max": "most uses of an admitted clip over the plan",
    "shortened_uses": "uses of a clip at a bucket shorter than its longest one",
    "repeated_uses": "uses of a clip beyond its first in an epoch",
    "opens_per_shard": "(lane, shard) pairs read, per epoch and shard",
    "ranges_per_shard": "runs of clips that lie one after another in a tar and are read by one lane, per epoch and shard",
    "reads_per_clip": "byte ranges read / clips used; neighbours read for one row are one range",
    "read_amplification": "bytes of all reads / distinct bytes among them, over all lanes; mean over epochs",
    "sequential_share": "bytes of reads that do not go back in their shard, within lane and epoch / bytes of all reads",
    "handed_over_share": "clips that the repair moved to another lane / clips used",
    "shared_source_ratio": MIXING_FORMULAS["shared_source_ratio"] + "; mean over epochs",
    "mix_index_W": f"{MIXING_FORMULAS['mix_index']}; W is w, groups are buckets or domains",
    "waste_micro": MIXING_FORMULAS["waste_micro"],
    "waste_step": MIXING_FORMULAS["waste_step"],
    "predicted_hours": "sum over rows (sync micro) or steps (sync step) of the slowest lane's predicted seconds / 3600",
    "time_over_bound": (
        "sum over rows of the slowest lane / the least possible for these micro-batches: sorted by seconds and cut into rows of V"
    ),
    "follow": "how far the row order of the epoch was bent towards the reading order to hold the caps, 0 (even) to 1",
    "anneal_epochs_won": "epochs in which some annealing found something better than its constructive start",
    **{f"anneal_{name}_start": f"{text}; constructive start" for name, text in _ANNEALED.items()},
    **{f"anneal_{name}_gain": "what annealing took off that (for shares: added)" for name in _ANNEALED},
}
"""Metric to definition; `name/epoch-0000` is the metric of one epoch, `name/bucket` that of a group."""


def measure(run: PlannedRun, num_read_ranges: int) -> dict[str, float]:
    """All metrics. `num_read_ranges`: byte ranges in the lane tables."""
    corpus, epochs, config = run.corpus, run.epochs, run.config
    uses = sum(len(epoch.use_clip) for epoch in epochs)
    distinct = [len(epoch.read_clip) for epoch in epochs]
    values: dict[str, float] = {
        f"used_share/epoch-{epoch.number:04d}": count / available
        for epoch, count, available in zip(epochs, distinct, run.available, strict=True)
    }
    full = [
        (count, available)
        for epoch, count, available, rows in zip(epochs, distinct, run.available, run.demanded_rows, strict=True)
        if epoch.rows.shape[1] == rows and available == corpus.num_clips
    ]
    if full:
        values["used_share_full_epochs"] = sum(count for count, _ in full) / sum(available for _, available in full)
    values |= {f"follow/epoch-{epoch.number:04d}": epoch.follow for epoch in epochs if epoch.follow}
    opens = sum(epoch.opens for epoch in epochs)
    shards = corpus.num_shards * len(epochs)
    batch = np.array([line.clips_per_lane for line in run.lines], dtype=np.int64)
    values |= {
        "clips_ever_used_share": float((run.uses > 0).mean()),
        "use_count_min": float(run.uses.min()),
        "use_count_max": float(run.uses.max()),
        "shortened_uses": float(run.shortened),
        "repeated_uses": float(uses - sum(distinct)),
        "opens_per_shard": opens / shards,
        "ranges_per_shard": sum(_ranges(epoch, corpus) for epoch in epochs) / shards,
        "reads_per_clip": num_read_ranges / max(1, uses),
        "handed_over_share": sum(epoch.handed_over for epoch in epochs) / max(1, sum(distinct)),
        "shared_source_ratio": float(
            np.mean([_source_ratio(epoch, corpus, batch, config.micro_per_step) for epoch in epochs])
        ),
    }
    return values | _reads(epochs, corpus) | _mixing(run) | _time(run) | _annealing(epochs)


def _reads(epochs: Sequence[EpochPlan], corpus: Corpus) -> dict[str, float]:
    total = back = 0
    amplification = []
    for epoch in epochs:
        clips = epoch.read_clip
        size = corpus.length[clips]
        times = np.bincount(clips)
        amplification.append(float(size.sum() / corpus.length[: len(times)][times > 0].sum()))
        total += int(size.sum())
        back += int(_bytes_back(corpus.shard[clips], corpus.offset[clips], size, epoch.read_start, corpus.num_shards))
    return {"read_amplification": float(np.mean(amplification)), "sequential_share": (total - back) / total}


@kernel
def _bytes_back(shard: np.ndarray, offset: np.ndarray, size: np.ndarray, start: np.ndarray, shards: int) -> int:
    """Bytes of reads that begin before the end of the lane's last read of the same shard."""
    reached = np.zeros(shards, dtype=np.int64)
    lane_of = np.full(shards, -1, dtype=np.int64)
    back = 0
    for lane in range(len(start) - 1):
        for index in range(start[lane], start[lane + 1]):
            at = shard[index]
            if lane_of[at] == lane and offset[index] < reached[at]:
                back += size[index]
            lane_of[at] = lane
            reached[at] = offset[index] + size[index]
    return back


def _ranges(epoch: EpochPlan, corpus: Corpus) -> int:
    """Runs of neighbours in a tar that one lane reads, whatever else it reads in between."""
    lane = np.repeat(np.arange(len(epoch.rows), dtype=np.int32), np.diff(epoch.read_start))
    reader = np.full(corpus.num_clips, -1, dtype=np.int32)
    reader[epoch.read_clip] = lane
    read = np.flatnonzero(reader >= 0)
    end = corpus.offset[read] + corpus.length[read]
    joined = (corpus.shard[read][1:] == corpus.shard[read][:-1]) & (corpus.offset[read][1:] == end[:-1])
    return len(read) - int((joined & (reader[read][1:] == reader[read][:-1])).sum())


def _steps_of_uses(epoch: EpochPlan, batch: np.ndarray, micro_per_step: int) -> np.ndarray:
    """Step within the epoch of each use."""
    rows = epoch.rows.shape[1]
    step = np.broadcast_to(np.arange(rows, dtype=np.int32) // micro_per_step, epoch.rows.shape)
    return np.repeat(step.ravel(), batch[epoch.rows.ravel()])


def _source_ratio(epoch: EpochPlan, corpus: Corpus, batch: np.ndarray, micro_per_step: int) -> float:
    uses = len(epoch.use_clip)
    if uses < 2:
        return 0.0
    per_source = np.bincount(corpus.source[epoch.use_clip]).astype(np.float64)
    per_step = np.bincount(_steps_of_uses(epoch, batch, micro_per_step)).astype(np.float64)
    meeting = float((per_step * (per_step - 1)).sum()) / (uses * (uses - 1.0))
    expected = float((per_source * (per_source - 1) / 2).sum()) * meeting
    return epoch.gains["source_pairs"][1] / expected if expected > 0 else 0.0


def _mixing(run: PlannedRun) -> dict[str, float]:
    """Mix indices of buckets and domains over the whole plan."""
    lines, per_step = len(run.lines), run.config.micro_per_step
    batch = np.array([line.clips_per_lane for line in run.lines], dtype=np.int64)
    buckets, domains = [], []
    for epoch in progress(run.epochs, what="measuring the mix"):
        steps = epoch.rows.shape[1] // per_step
        step = np.broadcast_to(np.arange(epoch.rows.shape[1], dtype=np.int64) // per_step, epoch.rows.shape)
        key = (step * lines + epoch.rows).ravel()
        buckets.append(np.bincount(key, minlength=steps * lines).reshape(steps, lines))
        if len(run.corpus.domains) > 1:
            key = _steps_of_uses(epoch, batch, per_step) * np.int64(len(run.corpus.domains))
            key += run.corpus.domain[epoch.use_clip]
            domains.append(np.bincount(key, minlength=steps * len(run.corpus.domains)).reshape(steps, -1))
    values = {f"mix_index_{window}/bucket": mix_index(np.concatenate(buckets), window) for window in WINDOWS}
    if domains:
        values |= {f"mix_index_{window}/domain": mix_index(np.concatenate(domains), window) for window in WINDOWS}
    return values


def _time(run: PlannedRun) -> dict[str, float]:
    seconds = np.array([line.seconds for line in run.lines])
    taken = np.concatenate([seconds[epoch.rows] for epoch in run.epochs], axis=1)
    by_row = float(taken.max(axis=0).sum())
    each = np.sort(taken.ravel())[::-1]
    bound = float(each[:: len(taken)].sum())
    per_step = run.config.micro_per_step
    by_step = float(np.add.reduceat(taken, np.arange(0, taken.shape[1], per_step), axis=1).max(axis=0).sum())
    return {
        "waste_micro": waste(taken, per_step, "micro"),
        "waste_step": waste(taken, per_step, "step"),
        "predicted_hours": (by_row if run.config.sync == "micro" else by_step) / 3600,
        "time_over_bound": by_row / bound,
    }


def _annealing(epochs: Sequence[EpochPlan]) -> dict[str, float]:
    values: dict[str, float] = {}
    won = np.zeros(len(epochs), dtype=bool)
    for name in _ANNEALED:
        pairs = [epoch.gains.get(name, (0.0, 0.0)) for epoch in epochs]
        start, end = (np.array(side) for side in zip(*pairs, strict=True))
        better = end > start if name == "share_before_repair" else end < start
        won |= better
        combine = np.mean if name == "share_before_repair" else np.max if name == "peak_buffer_bytes" else np.sum
        values[f"anneal_{name}_start"] = float(combine(start))
        difference = float(combine(end)) - float(combine(start))
        values[f"anneal_{name}_gain"] = difference if name == "share_before_repair" else 0.0 - difference
    values["anneal_epochs_won"] = float(won.sum())
    return values
