"""Whatever the number of threads and however little memory: the bits of a plain reader, within the bound that is said beforehand, from any step."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import training.loading.read_program
from schemas.errors import PlanError
from schemas.plan import read_plan_meta
from schemas.shards import CAPTION_KINDS
from tests.training.plain_reader import plain_members
from training.loader import LoadedStep, PlannedLoader
from training.loading.batch_memory import BatchMemory, rounded_bytes
from training.loading.lane_batch import LaneBatch
from training.loading.read_ahead import ReadAhead
from training.loading.read_program import open_lane
from training.loading.sample_layout import SampleLayout
from training.loading.sample_sets import open_sample_sets

pytestmark = [pytest.mark.timeout(60)]


def plain_bits(plan: Any, samples: Path) -> Iterator[tuple[Any, ...]]:
    """What a reader without threads, ranges or places would deliver, use by use."""
    plain = plain_members(samples)
    for use in plan.uses:
        frames = use["bucket"].latent_shape[0]
        latents = np.stack([plain[f"{name}.latent.npy"][:frames] for name in use["clip_ids"]])
        texts = [plain[f"{name}.text_{kind}.npy"].tobytes() for name in use["clip_ids"] for kind in CAPTION_KINDS]
        teachers = [plain.get(f"{name}.teacher.npy") for name in use["clip_ids"]]
        cut = [None if teacher is None else teacher[:frames].tobytes() for teacher in teachers]
        yield use["step"], use["micro"], use["lane"], tuple(use["clip_ids"]), latents.tobytes(), texts, cut


def bits(batch: LaneBatch) -> tuple[Any, ...]:
    texts = [clip.text_by_kind[kind].tobytes() for clip in batch.clips for kind in CAPTION_KINDS]
    teachers = [None if clip.teacher_TYXC is None else clip.teacher_TYXC.tobytes() for clip in batch.clips]
    assert batch.latent_BTCHW.dtype == np.float16 and batch.latent_BTCHW.flags.c_contiguous
    assert all(clip.latent_TCHW.base is not None for clip in batch.clips)
    return batch.step, batch.micro, batch.lane, batch.clip_ids, batch.latent_BTCHW.tobytes(), texts, teachers


def all_bits(plan: Path, samples: Path, **options: Any) -> list[tuple[Any, ...]]:
    loader = PlannedLoader(plan, samples=[samples], with_teacher=True, **options)
    found = [bits(batch) for step in loader for batch in step.batches]
    assert loader.peak_bytes_seen <= loader.memory_bound_bytes
    return found


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("longest", [33, 65])
def test_batches_are_the_bits_of_a_plain_reader_for_any_number_of_threads(
    make_plan: Callable[..., Any], tiny_set: Path, tmp_path: Path, threads: int, longest: int
) -> None:
    plan = make_plan(tmp_path / "plan", [tiny_set], lanes=2, steps=12, longest=longest, batch={1: 3, 33: 2, 65: 1})
    expected = list(plain_bits(plan, tiny_set))
    assert all_bits(plan.folder, tiny_set, reader_threads=threads) == expected
    assert all_bits(plan.folder, tiny_set, reader_threads=threads, read_ahead_bytes=0) == expected


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lanes=st.integers(1, 3),
    micro=st.integers(1, 3),
    steps=st.integers(2, 8),
    batch=st.fixed_dictionaries({1: st.integers(1, 2), 33: st.integers(1, 2), 65: st.integers(1, 2)}),
    longest=st.sampled_from([33, 65]),
    lag=st.sampled_from([0, 1, 4, 1 << 60]),
    threads=st.integers(1, 4),
    ahead=st.sampled_from([0, 100_000, 1 << 30]),
    start=st.integers(0, 7),
    stop=st.integers(0, 8),
)
def test_any_plan_with_any_settings_gives_the_same_bits_within_its_bound(
    make_plan: Callable[..., Any],
    tiny_set: Path,
    tmp_path_factory: pytest.TempPathFactory,
    lanes: int,
    micro: int,
    steps: int,
    batch: dict[int, int],
    longest: int,
    lag: int,
    threads: int,
    ahead: int,
    start: int,
    stop: int,
) -> None:
    folder = tmp_path_factory.mktemp("plan") / "p"
    plan = make_plan(folder, [tiny_set], lanes=lanes, micro=micro, steps=steps, batch=batch, longest=longest)
    first, last = sorted((min(start, steps), min(stop, steps)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.loading.read_program, "_LAGS", (lag,))
        found = all_bits(
            plan.folder,
            tiny_set,
            reader_threads=threads,
            read_ahead_bytes=ahead,
            start_step=first,
            stop_step=last,
        )
    assert found == [use for use in plain_bits(plan, tiny_set) if first <= use[0] < last]


def run_through(loader: PlannedLoader[Any]) -> tuple[int, int]:
    """(steps, most bytes that Python and numpy had at once since the first step was asked for)."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        count = 0
        for step in loader:
            count += 1
            del step
        return count, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("num_steps", [600, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_memory_stays_under_the_bound(
    make_set: Callable[..., Path], make_plan: Callable[..., Any], clip_type: Any, tmp_path: Path, num_steps: int
) -> None:
    """By the loader's own count and by what is really allocated, for a store of clips of three lengths and two shapes."""
    clips = [
        clip_type(frames, *size) for _ in range(12) for frames, size in ((1, (64, 96)), (33, (64, 96)), (65, (96, 64)))
    ]
    samples = make_set(tmp_path / "set", clips)
    plan = make_plan(tmp_path / "plan", [samples], lanes=2, micro=1, steps=num_steps, batch={1: 3, 33: 2, 65: 1})
    loader: PlannedLoader[Any] = PlannedLoader(
        plan.folder, samples=[samples], with_teacher=True, read_ahead_bytes=3 << 20, reader_threads=3
    )
    buffers = sum(read_plan_meta(plan.folder).peak_buffer_bytes)
    assert loader.memory_bounds["lanes"] <= 2 * buffers + 2 * rounded_bytes(1)
    steps, really = run_through(loader)
    assert steps == num_steps
    assert 0 < loader.peak_bytes_seen <= loader.memory_bound_bytes
    # Python's own objects beside: arrays of views, threads, queues.
    assert really < loader.memory_bound_bytes + (2 << 20)


def test_raw_bytes_of_a_lane_never_pass_the_plans_buffer(
    make_plan: Callable[..., Any], tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.loading.lane_reader import LaneReader, ReadTask

    plan = make_plan(tmp_path / "plan", [tiny_set], lanes=2, steps=30)
    meta = read_plan_meta(plan.folder)
    most: Counter[int] = Counter()
    original = LaneReader.next_task

    def watched(self: LaneReader, needed_row: int | None) -> ReadTask | None:
        task = original(self, needed_row)
        lane = self.program.lane
        most[lane] = max(most[lane], self.planned_bytes)
        assert self.memory_bytes <= self.program.bound_bytes
        return task

    monkeypatch.setattr(LaneReader, "next_task", watched)
    all_bits(plan.folder, tiny_set, reader_threads=4)
    assert 0 < most[0] <= meta.peak_buffer_bytes[0] and 0 < most[1] <= meta.peak_buffer_bytes[1]


def test_a_lane_that_needs_more_than_the_plan_says_is_refused_not_waited_for(
    make_plan: Callable[..., Any], tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.loading.lane_reader import LaneReader

    plan = make_plan(tmp_path / "plan", [tiny_set], steps=6)
    original = LaneReader.__init__

    def less(self: LaneReader, *some: Any, peak_bytes: int, **options: Any) -> None:
        original(self, *some, peak_bytes=peak_bytes // 2, **options)

    monkeypatch.setattr(LaneReader, "__init__", less)
    with pytest.raises(PlanError, match=r"lane \d holds \d+ bytes in step \d and needs more, the plan allows \d+"):
        all_bits(plan.folder, tiny_set)


@pytest.mark.parametrize("start", [0, 3, 17, 29])
def test_a_seek_opens_each_file_once(
    make_plan: Callable[..., Any], tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    plan = make_plan(tmp_path / "plan", [tiny_set], lanes=1, steps=30)
    loader: PlannedLoader[Any] = PlannedLoader(plan.folder, samples=[tiny_set], start_step=start, reader_threads=2)
    opened: list[str] = []
    original = os.open

    def watched(path: Any, *some: Any, **options: Any) -> int:
        if str(path).endswith(".tar"):
            opened.append(str(path))
        return original(path, *some, **options)

    monkeypatch.setattr(os, "open", watched)
    steps = iter(loader)
    next(steps)
    steps.close()
    assert opened and max(Counter(opened).values()) == 1


def test_carried_clips_are_found_without_a_replay(
    make_plan: Callable[..., Any], tiny_set: Path, tmp_path: Path
) -> None:
    """By definition: read before the row, used in it or later."""
    plan = make_plan(tmp_path / "plan", [tiny_set], lanes=1, micro=2, steps=20)
    meta = read_plan_meta(plan.folder)
    sets = open_sample_sets(meta, [tiny_set])
    program = open_lane(plan.folder, 0, meta, sets, SampleLayout(sets, with_teacher=True, with_image=False))
    some = 0
    for row in range(program.num_rows + 1):
        expected = [a for a in range(len(program.row_A)) if program.row_A[a] < row <= program.last_A[a]]
        assert program.carried_into(row).tolist() == expected
        some += len(expected)
    assert some > 20


def test_the_state_is_the_plan_and_the_next_step(
    make_plan: Callable[..., Any], tiny_plan: Any, tiny_set: Path, tmp_path: Path
) -> None:
    loader: PlannedLoader[Any] = PlannedLoader(tiny_plan.folder, samples=[tiny_set])
    plan_hash = read_plan_meta(tiny_plan.folder).plan_hash
    assert loader.state_dict() == {"plan_hash": plan_hash, "next_step": 0} and len(loader) == 10
    steps = iter(loader)
    assert [next(steps).step for _ in range(3)] == [0, 1, 2]
    state = loader.state_dict()
    assert state == {"plan_hash": plan_hash, "next_step": 3}
    steps.close()
    assert [step.step for step in loader] == [3, 4, 5, 6, 7, 8, 9] and not list(loader)
    other: PlannedLoader[Any] = PlannedLoader(tiny_plan.folder, samples=[tiny_set], stop_step=6)
    other.load_state_dict(state)
    assert [step.step for step in other] == [3, 4, 5]
    foreign = make_plan(tmp_path / "plan", [tiny_set], steps=9)
    with pytest.raises(PlanError, match="the loader's state is of plan"):
        PlannedLoader(foreign.folder, samples=[tiny_set]).load_state_dict(state)


def test_a_second_iteration_ends_the_first(tiny_plan: Any, tiny_set: Path) -> None:
    loader: PlannedLoader[Any] = PlannedLoader(tiny_plan.folder, samples=[tiny_set])
    first = iter(loader)
    next(first)
    second = iter(loader)
    assert next(second).step == 1
    assert list(first) == []
    loader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("planned-loader")]


def test_batches_that_are_kept_are_not_overwritten(tiny_plan: Any, tiny_set: Path) -> None:
    """Memory is recycled when nobody looks at it any more, and not before."""
    loader: PlannedLoader[LaneBatch] = PlannedLoader(tiny_plan.folder, samples=[tiny_set], read_ahead_bytes=0)
    kept: list[tuple[LaneBatch, bytes]] = []
    for step in loader:
        kept += [(batch, batch.latent_BTCHW.tobytes()) for batch in step.batches[:1]]
    assert all(batch.latent_BTCHW.tobytes() == data for batch, data in kept)


def test_memory_comes_back_when_the_last_view_is_gone() -> None:
    memory = BatchMemory(1 << 20)
    array, tensor = memory.take((3, 50))
    address, view = array.ctypes.data, array[1:, ::2]
    assert tensor is None and array.dtype == np.float16
    del array
    other, _ = memory.take((3, 50))
    assert other.ctypes.data != address and view.shape == (2, 25)
    del view
    again, _ = memory.take((2, 60))
    assert again.ctypes.data == address, "a page is recycled for any shape that takes a page"


def test_free_memory_is_given_up_rather_than_pass_the_limit() -> None:
    memory = BatchMemory(64 * 4096)
    arrays = [memory.take((count, 2048))[0] for count in range(1, 9)]
    assert sum(array.nbytes for array in arrays) == 36 * 4096
    del arrays
    larger, _ = memory.take((40, 2048))
    assert larger.nbytes + memory._free_bytes <= 64 * 4096


def test_steps_are_made_ahead_by_bytes_and_by_measured_time() -> None:
    seconds = np.full(10, 2.0)
    ahead = ReadAhead(5, np.full(10, 100), seconds, 350, 1e9)
    for step in (5, 6, 7):
        assert ahead.may_begin(step)
        ahead.begin(step)
    assert not ahead.may_begin(8), "the fourth step would pass 350 bytes"
    assert ahead.give_back(1.0) == 5 and ahead.may_begin(8)
    assert ahead.bound_bytes == 350
    timed = ReadAhead(5, np.full(10, 100), seconds, 1 << 40, 5.0)
    begun = 0
    while timed.may_begin(5 + begun):
        timed.begin(5 + begun)
        begun += 1
    assert begun == 4, "in use, and 2 + 2 + 2 seconds ahead"
    timed.give_back(20.0)  # steps take ten times as long as predicted: less is ahead
    assert not timed.may_begin(9)
    tight = ReadAhead(0, np.array([10, 30, 20]), np.zeros(3), 0, 0.0)
    assert tight.bound_bytes == 50
    tight.begin(0)
    assert tight.may_begin(1), "the next step is always made"
    tight.begin(1)
    assert not tight.may_begin(2)


def test_steps_come_in_order_with_their_wait(tiny_plan: Any, tiny_set: Path) -> None:
    found: list[LoadedStep[Any]] = list(PlannedLoader(tiny_plan.folder, samples=[tiny_set], reader_threads=4))
    assert [step.step for step in found] == list(range(10)) and all(step.wait_ms >= 0 for step in found)
