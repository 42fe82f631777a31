"""Headline metrics of a build, and their definitions in words, which go into `plan.json` beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from planner.epochs import EpochPlan
from planner.samples import Corpus

__all__ = ["FORMULAS", "ReadTally", "measure"]

_OFFSET_BITS = 40

FORMULAS = {
    "used_share": "clips that some step of the epoch names / admitted clips",
    "used_share_full_epochs": "used share over the epochs of which all full steps are in the plan; absent if there is none",
    "clips_ever_used_share": "clips that some step of the plan names / admitted clips",
    "use_count_min": "fewest uses of an admitted clip over the plan",
    "use_count_max": "most uses of an admitted clip over the plan",
    "shortened_uses": "uses of a clip at a bucket shorter than its longest one",
    "opens_per_shard": "(lane, shard) pairs read, per epoch and shard",
    "reads_per_clip": "byte ranges read / clips used; neighbours read for one row are one range",
    "read_amplification": "bytes of all reads / distinct bytes among them, over all lanes; mean over epochs",
    "sequential_share": "bytes of reads that do not go back in their shard, within lane and epoch / bytes of all reads",
    "handed_over_share": "clips that the repair moved to another lane / clips used",
    "shared_source_share": "clips of a step beyond the first of their source / clips used",
    "follow": "how far the row order of the epoch was bent towards the reading order to hold the cap, 0 (even) to 1",
    "anneal_epochs_won": "epochs in which the annealed plan was better than the constructive start and was taken",
    "anneal_peak_buffer_start_bytes": "largest buffer of a lane over all epochs, constructive start",
    "anneal_peak_buffer_gain_bytes": "that, minus the same with annealing",
    "anneal_opens_start": "(lane, shard) pairs read over all epochs, constructive start",
    "anneal_opens_gain": "that, minus the same with annealing",
    "anneal_handed_over_start": "clips moved by the repair over all epochs, constructive start",
    "anneal_handed_over_gain": "that, minus the same with annealing",
    "anneal_share_before_repair_start": (
        "sum over buckets of lanes x B x min over lanes of floor(clips / B), over admitted clips, with whole ranges only; mean over epochs, "
        "constructive start"
    ),
    "anneal_share_before_repair_gain": "the same with annealing, minus that",
}
"""Metric to definition; `name/epoch-0000` is the metric of one epoch."""


class ReadTally:
    """What the lane tables, as they are written, read. Holds three integers per read."""

    def __init__(self) -> None:
        self.count = 0
        self._forward = 0
        self._reads: list[np.ndarray] = []

    def add(self, table: pa.Table) -> None:
        """Count one lane's `reads` column."""
        reads = table.column("reads").combine_chunks()
        flat = reads.flatten()
        epoch = np.repeat(table.column("epoch").to_numpy(), pc.list_value_length(reads).to_numpy()).astype(np.int64)
        shard, offset, length = (
            flat.field(name).to_numpy(zero_copy_only=False).astype(np.int64) for name in ("shard", "offset", "length")
        )
        order = np.lexsort((np.arange(len(shard)), shard, epoch))
        same = (np.diff(shard[order]) == 0) & (np.diff(epoch[order]) == 0)
        back = same & (offset[order][1:] < (offset + length)[order][:-1])
        self.count += len(shard)
        self._forward += int(length.sum() - length[order][1:][back].sum())
        self._reads.append(np.stack([epoch, shard, offset, length]))

    @property
    def sequential_share(self) -> float:
        """Share of the bytes that forward reads bring."""
        return self._forward / int(np.concatenate(self._reads, axis=1)[3].sum())

    @property
    def amplification(self) -> float:
        """Mean over epochs of bytes over the size of the union of all reads."""
        reads = np.concatenate(self._reads, axis=1)
        epoch, shard, offset, length = reads[:, np.lexsort((reads[2], reads[1], reads[0]))]
        group = np.cumsum(np.concatenate([[0], (np.diff(epoch) != 0) | (np.diff(shard) != 0)])) << _OFFSET_BITS
        reached = np.maximum.accumulate(group + offset + length)
        before = np.maximum(np.concatenate([[0], reached[:-1]]), group + offset)
        distinct = np.maximum(0, reached - before)
        number = np.unique(epoch, return_inverse=True)[1]
        return float(np.mean(np.bincount(number, length) / np.bincount(number, distinct)))


def measure(
    epochs: Sequence[EpochPlan],
    constructive: Sequence[EpochPlan],
    used_per_epoch: Sequence[int],
    corpus: Corpus,
    uses: np.ndarray,
    reads: ReadTally,
    shortened: int,
    full_rows: int,
) -> dict[str, float]:
    """All metrics; the same inputs give the same numbers (no timings)."""
    used = sum(used_per_epoch)
    opens = sum(epoch.opens for epoch in epochs)
    values: dict[str, float] = {
        f"used_share/epoch-{number:04d}": count / corpus.num_clips for number, count in enumerate(used_per_epoch)
    }
    full = [count for count, epoch in zip(used_per_epoch, epochs, strict=True) if epoch.lane_rows.shape[1] == full_rows]
    if full:
        values["used_share_full_epochs"] = sum(full) / (corpus.num_clips * len(full))
    values |= {f"follow/epoch-{number:04d}": epoch.follow for number, epoch in enumerate(epochs) if epoch.follow}
    values |= {
        "clips_ever_used_share": float((uses > 0).mean()),
        "use_count_min": float(uses.min()),
        "use_count_max": float(uses.max()),
        "shortened_uses": float(shortened),
        "opens_per_shard": opens / (corpus.num_shards * len(epochs)),
        "reads_per_clip": reads.count / used,
        "read_amplification": reads.amplification,
        "sequential_share": reads.sequential_share,
        "handed_over_share": sum(epoch.handed_over for epoch in epochs) / used,
        "shared_source_share": sum(epoch.shared_sources for epoch in epochs) / used,
    }
    return values | _annealing(epochs, constructive)


def _annealing(epochs: Sequence[EpochPlan], constructive: Sequence[EpochPlan]) -> dict[str, float]:
    def both(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
        return sum(start for start, _ in values), sum(end for _, end in values)

    pairs = list(zip(constructive, epochs, strict=True))
    opens, opens_after = both([(a.opens, b.opens) for a, b in pairs])
    handed, handed_after = both([(a.handed_over, b.handed_over) for a, b in pairs])
    share, share_after = both([(a.share_before_repair, b.share_before_repair) for a, b in pairs])
    peak, peak_after = (max(max(item.peaks) for item in group) for group in (constructive, epochs))
    return {
        "anneal_epochs_won": float(sum(a is not b for a, b in pairs)),
        "anneal_peak_buffer_start_bytes": float(peak),
        "anneal_peak_buffer_gain_bytes": float(peak - peak_after),
        "anneal_opens_start": float(opens),
        "anneal_opens_gain": float(opens - opens_after),
        "anneal_handed_over_start": float(handed),
        "anneal_handed_over_gain": float(handed - handed_after),
        "anneal_share_before_repair_start": share / len(pairs),
        "anneal_share_before_repair_gain": (share_after - share) / len(pairs),
    }
