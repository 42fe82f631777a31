"""The loader: follows the plan and nothing else.

One thread per rank reads ahead: row by row and lane by lane it does the plan's forward reads, checks and parses the clips that the row names,
and hands over whole steps. Nothing is decided here, so its state is (plan hash, next step), and starting at any step reads only what that
step and later ones use. A damaged clip is replaced by the lane's spare of that bucket, else by an earlier clip of that lane and bucket; which
one is a function of (plan, step, damage), so a repeated step replaces alike. Clips that the step lacks come first: a clip has the same noise
wherever it stands in a step, so taking it twice would only weigh it double.

Memory of a rank: the raw bytes that the plan's lanes hold (never above `peak_buffer_bytes`, checked on every row) and at most
`read_ahead_steps + 1` steps of parsed batches: a step counts from before it is read until the trainer asks for the next one.
Price: whole steps rather than micro-batches are handed over, because the loss needs the step's clip count first.
"""

from __future__ import annotations

import queue
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Generic, TypeVar, cast

from schemas.buckets import Bucket
from schemas.errors import PlanError, ShardError
from schemas.plan import SPARES, PlanMeta, lanes_of_rank, read_plan_meta, read_plan_table
from training.clip_arrays import ClipArrays, parse_clip
from training.read_program import LaneProgram, LaneRow, open_lane
from training.sample_sets import ClipKey, SampleSets, open_sample_sets
from training.shard_files import ShardFiles

