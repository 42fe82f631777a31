"""Sets in object stores, behind a real local S3 server: the same batches, and every way to fail ends in a sentence or a spare, never a hang."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import numpy as np
import pytest

from schemas.errors import DataError, ServiceError
from training.loader import LoadedStep, PlannedLoader
from training.loading.object_store import ObjectStore, StoreSettings, is_url
from training.loading.set_folders import open_set, place_of

pytestmark = [pytest.mark.timeout(90)]

QUICK = {"store_timeout_seconds": 1.0, "store_tries": 3}


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, loaded)
    spec.loader.exec_module(loaded)
    return loaded


FAULTY = module(Path(__file__).parent / "faulty_store.py")
Fault = FAULTY.Fault


@pytest.fixture(scope="module")
def s3_server() -> Iterator[Any]:
    with module(Path(__file__).parents[1] / "curation" / "s3_server.py").serve() as server:
        yield server


@pytest.fixture
def store(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The faulty proxy, as the environment's endpoint."""
    with FAULTY.proxy(s3_server.endpoint) as found:
        for name, value in {**s3_server.environment, "AWS_ENDPOINT_URL": found.endpoint}.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture(scope="module")
def uploaded(s3_server: Any, tiny_set: Path) -> str:
    """`tiny_set` in a bucket; its URL. Not to be changed."""
    return upload(s3_server, tiny_set, "sets/tiny")


def client(server: Any) -> Any:
    """Of the server itself, without faults."""
    keys = {"key": "test", "secret": "test", "endpoint_url": server.endpoint}
    return fsspec.filesystem("s3", skip_instance_cache=True, **keys)


def upload(server: Any, folder: Path, name: str) -> str:
    system = client(server)
    bucket = name.partition("/")[0]
    if not system.exists(bucket):
        system.mkdir(bucket)
    system.put(str(folder), name, recursive=True)
    return f"s3://{name}"


def load(plan: Path, samples: str | Path, **options: Any) -> list[LoadedStep[Any]]:
    return list(PlannedLoader(plan, samples=[samples], with_teacher=True, **{**QUICK, **options}))


def assert_same(left: list[LoadedStep[Any]], right: list[LoadedStep[Any]]) -> None:
    assert [step.step for step in left] == [step.step for step in right]
    for ours, theirs in zip(left, right, strict=True):
        for a, b in zip(ours.batches, theirs.batches, strict=True):
            assert a.clip_ids == b.clip_ids
            assert a.latent_BTCHW.tobytes() == b.latent_BTCHW.tobytes()
            for one, other in zip(a.clips, b.clips, strict=True):
                assert all(
                    np.array_equal(one.text_by_kind[kind], other.text_by_kind[kind]) for kind in one.text_by_kind
                )


def no_thread_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("planned-loader")]


def test_a_bucket_gives_the_batches_of_the_folder(tiny_plan: Any, tiny_set: Path, uploaded: str, store: Any) -> None:
    assert_same(load(tiny_plan.folder, uploaded), load(tiny_plan.folder, tiny_set))
    assert store.ranges and no_thread_is_left()


def test_any_store_that_fsspec_knows_will_do(tiny_plan: Any, tiny_set: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(tiny_set), "/sets/tiny", recursive=True)
    assert_same(load(tiny_plan.folder, "memory://sets/tiny/"), load(tiny_plan.folder, tiny_set))
    memory.rm("/sets", recursive=True)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("slow_down", "shard-00000", times=2),
        Fault("reset", "shard-00000", times=2),
        Fault("reset", "shard-00000", after_bytes=3000, times=2),
        Fault("break", "shard-00000", after_bytes=5000, times=2),
        Fault("stall", "shard-000001", after_bytes=100, times=1),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.after_bytes}",
)
def test_a_store_that_fails_for_a_while_changes_nothing(
    tiny_plan: Any, tiny_set: Path, uploaded: str, store: Any, fault: Any
) -> None:
    store.faults = [fault]
    assert_same(load(tiny_plan.folder, uploaded), load(tiny_plan.folder, tiny_set))
    assert fault.times == 0, "the fault was not met"


@pytest.mark.parametrize("kind", ["stall", "reset", "break", "trickle", "slow_down"])
def test_a_store_that_goes_on_failing_ends_in_words(tiny_plan: Any, uploaded: str, store: Any, kind: Any) -> None:
    store.faults = [Fault(kind, "shard-000002.tar", after_bytes=10)]
    with pytest.raises(ServiceError, match=r"shard-000002\.tar cannot be read, tried 3 times in a row"):
        load(tiny_plan.folder, uploaded, store_timeout_seconds=0.5)
    assert no_thread_is_left()


def test_a_transfer_that_breaks_off_goes_on_where_it_was(tmp_path: Path, s3_server: Any, store: Any) -> None:
    (tmp_path / "large").mkdir()
    data = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
    (tmp_path / "large" / "a.tar").write_bytes(data)
    address = upload(s3_server, tmp_path / "large", "large/x") + "/a.tar"
    store.ranges.clear()
    store.faults = [Fault("break", "a.tar", after_bytes=1_000_000, times=2)]
    pieces = [memoryview(bytearray(size)) for size in (1, 1_900_000, 499_999)]
    with ObjectStore(StoreSettings(timeout_seconds=5, tries=2, back_off_seconds=0.01)) as reader:
        assert reader.read_into(address, 500_000, pieces) == 2_400_000
    assert b"".join(pieces) == data[500_000:2_900_000]
    starts = [first for _, first, _ in store.ranges]
    assert len(starts) == 3 and starts[0] == 500_000
    assert all(later - earlier > 900_000 for earlier, later in pairwise(starts)), starts


