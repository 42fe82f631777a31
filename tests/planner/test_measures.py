"""Read metrics come from the reads as written: overlaps and backward reads show."""

from __future__ import annotations

import pyarrow as pa
import pytest

from planner.measures import ReadTally
from schemas.plan import LANE
from schemas.tables import table_from_rows

Reads = list[tuple[int, int, int]]


def lane(rows: list[tuple[int, Reads]]) -> pa.Table:
    """Rows of (epoch, [(shard, offset, length), ...])."""
    return table_from_rows(
        LANE,
        [
            {
                "epoch": epoch,
                "step": step,
                "micro": 0,
                "frames": 1,
                "height": 64,
                "width": 112,
                "clips": [],
                "reads": [dict(zip(("shard", "offset", "length"), read, strict=True)) for read in reads],
            }
            for step, (epoch, reads) in enumerate(rows)
        ],
    )


def tally(*lanes: pa.Table) -> ReadTally:
    result = ReadTally()
    for table in lanes:
        result.add(table)
    return result


def test_disjoint_forward_reads_give_one() -> None:
    reads = tally(
        lane([(0, [(0, 0, 10), (1, 0, 5)]), (0, [(0, 20, 10)]), (1, [(0, 0, 10)])]), lane([(0, [(0, 10, 10)])])
    )
    assert (reads.count, reads.amplification, reads.sequential_share) == (5, 1.0, 1.0)


def test_bytes_that_two_lanes_read_in_one_epoch_count_twice() -> None:
    """Epoch 0 fetches 30 bytes of 25 distinct ones, epoch 1 fetches 10 of 10."""
    reads = tally(lane([(0, [(0, 0, 20)]), (1, [(0, 0, 10)])]), lane([(0, [(0, 15, 10)])]))
    assert reads.amplification == pytest.approx((30 / 25 + 1) / 2)
    assert reads.sequential_share == 1.0


def test_a_step_back_in_a_shard_is_not_sequential() -> None:
    reads = tally(lane([(0, [(0, 30, 10), (0, 0, 10), (1, 0, 20)])]))
    assert reads.sequential_share == pytest.approx(30 / 40)
    assert reads.amplification == 1.0
