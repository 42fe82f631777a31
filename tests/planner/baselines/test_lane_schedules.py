"""A written plan becomes the schedule that its lane tables describe, and one that contradicts itself is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from planner.baselines.lane_schedules import in_random_order, plan_schedule
from planner.baselines.outcomes import measure
from planner.samples import Corpus, load_corpus
from planner.settings import PlanConfig
from schemas.errors import PlanError
from schemas.plan import read_plan_meta

SHORT, LONG = "1x64x112", "33x64x112"
SECONDS = {SHORT: 1.0, LONG: 4.0}
CONFIG = PlanConfig.model_validate({"lanes": 2, "batch_clips": {SHORT: 2, LONG: 1}})


@pytest.fixture(scope="module")
def corpus(write_set: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    shard = [(SHORT, 0), (SHORT, 1), (LONG, 2), (LONG, 3)]
    return load_corpus([write_set(tmp_path_factory.mktemp("lanes") / "set", [shard, shard])], "144p")


def span(corpus: Corpus, first: int, last: int) -> tuple[int, int, int]:
    """The byte range of clips first .. last (positions in the corpus) of one shard."""
    end = int(corpus.offset[last] + corpus.length[last])
    return int(corpus.shard[first]), int(corpus.offset[first]), end - int(corpus.offset[first])


def write(hand_plans: ModuleType, folder: Path, corpus: Corpus, lane_0_reads: list[list[tuple[int, int, int]]]) -> Path:
    lane_0 = [(SHORT, [(0, 0), (0, 1)], lane_0_reads[0]), (LONG, [(0, 3)], lane_0_reads[1]), (LONG, [(0, 2)], [])]
    lane_1 = [
        (LONG, [(1, 2)], [span(corpus, 4, 6)]),
        (SHORT, [(1, 0), (1, 1)], []),
        (LONG, [(1, 3)], [span(corpus, 7, 7)]),
    ]
    hand_plans.write_plan(folder, [lane_0, lane_1], SECONDS, clips_per_lane={SHORT: 2, LONG: 1})
    return folder


def test_uses_reads_and_rows_are_those_of_the_tables(hand_plans: ModuleType, corpus: Corpus, tmp_path: Path) -> None:
    plan = write(hand_plans, tmp_path / "plan", corpus, [[span(corpus, 0, 1)], [span(corpus, 2, 3)]])
    setup, schedule = plan_schedule(plan, read_plan_meta(plan), corpus, CONFIG)
    assert setup.clips_per_batch.tolist() == [2, 1] and setup.seconds.tolist() == [1.0, 4.0]
    assert schedule.bucket_VxM.tolist() == [[0, 1, 1], [1, 0, 1]]
    uses = np.stack([schedule.uses.lane, schedule.uses.row, schedule.uses.clip], axis=1).tolist()
    assert uses == [[0, 0, 0], [0, 0, 1], [0, 1, 3], [0, 2, 2], [1, 0, 6], [1, 1, 4], [1, 1, 5], [1, 2, 7]]
    reads = schedule.reads
    found = np.stack([reads.lane, reads.row, reads.until, reads.clip], axis=1).tolist()
    assert found[:4] == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 2, 2], [0, 1, 1, 3]]
    assert found[4:] == [[1, 0, 1, 4], [1, 0, 1, 5], [1, 0, 0, 6], [1, 2, 2, 7]]
    values = measure("hand", setup, schedule, 0.0).values
    assert (values["used_share"], values["sequential_share"], values["opens_per_shard"]) == (1.0, 1.0, 1.0)
    assert values["peak_buffer_clips"] == 3.0


@pytest.mark.parametrize(
    ("reads", "what"),
    [
        ("part of a clip", "not those of whole admitted clips"),
        ("too few", "uses clips that it does not read"),
        ("too many", "reads clips that it does not use"),
    ],
)
def test_lanes_that_contradict_themselves_are_refused(
    hand_plans: ModuleType, corpus: Corpus, tmp_path: Path, reads: str, what: str
) -> None:
    given = {
        "part of a clip": [[(0, 0, 7)], [span(corpus, 2, 3)]],
        "too few": [[span(corpus, 0, 1)], [span(corpus, 3, 3)]],
        "too many": [[span(corpus, 0, 1), span(corpus, 4, 4)], [span(corpus, 2, 3)]],
    }
    plan = write(hand_plans, tmp_path / "plan", corpus, given[reads])
    with pytest.raises(PlanError, match=what):
        plan_schedule(plan, read_plan_meta(plan), corpus, CONFIG)


def test_random_order_keeps_rows_and_clips_of_each_lane(hand_plans: ModuleType, corpus: Corpus, tmp_path: Path) -> None:
    plan = write(hand_plans, tmp_path / "plan", corpus, [[span(corpus, 0, 1)], [span(corpus, 2, 3)]])
    setup, schedule = plan_schedule(plan, read_plan_meta(plan), corpus, CONFIG)
    again = in_random_order(setup, schedule)
    assert np.array_equal(again.bucket_VxM, schedule.bucket_VxM)
    for lane in range(2):
        mine, before = (sorted(item.uses.clip[item.uses.lane == lane].tolist()) for item in (again, schedule))
        assert mine == before
    assert measure("again", setup, again, 0.0).values["sequential_share"] == 1.0
