"""Who uses what when: the plan's clips as flat arrays, lane by lane.

One place is one clip of one micro-batch. Lanes are read one after another and flattened in Arrow, so that only what is asked for becomes Python
objects. Price: any question reads all lanes' tables, whose hashes are checked whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.buckets import Bucket
from schemas.plan import PlanMeta, read_lane

__all__ = ["LaneUses", "Place", "lane_uses", "places_of_step"]

_ORDINAL_BITS = 32


@dataclass(frozen=True, kw_only=True)
class Place:
    """One clip as the plan has it."""

    step: int
    micro: int
    lane: int
    index: int
    """Within the micro-batch."""
    bucket: Bucket
    shard: int
    """Plan-wide."""
    ordinal: int


@dataclass(frozen=True, kw_only=True)
class LaneUses:
    """The places of one lane, in order of use; N of them."""

    lane: int
    step_N: np.ndarray
    micro_N: np.ndarray
    index_N: np.ndarray
    size_N3: np.ndarray
    """Frames, height, width of the bucket."""
    key_N: np.ndarray
    """`LaneUses.key(shard, ordinal)`, int64."""

    @staticmethod
    def key(shard: int, ordinal: int) -> int:
        """Both numbers in one."""
        return (shard << _ORDINAL_BITS) | ordinal

    def places(self, mask_N: np.ndarray) -> Iterator[Place]:
        """The places that a mask picks."""
        for row in np.flatnonzero(mask_N).tolist():
            key = int(self.key_N[row])
            yield Place(
                step=int(self.step_N[row]),
                micro=int(self.micro_N[row]),
                lane=self.lane,
                index=int(self.index_N[row]),
                bucket=Bucket(*self.size_N3[row].tolist()),
                shard=key >> _ORDINAL_BITS,
                ordinal=key & ((1 << _ORDINAL_BITS) - 1),
            )


def lane_uses(plan: Path, meta: PlanMeta) -> Iterator[LaneUses]:
    """All lanes of a plan, in order."""
    for lane in range(meta.num_lanes):
        table = read_lane(plan, lane, meta).combine_chunks()
        clips = (
            table.column("clips").combine_chunks() if table.num_rows else pa.array([], table.schema.field("clips").type)
        )
        row_N = pc.list_parent_indices(clips).to_numpy(zero_copy_only=False)
        starts = np.searchsorted(row_N, np.arange(table.num_rows))
        flat = pc.list_flatten(clips)
        shard_N, ordinal_N = (
            flat.field(name).to_numpy(zero_copy_only=False).astype(np.int64) for name in ("shard", "ordinal")
        )
        columns = {
            name: table.column(name).to_numpy()[row_N] for name in ("step", "micro", "frames", "height", "width")
        }
        yield LaneUses(
            lane=lane,
            step_N=columns["step"],
            micro_N=columns["micro"],
            index_N=np.arange(len(row_N)) - starts[row_N],
            size_N3=np.stack([columns["frames"], columns["height"], columns["width"]], axis=1),
            key_N=(shard_N << _ORDINAL_BITS) | ordinal_N,
        )


def places_of_step(plan: Path, meta: PlanMeta, steps: set[int]) -> dict[int, list[Place]]:
    """The places of some steps, by step, in the order in which one rank would train them: by row, then lane."""
    found: dict[int, list[Place]] = {step: [] for step in sorted(steps)}
    for uses in lane_uses(plan, meta):
        for place in uses.places(np.isin(uses.step_N, list(found))):
            found[place.step].append(place)
    for places in found.values():
        places.sort(key=lambda place: (place.micro, place.lane, place.index))
    return found
