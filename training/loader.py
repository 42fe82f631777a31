"""The loader: follows the plan and nothing else.

    readers (threads)    one forward reader per lane, latents straight into their micro-batches     training.loading.lane_reader, direct_read
    maker (a thread)     row by row: waits for the clips, replaces damaged ones, `prepare`          training.loading.threads, replacement
    trainer              takes whole steps, in order

Nothing is decided here, so the state is (plan hash, next step), starting at any step is a look-up and reads only what that step and later ones use,
and batches are the same for any number of threads. Memory is bounded exactly, see `PlannedLoader.memory_bound_bytes`. Any error of any thread is
raised where the steps are taken; leaving the iteration early ends all threads.

Price: whole steps rather than micro-batches are handed over, because the loss needs the step's clip count first.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from schemas.buckets import Bucket
from schemas.errors import PlanError, UsageError
from schemas.plan import ROWS, PlanMeta, lanes_of_rank, read_plan_meta, read_plan_table
from training.loading.batch_memory import BatchMemory
from training.loading.lane_batch import LaneBatch, LoadedStep, Substitution
from training.loading.memory_meter import MemoryMeter
from training.loading.object_store import PART_BYTES, StoreSettings, is_url
from training.loading.read_ahead import ReadAhead
from training.loading.read_program import MOST_READ_BYTES, LaneProgram, open_lane
from training.loading.replacement import read_spares
from training.loading.sample_kernel import compiled_read
from training.loading.sample_layout import SampleLayout
from training.loading.sample_sets import SampleSets, open_sample_sets
from training.loading.threads import LoaderSetup, StepMaker

__all__ = ["LaneBatch", "LoadedStep", "LoaderState", "PlannedLoader", "Substitution", "most_open_files"]

T = TypeVar("T")

_OPEN_FILES_PER_LANE = 4


@dataclass(frozen=True, kw_only=True)
class LoaderState:
    """All that a loader has to remember."""

    plan_hash: str
    next_step: int


def most_open_files(num_lanes: int) -> int:
    """Shards that a rank of so many lanes holds open at once."""
    return max(8, _OPEN_FILES_PER_LANE * num_lanes)


class PlannedLoader(Generic[T]):
    """Iterate over the steps of a plan from `start_step` (its first by default) on, as rank `rank` of `world_size`.

    `samples` are the packed sets that the plan was built from: folders, or URLs of an object store. Without `prepare` the batches are `LaneBatch`es;
    with it they are what it makes of them, in a thread of the loader. `device="cuda"` puts latents into page-locked memory.

        loader = PlannedLoader("plans/144p", rank, world_size, samples=["sets/144p"])
        for step in loader:
            for batch in step.batches:
                train_on(torch.from_numpy(batch.latent_BTCHW), batch.clips)

    Raises:
        PlanError: at once, if the world size does not divide the lanes, or the plan is broken or of other samples.
        DataError: at once, if a set or a shard is not there.
        UsageError: at once, for a number that makes no sense.
        ShardError: while iterating, if a damaged clip has no replacement.
        DataError: while iterating, if more clips had to be replaced than `max_replaced_share` allows (`training.loading.replaced_share`).
        ServiceError: if an object store fails for longer than `store_tries` and `store_timeout_seconds` allow, or if this machine cannot read a file
            for a reason that is no damage.
    """

    def __init__(
        self,
        plan: Path | str,
        rank: int = 0,
        world_size: int = 1,
        *,
        samples: Sequence[Path | str] | SampleSets,
        prepare: Callable[[LaneBatch], T] | None = None,
        prepared_bytes: Callable[[Bucket, int], int] | None = None,
        start_step: int | None = None,
        stop_step: int | None = None,
        reader_threads: int = 2,
        read_ahead_bytes: int = 1 << 30,
        read_ahead_seconds: float = 30.0,
        store_timeout_seconds: float = 30.0,
        store_tries: int = 6,
        max_replaced_share: float = 0.1,
        with_teacher: bool = False,
        with_image: bool = False,
        device: str = "cpu",
    ) -> None:
        _check_numbers(
            reader_threads=(reader_threads, reader_threads >= 1, "1 or more"),
            read_ahead_bytes=(read_ahead_bytes, read_ahead_bytes >= 0, "0 or more"),
            read_ahead_seconds=(read_ahead_seconds, read_ahead_seconds >= 0, "0 or more"),
            store_timeout_seconds=(store_timeout_seconds, store_timeout_seconds > 0, "more than 0"),
            store_tries=(store_tries, store_tries >= 1, "1 or more"),
            max_replaced_share=(max_replaced_share, 0 <= max_replaced_share <= 1, "0 to 1"),
        )
        self._plan = Path(plan)
        self._meta = meta = read_plan_meta(self._plan)
        lanes = lanes_of_rank(rank, world_size, meta.num_lanes)
        self.steps = self._check_steps(start_step, stop_step)
        """The steps that are still to come, and will be handed over by the next iteration."""
        sets = samples if isinstance(samples, SampleSets) else open_sample_sets(meta, samples)
        pinned = device.startswith("cuda")
        compiled_read()  # now, and not while the first steps are waited for
        layout = SampleLayout(sets, with_teacher=with_teacher, with_image=with_image)
        programs = tuple(open_lane(self._plan, lane, meta, sets, layout, pinned=pinned) for lane in lanes)
        self._step_bytes_S = _step_bytes(programs, meta, prepared_bytes)
        self._step_seconds_S = _step_seconds(self._plan, meta)
        self._most_ahead = (read_ahead_bytes, read_ahead_seconds)
        largest = int(sets.length_N.max(initial=0))
        parts = (reader_threads + 1) * PART_BYTES if any(map(is_url, sets.addresses)) else 0
        self.memory_bounds: Mapping[str, int] = {
            "lanes": sum(program.bound_bytes for program in programs),
            "steps": self._read_ahead().bound_bytes,
            "reads": reader_threads * max(MOST_READ_BYTES, largest) + largest + parts,
        }
        """The parts of `memory_bound_bytes`."""
        self.memory_bound_bytes = sum(self.memory_bounds.values())
        """The most memory that the loader takes: buffers of the lanes, steps being made, ready or in use, reads under way, and in what of it is not
        taken, arrays kept for reuse. What `prepare` makes counts as `prepared_bytes(bucket, clips)` says. Steps that the caller keeps after asking
        for the next one are its own; so is what the texts of a replacement take beyond those of the damaged clip."""
        self._setup: LoaderSetup[T] = LoaderSetup(
            programs=programs,
            sets=sets,
            layout=layout,
            spares=read_spares(self._plan, meta, sets),
            peak_buffer_bytes=meta.peak_buffer_bytes,
            prepare=prepare,
            prepared_bytes=prepared_bytes,
            reader_threads=reader_threads,
            store=StoreSettings(timeout_seconds=store_timeout_seconds, tries=store_tries),
            max_replaced_share=max_replaced_share,
            most_open_files=most_open_files(len(lanes)),
            with_teacher=with_teacher,
            with_image=with_image,
            bound_bytes=self.memory_bound_bytes,
            memory=BatchMemory(self.memory_bound_bytes, pinned=pinned),
            meter=MemoryMeter(),
        )
        self._maker: StepMaker[T] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What somebody who reads the log should know: shards of another size than the plan says, and that compiled checks are not to be had."""
        slow = "zlib-ng's crc32 cannot be called here: samples are checked one by one under the interpreter's lock; install zlib-ng"
        return (*self._setup.sets.notes, *([slow] if compiled_read() is None else []))

    @property
    def peak_bytes_seen(self) -> int:
        """Most memory that the loader has taken so far; never more than `memory_bound_bytes`."""
        return self._setup.meter.peak_bytes

    def state_dict(self) -> dict[str, Any]:
        """What to save beside a checkpoint: the plan's hash, and the step after the last one that was handed over."""
        return {"plan_hash": self._meta.plan_hash, "next_step": self.steps.start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at another step of the same plan; PlanError for another plan's state."""
        found = LoaderState(plan_hash=state["plan_hash"], next_step=state["next_step"])
        if found.plan_hash != self._meta.plan_hash:
            raise PlanError(
                f"{self._plan} has hash {self._meta.plan_hash[:12]}..., the loader's state is of plan {found.plan_hash[:12]}...; "
                "give the plan that the state was saved with"
            )
        self.close()
        self.steps = self._check_steps(found.next_step, self.steps.stop)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Generator[LoadedStep[T], None, None]:
        """Steps in order, from the next one on. Closing the generator, or `close`, ends the threads; then it may be called again."""
        self.close()
        maker = self._maker = StepMaker(self._setup, self._read_ahead(), self.steps.start, self.steps.stop)
        try:
            while self.steps and self._maker is maker:
                yield self._next_of(maker)  # no name for it here: the step must not be kept while the caller uses it
        finally:
            maker.close()

    def close(self) -> None:
        """End the threads of an iteration that was left."""
        if self._maker is not None:
            self._maker.close()
            self._maker = None

    def _next_of(self, maker: StepMaker[T]) -> LoadedStep[T]:
        step = maker.next()
        self.steps = self.steps[1:]
        return step

    def _check_steps(self, start: int | None, stop: int | None) -> range:
        first, end = self._meta.steps.start, self._meta.steps.stop
        start = first if start is None else start
        stop = end if stop is None else stop
        if not first <= start <= stop <= end:
            raise PlanError(
                f"{self._plan}: steps {start} up to {stop} asked for, the plan has {first} up to {end}; "
                "set steps to at most that, or build a plan of more epochs"
            )
        return range(start, stop)

    def _read_ahead(self) -> ReadAhead:
        return ReadAhead(self._meta.steps.start, self._step_bytes_S, self._step_seconds_S, *self._most_ahead)


def _check_numbers(**numbers: tuple[float, bool, str]) -> None:
    """UsageError for the first number (value, whether it will do, what will) that would make a loader hang or break later."""
    for name, (value, is_good, expected) in numbers.items():
        if not is_good:
            raise UsageError(f"PlannedLoader: {name} is {value}, expected {expected}")


def _step_bytes(
    programs: Sequence[LaneProgram], meta: PlanMeta, prepared_bytes: Callable[[Bucket, int], int] | None
) -> np.ndarray:
    """By step, all lanes of the rank: micro-batches, and what `prepare` makes of them beside."""
    bytes_S = np.zeros(len(meta.steps), np.int64)
    for program in programs:
        bytes_R = program.ready_R
        if prepared_bytes is not None:
            clips_R = np.diff(program.use_start_R)
            pairs, which_R = np.unique(np.stack((program.bucket_R, clips_R), axis=1), axis=0, return_inverse=True)
            sizes = [prepared_bytes(program.buckets[bucket], clips) for bucket, clips in pairs.tolist()]
            bytes_R = bytes_R + np.array(sizes, np.int64)[which_R.reshape(-1)]
        np.add.at(bytes_S, program.step_R - meta.steps.start, bytes_R)
    return bytes_S


def _step_seconds(plan: Path, meta: PlanMeta) -> np.ndarray:
    """By step, as the plan predicts it."""
    table = read_plan_table(plan, "rows", ROWS, meta)
    seconds_S = np.zeros(len(meta.steps))
    np.add.at(
        seconds_S, table.column("step").to_numpy() - meta.steps.start, table.column("predicted_seconds").to_numpy()
    )
    return seconds_S
