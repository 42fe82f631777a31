"""One lane's forward reader: hands out reads in the plan's order, keeps what they bring, and gives up the clips of a row when it is their turn.

Reads go ahead of the rows as far as the lane's memory allows (`LaneProgram.bound_bytes`, and the plan's own count of bytes): what the next row needs
always fits, because its bound is the most that any row needs when no read goes ahead, and memory is taken strictly in the order of the plan. So
nothing can wait for memory that only a later row would free. All methods but the reading itself are called under the loader's lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.errors import PlanError, ShardError
from training.loading.batch_memory import BatchMemory
from training.loading.clip_arrays import ClipArrays
from training.loading.direct_read import Place, SampleReader
from training.loading.read_program import LaneProgram

__all__ = ["LaneReader", "ReadTask", "RowArray", "TakenRow"]

Arrived = ClipArrays | memoryview | ShardError


class RowArray:
    """The latents of a row that is being filled."""

    def __init__(self, latent_BTCHW: np.ndarray, pinned: Any) -> None:
        self.latent_BTCHW, self.pinned = latent_BTCHW, pinned
        memory, begin = latent_BTCHW.reshape(-1).view(np.uint8).data, latent_BTCHW.ctypes.data
        size = len(memory) // max(1, len(latent_BTCHW))
        self.places = [
            Place(latent_TCHW, memory[at : at + size], begin + at)
            for latent_TCHW, at in zip(latent_BTCHW, range(0, len(memory), max(1, size)), strict=True)
        ]
        """Where each of its clips goes."""


@dataclass(frozen=True, kw_only=True)
class ReadTask:
    """One read of neighbouring samples."""

    lane: LaneReader
    position: int
    """In the lane's order of arrivals."""
    arrivals: range
    first_sample: int
    places: tuple[Place | None, ...]
    read_on_to: int
    """Byte of the shard up to which the lane reads on without a gap; 0 when nothing is known of that."""
    scratch_bytes: int
    """Of frames that buckets leave out, until they are checked."""

    def run(self, reader: SampleReader) -> list[Arrived]:
        """Read and check; without the lock."""
        return reader.read(self.first_sample, self.places, read_on_to=self.read_on_to)


@dataclass(frozen=True, kw_only=True)
class TakenRow:
    """A row whose clips are there."""

    row: int
    array: RowArray
    arrived: tuple[Arrived, ...]
    """By place; bytes where the clip was held as read."""


