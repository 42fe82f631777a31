"""The one measuring function, on schedules small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from planner.baselines.outcomes import METRICS, Reads, Schedule, Setup, Uses, full_steps, measure


def setup(**values: object) -> Setup:
    """Two shards of four clips, two buckets, two lanes."""
    base: dict[str, object] = {
        "bucket": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "shard": np.repeat([0, 1], 4),
        "length": np.array([10, 10, 100, 100, 10, 10, 100, 100]),
        "source": np.array([0, 0, 1, 2, 3, 4, 5, 5]),
        "domain": np.array([0, 1, 0, 1, 0, 1, 0, 1]),
        "clips_per_batch": np.array([2, 1]),
        "seconds": np.array([1.0, 4.0]),
        "lanes": 2,
    }
    return Setup(**(base | values))  # type: ignore[arg-type]


def schedule(
    bucket: list[list[int]], uses: list[tuple[int, int, int]], reads: list[tuple[int, int, int, int]]
) -> Schedule:
    """Uses as (lane, row, clip), reads as (lane, row, until, clip)."""
    return Schedule(np.array(bucket), Uses(*np.array(uses).T), Reads(*np.array(reads).T))


EVERY_USE = [(0, 0, 0), (0, 0, 1), (0, 1, 2), (0, 2, 3), (1, 0, 6), (1, 1, 4), (1, 1, 5), (1, 2, 7)]


def test_figures_of_a_whole_epoch() -> None:
    """Lane 0 reads shard 0 as it goes, lane 1 all of shard 1 at once."""
    reads = [(0, 0, 0, 0), (0, 0, 0, 1), (0, 1, 1, 2), (0, 2, 2, 3)]
    reads += [(1, 0, 1, 4), (1, 0, 1, 5), (1, 0, 0, 6), (1, 0, 2, 7)]
    found = measure("hand", setup(), schedule([[0, 1, 1], [1, 0, 1]], EVERY_USE, reads), 0.5)
    values = found.values
    assert list(values) == list(METRICS)
    assert (values["used_share"], values["steps"], values["seconds_to_plan"]) == (1.0, 3.0, 0.5)
    assert values["waste_micro"] == pytest.approx(1 - 18 / (2 * 12))
    assert values["waste_step"] == values["waste_micro"]
    assert (values["sequential_share"], values["read_amplification"], values["unused_read_share"]) == (1.0, 1.0, 0.0)
    assert (values["opens_per_shard"], values["ranges_per_shard"]) == (1.0, 1.0)
    assert (values["peak_buffer_clips"], values["peak_buffer_mb"]) == (4.0, pytest.approx(220e-6))
    assert values["shared_source_ratio"] == pytest.approx(1 / (2 * (3 + 3 + 1) / 28))
    assert set(found.notes) == {f"mix_{group}_{window}" for group in ("bucket", "domain") for window in (8, 64)}
    assert all(values[name] is None and "at least" in note for name, note in found.notes.items())


def test_steps_of_two_rows_balance_what_rows_do_not() -> None:
    uses = [(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 0, 6), (1, 1, 4), (1, 1, 5)]
    reads = [(lane, row, row, clip) for lane, row, clip in uses]
    values = measure("hand", setup(micro_per_step=2), schedule([[0, 1], [1, 0]], uses, reads), 0.0).values
    assert values["steps"] == 1.0
    assert values["waste_micro"] == pytest.approx(1 - 10 / 16)
    assert values["waste_step"] == 0.0
    assert values["used_share"] == 6 / 8


def test_reads_that_go_back_jump_repeat_or_are_in_vain_show() -> None:
    """Lane 0 reads clips 2, 0, 3 of shard 0 (back, then a jump); lane 1 reads clip 0 again, and 4 for nothing."""
    uses = [(0, 0, 2), (1, 0, 6), (0, 1, 3), (1, 1, 7)]
    reads = [(0, 0, 0, 2), (0, 0, 0, 0), (0, 1, 1, 3)]
    reads += [(1, 0, 0, 0), (1, 0, 1, 4), (1, 0, 0, 6), (1, 1, 1, 7)]
    values = measure("hand", setup(), schedule([[1, 1], [1, 1]], uses, reads), 0.0).values
    total = 100 + 10 + 100 + 10 + 10 + 100 + 100
    assert values["sequential_share"] == pytest.approx(1 - 10 / total)
    assert values["read_amplification"] == pytest.approx(total / (total - 10))
    assert values["unused_read_share"] == pytest.approx(30 / total)
    assert values["opens_per_shard"] == 3 / 2  # lane 0: shard 0; lane 1: shards 0 and 1
    assert values["ranges_per_shard"] == 6 / 2  # 2 | 0 | 3; 0; 4 | 6 7
    assert values["peak_buffer_clips"] == 3.0


def test_a_schedule_without_steps_has_no_other_figures() -> None:
    none = np.empty(0, dtype=np.int64)
    empty = Schedule(np.empty((2, 0), dtype=np.int64), Uses(none, none, none), Reads(none, none, none, none))
    found = measure("hand", setup(), empty, 0.0)
    assert found.values["used_share"] == 0.0
    assert found.values["waste_micro"] is None and "no full step" in found.notes["waste_micro"]


def test_one_domain_has_no_domain_mix() -> None:
    reads = [(lane, row, row, clip) for lane, row, clip in EVERY_USE]
    one = setup(domain=np.zeros(8, dtype=int))
    found = measure("hand", one, schedule([[0, 1, 1], [1, 0, 1]], EVERY_USE, reads), 0.0)
    assert found.values["mix_domain_1"] is None and found.notes["mix_domain_1"] == "the set has one domain"
    assert found.values["mix_bucket_1"] is not None


def test_windows_that_are_nearly_the_whole_plan_have_no_index() -> None:
    """Sixteen steps hold two windows of 8, fifteen do not."""
    batch = setup(clips_per_batch=np.array([1, 1]))
    for steps in (15, 16):
        uses = [(lane, row, 4 * lane + row % 4) for lane in range(2) for row in range(steps)]
        reads = [(lane, row, row, clip) for lane, row, clip in uses]
        bucket = [[int(batch.bucket[4 * lane + row % 4]) for row in range(steps)] for lane in range(2)]
        found = measure("hand", batch, schedule(bucket, uses, reads), 0.0)
        assert (found.values["mix_bucket_8"] is None) == (steps == 15)
        assert found.values["mix_bucket_1"] is not None and found.values["mix_bucket_64"] is None


def test_only_full_steps_are_kept() -> None:
    assert [full_steps(rows, 3) for rows in (0, 2, 3, 8)] == [0, 0, 3, 6]
