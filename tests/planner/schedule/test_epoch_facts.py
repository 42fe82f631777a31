"""An epoch as arrays: what lanes need, how repeats are shared out, and the walks that follow from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from planner.pricing.batches import BatchLine
from planner.samples import Corpus
from planner.schedule.demand import Demand
from planner.schedule.epoch_facts import EpochFacts, EpochInput
from planner.schedule.reading import Parts, lane_parts
from planner.schedule.rows import EVEN
from planner.schedule.walking import Gains, Walked, last_rows, walk_lanes
from planner.settings import PlanConfig
from schemas.buckets import Bucket
from schemas.plan import PlanSet

BUCKETS = (Bucket(33, 64, 112), Bucket(65, 64, 112))
CLIP_BYTES = 1000


def facts_of(line: list[int], micro: list[list[int]], batch: list[int], **changes: Any) -> EpochFacts:
    """One shard of clips of these lines; `micro` by (lane, line)."""
    number = len(line)
    corpus = Corpus(
        sets=(PlanSet(name="s", samples_hash="", first_shard=0, shard_names=("a.tar",), shard_bytes=(1,)),),
        clip_ids=pa.array([str(index) for index in range(number)]),
        shard=np.zeros(number, dtype=np.int32),
        ordinal=np.arange(number, dtype=np.int32),
        offset=np.arange(number, dtype=np.int64) * CLIP_BYTES,
        length=np.full(number, CLIP_BYTES, dtype=np.int64),
        source=np.arange(number, dtype=np.int32),
        domain=np.zeros(number, dtype=np.int32),
        domains=("",),
        bucket=np.array(line, dtype=np.int32),
        buckets=BUCKETS,
        clips_in_tables=number,
        scores_hash=None,
    )
    table = [
        BatchLine(bucket=bucket, clips_per_lane=size, rows_per_epoch=1, seconds=1.0, tier=0, clips_in_set=1)
        for bucket, size in zip(BUCKETS, batch, strict=True)
    ]
    wanted = np.array(micro, dtype=np.int64)
    need = (wanted * np.array(batch)).sum(axis=0)
    distinct = np.minimum(need, np.bincount(line, minlength=2))
    demand = Demand(
        micro=wanted,
        rows_by_group=wanted[0],
        distinct=distinct,
        repeated=need - distinct,
        cut=(),
    )
    item = EpochInput(
        number=0,
        first_row=4,
        num_rows=int(wanted[0].sum()),
        clips=np.arange(number),
        line=np.array(line, dtype=np.int16),
        demand=demand,
        densities=(EVEN, EVEN),
    )
    config = PlanConfig.model_validate(
        {"lanes": len(micro), "micro_per_step": 2, "batch_clips": {str(BUCKETS[0]): 1}, "read_chunk_kb": 0} | changes
    )
    return EpochFacts(corpus, item, table, np.arange(2), config)


def walked(facts: EpochFacts) -> tuple[Walked | None, Gains]:
    gains: Gains = {}
    zeros = np.zeros(len(facts.line), dtype=np.int64)
    parts: Parts = lane_parts(zeros, zeros, facts.line, facts.source, facts.domain, 1, 2, 1)
    return walk_lanes(facts, parts, gains), gains


def test_repeats_are_shared_out_by_what_lanes_need() -> None:
    facts = facts_of([0] * 7, [[2, 0], [1, 0]], [3, 1])
    assert facts.need.tolist() == [[6, 0], [3, 0]]
    assert facts.targets.sum(axis=0).tolist() == [7, 0] and facts.targets.tolist() == [[4, 0], [3, 0]]
    extra = facts.extra(0)
    assert extra is not None and extra.tolist() == [2, 0]
    assert facts.extra(1) is None


def test_steps_go_on_from_the_first_row() -> None:
    assert facts_of([0] * 4, [[4, 0]], [1, 1]).steps.tolist() == [2, 2, 3, 3]


def test_draws_differ_by_purpose_and_not_by_call() -> None:
    facts = facts_of([0], [[1, 0]], [1, 1])
    assert facts.seed(3) == facts.seed(3) != facts.seed(4)


def test_a_lane_that_may_hold_little_reads_nothing_that_can_wait() -> None:
    """Twelve clips of two buckets in turns: with room a pool is read ahead, under a cap of four clips two are held at most."""
    line = [0, 1] * 6
    for cap, most in ((None, 12), (4, 2)):
        done, gains = walked(facts_of(line, [[6, 6]], [1, 1], max_buffer_clips=cap, pool_micro_batches=8))
        assert done is not None and done.follow == 0.0
        (lane,) = done.lanes
        assert lane.peak_clips <= most and lane.peak_bytes == lane.peak_clips * CLIP_BYTES
        assert sorted(lane.walk.used.tolist()) == list(range(12))
        assert gains["peak_buffer_bytes"][1] == lane.peak_bytes


def test_rows_are_bent_to_the_reading_order_where_nothing_else_holds() -> None:
    """Six clips of one bucket, then six of the other: even rows need seven clips in memory, rows in reading order one."""
    line = [0] * 6 + [1] * 6
    done, _ = walked(facts_of(line, [[6, 6]], [1, 1], max_buffer_clips=2))
    assert done is not None and done.follow > 0.0
    assert done.lanes[0].peak_clips <= 2
    even, _ = walked(facts_of(line, [[6, 6]], [1, 1], max_buffer_clips=12))
    assert even is not None and even.follow == 0.0 and even.lanes[0].peak_clips > 2


@pytest.mark.parametrize(("clips", "fails"), [(1, True), (2, False)])
def test_a_clip_that_would_meet_itself_in_a_step_fails_the_walk(clips: int, fails: bool) -> None:
    """Two rows of a step, one clip each."""
    done, _ = walked(facts_of([0] * clips, [[2, 0]], [1, 1], left_over="repeat"))
    assert (done is None) == fails


def test_the_last_row_of_a_clip_is_that_of_its_last_use() -> None:
    done, _ = walked(facts_of([0, 0], [[4, 0]], [1, 1], left_over="repeat"))
    assert done is not None
    last = last_rows(done.lanes[0].walk, done.rows[0], np.array([1, 1]))
    assert sorted(last.tolist()) == [2, 3]
