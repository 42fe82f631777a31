"""The loader's benchmark on a set of a few images: what it counts, and that our side delivers what lies in the tars. Nothing timed is asserted."""

from __future__ import annotations

import io
import mmap
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import loader as bench_script
import loader_clock
from loader_sets import LoaderSet, pack

from schemas.buckets import Bucket

IMAGES = LoaderSet(name="images", bucket=Bucket(1, 32, 48), clips=48, clips_per_shard=12, batch_clips=8)
SCALE = bench_script.Scale(videos=0, images=48, rounds=1, wait_steps=3, far_step=30, workers=(0,), waiting_workers=(1,))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> bench_script.Bench:
    found = bench_script.Bench(what=IMAGES, folder=tmp_path_factory.mktemp("bench"), python=None)
    pack(found.samples, IMAGES)
    try:
        loader_clock.cool(found.tars)
    except RuntimeError:
        pytest.skip("files in the temporary folder cannot be dropped from the page cache")
    return found


def test_throughput_leaves_the_first_batch_out_unless_it_counts_the_whole() -> None:
    found = loader_clock.throughput(lambda: [(5, None), (3, None), (4, None)])
    assert found["samples"] == 7
    assert loader_clock.whole_throughput(lambda: [(5, None), (3, None), (4, None)])["samples"] == 12


def test_waits_are_counted_behind_the_first_batch_and_end_with_the_batches() -> None:
    found = loader_clock.waits(lambda: [(1, None)] * 4, steps=9, step_s=0.0, busy=True)
    assert len(found) == 3


def test_a_file_that_somebody_maps_is_not_taken_for_cold(tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        with pytest.raises(RuntimeError, match=r"100% of .*mapped.* would not be cold"):
            loader_clock.cool([path])


def test_our_side_delivers_what_lies_in_the_tars_and_says_why_it_fails(bench: bench_script.Bench) -> None:
    expected = 0
    for tar in bench.tars:
        with tarfile.open(tar) as archive:
            for info in archive:
                stream = archive.extractfile(info)
                if info.name.endswith(".npy") and stream is not None:
                    expected += zlib.crc32(np.load(io.BytesIO(stream.read()), allow_pickle=False))
    place = bench.plan("digest-plan", lanes=2, batch_clips=4)
    with bench.ours() as ours:
        assert ours.ask("digest", **place) == {"clips": IMAGES.clips, "sum": expected}
        with pytest.raises(SystemExit, match="no plan is there"):
            ours.ask("digest", plan="no plan is there", samples=str(bench.samples))


@pytest.mark.parametrize("measured", [bench_script.throughput_rows, bench_script.wait_rows, bench_script.seek_rows])
def test_without_peers_our_own_rows_are_there(
    bench: bench_script.Bench, measured: Callable[[bench_script.Bench, bench_script.Scale], list[bench_script.Row]]
) -> None:
    found = {line["metric"]: line for line in measured(bench, SCALE)}
    expected = {
        "throughput_rows": {"raw_read_ratio images, cold", "read_gb_per_s images, hot"},
        "wait_rows": {"wait_p99_ms sleeping, cold", "wait_p99_ms computing, cold"},
        "seek_rows": {"seek_ratio", "seek_tars step 30"},
    }
    assert expected[measured.__name__] <= set(found)
    assert not [name for name in found if " vs " in name or name.startswith("speedup_vs_")]
    assert all(line["peer"] is None or measured is bench_script.throughput_rows for line in found.values())
    assert all(np.isfinite(line["value"]) for line in found.values())