class LaneReader:
    """The reader of one lane, for rows from `start_row` up to `stop_row`."""

    def __init__(
        self,
        program: LaneProgram,
        memory: BatchMemory,
        *,
        start_row: int,
        stop_row: int,
        peak_bytes: int,
        channels: int,
    ) -> None:
        self.program = program
        self._memory, self._channels = memory, channels
        self._stop_row = stop_row
        self._peak_bytes = peak_bytes
        self._carried: list[int] = program.carried_into(start_row).tolist()
        self._first_arrival = int(program.arrival_start_R[start_row])
        self.rows_passed = start_row
        """Rows before this one have all their reads under way and their arrays made."""
        self._position = 0
        self._running: set[int] = set()
        self._arrays: dict[int, RowArray] = {}
        self._arrived: dict[int, Arrived] = {}
        self.planned_bytes = 0
        """Bytes of samples that are read, or being read, and still to be used."""
        self.memory_bytes = 0
        """What they and the arrays of their rows take."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to be read."""
        return self.rows_passed >= self._stop_row

    @property
    def next_step(self) -> int:
        """The step that its next read is for; only unless it is finished."""
        return int(self.program.step_R[self.rows_passed])

    def next_task(self, needed_row: int | None) -> ReadTask | None:
        """The next read that there is memory for. `needed_row` is the row that somebody waits for.

        Raises:
            PlanError: the row that is waited for does not fit, so that the plan's count is wrong.
        """
        while not self.finished:
            end = self._end_of(self.rows_passed)
            if self._position < end:
                task = self._task(end)
                if task is None and self._position >= end:
                    continue
                self._refuse_unless(task is not None, needed_row)
                return task
            if not self._fits(0, self._array_bytes(self.rows_passed)):
                self._refuse_unless(False, needed_row)
                return None
            self._array(self.rows_passed)
            self.rows_passed += 1
        return None

    def done(self, task: ReadTask, found: Iterable[Arrived]) -> None:
        """Keep what a read has brought."""
        self._running.discard(task.position)
        self._arrived.update(zip(task.arrivals, found, strict=True))

    def has(self, row: int) -> bool:
        """Whether all clips of a row are there."""
        return self.rows_passed > row and all(position >= self._end_of(row) for position in self._running)

    def take(self, row: int) -> TakenRow:
        """Give up a row: its array, its clips, and what no later row uses."""
        program = self.program
        uses_U = program.arrival_U[program.use_start_R[row] : program.use_start_R[row + 1]]
        arrived = tuple(map(self._arrived.__getitem__, uses_U.tolist()))
        ending = np.array(list(dict.fromkeys(uses_U[program.last_A[uses_U] == row].tolist())), np.int64)
        for arrival in ending.tolist():
            del self._arrived[arrival]
        self.planned_bytes -= int(program.length_A[ending].sum())
        self.memory_bytes -= int(program.held_A[ending].sum())
        self.memory_bytes -= int(program.array_R[row])
        return TakenRow(row=row, array=self._arrays.pop(row), arrived=arrived)

    def clear(self) -> None:
        """Let everything go."""
        self._arrived.clear()
        self._arrays.clear()

    def _end_of(self, row: int) -> int:
        """Position behind the arrivals of a row."""
        return len(self._carried) + int(self.program.arrival_start_R[row + 1]) - self._first_arrival

    def _task(self, end: int) -> ReadTask | None:
        """The next read up to a position; None when there is no memory for it, or when all that is left there is for rows that are not run."""
        arrivals = self._next_arrivals(end)
        if not arrivals:
            return None
        program, count = self.program, len(arrivals)
        some = slice(arrivals.start, arrivals.stop)
        rows, slots = program.first_A[some].tolist(), program.slot_A[some].tolist()
        opened = {row for row, slot in zip(rows, slots, strict=True) if slot >= 0}.difference(self._arrays)
        planned, held = int(program.length_A[some].sum()), int(program.held_A[some].sum())
        if not self._fits(planned, held + sum(map(self._array_bytes, opened))):
            return None
        self.planned_bytes += planned
        self.memory_bytes += held
        for row in opened:
            self._array(row)
        arrays = self._arrays
        places = tuple(arrays[row].places[slot] if slot >= 0 else None for row, slot in zip(rows, slots, strict=True))
        task = ReadTask(
            lane=self,
            position=self._position,
            arrivals=arrivals,
            first_sample=int(program.sample_A[arrivals.start]),
            places=places,
            read_on_to=int(program.run_stop_A[arrivals.start]) if self._position >= len(self._carried) else 0,
            scratch_bytes=int(program.scratch_A[some].sum()),
        )
        self._running.add(self._position)
        self._position += count
        return task

    def _next_arrivals(self, end: int) -> range:
        """The next neighbours in one shard that rows to be run use, as many as one read takes."""
        program, carried = self.program, len(self._carried)
        while self._position < end:
            position = self._position
            first = self._carried[position] if position < carried else self._first_arrival + position - carried
            if program.first_A[first] < self._stop_row:
                most = min(int(program.read_stop_A[first]) - first, (carried if position < carried else end) - position)
                if position < carried:
                    some = np.array(self._carried[position : position + most])
                    most = int(np.sum(np.cumprod(some == first + np.arange(most))))
                if self._stop_row < program.num_rows:
                    used = program.first_A[first : first + most] < self._stop_row
                    most = most if used.all() else int(np.argmin(used))
                return range(first, first + most)
            self._position += 1
        return range(0)

    def _fits(self, planned: int, memory: int) -> bool:
        return (
            self.planned_bytes + planned <= self._peak_bytes and self.memory_bytes + memory <= self.program.bound_bytes
        )

    def _array_bytes(self, row: int) -> int:
        """What the row's array would still take."""
        return 0 if row in self._arrays else int(self.program.array_R[row])

    def _array(self, row: int) -> RowArray:
        """The row's array, made when it is not there yet."""
        found = self._arrays.get(row)
        if found is None:
            program = self.program
            frames, rows, columns = program.bucket(row).latent_shape
            clips = int(program.use_start_R[row + 1] - program.use_start_R[row])
            found = RowArray(*self._memory.take((clips, frames, self._channels, rows, columns)))
            self._arrays[row] = found
            self.memory_bytes += int(program.array_R[row])
        return found

    def _refuse_unless(self, fits: bool, needed_row: int | None) -> None:
        """A read that the next row waits for must fit."""
        if not fits and needed_row is not None and self.rows_passed <= needed_row:
            program = self.program
            raise PlanError(
                f"lane {program.lane} holds {self.planned_bytes} bytes in step {program.step_R[needed_row]} and needs more, the plan allows "
                f"{self._peak_bytes} ({self.memory_bytes} bytes of memory of {program.bound_bytes}); the plan is wrong, build it again"
            )
