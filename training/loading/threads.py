"""The threads of one iteration over a plan: readers, which fill micro-batches, and a maker, which completes steps one after another.

    reader   while there is one: take the next read that has memory, of the lane that is furthest behind; do it; keep what it brought; if a row of a
             begun step is complete with it, take the row from its lane, which makes room for the lane's next read
    maker    begin the steps that there is room for; for each, row by row and lane by lane: wait for the row, replace damaged clips, prepare

A lane has room for no more than its rows need, so its next read often waits for a row to go: the reader that completes a row takes it away itself,
and no thread has to wake up in between. One lock guards what is read; it is held for book-keeping only, never while reading, checking or preparing.
The first error of any thread ends all of them and is raised by `next`. Batches do not depend on which thread read what: each clip has its place, and
the maker alone decides.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from schemas.buckets import Bucket
from schemas.errors import ShardError
from training.loading.batch_memory import BatchMemory
from training.loading.clip_arrays import ClipArrays
from training.loading.direct_read import SampleReader
from training.loading.lane_batch import LaneBatch, LoadedStep, Substitution
from training.loading.lane_reader import LaneReader, ReadTask, TakenRow
from training.loading.memory_meter import MemoryMeter
from training.loading.object_store import ReadingStoppedError, StoreSettings
from training.loading.read_ahead import ReadAhead
from training.loading.read_program import LaneProgram
from training.loading.replaced_share import ReplacedShare
from training.loading.replacement import Replacements, Spares
from training.loading.sample_layout import SampleLayout
from training.loading.sample_sets import SampleSets
from training.loading.shard_files import ShardFiles

__all__ = ["LoaderSetup", "StepMaker"]

T = TypeVar("T")
_CLOSE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class LoaderSetup(Generic[T]):
    """What all iterations of a loader have in common."""

    programs: tuple[LaneProgram, ...]
    sets: SampleSets
    layout: SampleLayout
    spares: Mapping[int, Spares]
    peak_buffer_bytes: tuple[int, ...]
    """By lane of the plan."""
    prepare: Callable[[LaneBatch], T] | None
    prepared_bytes: Callable[[Bucket, int], int] | None
    reader_threads: int
    store: StoreSettings
    most_open_files: int
    max_replaced_share: float
    with_teacher: bool
    with_image: bool
    bound_bytes: int
    """Of all memory, free arrays kept for reuse among it."""
    memory: BatchMemory
    meter: MemoryMeter


class StepMaker(Generic[T]):
    """Makes the steps from `first_step` up to `stop_step`; `next` in order, `close` at any time."""

    def __init__(self, setup: LoaderSetup[T], ahead: ReadAhead, first_step: int, stop_step: int) -> None:
        self._setup, self._ahead = setup, ahead
        self._steps = range(first_step, stop_step)
        self._files = ShardFiles(setup.most_open_files, setup.store)
        self._reader = SampleReader(setup.sets, setup.layout, self._files)
        self._lanes = [self._open(program) for program in setup.programs]
        self._replacements = {
            program.lane: Replacements(
                program,
                setup.sets,
                self._files,
                setup.spares.get(program.lane, {}),
                with_teacher=setup.with_teacher,
                with_image=setup.with_image,
            )
            for program in setup.programs
        }
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        """Readers wait for it: memory has become free, a row is needed, or all is over."""
        self._complete = threading.Condition(self._lock)
        """The maker waits for it: the row that it needs is there, or all is over."""
        self._begun = first_step
        """The step behind those that there is room for."""
        self._wanted: dict[LaneReader, deque[int]] = {lane: deque() for lane in self._lanes}
        """Rows of begun steps that are not complete yet."""
        self._taken: dict[tuple[LaneReader, int], TakenRow] = {}
        """Rows that are complete, and that the maker has not come to yet."""
        self._needed: tuple[LaneReader, int] | None = None
        """The lane and the row that the maker waits for."""
        self._error: Exception | None = None
        self._stop = False
        self._ready: queue.SimpleQueue[LoadedStep[T] | Exception] = queue.SimpleQueue()
        self._given_back: queue.SimpleQueue[tuple[float, LoadedStep[T]] | None] = queue.SimpleQueue()
        """How long each step took the trainer, and the step, to be let go where nobody waits for it; None ends the maker."""
        self._replaced_share = ReplacedShare(setup.max_replaced_share)
        self._bytes: dict[int, int] = {}
        """By step in memory."""
        self._in_use: LoadedStep[T] | None = None
        self._handed_over_at = 0.0
        self._threads = [
            threading.Thread(
                target=self._guarded, args=(self._read,), name=f"planned-loader-reader-{index}", daemon=True
            )
            for index in range(setup.reader_threads)
        ]
        self._threads.append(
            threading.Thread(target=self._guarded, args=(self._make,), name="planned-loader-maker", daemon=True)
        )
        self._started = False

    def next(self) -> LoadedStep[T]:
        """The next step; the one before counts as done with. Raises what ended the threads."""
        began = time.perf_counter()
        if not self._started:
            self._started = True
            for thread in self._threads:
                thread.start()
        if self._in_use is not None:
            self._given_back.put((began - self._handed_over_at, self._in_use))
            self._in_use = None
        item = self._ready.get()
        if isinstance(item, Exception):
            raise item
        self._handed_over_at = time.perf_counter()
        self._in_use = replace(item, wait_ms=(self._handed_over_at - began) * 1000)
        return self._in_use

    def close(self) -> None:
        """End all threads and wait for them; reads from stores are called off, and a read that never comes back dies with the process."""
        with self._lock:
            if self._stop:
                return
            self._stop = True
            self._wake_all()
        self._given_back.put(None)
        self._in_use = None
        self._files.call_off()
        deadline = time.perf_counter() + _CLOSE_SECONDS
        for thread in self._threads if self._started else ():
            thread.join(max(0.0, deadline - time.perf_counter()))
            if thread.is_alive():
                return
        self._files.close()
        self._taken.clear()
        while not self._ready.empty():
            self._ready.get()
        for lane in self._lanes:
            lane.clear()
        self._setup.meter.reset()

    def _open(self, program: LaneProgram) -> LaneReader:
        setup = self._setup
        return LaneReader(
            program,
            setup.memory,
            start_row=program.first_row(self._steps.start),
            stop_row=program.first_row(self._steps.stop),
            peak_bytes=setup.peak_buffer_bytes[program.lane],
            channels=setup.sets.infos[0].latent_channels,
        )

    def _guarded(self, work: Callable[[], None]) -> None:
        """A thread's work: its error ends all threads, and is raised where steps are taken."""
        try:
            work()
        except Exception as error:
            if isinstance(error, ReadingStoppedError) and self._ending:
                return
            with self._lock:
                first, self._error = self._error is None, self._error or error
                self._wake_all()
            self._given_back.put(None)
            self._files.call_off()
            if first:
                self._ready.put(error)

    @property
    def _ending(self) -> bool:
        return self._stop or self._error is not None

    def _read(self) -> None:
        """A reader."""
        while True:
            with self._lock:
                has_waited = False
                while (task := self._next_task()) is None:
                    if self._ending or all(lane.finished for lane in self._lanes):
                        self._room.notify()
                        return
                    has_waited = self._room.wait()
                if has_waited:
                    self._room.notify()  # there may be room for one more reader
                self._count(task.scratch_bytes)
            found = task.run(self._reader)
            with self._lock:
                self._count(-task.scratch_bytes)
                task.lane.done(task, found)
                self._take_complete(task.lane)
            del task, found  # what is taken must not be kept alive here

    def _next_task(self) -> ReadTask | None:
        """The next read of the lane that is furthest behind; under the lock."""
        if self._ending:
            return None
        for lane in sorted((lane for lane in self._lanes if not lane.finished), key=lambda lane: lane.next_step):
            needed = self._needed[1] if self._needed is not None and self._needed[0] is lane else None
            row_went = True
            while row_went:
                before, passed = lane.memory_bytes, lane.rows_passed
                task = lane.next_task(needed)
                self._count(lane.memory_bytes - before)
                row_went = lane.rows_passed != passed and self._take_complete(lane)  # it was complete without a read
                if task is not None:
                    return task
        return None

    def _take_complete(self, lane: LaneReader) -> bool:
        """Take a lane's wanted rows that are there, which makes room for its next reads; whether there were any. Under the lock."""
        wanted = self._wanted[lane]
        any_went = bool(wanted) and lane.has(wanted[0])
        while wanted and lane.has(wanted[0]):
            row = wanted.popleft()
            before, ready = lane.memory_bytes, int(lane.program.ready_R[row])
            self._taken[lane, row] = lane.take(row)
            self._bytes[int(lane.program.step_R[row])] += ready
            self._count(lane.memory_bytes - before + ready)
            self._room.notify()
        if self._needed in self._taken:
            self._complete.notify()
        return any_went

    def _wake_all(self) -> None:
        self._room.notify_all()
        self._complete.notify_all()

    def _make(self) -> None:
        """The maker."""
        for step in self._steps:
            while not self._given_back.empty() or not self._has_begun(step):
                item = self._given_back.get()
                if item is None:
                    return
                self._forget_oldest(item[0])
                del item
            made = self._made(step)
            if made is None:
                return
            self._ready.put(made)
            del made

    def _has_begun(self, step: int) -> bool:
        """Whether there is room for a step, after beginning all that there is room for; their rows may leave their lanes from now on."""
        while self._begun < self._steps.stop and self._ahead.may_begin(self._begun):
            self._ahead.begin(self._begun)
            with self._lock:
                self._bytes[self._begun] = 0
                for lane, wanted in self._wanted.items():
                    wanted.extend(range(lane.program.first_row(self._begun), lane.program.first_row(self._begun + 1)))
                    self._take_complete(lane)
            self._begun += 1
        return step < self._begun

    def _forget_oldest(self, seconds: float) -> None:
        step = self._ahead.give_back(seconds)
        with self._lock:
            self._count(-self._bytes.pop(step))

    def _made(self, step: int) -> LoadedStep[T] | None:
        """One step; None when the threads are to end."""
        batches: list[tuple[int, int, Any]] = []
        substitutions: list[Substitution] = []
        clips = 0
        for row, lane in self._rows_of(step):
            taken = self._take(row, lane)
            if taken is None:
                return None
            batch = self._batch(lane, taken, substitutions)
            del taken
            clips += len(batch.clips)
            prepare = self._setup.prepare
            prepared = batch if prepare is None else prepare(batch)
            batches.append((batch.micro, batch.lane, prepared))
            if prepare is not None:
                self._recount(step, lane.program, row, batch)
            del batch, prepared
        batches.sort(key=lambda item: item[:2])
        substitutions.sort(key=lambda item: (item.micro, item.lane))
        self._replaced_share.add(step, clips, len(substitutions), substitutions[-1].reason if substitutions else "")
        return LoadedStep(
            step=step, batches=tuple(item[2] for item in batches), substitutions=tuple(substitutions), wait_ms=0.0
        )

    def _rows_of(self, step: int) -> list[tuple[int, LaneReader]]:
        """The step's rows: micro-batch by micro-batch, each on all lanes."""
        rows = []
        for lane in self._lanes:
            first, stop = lane.program.first_row(step), lane.program.first_row(step + 1)
            rows += [(int(lane.program.micro_R[row]), index, row, lane) for index, row in enumerate(range(first, stop))]
        rows.sort(key=lambda item: item[:2])
        return [(row, lane) for _, _, row, lane in rows]

    def _take(self, row: int, lane: LaneReader) -> TakenRow | None:
        """A row of a lane, when its clips are there; None when the threads are to end."""
        with self._lock:
            self._needed = lane, row
            while self._needed not in self._taken:
                if self._ending:
                    return None
                self._room.notify()  # a reader may have to say that the row will not fit
                self._complete.wait()
            self._needed = None
            return self._taken.pop((lane, row))

    def _batch(self, lane: LaneReader, taken: TakenRow, substitutions: list[Substitution]) -> LaneBatch:
        """A row's clips, all there, replaced where need be."""
        program, replacements = lane.program, self._replacements[lane.program.lane]
        bucket = program.bucket(taken.row)
        samples = program.samples(taken.row)
        latent_BTCHW = taken.array.latent_BTCHW
        clips: list[ClipArrays] = []
        for place, found in enumerate(taken.arrived):
            try:
                if isinstance(found, ShardError):
                    raise found
                if isinstance(found, ClipArrays):
                    clip = found
                else:
                    clip = _in_place(replacements.parse(samples[place], found, bucket), latent_BTCHW, place)
            except ShardError as error:
                replacement, substitution = replacements.replace(taken.row, samples[place], error, clips)
                clip = _copied(_in_place(replacement, latent_BTCHW, place))
                substitutions.append(substitution)
            clips.append(clip)
        return LaneBatch(
            step=int(program.step_R[taken.row]),
            micro=int(program.micro_R[taken.row]),
            lane=program.lane,
            bucket=bucket,
            latent_BTCHW=latent_BTCHW,
            clips=tuple(clips),
            pinned_BTCHW=taken.array.pinned,
        )

    def _recount(self, step: int, program: LaneProgram, row: int, batch: LaneBatch) -> None:
        """The micro-batch has become what `prepare` made of it."""
        sized = self._setup.prepared_bytes
        change = (0 if sized is None else sized(batch.bucket, len(batch.clips))) - int(program.ready_R[row])
        with self._lock:
            self._bytes[step] += change
            self._count(change)

    def _count(self, change: int) -> None:
        """Under the lock."""
        setup = self._setup
        setup.meter.add(change)
        setup.memory.trim(setup.bound_bytes - setup.meter.now_bytes)
        setup.meter.note(setup.memory.free_bytes)


def _in_place(clip: ClipArrays, latent_BTCHW: Any, place: int) -> ClipArrays:
    """A clip that was read elsewhere, its latent copied into the micro-batch."""
    if clip.latent_TCHW.shape != latent_BTCHW.shape[1:]:
        raise ShardError(
            f"clip {clip.clip_id}: latent of shape {clip.latent_TCHW.shape} in a micro-batch of {latent_BTCHW.shape[1:]}"
        )
    latent_BTCHW[place] = clip.latent_TCHW
    return replace(clip, latent_TCHW=latent_BTCHW[place])


def _copied(clip: ClipArrays) -> ClipArrays:
    """The same without views into the whole sample, which would stay in memory for them."""
    return replace(
        clip,
        text_by_kind={kind: text.copy() for kind, text in clip.text_by_kind.items()},
        teacher_TYXC=None if clip.teacher_TYXC is None else clip.teacher_TYXC.copy(),
        image_ID=None if clip.image_ID is None else clip.image_ID.copy(),
    )
