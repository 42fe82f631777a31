"""The loader against the plan: named clips in named steps, forward reads, bounded memory, any start, damage."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from schemas.buckets import Bucket
from schemas.errors import PlanError, ShardError
from schemas.plan import plan_hash, read_lane, read_plan_meta
from schemas.shards import shard_name
from schemas.tables import SAMPLES, read_table
from tests.training.plain_reader import plain_members
from training.loader import LaneBatch, LoadedStep, PlannedLoader
from training.loading import direct_read
from training.loading.clip_arrays import parse_npy
from training.loading.direct_read import Place, SampleReader
from training.loading.read_program import open_lane
from training.loading.sample_layout import SampleLayout
from training.loading.sample_sets import open_sample_sets, open_whole_sets
from training.loading.shard_files import ShardFiles


def load(plan: Path, samples: Path, rank: int = 0, world_size: int = 1, **options: Any) -> list[LoadedStep[LaneBatch]]:
    """All steps of one rank, with copies of the arrays."""
    return list(PlannedLoader(plan, rank, world_size, samples=[samples], **{"with_teacher": True, **options}))


def used(steps: list[LoadedStep[LaneBatch]]) -> list[dict[str, Any]]:
    """What was delivered, in the form of the builder's `uses`."""
    return [
        {
            "lane": batch.lane,
            "step": batch.step,
            "micro": batch.micro,
            "bucket": batch.bucket,
            "clip_ids": [clip.clip_id for clip in batch.clips],
        }
        for step in steps
        for batch in step.batches
    ]


def by_row(uses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(uses, key=lambda use: (use["step"], use["micro"], use["lane"]))


def same_arrays(left: LaneBatch, right: LaneBatch) -> bool:
    return all(
        np.array_equal(a.latent_TCHW, b.latent_TCHW)
        and all(np.array_equal(a.text_by_kind[kind], b.text_by_kind[kind]) for kind in ("long", "short", "first"))
        and (a.teacher_TYXC is None) == (b.teacher_TYXC is None)
        and (a.teacher_TYXC is None or b.teacher_TYXC is None or np.array_equal(a.teacher_TYXC, b.teacher_TYXC))
        for a, b in zip(left.clips, right.clips, strict=True)
    )


def test_one_rank_delivers_exactly_the_clips_that_the_plan_names(tiny_plan: Any, tiny_set: Path) -> None:
    steps = load(tiny_plan.folder, tiny_set)
    assert [step.step for step in steps] == list(range(10))
    assert used(steps) == tiny_plan.uses
    assert all(step.wait_ms >= 0 for step in steps)


def test_two_ranks_together_deliver_the_same_clips_in_the_same_steps(tiny_plan: Any, tiny_set: Path) -> None:
    parts = [used(load(tiny_plan.folder, tiny_set, rank, 2)) for rank in (0, 1)]
    assert {use["lane"] for use in parts[0]} == {0} and {use["lane"] for use in parts[1]} == {1}
    assert by_row(parts[0] + parts[1]) == tiny_plan.uses


def test_arrays_are_those_that_plain_tarfile_finds(tiny_plan: Any, tiny_set: Path) -> None:
    plain = plain_members(tiny_set)
    for step in load(tiny_plan.folder, tiny_set):
        for batch in step.batches:
            for clip in batch.clips:
                assert np.array_equal(clip.latent_TCHW, plain[f"{clip.clip_id}.latent.npy"])
                assert np.array_equal(clip.text_by_kind["short"], plain[f"{clip.clip_id}.text_short.npy"])
                teacher = plain.get(f"{clip.clip_id}.teacher.npy")
                assert (clip.teacher_TYXC is None) == (teacher is None)
                if clip.teacher_TYXC is not None and teacher is not None:
                    assert np.array_equal(clip.teacher_TYXC, teacher)


def test_a_shorter_bucket_takes_the_first_latent_and_teacher_frames(
    make_plan: Callable[..., Any], tiny_set: Path, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path / "plan", [tiny_set], steps=4, longest=33)
    plain = plain_members(tiny_set)
    cut = 0
    for step in load(plan.folder, tiny_set):
        for batch in step.batches:
            for clip in batch.clips:
                whole = plain[f"{clip.clip_id}.latent.npy"]
                frames = batch.bucket.latent_shape[0]
                assert clip.latent_TCHW.shape[0] == frames
                assert np.array_equal(clip.latent_TCHW, whole[:frames])
                if clip.teacher_TYXC is not None:
                    assert np.array_equal(clip.teacher_TYXC, plain[f"{clip.clip_id}.teacher.npy"][:frames])
                cut += whole.shape[0] > frames
    assert cut > 0


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lanes=st.integers(1, 3),
    micro=st.integers(1, 3),
    steps=st.integers(2, 6),
    batch=st.fixed_dictionaries({1: st.integers(1, 2), 33: st.integers(1, 2), 65: st.integers(1, 2)}),
    data=st.data(),
)
def test_any_plan_from_any_step_is_the_tail_of_the_whole(
    make_plan: Callable[..., Any],
    tiny_set: Path,
    tmp_path_factory: pytest.TempPathFactory,
    lanes: int,
    micro: int,
    steps: int,
    batch: dict[int, int],
    data: st.DataObject,
) -> None:
    plan = make_plan(
        tmp_path_factory.mktemp("plan") / "p", [tiny_set], lanes=lanes, micro=micro, steps=steps, batch=batch
    )
    start = data.draw(st.integers(0, steps), label="start")
    whole = load(plan.folder, tiny_set)
    tail = load(plan.folder, tiny_set, start_step=start)
    assert used(tail) == [use for use in plan.uses if use["step"] >= start]
    for left, right in zip(whole[start:], tail, strict=True):
        assert all(same_arrays(a, b) for a, b in zip(left.batches, right.batches, strict=True))
    meta = read_plan_meta(plan.folder)
    sets = open_sample_sets(meta, [tiny_set])
    for lane in range(lanes):  # the builder counts every (read, use) span by itself
        layout = SampleLayout(sets, with_teacher=True, with_image=False)
        program = open_lane(plan.folder, lane, meta, sets, layout)
        assert program.peak_planned_bytes == meta.peak_buffer_bytes[lane]


