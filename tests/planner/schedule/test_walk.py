"""A lane's walk, replayed clip by clip in plain Python."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.schedule.walk import LaneWalk, WalkLimits, buffer_curve, most_open, walk_lane

NO_CAP = 1 << 62
BARE = WalkLimits(max_open=1, chunk_bytes=0, pool_micro_batches=0, max_bytes=NO_CAP, max_clips=NO_CAP)


@dataclass
class Case:
    """A lane: clips in parts, and rows that use them all, or as many as there are rows."""

    line: np.ndarray
    size: np.ndarray
    part_start: np.ndarray
    rows: np.ndarray
    steps: np.ndarray
    batch: np.ndarray
    extra: np.ndarray
    """By line: uses beyond one of each clip."""

    def walk(self, limits: WalkLimits) -> LaneWalk | None:
        extra = self.extra if self.extra.any() else None
        return walk_lane(self.line, self.size, self.part_start, self.rows, self.steps, self.batch, extra, limits)

    @property
    def part(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.part_start) - 1), np.diff(self.part_start))

    def held(self, walk: LaneWalk, weight: np.ndarray) -> list[int]:
        """What the lane holds in each row, counted clip by clip."""
        row_of_use = np.repeat(np.arange(len(self.rows)), self.batch[self.rows])
        last = dict(zip(walk.used.tolist(), row_of_use.tolist(), strict=True))  # later uses win
        return [
            sum(int(weight[clip]) for clip, end in last.items() if walk.read_row[clip] <= row <= end)
            for row in range(len(self.rows))
        ]


@st.composite
def cases(draw: st.DrawFn, repeats: bool = False) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    lines = draw(st.integers(1, 3))
    batch = rng.integers(1, 4, lines)
    rows_of = rng.integers(0, 6, lines)
    rows_of[int(rng.integers(lines))] += 1
    need = batch * rows_of
    distinct = np.where(need > 0, np.maximum(-(-need // 2), batch), 0) if repeats else need
    rows = np.repeat(np.arange(lines), rows_of)
    rng.shuffle(rows)
    if draw(st.booleans()):
        rows.sort()  # the worst order of rows that there is
    line = np.repeat(np.arange(lines), distinct)
    if draw(st.booleans()):
        rng.shuffle(line)
    cuts = rng.choice(np.arange(1, len(line)), size=min(len(line) - 1, int(rng.integers(0, 7))), replace=False)
    part_start = np.array([0, *sorted(cuts.tolist()), len(line)])
    kept = len(rows) if draw(st.booleans()) else draw(st.integers(1, len(rows)))
    return Case(
        line=line,
        size=rng.integers(1, 50, len(line)) * 512,
        part_start=part_start,
        rows=rows[:kept],
        steps=np.arange(kept) // draw(st.integers(1, 3)),
        batch=batch,
        extra=need - distinct,
    )


LIMITS = st.builds(
    WalkLimits,
    max_open=st.integers(1, 4),
    chunk_bytes=st.sampled_from([0, 4096, 1 << 20]),
    pool_micro_batches=st.sampled_from([0, 1, 8]),
    max_bytes=st.sampled_from([1, 60_000, 300_000, NO_CAP]),
    max_clips=st.sampled_from([1, 8, NO_CAP]),
    in_order=st.booleans(),
)


def check(case: Case, walk: LaneWalk, limits: WalkLimits) -> None:
    order = walk.read_order.tolist()
    assert len(set(order)) == len(order), "no clip is read twice"
    assert set(order) == set(np.flatnonzero(walk.read_row >= 0).tolist())
    assert (np.diff(walk.read_row[walk.read_order]) >= 0).all(), "reads come in the order of rows"
    front = case.part_start[:-1].copy()
    for clip in order:
        part = case.part[clip]
        assert clip == front[part], "each part is read forward, without a gap"
        front[part] += 1
    at = 0
    uses: Counter[int] = Counter()
    of_step: Counter[tuple[int, int]] = Counter()
    for row, kind in enumerate(case.rows.tolist()):
        for clip in walk.used[at : at + case.batch[kind]].tolist():
            assert case.line[clip] == kind and 0 <= walk.read_row[clip] <= row
            uses[clip] += 1
            of_step[int(case.steps[row]), clip] += 1
        at += int(case.batch[kind])
    assert at == len(walk.used)
    clips_of = np.bincount(case.line, minlength=len(case.batch))
    for clip, times in uses.items():
        kind = int(case.line[clip])
        assert times <= -(-int(clips_of[kind] + case.extra[kind]) // int(clips_of[kind])), "repeats are spread evenly"
    assert max(of_step.values()) == 1, "no clip comes twice in a step"
    last = {int(case.part[clip]): index for index, clip in enumerate(order)}
    opened: list[int] = []
    most = 0
    for index, clip in enumerate(order):
        part = int(case.part[clip])
        if part not in opened:
            opened.append(part)
        most = max(most, sum(last[one] >= index for one in opened))
    assert most_open(case.part[walk.read_order], len(case.part_start) - 1) == most <= limits.max_open
    if limits.in_order:
        assert opened == sorted(opened)
        if limits.max_open == 1:
            assert order == list(range(len(order))), "one tar after another"


def curves(case: Case, walk: LaneWalk) -> np.ndarray:
    last = np.full(len(case.line), -1, dtype=np.int32)
    np.maximum.at(last, walk.used, np.repeat(np.arange(len(case.rows), dtype=np.int32), case.batch[case.rows]))
    return buffer_curve(walk.read_row, last, case.size, len(case.rows))


@given(case=cases(), limits=LIMITS)
@settings(max_examples=300)
def test_rows_get_their_clips_by_forward_reads_of_few_shards(case: Case, limits: WalkLimits) -> None:
    walk = case.walk(limits)
    assert walk is not None, "without repeats there is always a way"
    check(case, walk, limits)
    assert curves(case, walk).tolist() == case.held(walk, case.size)
    if len(walk.used) == len(case.line):
        assert sorted(walk.used.tolist()) == list(range(len(case.line))), "all clips are used, each once"


@given(case=cases(repeats=True), limits=LIMITS)
@settings(max_examples=200)
def test_repeated_clips_never_meet_themselves_in_a_step(case: Case, limits: WalkLimits) -> None:
    walk = case.walk(limits)
    if walk is None:
        assert case.extra.any()
        assert len(set(case.steps.tolist())) < len(case.steps), "with a step for each row there is always a way"
        return
    check(case, walk, limits)
    assert curves(case, walk).tolist() == case.held(walk, case.size)


@given(case=cases(), limits=LIMITS)
@settings(max_examples=200)
def test_reading_ahead_changes_no_use_and_stays_in_half_of_the_caps(case: Case, limits: WalkLimits) -> None:
    """One tar after another, chunks and pool only read earlier; buffers exceed the bare ones only up to half of the caps."""
    bare = replace(limits, max_open=1, in_order=True, chunk_bytes=0, pool_micro_batches=0)
    ahead = replace(bare, chunk_bytes=limits.chunk_bytes, pool_micro_batches=limits.pool_micro_batches)
    one, other = case.walk(bare), case.walk(ahead)
    assert one is not None and other is not None
    assert one.used.tolist() == other.used.tolist()
    ones = np.ones(len(case.line), dtype=np.int64)
    for weight, cap in ((case.size, limits.max_bytes), (ones, limits.max_clips)):
        least, held = np.array(case.held(one, weight)), np.array(case.held(other, weight))
        if len(one.used) == len(case.line):  # where rows end early, clips that are never used count for the walk alone
            assert (least <= held).all()
            assert (held <= np.maximum(least, cap // 2)).all()


def test_the_nearest_clip_of_the_bucket_is_read_and_a_cap_on_open_shards_holds() -> None:
    """Two parts, one rich in bucket 0, the other in bucket 1: with two open shards nothing waits, with one the first is read to its end."""
    line = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0])
    size = np.full(12, 1000)
    rows = np.array([1, 0] * 6)
    case = Case(line, size, np.array([0, 6, 12]), rows, np.arange(12), np.array([1, 1]), np.zeros(2, dtype=np.int64))
    two = case.walk(replace(BARE, max_open=2))
    one = case.walk(replace(BARE, in_order=True))
    assert two is not None and one is not None
    assert max(case.held(two, size)) == 2000
    assert max(case.held(one, size)) == 6000
    assert one.read_order.tolist() == list(range(12))


def test_a_pool_is_read_ahead_and_chunks_make_fewer_reads() -> None:
    line = np.tile([0, 1], 20)
    size = np.full(40, 1000)
    case = Case(
        line,
        size,
        np.array([0, 40]),
        np.tile([0, 1], 20),
        np.arange(40),
        np.ones(2, dtype=np.int64),
        np.ones(40, dtype=np.int64),
    )
    for limits, first_row in (
        (BARE, 1),
        (replace(BARE, pool_micro_batches=3), 7),
        (replace(BARE, chunk_bytes=10_000), 10),
        (replace(BARE, chunk_bytes=10_000, max_bytes=12_000), 6),
        (replace(BARE, chunk_bytes=10_000, max_clips=8), 4),
    ):
        walk = case.walk(limits)
        assert walk is not None
        assert int((walk.read_row == 0).sum()) == first_row


def test_the_pool_does_not_read_past_half_of_the_cap_on_clips() -> None:
    """The next clip of the bucket lies five further: with it the lane would hold seven of its eight clips."""
    line = np.array([0, 0, 1, 1, 1, 1, 1, 0])
    case = Case(
        line,
        np.full(8, 1000),
        np.array([0, 8]),
        np.array([0, 1, 1, 1, 1, 1, 0, 0]),
        np.arange(8),
        np.ones(2, dtype=np.int64),
        np.zeros(2, dtype=np.int64),
    )
    for cap, first_row in ((8, 2), (NO_CAP, 8)):
        walk = case.walk(replace(BARE, pool_micro_batches=3, max_clips=cap))
        assert walk is not None
        assert int((walk.read_row == 0).sum()) == first_row


def test_a_clip_that_cannot_wait_for_another_step_makes_the_walk_fail() -> None:
    """One clip, to be used twice, and one step of two rows; over two steps it is used in both."""
    line, size = np.array([0]), np.array([1000])
    values = {"line": line, "size": size, "part_start": np.array([0, 1]), "rows": np.array([0, 0])}
    values |= {"batch": np.array([1]), "extra": np.array([1])}
    assert Case(**values, steps=np.array([0, 0])).walk(BARE) is None
    walk = Case(**values, steps=np.array([0, 1])).walk(BARE)
    assert walk is not None and walk.used.tolist() == [0, 0]


@pytest.mark.parametrize(("order", "most"), [([0, 1, 2], 1), ([0, 1, 0, 2], 2), ([0, 1, 2, 0, 1], 3), ([], 0)])
def test_a_shard_is_open_from_its_first_read_to_its_last(order: list[int], most: int) -> None:
    assert most_open(np.array(order, dtype=np.int64), 3) == most