__all__ = ["LaneBatch", "LoadedStep", "PlannedLoader", "Substitution"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Substitution:
    """A clip that could not be used, and the one that took its place; a line of the run's ledger."""

    step: int
    micro: int
    lane: int
    bucket: str
    clip_id: str
    shard: int
    ordinal: int
    reason: str
    replaced_by: str
    """Clip id."""
    replacement: str
    """spare or earlier."""


@dataclass(frozen=True, kw_only=True)
class LaneBatch:
    """One micro-batch of one lane, as numpy views."""

    step: int
    micro: int
    lane: int
    bucket: Bucket
    clips: tuple[ClipArrays, ...]


@dataclass(frozen=True, kw_only=True)
class LoadedStep(Generic[T]):
    """A rank's share of one optimizer step: its micro-batches by row, then by lane, each passed through `prepare`."""

    step: int
    batches: tuple[T, ...]
    substitutions: tuple[Substitution, ...]
    wait_ms: float
    """How long the trainer waited for it."""


class PlannedLoader(Generic[T]):
    """Iterate over the steps of a plan from `start_step` (its first by default) on, as one rank of `world_size`.

    `prepare` turns a `LaneBatch` into what the trainer wants, in the reading thread; it must copy what it keeps, because the views end with it.

    Raises:
        PlanError: at once, if the world size does not divide the lanes, or the plan is broken.
        ShardError: while iterating, if a damaged clip has no replacement.
    """

    def __init__(
        self,
        plan: Path,
        rank: int = 0,
        world_size: int = 1,
        *,
        samples: Sequence[Path | str] | SampleSets,
        prepare: Callable[[LaneBatch], T] | None = None,
        start_step: int | None = None,
        stop_step: int | None = None,
        reader_threads: int = 2,
        read_ahead_bytes: int = 1 << 30,
        read_ahead_seconds: float = 30.0,
        with_teacher: bool = False,
        with_image: bool = False,
        device: str = "cpu",
    ) -> None:
        meta = read_plan_meta(plan)
        sets = samples if isinstance(samples, SampleSets) else open_sample_sets(meta, [Path(each) for each in samples])
        lanes = lanes_of_rank(rank, world_size, meta.num_lanes)
        first, end = meta.steps.start, meta.steps.stop
        start_step = first if start_step is None else start_step
        stop_step = end if stop_step is None else stop_step
        if not first <= start_step <= stop_step <= end:
            raise PlanError(
                f"{plan}: steps {start_step} up to {stop_step} asked for, the plan has {first} up to {end}; "
                "set steps to at most that, or build a plan of more epochs"
            )
        self._steps = range(start_step, stop_step)
        self._prepare = prepare if prepare is not None else cast(Callable[[LaneBatch], T], _unchanged)
        spares = _spares_by_lane(plan, meta)
        self._lanes = [
            _LaneReader(
                open_lane(plan, lane, meta, sets),
                sets,
                spares.get(lane, {}),
                start_step=start_step,
                peak_bytes=meta.peak_buffer_bytes[lane],
                with_teacher=with_teacher,
                with_image=with_image,
            )
            for lane in lanes
        ]
        self._ready: queue.SimpleQueue[LoadedStep[T] | Exception] = queue.SimpleQueue()
        self._room = threading.Semaphore(2)
        """Steps that may still be in memory; the one that the trainer works on counts."""
        self._stop = threading.Event()

    def __iter__(self) -> Generator[LoadedStep[T], None, None]:
        """Steps in order. May be called once; closing the generator stops the thread."""
        thread = threading.Thread(target=self._read_ahead, name="planned-loader", daemon=True)
        thread.start()
        try:
            for _ in self._steps:
                started = time.perf_counter()
                item = self._ready.get()
                wait_ms = (time.perf_counter() - started) * 1000
                if isinstance(item, Exception):
                    raise item
                yield LoadedStep(
                    step=item.step, batches=item.batches, substitutions=item.substitutions, wait_ms=wait_ms
                )
                del item
                self._room.release()
        finally:
            self._stop.set()
            self._room.release()
            thread.join()

    def _read_ahead(self) -> None:
        """The thread: any error becomes an item of the queue, to be raised where the steps are taken."""
        try:
            for lane in self._lanes:
                lane.start()
            for step in self._steps:
                self._room.acquire()
                if self._stop.is_set():
                    return
                self._ready.put(self._load(step))
        except Exception as error:  # handed over and raised in the training thread, with its traceback
            self._ready.put(error)
        finally:
            for lane in self._lanes:
                lane.close()

    def _load(self, step: int) -> LoadedStep[T]:
        substitutions: list[Substitution] = []
        batches: list[tuple[int, int, T]] = []
        for lane in self._lanes:
            for batch in lane.batches(step, substitutions):
                batches.append((batch.micro, batch.lane, self._prepare(batch)))
        batches.sort(key=lambda item: item[:2])
        ordered = sorted(substitutions, key=lambda item: (item.micro, item.lane))
        return LoadedStep(
            step=step, batches=tuple(item[2] for item in batches), substitutions=tuple(ordered), wait_ms=0.0
        )


class _LaneReader:
    """The buffer of one lane: does its reads and gives its micro-batches."""

    def __init__(
        self,
        program: LaneProgram,
        sets: SampleSets,
        spares: dict[Bucket, list[ClipKey]],
        *,
        start_step: int,
        peak_bytes: int,
        with_teacher: bool,
        with_image: bool,
    ) -> None:
        self._program = program
        self._sets = sets
        self._spares = spares
        self._peak_bytes = peak_bytes
        self._with_teacher = with_teacher
        self._with_image = with_image
        self._files = ShardFiles()
        self._buffer: dict[ClipKey, memoryview | ShardError] = {}
        self._held_bytes = 0
        self._row = program.first_row(start_step)
        self._in_step: set[str] = set()
        """Clip ids that the step being loaded has on this lane, replacements too."""

    def start(self) -> None:
        """Re-read what rows before the first one had read for it and later ones."""
        self._fetch(self._program.carried_into(self._row))

    def batches(self, step: int, substitutions: list[Substitution]) -> Iterator[LaneBatch]:
        """The lane's micro-batches of a step. A row's samples are let go when the next one is asked for."""
        rows = self._program.rows
        self._in_step = {self._sets.clip_id(key) for key in self._program.clips_of_step(self._row)}
        while self._row < len(rows) and rows[self._row].step == step:
            row = rows[self._row]
            self._fetch(row.fetched)
            self._check_bound(row)
            yield self._batch(row, substitutions)
            for key in row.released:
                del self._buffer[key]
                self._held_bytes -= self._sets.size_bytes(key)
            self._row += 1

    def close(self) -> None:
        self._buffer.clear()
        self._files.close()

    def _fetch(self, keys: Sequence[ClipKey]) -> None:
        """Read samples into the buffer, neighbours at once; a failed read is kept as its error and met when a row uses the clip."""
        for run in _neighbours(keys, self._sets):
            for key, sample in zip(run, self._read(run), strict=True):
                if key not in self._buffer:  # else it is read again while a row still waits for it
                    self._held_bytes += self._sets.size_bytes(key)
                self._buffer[key] = sample

    def _read(self, run: Sequence[ClipKey]) -> list[memoryview | ShardError]:
        """Samples that lie one behind the other, in one read."""
        offset = self._sets.offset_bytes(run[0])
        lengths = [self._sets.size_bytes(key) for key in run]
        return self._files.read(self._sets.shard_path(run[0][0]), offset, lengths)

    def _check_bound(self, row: LaneRow) -> None:
        if self._held_bytes > self._peak_bytes:
            raise PlanError(
                f"lane {self._program.lane} holds {self._held_bytes} bytes in step {row.step}, the plan allows {self._peak_bytes}; "
                "the plan is wrong, build it again"
            )

    def _batch(self, row: LaneRow, substitutions: list[Substitution]) -> LaneBatch:
        clips: list[ClipArrays] = []
        for key in row.clips:
            held = self._buffer[key]
            try:
                if isinstance(held, ShardError):
                    raise held
                clips.append(self._parse(key, held, row.bucket))
            except ShardError as error:
                taken = {clip.clip_id for clip in clips} | {self._sets.clip_id(other) for other in row.clips}
                clip, substitution = self._replace(row, key, error, taken)
                self._in_step.add(clip.clip_id)
                clips.append(clip)
                substitutions.append(substitution)
        return LaneBatch(step=row.step, micro=row.micro, lane=self._program.lane, bucket=row.bucket, clips=tuple(clips))

    def _parse(self, key: ClipKey, data: memoryview, bucket: Bucket) -> ClipArrays:
        sample = self._sets.sample(key)
        return parse_clip(sample, data, bucket, with_teacher=self._with_teacher, with_image=self._with_image)

    def _replace(
        self, row: LaneRow, key: ClipKey, error: ShardError, taken: set[str]
    ) -> tuple[ClipArrays, Substitution]:
        """The first readable one of `_candidates`; ShardError when there is none."""
        damaged = self._sets.clip_id(key)
        for kind, candidate in self._candidates(row, damaged, taken):
            data = self._read([candidate])[0]
            if candidate == key or isinstance(data, ShardError):
                continue
            try:
                clip = self._parse(candidate, data, row.bucket)
            except ShardError:
                continue
            return clip, Substitution(
                step=row.step,
                micro=row.micro,
                lane=self._program.lane,
                bucket=str(row.bucket),
                clip_id=damaged,
                shard=key[0],
                ordinal=key[1],
                reason=str(error),
                replaced_by=clip.clip_id,
                replacement=kind,
            )
        raise ShardError(
            f"step {row.step}, lane {self._program.lane}: {error}; the lane has no readable spare and no earlier clip of bucket {row.bucket} "
            "to take its place: copy the shard again, or build the plan with spares"
        ) from error

    def _candidates(self, row: LaneRow, damaged: str, taken: set[str]) -> Iterator[tuple[str, ClipKey]]:
        """Spares, then earlier clips of the bucket, nearest first: those that the step lacks, then those that the micro-batch lacks, then the rest.

        Usually the first one serves, so the lane's past is walked only as far as needed.
        """
        spares = self._spares.get(row.bucket, [])
        turn = zlib.crc32(f"{row.step}:{damaged}".encode()) % len(spares) if spares else 0
        repeats: list[tuple[str, ClipKey]] = []
        earlier = (("earlier", clip) for clip in self._program.earlier_clips(self._row))
        for kind, candidate in chain((("spare", spare) for spare in spares[turn:] + spares[:turn]), earlier):
            if self._sets.clip_id(candidate) in self._in_step:
                repeats.append((kind, candidate))
            else:
                yield kind, candidate
        yield from sorted(repeats, key=lambda item: self._sets.clip_id(item[1]) in taken)


def _unchanged(batch: LaneBatch) -> LaneBatch:
    return batch


def _neighbours(keys: Sequence[ClipKey], sets: SampleSets) -> list[list[ClipKey]]:
    """Keys in their order, cut into runs that lie one behind the other in one shard; the plan's ranges, if they hold only samples that are used."""
    runs: list[list[ClipKey]] = []
    end = (-1, -1)
    for key in keys:
        offset = sets.offset_bytes(key)
        if (key[0], offset) == end:
            runs[-1].append(key)
        else:
            runs.append([key])
        end = (key[0], offset + sets.size_bytes(key))
    return runs


def _spares_by_lane(plan: Path, meta: PlanMeta) -> dict[int, dict[Bucket, list[ClipKey]]]:
    found: dict[int, dict[Bucket, list[ClipKey]]] = {}
    for row in read_plan_table(plan, "spares", SPARES, meta).to_pylist():
        bucket = Bucket(row["frames"], row["height"], row["width"])
        found.setdefault(row["lane"], {}).setdefault(bucket, []).append((row["shard"], row["ordinal"]))
    return found