def test_an_object_that_ends_early_is_a_short_count_not_an_error(tmp_path: Path, s3_server: Any, store: Any) -> None:
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "a.tar").write_bytes(b"x" * 1000)
    address = upload(s3_server, tmp_path / "short", "short/x") + "/a.tar"
    with ObjectStore(StoreSettings(timeout_seconds=5, tries=2, back_off_seconds=0.01)) as reader:
        assert reader.read_into(address, 600, [memoryview(bytearray(1000))]) == 400
        assert reader.read_into(address, 5000, [memoryview(bytearray(10))]) == 0
        with pytest.raises(FileNotFoundError):
            reader.read_into(address + "x", 0, [memoryview(bytearray(10))])


def test_a_shard_that_is_gone_or_cut_off_in_the_bucket_costs_its_clips_alone(
    make_plan: Callable[..., Any], tiny_set: Path, tmp_path: Path, s3_server: Any, store: Any
) -> None:
    own = Path(shutil.copytree(tiny_set, tmp_path / "own"))
    plan = make_plan(tmp_path / "plan", [own])
    with (own / "shard-000004.tar").open("r+b") as stream:
        stream.truncate(20_000)
    address = upload(s3_server, own, "cut/tiny")
    loader: PlannedLoader[Any] = PlannedLoader(plan.folder, samples=[address], **QUICK)
    assert len(loader.notes) == 1 and "shard-000004.tar has 20000 bytes, the plan says" in loader.notes[0]
    client(s3_server).rm("cut/tiny/shard-000005.tar")
    steps = list(loader)
    found = {substitution.shard: substitution.reason for step in steps for substitution in step.substitutions}
    assert set(found) == {4, 5}
    assert "the file is cut off" in found[4] and "cannot read bytes" in found[5]
    assert [len(step.batches) for step in steps] == [4] * 10


def test_what_is_missing_at_the_start_is_said(
    tiny_plan: Any, tiny_set: Path, tmp_path: Path, s3_server: Any, store: Any
) -> None:
    own = Path(shutil.copytree(tiny_set, tmp_path / "own"))
    (own / "shard-000001.tar").unlink()
    address = upload(s3_server, own, "missing/tiny")
    with pytest.raises(DataError, match=r"shard s3://missing/tiny/shard-000001\.tar is missing"):
        load(tiny_plan.folder, address)
    with pytest.raises(DataError, match=r"s3://missing/other is not a set folder: set\.json is missing"):
        load(tiny_plan.folder, "s3://missing/other")


def test_closing_while_a_store_stalls_takes_no_time(tiny_plan: Any, uploaded: str, store: Any) -> None:
    store.faults = [Fault("stall", "shard-000004.tar")]
    loader: PlannedLoader[Any] = PlannedLoader(tiny_plan.folder, samples=[uploaded], store_timeout_seconds=60)
    steps = iter(loader)
    next(steps)
    while store.faults[0].times == 1 << 30:
        time.sleep(0.01)
    began = time.monotonic()
    steps.close()
    assert time.monotonic() - began < 20, "waited for the store's time-out"
    assert no_thread_is_left()


def test_addresses_are_told_from_paths() -> None:
    assert is_url("s3://bucket/a") and is_url("memory://a") and not is_url("/a/b") and not is_url("file:///a")
    assert place_of("s3://bucket/a/") == "s3://bucket/a" and place_of("file:///a/b") == Path("/a/b")
    assert place_of(Path("a")) == Path("a") and place_of("a/b") == Path("a/b")


def test_shards_may_lie_elsewhere_than_the_set(
    tiny_plan: Any, tiny_set: Path, tmp_path: Path, uploaded: str, store: Any
) -> None:
    """`location` of set.json: a local samples table of tars in a bucket."""
    own = Path(shutil.copytree(tiny_set, tmp_path / "own", ignore=shutil.ignore_patterns("*.tar")))
    text = (own / "set.json").read_text().replace('"location": null', f'"location": "{uploaded}"')
    (own / "set.json").write_text(text)
    assert open_set(own).shard_address("a.tar") == f"{uploaded}/a.tar"
    assert_same(load(tiny_plan.folder, own), load(tiny_plan.folder, tiny_set))


def test_a_run_trains_on_a_set_in_a_bucket_as_on_the_folder(
    run_arguments: Callable[..., list[str]], tiny_set: Path, uploaded: str, tmp_path: Path, store: Any
) -> None:
    """`reelyard-train run --samples s3://...`: the null text, the table and the shards come from the store; losses are equal to the last bit."""
    from training.cli import main
    from training.metrics import read_lines

    losses = []
    for name, samples in (("folder", str(tiny_set)), ("bucket", uploaded)):
        arguments = run_arguments(tmp_path / name, steps=2)
        arguments[arguments.index("--samples") + 1] = samples
        assert main(["run", *arguments]) == 0
        losses.append([line["loss_hex"] for line in read_lines(tmp_path / name / "metrics.jsonl")])
    assert len(losses[0]) == 2 and losses[0] == losses[1]
