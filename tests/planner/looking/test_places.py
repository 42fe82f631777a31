"""Samples looked up by place; other samples than the plan's are noticed by what is read and used, not only by their shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from planner.looking.held import held_over_rows, lane_stays
from planner.looking.lane_arrays import open_lane
from planner.looking.places import SamplePlaces, sample_places
from schemas.errors import PlanError
from schemas.plan import PlanMeta
from schemas.tables import SAMPLES, read_table

SHORT = "1x64x112"


@pytest.fixture
def case(
    write_set: Callable[..., Path], hand_plans: ModuleType, tmp_path: Path
) -> Callable[..., tuple[PlanMeta, Path, SamplePlaces, list[tuple[int, int, int]]]]:
    """`case(rows)`: a plan of one lane over one tar of four clips; rows are (clips used, clips read) by ordinal."""
    samples = write_set(tmp_path / "set", [[(SHORT, index) for index in range(4)]])
    table = read_table(samples / "samples.parquet", SAMPLES).to_pylist()
    spans = [(0, row["offset"], row["length"]) for row in table]
    sets = [hand_plans.one_set(1, size=spans[-1][1] + spans[-1][2] + 1024)]

    def make(rows: list[tuple[list[int], list[int]]], **more: object):
        lane = [(SHORT, [(0, clip) for clip in used], [spans[clip] for clip in read]) for used, read in rows]
        meta = hand_plans.write_plan(tmp_path / "plan", [lane], {SHORT: 1.0}, sets=sets, **more)
        return meta, tmp_path / "plan", sample_places(meta, [samples]), spans

    return make


def test_a_read_brings_the_samples_between_its_ends(case: Callable) -> None:
    _, _, places, spans = case([([0], [0])])
    shard, offset = np.array([0, 0]), np.array([spans[2][1], spans[0][1]])
    length = np.array([spans[2][2] + spans[3][2], spans[0][2]])
    position, brought_by = places.in_reads(shard, offset, length)
    assert position.tolist() == [2, 3, 0] and brought_by.tolist() == [0, 0, 1]
    for wrong in (length - 512, length + 512):
        with pytest.raises(PlanError, match="not whole samples"):
            places.in_reads(shard, offset, wrong)
    with pytest.raises(PlanError, match="which the samples do not have"):
        places.find(np.array([0]), np.array([4]))


def test_a_clip_stays_from_its_read_to_its_last_use_in_the_epoch(case: Callable) -> None:
    meta, plan, places, spans = case(
        [([0], [0, 1]), ([1], []), ([0], []), ([0], [0, 2])], epoch_of_row=[0, 0, 0, 1], max_uses_per_epoch=2
    )
    stays = lane_stays(open_lane(plan, 0, meta), places)
    # clip 2 is read and never used: its bytes do not count
    assert list(zip(stays.position.tolist(), stays.read_row.tolist(), stays.last_row.tolist(), strict=True)) == [
        (0, 0, 2),
        (1, 0, 1),
        (0, 3, 3),
    ]
    size = [span[2] for span in spans]
    held = held_over_rows(stays, places.length[stays.position], 4)
    assert held.tolist() == [size[0] + size[1], size[0] + size[1], size[0], size[0]]


@pytest.mark.parametrize("rows", [[([1], [0])], [([0], []), ([0], [0])]], ids=["never read", "read later"])
def test_a_clip_that_is_used_before_it_is_read_is_an_error(
    rows: list[tuple[list[int], list[int]]], case: Callable
) -> None:
    meta, plan, places, _ = case(rows)
    with pytest.raises(PlanError, match="has not read before"):
        lane_stays(open_lane(plan, 0, meta), places)
