"""Batch sizes, rows and left-overs going down to shorter buckets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.batches import batch_table, fit_batch, micro_batch_seconds
from planner.settings import CostConfig, PlanConfig, RouteConfig
from schemas.buckets import Bucket
from schemas.errors import ConfigError, PlanError


def config(lanes: int = 2, **values: Any) -> PlanConfig:
    return PlanConfig.model_validate({"lanes": lanes, "max_tokens_per_micro_batch": 4096, **values})


def rows(counts: dict[str, int], plan: PlanConfig) -> dict[str, tuple[int, int]]:
    table = batch_table({Bucket.parse(name): count for name, count in counts.items()}, plan)
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


def test_cost_grows_with_clips_and_falls_with_tread_and_tiers_follow_it() -> None:
    cost = CostConfig(preset="tiny", text_tokens=64, teraflops_per_second=1.0)
    bucket = Bucket.parse("65x64x112")
    one = micro_batch_seconds(bucket, 1, cost)
    assert micro_batch_seconds(bucket, 3, cost) == pytest.approx(3 * one)
    routed = cost.model_copy(update={"route": RouteConfig(first_block=1, last_block=5, drop_ratio=0.5)})
    assert micro_batch_seconds(bucket, 1, routed) < one
    counts = {Bucket.parse(name): 64 for name in ("1x64x112", "1x112x64", "33x64x112", "121x64x112")}
    table = batch_table(counts, config(cost=cost, batch_clips=dict.fromkeys(map(str, counts), 2)))
    by_cost = sorted(table, key=lambda line: line.seconds)
    assert [line.tier for line in by_cost] == [0, 0, 1, 2]


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
