"""What is no damage of a clip ends the loader in words: a system that refuses, a store that gives up, too many lost clips, wrong numbers."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import DataError, ServiceError, ShardError, UsageError
from training.loader import LoadedStep, PlannedLoader
from training.loading import direct_read
from training.loading.clip_arrays import check_clip_id
from training.loading.object_store import ObjectStore, ReadingStoppedError, StoreSettings
from training.loading.replaced_share import ReplacedShare
from training.loading.shard_files import ShardFiles

pytestmark = [pytest.mark.timeout(30)]


def load(plan: Path, samples: Path | str, **options: Any) -> list[LoadedStep[Any]]:
    return list(PlannedLoader(plan, samples=[samples], **options))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ESTALE, errno.ENOMEM])
@pytest.mark.parametrize("call", ["open", "preadv"])
def test_a_system_that_refuses_costs_no_clip_but_ends_the_loader(
    tiny_plan: Any, tiny_set: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    original = getattr(os, call)

    def refuse(first: Any, *more: Any, **options: Any) -> Any:
        if call == "preadv" or str(first).endswith("shard-000003.tar"):
            raise OSError(number, os.strerror(number))
        return original(first, *more, **options)

    loader: PlannedLoader[Any] = PlannedLoader(tiny_plan.folder, samples=[tiny_set])
    monkeypatch.setattr(os, call, refuse)
    if call == "preadv":  # the compiled way calls the system's own function, which refuses too
        monkeypatch.setattr(direct_read, "compiled_read", lambda: None)
    with pytest.raises(ServiceError, match=rf"cannot read bytes \d+ to \d+ \({errno.errorcode[number]}.*no clip was"):
        list(loader)


def test_a_system_that_refuses_a_replacement_is_not_passed_over_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shard").write_bytes(bytes(10))
    files = ShardFiles()
    with pytest.raises(ShardError, match="ends 2 bytes before 12"):
        files.read(str(tmp_path / "shard"), 0, 12)
    with pytest.raises(ShardError, match="No such file"):
        files.read(str(tmp_path / "none"), 0, 12)
    with pytest.raises(ServiceError, match="EISDIR"):
        files.read(str(tmp_path), 0, 12)
    files.close()


def test_a_lost_share_of_the_clips_above_the_limit_ends_the_loader(
    tiny_plan: Any, tiny_set: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(tiny_set, tmp_path / "own"))
    loaders = {share: PlannedLoader(tiny_plan.folder, samples=[own], max_replaced_share=share) for share in (0.0, 1.0)}
    (own / "shard-000005.tar").unlink()
    whole = list(loaders[1.0])
    first = next(step for step in whole if step.substitutions)
    seen = []
    with pytest.raises(DataError, match=r"loader.max_replaced_share\); the last one: shard .*shard-000005.tar"):
        for step in loaders[0.0]:
            seen.append(step.step)
    assert seen == list(range(first.step)), "the steps before it are delivered"


def test_the_share_is_of_the_clips_of_a_hundred_steps() -> None:
    limit = ReplacedShare(0.1)
    for step in range(50):
        limit.add(step, 8, 1)
    for step in range(50, 80):
        limit.add(step, 8, 0)
    limit.add(80, 8, 8)
    limit.add(81, 8, 8)
    with pytest.raises(DataError, match=r"steps 0 to 83: 82 of this rank's 672 clips .* more than 0\.1 of"):
        for step in (82, 83):
            limit.add(step, 8, 8)
    limit = ReplacedShare(0.1)
    for step in range(1000):
        limit.add(step, 10, 1)  # forgotten after 100 steps
    with pytest.raises(DataError):
        limit.add(1000, 10, 2, "torn")


def test_a_dead_disk_ends_the_loader_after_a_tenth_of_a_hundred_steps() -> None:
    limit = ReplacedShare(0.1)
    for step in range(10):
        limit.add(step, 8, 8)
    with pytest.raises(DataError, match="the last one: torn"):
        limit.add(10, 8, 8, "torn")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reader_threads", 0),
        ("read_ahead_bytes", -1),
        ("read_ahead_seconds", -1.0),
        ("read_ahead_seconds", float("nan")),
        ("store_timeout_seconds", 0.0),
        ("store_tries", 0),
        ("max_replaced_share", 1.5),
    ],
)
def test_numbers_that_would_hang_later_are_refused_at_once(
    tiny_plan: Any, tiny_set: Path, name: str, value: float
) -> None:
    with pytest.raises(UsageError, match=rf"{name} is {value}, expected"):
        PlannedLoader(tiny_plan.folder, samples=[tiny_set], **{name: value})


def test_a_reading_called_off_by_nobody_is_an_error_and_not_a_wait_for_ever(
    tiny_plan: Any, tiny_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called_off(*_: Any) -> int:
        raise ReadingStoppedError("by nobody")

    loader: PlannedLoader[Any] = PlannedLoader(tiny_plan.folder, samples=[tiny_set])
    monkeypatch.setattr(ShardFiles, "opened", called_off)
    with pytest.raises(ReadingStoppedError, match="by nobody"):
        list(loader)


def test_a_request_that_the_client_cancels_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/cancelled/shard", bytes(range(100)))
    failures = [CancelledError(), CancelledError()]
    original: Callable[..., Any] = ObjectStore._call

    def call(self: ObjectStore, *arguments: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return original(self, *arguments, **options)

    monkeypatch.setattr(ObjectStore, "_call", call)
    data = bytearray(10)
    with ObjectStore(StoreSettings(back_off_seconds=0.01)) as store:
        assert store.read_into("memory://cancelled/shard", 5, [memoryview(data)]) == 10
    assert data == bytes(range(5, 15))
    failures += [CancelledError()]
    closed = ObjectStore()
    closed.close()
    with pytest.raises(ReadingStoppedError):
        closed.read("memory://cancelled/shard")


@pytest.mark.parametrize(
    "record",
    [
        b'{"near": {"clip_id":"a"}, "clip_id": "b"}',
        b'{"clip_id": "b", "near": [{"clip_id": "a"}]}',
        b'{"near": {"clip_id": "a"}}',
        b'{"clip_id": "a", "clip_id": "b"}',
    ],
)
def test_only_the_records_own_clip_id_counts(record: bytes) -> None:
    with pytest.raises(ShardError, match=r"json (is that of clip 'b'|has no clip_id)"):
        check_clip_id("a", record)
