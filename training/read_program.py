"""A lane's read program: which samples each row brings in, which row lets them go, and what must be there when training starts at any step.

The plan says what is read before each row and which clips the row uses; a clip is served by the latest read of it. From that this module
derives, once and without reading any sample, when each sample enters and leaves memory. Starting in the middle costs a replay of the table in
memory and re-reads only the samples that an earlier row read and a later one uses. Price: the lane's table as Python objects, about 1 kB a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from schemas.buckets import Bucket
from schemas.errors import PlanError
from schemas.plan import PlanMeta, read_lane
from training.sample_sets import ClipKey, SampleSets

__all__ = ["LaneProgram", "LaneRow", "open_lane"]


@dataclass(frozen=True, kw_only=True)
class LaneRow:
    """One micro-batch of a lane."""

    step: int
    micro: int
    bucket: Bucket
    clips: tuple[ClipKey, ...]
    fetched: tuple[ClipKey, ...]
    """Samples that this row's reads bring in and some row uses, in reading order."""
    released: tuple[ClipKey, ...]
    """Samples that no later row uses (unless it reads them again)."""


class LaneProgram:
    """All rows of one lane, in order."""

    def __init__(self, lane: int, rows: tuple[LaneRow, ...]) -> None:
        self.lane = lane
        self.rows = rows
        self._row_of_step = {row.step: index for index, row in reversed(list(enumerate(rows)))}

    def first_row(self, step: int) -> int:
        """Index of the first row of a step; the number of rows for the step after the last."""
        return self._row_of_step.get(step, len(self.rows))

    def carried_into(self, row: int) -> tuple[ClipKey, ...]:
        """Samples that rows before `row` fetched and `row` or a later one uses, in reading order."""
        held: dict[ClipKey, None] = {}
        for past in self.rows[:row]:
            held.update(dict.fromkeys(past.fetched))
            for key in past.released:
                del held[key]
        return tuple(held)

    def earlier_clips(self, row: int) -> Iterator[ClipKey]:
        """Clips that rows before `row` used at the same bucket, nearest first, each once; found as they are asked for."""
        bucket, seen = self.rows[row].bucket, set()
        for index in range(row - 1, -1, -1):
            for key in self.rows[index].clips if self.rows[index].bucket == bucket else ():
                if key not in seen:
                    seen.add(key)
                    yield key

    def clips_of_step(self, row: int) -> Iterator[ClipKey]:
        """Clips that the plan names in the step of `row`, on this lane."""
        step = self.rows[row].step
        index = self.first_row(step)
        while index < len(self.rows) and self.rows[index].step == step:
            yield from self.rows[index].clips
            index += 1

    def peak_bytes(self, sets: SampleSets) -> int:
        """Most bytes held at once: from the row that reads a sample to the end of the row that uses it last."""
        held = peak = 0
        for row in self.rows:
            held += sum(sets.size_bytes(key) for key in row.fetched)
            peak = max(peak, held)
            held -= sum(sets.size_bytes(key) for key in row.released)
        return peak


def open_lane(plan: Path, lane: int, meta: PlanMeta, sets: SampleSets) -> LaneProgram:
    """Read one lane's table and derive its program.

    Raises:
        PlanError: if a row uses a clip that no row has read, or its buffer would exceed the plan's.
    """
    table = read_lane(plan, lane, meta).to_pylist()
    fetched_by: list[list[ClipKey]] = []
    last_use: dict[tuple[ClipKey, int], int] = {}
    latest_read: dict[ClipKey, int] = {}
    for index, row in enumerate(table):
        arrived = [
            (read["shard"], ordinal)
            for read in row["reads"]
            for ordinal in sets.samples_in(read["shard"], read["offset"], read["length"])
        ]
        fetched_by.append(arrived)
        latest_read.update(dict.fromkeys(arrived, index))
        for clip in row["clips"]:
            key = (clip["shard"], clip["ordinal"])
            if key not in latest_read:
                raise PlanError(
                    f"{plan}: lane {lane} uses sample {key[1]} of shard {key[0]} in step {row['step']} before any row reads it; build the plan again"
                )
            last_use[key, latest_read[key]] = index
    released: list[list[ClipKey]] = [[] for _ in table]
    for (key, _), index in last_use.items():
        released[index].append(key)
    rows = tuple(
        LaneRow(
            step=row["step"],
            micro=row["micro"],
            bucket=Bucket(row["frames"], row["height"], row["width"]),
            clips=tuple((clip["shard"], clip["ordinal"]) for clip in row["clips"]),
            fetched=tuple(key for key in dict.fromkeys(fetched_by[index]) if (key, index) in last_use),
            released=tuple(released[index]),
        )
        for index, row in enumerate(table)
    )
    program = LaneProgram(lane, rows)
    peak, allowed = program.peak_bytes(sets), meta.peak_buffer_bytes[lane]
    if peak > allowed:
        raise PlanError(
            f"{plan}: lane {lane} holds up to {peak} bytes, plan.json says {allowed}; the plan is wrong, build it again"
        )
    return program
