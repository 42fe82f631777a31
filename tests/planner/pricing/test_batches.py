"""Batch sizes, rows and left-overs going down to shorter buckets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.pricing.batches import batch_table, fit_batch, rows_by_counts, table_curve
from planner.pricing.costs import CostModel, cost_model
from planner.settings import PlanConfig
from schemas.buckets import Bucket
from schemas.cost_table import CostMeasurement, CostTable
from schemas.errors import ConfigError, PlanError


def config(lanes: int = 2, **values: Any) -> PlanConfig:
    return PlanConfig.model_validate({"lanes": lanes, "max_tokens_per_micro_batch": 4096, **values})


def rows(counts: dict[str, int], plan: PlanConfig) -> dict[str, tuple[int, int]]:
    table = batch_table({Bucket.parse(name): count for name, count in counts.items()}, plan, cost_model(plan, None))
    return {str(line.bucket): (line.clips_per_lane, line.rows_per_epoch) for line in table}


@given(clips=st.integers(0, 500), lanes=st.integers(1, 9), most=st.integers(1, 40))
def test_fit_batch_stays_in_its_limits_and_loses_least(clips: int, lanes: int, most: int) -> None:
    batch = fit_batch(clips, lanes, most)
    if clips < lanes:
        assert batch == 0
        return
    assert 1 <= batch <= most
    assert batch * lanes <= clips
    assert clips % (lanes * batch) <= clips % (lanes * min(most, clips // lanes))


def test_left_overs_fill_a_row_of_the_next_shorter_bucket() -> None:
    lonely = {"121x64x112": 1, "65x64x112": 1}
    assert rows(lonely, config()) == {"65x64x112": (1, 1), "121x64x112": (1, 0)}
    with pytest.raises(PlanError, match="no bucket fills a row of 2 lanes"):
        rows(lonely, config(shorten_left_over=False))


def test_left_overs_go_down_to_a_bucket_that_has_no_clips_of_its_own() -> None:
    counts = {"121x64x112": 5, "65x64x112": 3}
    explicit = config(batch_clips={"121x64x112": 2, "65x64x112": 2, "33x64x112": 2})
    assert rows(counts, explicit) == {"121x64x112": (2, 1), "65x64x112": (2, 1)}
    assert rows({"121x64x112": 7, "65x64x112": 1}, explicit)["65x64x112"] == (2, 1)
    assert rows(
        {"121x64x112": 3, "65x64x112": 3}, config(batch_clips={"121x64x112": 4, "65x64x112": 4, "33x64x112": 3})
    ) == {
        "121x64x112": (4, 0),
        "65x64x112": (4, 0),
        "33x64x112": (3, 1),
    }


def test_other_sizes_are_never_mixed() -> None:
    assert rows({"33x64x112": 2, "121x112x64": 1, "65x64x112": 1}, config())["121x112x64"] == (1, 0)


def test_a_bucket_without_a_batch_rule_is_named() -> None:
    with pytest.raises(ConfigError, match="33x64x112 has clips but no batch size"):
        rows({"33x64x112": 4}, PlanConfig(lanes=2, batch_clips={"1x64x112": 4}))
    with pytest.raises(ConfigError, match="below the 252 video tokens of one clip of bucket 33x64x112"):
        rows({"33x64x112": 4}, config(max_tokens_per_micro_batch=100))


def test_under_uniform_tiers_name_buckets_that_cost_alike() -> None:
    names = ("1x64x112", "1x112x64", "33x64x112", "121x64x112")
    plan = config(cost={"preset": "tiny", "text_tokens": 64}, batch_clips=dict.fromkeys(names, 2))
    table = batch_table({Bucket.parse(name): 64 for name in names}, plan, cost_model(plan, None))
    by_cost = sorted(table, key=lambda line: line.seconds)
    assert [line.tier for line in by_cost] == [0, 0, 1, 2]


def measured_costs(plan: PlanConfig, *, memory: bool = True) -> CostModel:
    """1 s and 1 GB a clip at 33 frames, 2 and 2 at 65, ... : per-clip cost in proportion to the latent frames over 9."""
    measured = tuple(
        CostMeasurement(
            bucket=name,
            clips=clips,
            seconds=clips * scale,
            peak_memory_bytes=int(clips * scale * 1e9) if memory else None,
        )
        for name, scale in (("33x64x112", 1.0), ("65x64x112", 17 / 9), ("121x64x112", 31 / 9))
        for clips in (1, 2, 3, 4, 6, 8, 12, 16)
    )
    table = CostTable(device="test device", model="tiny", text_tokens=0, repeats=3, measurements=measured)
    return cost_model(plan, table)


def batches(counts: dict[str, int], plan: PlanConfig, costs: CostModel) -> dict[str, int]:
    table = batch_table({Bucket.parse(name): count for name, count in counts.items()}, plan, costs)
    return {str(line.bucket): line.clips_per_lane for line in table}


MANY = {"33x64x112": 100_800, "65x64x112": 100_800, "121x64x112": 100_800}


def test_memory_bounds_the_batch_and_stands_on_the_line() -> None:
    plan = config(max_tokens_per_micro_batch=None, max_memory_gb=16.0)
    costs = measured_costs(plan)
    assert batches(MANY, plan, costs) == {"33x64x112": 16, "65x64x112": 8, "121x64x112": 4}
    lines = batch_table({Bucket.parse(name): count for name, count in MANY.items()}, plan, costs)
    assert all(line.memory_bytes == costs.memory_bytes(line.bucket, line.clips_per_lane) for line in lines)
    both = config(max_tokens_per_micro_batch=1000, max_memory_gb=16.0)
    assert batches(MANY, both, costs)["33x64x112"] == 3


def test_a_target_of_seconds_brings_buckets_to_the_same_cost_but_never_over_the_limits() -> None:
    plan = config(max_tokens_per_micro_batch=None, max_memory_gb=16.0, target_seconds=6.9)
    assert batches(MANY, plan, measured_costs(plan)) == {"33x64x112": 7, "65x64x112": 4, "121x64x112": 2}
    tight = config(max_tokens_per_micro_batch=None, max_memory_gb=4.0, target_seconds=6.9)
    assert batches(MANY, tight, measured_costs(tight)) == {"33x64x112": 4, "65x64x112": 2, "121x64x112": 1}
    short = config(max_tokens_per_micro_batch=None, max_memory_gb=16.0, target_seconds=0.1)
    assert set(batches(MANY, short, measured_costs(short)).values()) == {1}
    named = config(max_memory_gb=4.0, batch_clips={"33x64x112": 12})
    assert batches(MANY, named, measured_costs(named))["33x64x112"] == 12


def test_memory_limits_that_nothing_can_meet_are_refused() -> None:
    plan = config(max_tokens_per_micro_batch=None, max_memory_gb=3.0)
    with pytest.raises(ConfigError, match=r"max_memory_gb 3 is below the 3\.44 GB that one clip of bucket 121x64x112"):
        batches(MANY, plan, measured_costs(plan))
    for costs in (cost_model(plan, None), measured_costs(plan, memory=False)):
        with pytest.raises(ConfigError, match="the cost model knows no memory"):
            batches(MANY, plan, costs)


def test_under_tiers_few_left_over_clips_do_not_shrink_the_batch() -> None:
    counts = {"33x64x112": 16 * 8 * 500 + 40}
    tiers = config(lanes=16, policy="tiers", max_tokens_per_micro_batch=8 * 252)
    assert batches(counts, tiers, cost_model(tiers, None)) == {"33x64x112": 8}
    uniform = config(lanes=16, max_tokens_per_micro_batch=8 * 252)
    assert batches(counts, uniform, cost_model(uniform, None)) == {"33x64x112": 6}
    assert rows({"33x64x112": 12}, config(policy="tiers", max_tokens_per_micro_batch=8 * 252))["33x64x112"] == (6, 1)


def test_the_tiers_of_the_lines_are_those_of_the_curve() -> None:
    counts = {Bucket.parse(name): count for name, count in (("1x64x112", 9000), *MANY.items())}
    plan = config(lanes=8, micro_per_step=4, policy="tiers", max_tokens_per_micro_batch=2000, max_waste=0.1)
    lines = batch_table(counts, plan, cost_model(plan, None))
    curve, chosen = table_curve(lines, plan)
    assert tuple(line.tier for line in lines) == chosen.tier_of
    assert chosen.waste <= 0.1 and [cut.tiers for cut in curve] == [1, 2, 3, 4]
    two = plan.model_copy(update={"tiers": 2})
    assert {line.tier for line in batch_table(counts, two, cost_model(two, None))} == {0, 1}


@given(st.lists(st.integers(0, 200), min_size=4, max_size=4), st.integers(1, 4), st.booleans())
def test_rows_by_counts_follow_the_chain_of_the_table(counts: list[int], lanes: int, shorten: bool) -> None:
    names = ("1x64x112", "33x64x112", "65x64x112", "121x64x112")
    plan = config(lanes=lanes, shorten_left_over=shorten, batch_clips=dict.fromkeys(names, 3))
    by_bucket = {Bucket.parse(name): count for name, count in zip(names, counts, strict=True) if count}
    if not by_bucket:
        return
    try:
        lines = batch_table(by_bucket, plan, cost_model(plan, None))
    except PlanError:
        assert max(counts) < 3 * lanes or not shorten
        return
    found = rows_by_counts(by_bucket, lines, lanes, shorten=shorten)
    assert found == {line.bucket: line.rows_per_epoch for line in lines}
    assert sum(found.values()) * lanes * 3 <= sum(counts)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens_per_micro_batch": None}, "nothing says how large a batch may be"),
        ({"epochs": None}, "the plan has no end"),
        ({"batch_clips": {"33x64": 4}}, "not of the form"),
        ({"batch_clips": {"33x64x112": 0}}, "must be at least 1"),
        (
            {"cost": {"preset": "tiny", "route": {"first_block": 1, "last_block": 7, "drop_ratio": 0.5}}},
            "past the last of 7",
        ),
    ],
)
def test_settings_that_contradict_themselves_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**values)
