"""How many micro-batches an epoch has: by hand, and never more clips than there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planner.pricing.batches import BatchLine
from planner.schedule.demand import Demand, DemandMaker, apportion
from planner.settings import PlanConfig
from schemas.buckets import Bucket
from schemas.errors import PlanError

CHAIN = ("1x64x112", "33x64x112", "65x64x112", "121x64x112", "33x112x64", "1x112x64")


def config(**values: Any) -> PlanConfig:
    return PlanConfig.model_validate({"lanes": 2, "max_tokens_per_micro_batch": 4096, **values})


def lines_of(batches: dict[str, int], tiers: dict[str, int] | None = None) -> list[BatchLine]:
    """A batch table by hand; images in tier 0, videos in tier 1 unless said otherwise."""
    items = sorted((Bucket.parse(name), clips, name) for name, clips in batches.items())
    return [
        BatchLine(
            bucket=bucket,
            clips_per_lane=clips,
            rows_per_epoch=0,
            seconds=1.0,
            tier=(tiers or {}).get(name, int(bucket.frames > 1)),
            clips_in_set=0,
        )
        for bucket, clips, name in items
    ]


def demand(
    own: dict[str, int], batches: dict[str, int], ratio: float | None = None, epoch: int = 0, **values: Any
) -> Demand:
    lines = lines_of(batches)
    counts = np.array([own.get(str(line.bucket), 0) for line in lines])
    return DemandMaker(lines, config(**values)).make(counts, ratio, epoch)


@given(weights=st.lists(st.integers(0, 50), min_size=1, max_size=8), share=st.floats(0, 1))
def test_apportion_adds_up_and_stays_within_one_of_the_exact_share(weights: list[int], share: float) -> None:
    total = int(sum(weights) * share)
    parts = apportion(total, np.array(weights))
    assert parts.sum() == total
    assert (parts <= np.array(weights)).all() and (parts >= 0).all()
    assert (np.abs(parts - np.array(weights) * total / max(1, sum(weights))) < 1).all()


def test_apportion_by_hand() -> None:
    assert apportion(3, np.array([4, 2])).tolist() == [2, 1]
    assert apportion(5, np.array([4, 0, 1])).tolist() == [4, 0, 1]
    assert apportion(1, np.array([3, 3, 3])).tolist() == [1, 0, 0], "the first of equals"


def test_uniform_rows_take_a_batch_on_every_lane() -> None:
    """Twenty clips, three a micro-batch, two lanes: three rows of six, two clips over; two rows a step: one row less."""
    one = demand({"33x64x112": 20}, {"33x64x112": 3})
    assert (one.micro.tolist(), one.rows_by_group.tolist(), one.distinct.tolist()) == ([[3], [3]], [3], [18])
    two = demand({"33x64x112": 20}, {"33x64x112": 3}, micro_per_step=2)
    assert two.num_rows == 2 and two.distinct.tolist() == [12]
    assert [(reason, clips.tolist()) for reason, clips in two.cut] == [
        ("its row does not fill a step of 2 rows within the epoch", [6])
    ]


def test_left_overs_go_down_to_the_next_shorter_bucket() -> None:
    own, batches = {"121x64x112": 5, "65x64x112": 1, "33x64x112": 3}, dict.fromkeys(CHAIN[1:4], 1)
    assert demand(own, batches).distinct.tolist() == [2, 2, 4], "5 -> 4 + 1, 1 + 1 -> 2, 3 -> 2"
    assert demand(own, batches, shorten_left_over=False).distinct.tolist() == [2, 0, 4]


def test_tiers_take_any_micro_batches_of_a_tier() -> None:
    """Five micro-batches of one bucket and three of another make four rows on two lanes; uniform has two and one."""
    own, batches = {"33x64x112": 10, "33x112x64": 6}, {"33x64x112": 2, "33x112x64": 2}
    tiers = demand(own, batches, policy="tiers")
    assert tiers.rows_by_group.tolist() == [0, 4] and tiers.distinct.tolist() == [10, 6]
    assert tiers.micro.sum(axis=1).tolist() == [4, 4] and tiers.micro.sum(axis=0).tolist() == [5, 3]
    uniform = demand(own, batches)
    assert uniform.distinct.tolist() == [8, 4] and (uniform.micro[0] == uniform.micro[1]).all()


def test_a_mix_takes_rows_from_the_richer_side_or_repeats_the_poorer_one() -> None:
    own, batches = {"1x64x112": 8, "33x64x112": 40}, {"1x64x112": 1, "33x64x112": 1}
    cut = demand(own, batches, ratio=1.0)
    assert cut.rows_by_group.tolist() == [4, 4]
    assert cut.cut[0][0] == "mix takes 4 rows of images and 4 of videos, of 4 and 20 that the clips fill"
    assert cut.cut[0][1].tolist() == [0, 32]
    again = demand(own, batches, ratio=1.0, left_over="repeat", repeat_at_most=3)
    assert again.rows_by_group.tolist() == [12, 12]
    assert (again.distinct.tolist(), again.repeated.tolist()) == ([8, 24], [16, 0])
    one_in_three = demand(own, batches, ratio=0.5)
    assert one_in_three.rows_by_group.tolist() == [4, 8]
    with pytest.raises(PlanError, match="the clips fill 0 rows of images and 20 of videos"):
        demand({"33x64x112": 40}, batches, ratio=1.0)


def test_repeats_fill_the_last_row_where_each_lane_has_a_batch_of_clips() -> None:
    seven = demand({"33x64x112": 7}, {"33x64x112": 2}, left_over="repeat")
    assert (seven.num_rows, seven.distinct.tolist(), seven.repeated.tolist()) == (2, [7], [1])
    five = demand({"33x64x112": 5}, {"33x64x112": 2}, left_over="repeat")
    assert five.repeated.tolist() == [0], "three repeats for one clip are not worth it"
    with pytest.raises(PlanError, match="3 clips fill no row of 2 lanes"):
        demand({"33x64x112": 3}, {"33x64x112": 2}, left_over="repeat")
    maker = DemandMaker(lines_of({"33x64x112": 2}), config(left_over="repeat"))
    assert maker.make(np.array([7]), None, 0, frozenset([0])).repeated.tolist() == [0]


def test_rows_that_fill_no_step_take_turns() -> None:
    """Three equal buckets with five rows each and steps of two: one row stays out of each epoch."""
    names = ("33x64x112", "33x112x64", "33x80x80")
    maker = DemandMaker(lines_of(dict.fromkeys(names, 1)), config(micro_per_step=2))
    lost = [(5 - maker.make(np.array([10, 10, 10]), None, epoch).rows_by_group).tolist() for epoch in range(6)]
    assert sorted(lost[:3]) == [[0, 0, 1], [0, 1, 0], [1, 0, 0]] == sorted(lost[3:])


def test_a_step_that_nothing_fills_is_refused_with_what_would_do() -> None:
    with pytest.raises(
        PlanError, match=r"an epoch of 3 rows fills no step of 4 rows.*micro_per_step to at most 3.*20 clips on 2 lanes"
    ):
        demand({"33x64x112": 20}, {"33x64x112": 3}, micro_per_step=4)


@given(
    own=st.lists(st.integers(0, 90), min_size=6, max_size=6),
    batch=st.lists(st.integers(1, 5), min_size=6, max_size=6),
    tier=st.lists(st.integers(1, 2), min_size=6, max_size=6),
    lanes=st.integers(1, 5),
    per_step=st.integers(1, 4),
    policy=st.sampled_from(["uniform", "tiers"]),
    left_over=st.sampled_from(["drop", "carry", "repeat"]),
    at_most=st.integers(2, 3),
    shorten=st.booleans(),
    ratio=st.sampled_from([None, 0.25, 0.5, 1.0, 3.0]),
)
@example(  # a micro-batch that fills no row of its tier goes down the chain; its bucket is the one that is repeated
    own=[0, 0, 0, 2, 1, 2],
    batch=[1] * 6,
    tier=[1] * 6,
    lanes=2,
    per_step=1,
    policy="tiers",
    left_over="repeat",
    at_most=2,
    shorten=True,
    ratio=0.25,
)
@settings(max_examples=400)
def test_demand_never_asks_for_more_than_there_is(
    own: list[int],
    batch: list[int],
    tier: list[int],
    lanes: int,
    per_step: int,
    policy: str,
    left_over: str,
    at_most: int,
    shorten: bool,
    ratio: float | None,
) -> None:
    settings_of_plan = config(
        lanes=lanes,
        micro_per_step=per_step,
        policy=policy,
        left_over=left_over,
        repeat_at_most=at_most,
        shorten_left_over=shorten,
    )
    tiers = {name: number if name[:2] != "1x" else 0 for name, number in zip(CHAIN, tier, strict=True)}
    lines = lines_of(dict(zip(CHAIN, batch, strict=True)), tiers)
    counts = np.array([own[CHAIN.index(str(line.bucket))] for line in lines])
    maker = DemandMaker(lines, settings_of_plan)
    for epoch in range(3):
        try:
            found = maker.make(counts, ratio, epoch)
        except PlanError as error:
            assert any(words in str(error) for words in ("fills no step", "fill no row of", "mix asks for"))
            return
        check(found, maker, counts, ratio)


def check(found: Demand, maker: DemandMaker, own: np.ndarray, ratio: float | None) -> None:
    plan = maker.config
    need = found.micro.sum(axis=0) * maker.batch
    assert (need == found.distinct + found.repeated).all()
    assert found.num_rows > 0 and found.num_rows % plan.micro_per_step == 0
    for group in range(maker.num_groups):
        members = maker.group == group
        assert (found.micro[:, members].sum(axis=1) == found.rows_by_group[group]).all(), "as many on every lane"
    assert (found.micro.max(axis=0) - found.micro.min(axis=0) <= (plan.policy == "tiers")).all()
    for chain in maker.chains:
        reach = np.cumsum(own[chain])
        assert (np.cumsum(found.distinct[chain]) <= reach).all(), "clips go down a chain, never up"
        if not plan.shorten_left_over:
            assert (found.distinct[chain] <= own[chain]).all()
    if plan.left_over != "repeat":
        assert not found.repeated.any()
    assert (need <= plan.repeat_at_most * found.distinct).all(), "no clip more often than it may"
    for _, clips in found.cut:
        assert (clips >= 0).all()
    if ratio is not None:
        image = np.zeros(maker.num_groups, dtype=bool)
        image[maker.group[maker.is_image]] = True
        images, videos = int(found.rows_by_group[image].sum()), int(found.rows_by_group[~image].sum())
        if plan.left_over != "repeat":
            assert abs(images - ratio * videos) <= plan.micro_per_step * max(1.0, ratio), "within rounding and a step"
