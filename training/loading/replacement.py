"""What takes the place of a clip that cannot be used: the lane's spare of its bucket, else an earlier clip of that lane and bucket.

Which one is a function of (plan, step, damage), so a repeated step replaces alike, and the number of clips never changes. Clips that the step lacks
come first: a clip has the same noise wherever it stands in a step, so taking it twice would only weigh it double. Candidates are read by themselves,
whole, so this costs a read each; it is for the rare clip.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from schemas.buckets import Bucket
from schemas.errors import ShardError
from schemas.plan import SPARES, PlanMeta, read_plan_table
from training.loading.clip_arrays import ClipArrays, parse_clip
from training.loading.lane_batch import Substitution
from training.loading.read_program import LaneProgram
from training.loading.sample_sets import SampleSets
from training.loading.shard_files import ShardFiles

__all__ = ["Replacements", "Spares", "read_spares"]

Spares = dict[Bucket, list[int]]
"""Bucket to sample indices."""


class Replacements:
    """Of one lane."""

    def __init__(
        self,
        program: LaneProgram,
        sets: SampleSets,
        files: ShardFiles,
        spares: Spares,
        *,
        with_teacher: bool,
        with_image: bool,
    ) -> None:
        self._program, self._sets, self._files, self._spares = program, sets, files, spares
        self._options = {"with_teacher": with_teacher, "with_image": with_image}
        self._step = -1
        self._in_step: set[str] = set()
        """Clip ids that the step being made has on this lane, replacements too."""

    def parse(self, sample: int, data: memoryview, bucket: Bucket) -> ClipArrays:
        """A sample that was read whole."""
        return parse_clip(self._sets.sample_at(sample), data, bucket, **self._options)

    def replace(
        self, row: int, sample: int, error: ShardError, clips: Sequence[ClipArrays]
    ) -> tuple[ClipArrays, Substitution]:
        """The first usable candidate; ShardError when there is none. `clips` are those of the row that are there."""
        program, sets, bucket = self._program, self._sets, self._program.bucket(row)
        step = int(program.step_R[row])
        if step != self._step:
            self._step = step
            self._in_step = {sets.clip_id_N[each] for each in program.samples_of_step(row)}
        taken = {clip.clip_id for clip in clips}
        taken |= {sets.clip_id_N[each] for each in program.samples(row)}
        damaged = str(sets.clip_id_N[sample])
        for kind, candidate in self._candidates(row, damaged, taken):
            if candidate == sample:
                continue
            try:
                clip = self.parse(candidate, self._read(candidate), bucket)
            except ShardError:
                continue
            self._in_step.add(clip.clip_id)
            shard, ordinal = sets.key_of(sample)
            return clip, Substitution(
                step=step,
                micro=int(program.micro_R[row]),
                lane=program.lane,
                bucket=str(bucket),
                clip_id=damaged,
                shard=shard,
                ordinal=ordinal,
                reason=str(error),
                replaced_by=clip.clip_id,
                replacement=kind,
            )
        raise ShardError(
            f"step {step}, lane {program.lane}: {error}; the lane has no readable spare and no earlier clip of bucket {bucket} "
            "to take its place: copy the shard again, or build the plan with spares"
        ) from error

    def _read(self, sample: int) -> memoryview:
        sets = self._sets
        address = sets.addresses[sets.shard_N[sample]]
        return self._files.read(address, int(sets.offset_N[sample]), int(sets.length_N[sample]))

    def _candidates(self, row: int, damaged: str, taken: set[str]) -> Iterator[tuple[str, int]]:
        """Spares, then earlier clips of the bucket, nearest first: those that the step lacks, then those that the micro-batch lacks, then the rest.

        Usually the first one serves, so the lane's past is walked only as far as needed.
        """
        spares = self._spares.get(self._program.bucket(row), [])
        step = int(self._program.step_R[row])
        turn = zlib.crc32(f"{step}:{damaged}".encode()) % len(spares) if spares else 0
        repeats: list[tuple[str, int]] = []
        earlier = (("earlier", sample) for sample in self._program.earlier_samples(row))
        for kind, candidate in chain((("spare", spare) for spare in spares[turn:] + spares[:turn]), earlier):
            if self._sets.clip_id_N[candidate] in self._in_step:
                repeats.append((kind, candidate))
            else:
                yield kind, candidate
        yield from sorted(repeats, key=lambda item: self._sets.clip_id_N[item[1]] in taken)


def read_spares(plan: Path, meta: PlanMeta, sets: SampleSets) -> dict[int, Spares]:
    """Lane to its spares."""
    found: dict[int, Spares] = {}
    for row in read_plan_table(plan, "spares", SPARES, meta).to_pylist():
        bucket = Bucket(row["frames"], row["height"], row["width"])
        sample = sets.index_of((row["shard"], row["ordinal"]))
        found.setdefault(row["lane"], {}).setdefault(bucket, []).append(sample)
    return found