Read = tuple[str, int, list[int]]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Read]:
    """Every (shard, offset, lengths of the samples) that is read while the test runs."""
    seen: list[Read] = []
    original = SampleReader.read

    def spy(self: SampleReader, first: int, places: Sequence[Place | None], **ahead: int) -> list[Any]:
        sets, stop = self._sets, first + len(places)
        name = Path(sets.addresses[sets.shard_N[first]]).name
        seen.append((name, int(sets.offset_N[first]), sets.length_N[first:stop].tolist()))
        return original(self, first, places, **ahead)

    monkeypatch.setattr(SampleReader, "read", spy)
    return seen


def test_each_planned_range_is_read_in_one_call_and_once(
    tiny_plan: Any, tiny_set: Path, reads: list[Read], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = direct_read.compiled_read()
    assert original is not None, "zlib-ng is missing: every sample takes the long way"
    monkeypatch.setattr(direct_read, "compiled_read", lambda: lambda *some: calls.append(1) or original(*some))
    monkeypatch.setattr(os, "preadv", None)  # nothing is read a second time
    load(tiny_plan.folder, tiny_set, rank=1, world_size=2)
    meta = read_plan_meta(tiny_plan.folder)
    planned = [
        (meta.sets[0].shard_names[read["shard"]], read["offset"], read["length"])
        for row in read_lane(tiny_plan.folder, 1, meta).to_pylist()
        for read in row["reads"]
    ]
    assert sorted((shard, offset, sum(lengths)) for shard, offset, lengths in reads) == sorted(planned)
    assert len(calls) == len(planned) < sum(len(lengths) for _, _, lengths in reads)


def test_one_unreadable_block_costs_one_sample_of_the_range(tiny_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [r for r in read_table(tiny_set / "samples.parquet", SAMPLES).to_pylist() if r["shard_index"] == 0]
    bad = rows[2]["offset"] + 100
    original = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset <= bad < offset + sum(map(len, buffers)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(descriptor, buffers[:2], offset)  # and short reads, as of a slow disk

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(direct_read, "compiled_read", lambda: None)
    sets, files = open_whole_sets([tiny_set]), ShardFiles()
    reader = SampleReader(sets, SampleLayout(sets, with_teacher=True, with_image=False), files)
    found = reader.read(0, [None] * len(rows))
    files.close()
    whole = (tiny_set / "shard-000000.tar").read_bytes()
    for index, (row, sample) in enumerate(zip(rows, found, strict=True)):
        if index == 2:
            assert isinstance(sample, ShardError) and "Input/output error" in str(sample)
        else:
            assert sample == whole[row["offset"] : row["offset"] + row["length"]]


@pytest.mark.parametrize("start_step", [0, 5])
def test_the_kernel_is_asked_ahead_only_for_what_the_lane_reads(
    tiny_plan: Any, tiny_set: Path, monkeypatch: pytest.MonkeyPatch, start_step: int
) -> None:
    asked: list[tuple[str, int, int]] = []

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_WILLNEED:
            asked.append((os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")), offset, offset + length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(direct_read, "_AHEAD_BYTES", 512)
    for _ in PlannedLoader(tiny_plan.folder, samples=[tiny_set], start_step=start_step):
        pass
    meta, planned = read_plan_meta(tiny_plan.folder), defaultdict(set)
    for lane in range(meta.num_lanes):
        for row in read_lane(tiny_plan.folder, lane, meta).to_pylist():
            for read in row["reads"]:
                blocks = range(read["offset"] // 512, (read["offset"] + read["length"]) // 512)
                planned[shard_name(read["shard"])] |= set(blocks)
    assert asked
    for name, begin, end in asked:
        assert begin < end and set(range(begin // 512, end // 512)) <= planned[name], (name, begin, end)


@pytest.mark.parametrize("reader_threads", [1, 3])
def test_reading_goes_on_while_a_batch_is_prepared(
    tiny_plan: Any, tiny_set: Path, reads: list[Read], reader_threads: int
) -> None:
    """Rows leave their lanes as they become complete, and not as the maker comes to them."""
    may_go, found = threading.Event(), []

    def prepare(batch: LaneBatch) -> int:
        assert may_go.wait(20)
        return batch.step

    loader = PlannedLoader(tiny_plan.folder, samples=[tiny_set], prepare=prepare, reader_threads=reader_threads)
    meta = read_plan_meta(tiny_plan.folder)
    rows = [row for lane in range(2) for row in read_lane(tiny_plan.folder, lane, meta).to_pylist()]
    consumer = threading.Thread(target=lambda: found.extend(loader))
    consumer.start()
    assert wait_until(lambda: len(reads) == sum(len(row["reads"]) for row in rows), seconds=20), (
        "reads wait for the maker"
    )
    may_go.set()
    consumer.join(20)
    assert [step.step for step in found] == list(range(10))


def test_no_more_than_the_promised_steps_are_in_memory(tiny_plan: Any, tiny_set: Path) -> None:
    begun: list[int] = []
    next_is_loaded = threading.Event()

    def prepare(batch: LaneBatch) -> int:
        begun.append(batch.step)
        if batch.step == 1 and batch.lane == 1 and batch.micro == 1:
            next_is_loaded.set()
        return batch.step

    loader = PlannedLoader(tiny_plan.folder, samples=[tiny_set], prepare=prepare, read_ahead_bytes=0)
    steps = iter(loader)
    assert next(steps).step == 0
    assert next_is_loaded.wait(20)
    assert not wait_until(lambda: max(begun) > 1, seconds=0.3), "a third step while the first is in use"
    assert next(steps).step == 1
    assert wait_until(lambda: max(begun) > 1, seconds=20), "the step given back makes no room"
    steps.close()


def wait_until(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.01)
    return done()


def test_reads_go_forward_and_each_used_sample_is_read_once_per_epoch(
    tiny_plan: Any, tiny_set: Path, reads: list[Read]
) -> None:
    load(tiny_plan.folder, tiny_set, rank=1, world_size=2, reader_threads=1)
    named = sum(len(use["clip_ids"]) for use in tiny_plan.uses if use["lane"] == 1)
    assert sum(len(lengths) for _, _, lengths in reads) == named
    order = [(shard, offset) for shard, offset, _ in reads]  # one reader: the order of several is that of their start
    turns = {(before[0], after[0]) for before, after in pairwise(order) if after < before}
    assert turns <= {(max(order)[0], min(order)[0])}, (
        "only a new epoch goes back, from the lane's last shard to its first"
    )


@pytest.mark.parametrize("start", [1, 5, 9, 10])
def test_starting_late_reads_only_what_is_still_used(
    tiny_plan: Any, tiny_set: Path, reads: list[Read], start: int
) -> None:
    load(tiny_plan.folder, tiny_set, start_step=start)
    assert sum(len(lengths) for _, _, lengths in reads) == sum(
        len(use["clip_ids"]) for use in tiny_plan.uses if use["step"] >= start
    )


def damage(samples: Path, clip_id: str, member: str = "latent.npy") -> None:
    """Flip one bit in the middle of a member's data."""
    for row in read_table(samples / "samples.parquet", SAMPLES).to_pylist():
        if row["clip_id"] == clip_id:
            found = next(entry for entry in row["members"] if entry["name"] == member)
            with (samples / f"shard-{row['shard_index']:06d}.tar").open("r+b") as stream:
                stream.seek(found["offset"] + found["length"] // 2)
                byte = stream.read(1)[0]
                stream.seek(-1, io.SEEK_CUR)
                stream.write(bytes([byte ^ 1]))


@pytest.fixture
def own_set(tiny_set: Path, tmp_path: Path) -> Path:
    """A copy of the set that a test may damage."""
    return Path(shutil.copytree(tiny_set, tmp_path / "tiny"))


def spare_of(samples: Path, bucket: Bucket, lane: int, lanes: int = 2) -> dict[str, Any]:
    """The last clip of a bucket among a lane's shards."""
    rows = read_table(samples / "samples.parquet", SAMPLES).to_pylist()
    fitting = [
        row
        for row in rows
        if row["shard_index"] % lanes == lane
        and (row["frames"], row["height"], row["width"]) == (bucket.frames, bucket.height, bucket.width)
    ]
    return fitting[-1]


@pytest.mark.parametrize("member", ["latent.npy", "text_first.npy"])
def test_a_damaged_clip_is_replaced_by_the_spare_of_its_bucket(
    make_plan: Callable[..., Any], own_set: Path, tmp_path: Path, member: str
) -> None:
    bucket = Bucket(33, 32, 48)
    spare = spare_of(own_set, bucket, lane=1)
    plan = make_plan(
        tmp_path / "plan", [own_set], steps=4, spares=[(1, 33, 32, 48, spare["shard_index"], spare["ordinal"])]
    )
    victim = next(use for use in plan.uses if use["lane"] == 1 and use["bucket"] == bucket)
    damage(own_set, victim["clip_ids"][0], member)
    steps = load(plan.folder, own_set)
    found = [substitution for step in steps for substitution in step.substitutions]
    times = sum(use["clip_ids"].count(victim["clip_ids"][0]) for use in plan.uses)
    assert len(found) == times > 0
    assert found[0].clip_id == victim["clip_ids"][0]
    assert (found[0].replaced_by, found[0].replacement) == (spare["clip_id"], "spare")
    assert (found[0].step, found[0].micro, found[0].lane) == (victim["step"], victim["micro"], 1)
    assert member in found[0].reason and "crc32" in found[0].reason
    assert found == [s for step in load(plan.folder, own_set) for s in step.substitutions], "not repeatable"


def test_without_spares_an_earlier_clip_of_lane_and_bucket_takes_the_place(tiny_plan: Any, own_set: Path) -> None:
    bucket = Bucket(1, 32, 48)
    victim = [use for use in tiny_plan.uses if use["lane"] == 0 and use["bucket"] == bucket][1]
    damage(own_set, victim["clip_ids"][1])
    found = [s for step in load(tiny_plan.folder, own_set) for s in step.substitutions]
    earlier = {
        name
        for use in tiny_plan.uses
        if use["lane"] == 0 and use["bucket"] == bucket and use["step"] < victim["step"]
        for name in use["clip_ids"]
    }
    assert found[0].replacement == "earlier"
    assert found[0].replaced_by in earlier - set(victim["clip_ids"])


@pytest.mark.parametrize("num_spares", [0, 1])
def test_two_damaged_clips_of_a_step_get_places_that_the_step_lacks(
    make_set: Callable[..., Path], make_plan: Callable[..., Any], clip_type: Any, tmp_path: Path, num_spares: int
) -> None:
    samples = make_set(tmp_path / "images", [clip_type(1)] * 14)
    spares = [(0, 1, 32, 48, 1, 6)][:num_spares]
    plan = make_plan(tmp_path / "plan", [samples], lanes=1, micro=2, steps=3, batch={1: 2}, spares=spares)
    last = [use for use in plan.uses if use["step"] == 2]
    for use in last:
        damage(samples, use["clip_ids"][0])
    step = load(plan.folder, samples)[2]
    assert [found.replacement for found in step.substitutions] == [["earlier"] * 2, ["spare", "earlier"]][num_spares]
    delivered = [clip.clip_id for batch in step.batches for clip in batch.clips]
    assert len(set(delivered)) == 4, "a clip stands twice in one step"


def test_a_lane_of_few_clips_repeats_one_rather_than_stop(
    make_set: Callable[..., Path], make_plan: Callable[..., Any], clip_type: Any, tmp_path: Path
) -> None:
    samples = make_set(tmp_path / "images", [clip_type(1)] * 4)
    plan = make_plan(tmp_path / "plan", [samples], lanes=1, micro=2, steps=1, batch={1: 1})
    damage(samples, plan.uses[1]["clip_ids"][0])
    found = [s for step in load(plan.folder, samples) for s in step.substitutions]
    assert [s.replaced_by for s in found] == plan.uses[0]["clip_ids"]


def test_with_nothing_to_take_its_place_the_run_stops_in_words(tiny_plan: Any, own_set: Path) -> None:
    first = tiny_plan.uses[0]
    for name in first["clip_ids"]:
        damage(own_set, name)
    with pytest.raises(ShardError, match=r"step 0, lane 0: clip .* no readable spare and no earlier clip of bucket"):
        load(tiny_plan.folder, own_set)


def test_a_shard_that_breaks_off_costs_only_the_clips_behind_the_break(tiny_plan: Any, own_set: Path) -> None:
    shard = own_set / "shard-000004.tar"
    rows = [r for r in read_table(own_set / "samples.parquet", SAMPLES).to_pylist() if r["shard_index"] == 4]
    with shard.open("r+b") as stream:
        stream.truncate(rows[-2]["offset"] + 700)
    lost = {row["clip_id"] for row in rows[-2:]}
    found = [s for step in load(tiny_plan.folder, own_set) for s in step.substitutions]
    named = {name for use in tiny_plan.uses for name in use["clip_ids"]}
    assert {substitution.clip_id for substitution in found} == lost & named != set()
    assert all("cut off" in substitution.reason for substitution in found)


def test_a_member_of_another_clip_is_noticed(tiny_plan: Any, own_set: Path) -> None:
    victim = [use for use in tiny_plan.uses if use["lane"] == 0][-1]["clip_ids"][0]
    for path in own_set.glob("*.tar"):
        path.write_bytes(path.read_bytes().replace(f"{victim}.latent".encode(), f"{'0' * 24}.latent".encode()))
    found = [s for step in load(tiny_plan.folder, own_set) for s in step.substitutions]
    assert {s.clip_id for s in found} == {victim}
    assert "where" in found[0].reason and victim in found[0].reason


def test_a_plan_of_other_samples_is_refused(
    tiny_plan: Any, make_set: Callable[..., Path], tmp_path: Path, tiny_set: Path
) -> None:
    other = make_set(tmp_path / "other", seed=1)
    meta = read_plan_meta(tiny_plan.folder)
    with pytest.raises(PlanError, match="built for other samples"):
        open_sample_sets(meta, [other])
    assert open_sample_sets(meta, [other, tiny_set]).folders == (tiny_set,)


def test_a_missing_shard_and_a_world_that_does_not_divide_are_refused(tiny_plan: Any, own_set: Path) -> None:
    with pytest.raises(PlanError, match="2 lanes"):
        load(tiny_plan.folder, own_set, world_size=3)
    with pytest.raises(PlanError, match="steps 0 up to 11 asked for, the plan has 0 up to 10"):
        load(tiny_plan.folder, own_set, stop_step=11)
    (own_set / "shard-000002.tar").unlink()
    with pytest.raises(ValueError, match=r"shard-000002\.tar is missing"):
        load(tiny_plan.folder, own_set)


def test_a_plan_that_understates_its_buffer_is_refused(tiny_plan: Any, tiny_set: Path, tmp_path: Path) -> None:
    plan = Path(shutil.copytree(tiny_plan.folder, tmp_path / "plan"))
    values = json.loads((plan / "plan.json").read_text())
    values["peak_buffer_bytes"][1] -= 1
    values["plan_hash"] = plan_hash(values)
    (plan / "plan.json").write_text(json.dumps(values))
    with pytest.raises(PlanError, match="lane 1 holds up to"):
        load(plan, tiny_set)


def test_leaving_the_loop_early_ends_the_thread(tiny_plan: Any, tiny_set: Path) -> None:
    loader = PlannedLoader(tiny_plan.folder, samples=[tiny_set])
    steps = iter(loader)
    assert next(steps).step == 0
    running = [thread for thread in threading.enumerate() if thread.name.startswith("planned-loader")]
    assert len(running) == 3
    steps.close()  # would hang if a thread waited for room
    assert not any(thread.is_alive() for thread in running)


@given(
    array=hypothesis_numpy.arrays(
        dtype=st.sampled_from(["<f2", "<f4", "<i8", "|u1"]),
        shape=hypothesis_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
        elements=st.integers(0, 100),
    ),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0)]),
)
def test_npy_bytes_come_back_as_numpy_wrote_them(array: np.ndarray, version: tuple[int, int]) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array).reshape(array.shape), version=version)
    found = parse_npy(memoryview(stream.getvalue()))
    assert found.dtype == array.dtype and found.shape == array.shape and np.array_equal(found, array)


def npy(header: str) -> bytes:
    """A version 1 file of that header and 12 bytes of data."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(12)


@pytest.mark.parametrize(
    "data",
    [
        b"\x93NUMPY",
        npy("{'descr': '<f2', "),
        npy("{'descr': '<f2'}"),
        npy("7"),
        npy("[]"),
        npy("{'descr': 'no type', 'fortran_order': False, 'shape': (2, 3)}"),
        npy("{'descr': '<f2', 'fortran_order': False, 'shape': 'x'}"),
        npy("{'descr': '<f2', 'fortran_order': False, 'shape': (99999999999999999999, 1)}"),
        npy("{'descr': '<f2', 'fortran_order': False, 'shape': (7, 1)}"),
    ],
)
def test_a_damaged_npy_is_a_value_error_whatever_the_damage(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_npy(memoryview(data))


@given(st.binary(max_size=80))
def test_no_header_of_any_bytes_gets_through_as_another_error(text: bytes) -> None:
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    with contextlib.suppress(ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the parser, about odd literals
        parse_npy(memoryview(data))


@pytest.mark.parametrize(
    "array", [np.array([{"a": 1}], dtype=object), np.asfortranarray(np.ones((2, 3))), np.array(["text"])]
)
def test_npy_with_objects_text_or_fortran_order_is_refused(array: np.ndarray) -> None:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    with pytest.raises(ValueError, match="expected numbers in C order"):
        parse_npy(memoryview(stream.getvalue()))
    with pytest.raises(ValueError, match=r"not a \.npy file"):
        parse_npy(memoryview(b"PK\x03\x04 something else"))


def test_a_plan_that_continues_another_is_followed_by_its_own_step_numbers(
    tiny_set: Path, make_plan: Callable[..., Any], tmp_path: Path
) -> None:
    plan = make_plan(tmp_path / "plan", [tiny_set], steps=5, first_step=7)
    delivered = load(plan.folder, tiny_set)
    assert [step.step for step in delivered] == [7, 8, 9, 10, 11]
    assert by_row(used(delivered)) == by_row(plan.uses)
    assert [step.step for step in load(plan.folder, tiny_set, start_step=10)] == [10, 11]
    with pytest.raises(PlanError, match="steps 6 up to 12 asked for, the plan has 7 up to 12"):
        load(plan.folder, tiny_set, start_step=6)
