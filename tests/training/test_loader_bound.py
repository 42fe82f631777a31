"""All of a loader's memory is within its bound: free arrays kept for reuse, rounding, and what replacements hold."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.loader import PlannedLoader
from training.loading.batch_memory import BatchMemory, rounded_bytes
from training.loading.object_store import PART_BYTES

pytestmark = [pytest.mark.timeout(30)]


def test_free_arrays_are_kept_only_within_the_room_that_is_left() -> None:
    memory = BatchMemory(1 << 20)
    arrays = [memory.take((size,))[0] for size in (4096, 8192, 8192, 65536)]
    del arrays
    memory.trim(1 << 20)
    assert memory.free_bytes == 2 * (4096 + 8192 + 8192 + 65536)
    memory.trim(30_000)
    assert memory.free_bytes == 2 * (4096 + 8192), "the largest go first"
    memory.trim(0)
    assert memory.free_bytes == 0
    memory.trim(-1)
    memory.take((10,))
    memory.trim(-1)
    assert memory.free_bytes == 0


def test_a_fresh_array_makes_room_before_it_is_made() -> None:
    memory = BatchMemory(100_000)
    memory.take((8192,))
    memory.trim(20_000)
    assert memory.free_bytes == 16384
    array, _ = memory.take((4096,))
    assert memory.free_bytes == 0, "8192 bytes more leave room for 11808"
    del array


def test_page_locked_memory_is_counted_in_powers_of_two() -> None:
    assert rounded_bytes(4097) == 8192 and rounded_bytes(4097, pinned=True) == 8192
    sizes = np.array([0, 1, 3, 4096, 20_000])
    assert rounded_bytes(sizes, pinned=True).tolist() == [0, 1, 4, 4096, 32768]


def test_free_arrays_count_and_the_bound_holds(tiny_plan: Any, tiny_set: Path) -> None:
    loader: PlannedLoader[Any] = PlannedLoader(tiny_plan.folder, samples=[tiny_set], read_ahead_bytes=0)
    memory, meter = loader._setup.memory, loader._setup.meter
    for _ in loader:
        assert meter.now_bytes + memory.free_bytes <= loader.memory_bound_bytes
    assert 0 < loader.peak_bytes_seen <= loader.memory_bound_bytes


def test_a_replacement_does_not_keep_the_whole_spare(tiny_plan: Any, tiny_set: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(tiny_set, tmp_path / "own"))
    loader: PlannedLoader[Any] = PlannedLoader(
        tiny_plan.folder, samples=[own], with_teacher=True, max_replaced_share=1.0
    )
    (own / "shard-000005.tar").unlink()
    seen = 0
    for step in loader:
        names = {each.replaced_by for each in step.substitutions}
        for clip in (clip for batch in step.batches for clip in batch.clips if clip.clip_id in names):
            if any(text.base is None for text in clip.text_by_kind.values()):
                assert clip.teacher_TYXC is None or clip.teacher_TYXC.base is None
                seen += all(text.base is None for text in clip.text_by_kind.values())
    assert seen > 0


def test_a_part_of_a_store_counts_for_each_reader(tiny_plan: Any, tiny_set: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").put(str(tiny_set), "/bound", recursive=True)
    bounds = [
        PlannedLoader(tiny_plan.folder, samples=[place], reader_threads=3).memory_bound_bytes
        for place in (tiny_set, "memory://bound")
    ]
    assert bounds[1] - bounds[0] == 4 * PART_BYTES
