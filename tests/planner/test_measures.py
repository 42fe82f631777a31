"""The headline metrics of a build, counted again from the plan's files; and what they say of reads that are not as they should be."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from planner.building import PlannedRun, build_plan
from planner.folder import write_plan
from planner.measures import FORMULAS, measure
from planner.samples import load_corpus
from planner.settings import PlanConfig
from schemas.plan import PlanMeta, read_lane

Shards = list[list[tuple[str, int]]]


@pytest.fixture(scope="module", params=["uniform", "tiers", "repeat"])
def case(
    request: pytest.FixtureRequest,
    write_set: Callable[..., Path],
    make_shards: Callable[..., Shards],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path, PlannedRun, PlanMeta]:
    """(set, plan, run, meta): two epochs, the second cut by max_steps."""
    home = tmp_path_factory.mktemp("measures")
    folder = write_set(home / "set", make_shards(5, 50), facts=lambda index: {"domain": "ab"[index % 2]})
    config = PlanConfig.model_validate(
        {
            "lanes": 3,
            "micro_per_step": 2,
            "epochs": 2,
            "max_steps": 22,
            "policy": "tiers" if request.param == "tiers" else "uniform",
            "left_over": "repeat" if request.param == "repeat" else "carry",
            "max_tokens_per_micro_batch": 900,
            "anneal_steps": 100,
            "cost": {"preset": "tiny"},
        }
    )
    run = build_plan(load_corpus([folder], "144p"), config)
    meta = write_plan(run, home / "plan")
    assert len(run.epochs) == 2 and run.epochs[1].rows.shape[1] < run.demanded_rows[1]
    return folder, home / "plan", run, meta


def test_counts_are_those_of_the_files(case: tuple[Path, Path, PlannedRun, PlanMeta], brute_force: ModuleType) -> None:
    folder, plan, _, meta = case
    done = brute_force.replay(plan, [folder])
    metrics = meta.metrics
    uses = done.uses_in_all()
    admitted = meta.admitted_clips
    for epoch in meta.epochs:
        assert metrics[f"used_share/epoch-{epoch:04d}"] == pytest.approx(len(done.uses[epoch]) / admitted)
    assert metrics["used_share_full_epochs"] == pytest.approx(len(done.uses[0]) / admitted)
    assert metrics["clips_ever_used_share"] == pytest.approx(len(uses) / admitted)
    assert metrics["use_count_max"] == max(uses.values())
    assert metrics["use_count_min"] == (min(uses.values()) if len(uses) == admitted else 0)
    distinct = sum(len(counter) for counter in done.uses.values())
    assert metrics["repeated_uses"] == sum(uses.values()) - distinct
    frames = {row["clip_id"]: row["frames"] for row in done.samples}
    opens, reads, shortened = set(), 0, 0
    ids = {(row["shard"], row["ordinal"]): row["clip_id"] for row in done.samples}
    for lane in range(meta.num_lanes):
        for row in read_lane(plan, lane, meta).to_pylist():
            opens |= {(row["epoch"], lane, item["shard"]) for item in row["reads"]}
            reads += len(row["reads"])
            shortened += sum(frames[ids[place["shard"], place["ordinal"]]] > row["frames"] for place in row["clips"])
    assert metrics["opens_per_shard"] == pytest.approx(len(opens) / (5 * 2))
    assert metrics["reads_per_clip"] == pytest.approx(reads / sum(uses.values()))
    assert metrics["shortened_uses"] == shortened
    assert metrics["read_amplification"] == metrics["sequential_share"] == 1.0


def test_ranges_are_runs_of_neighbours_that_one_lane_reads(
    case: tuple[Path, Path, PlannedRun, PlanMeta], brute_force: ModuleType
) -> None:
    folder, plan, _, meta = case
    ranges = 0
    starts = {(row["shard"], row["offset"]) for row in brute_force.samples_of([folder])}
    for lane in range(meta.num_lanes):
        spans: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for row in read_lane(plan, lane, meta).to_pylist():
            for item in row["reads"]:
                spans[row["epoch"], item["shard"]].append((item["offset"], item["offset"] + item["length"]))
        for (_, shard), parts in spans.items():
            assert all((shard, begin) in starts for begin, _ in parts)
            ranges += 1 + sum(one[1] != other[0] for one, other in pairwise(parts))
    assert meta.metrics["ranges_per_shard"] == pytest.approx(ranges / (5 * 2))


def test_sources_that_meet_are_counted_pair_by_pair(
    case: tuple[Path, Path, PlannedRun, PlanMeta], brute_force: ModuleType
) -> None:
    """Over what a random arrangement of the same uses would have on average."""
    folder, plan, run, meta = case
    done = brute_force.replay(plan, [folder])
    source = {row["clip_id"]: row["source"] for row in done.samples}
    ratios = []
    for epoch in meta.epochs:
        steps = [step for step in meta.steps if done.epoch_of_step[step] == epoch]
        pairs = sum(
            source[one] == source[other]
            for step in steps
            for one, other in combinations(done.steps[step].elements(), 2)
        )
        uses = sum(done.uses[epoch].values())
        per_source = Counter(source[clip] for clip in done.uses[epoch].elements())
        same = sum(count * (count - 1) / 2 for count in per_source.values()) / (uses * (uses - 1) / 2)
        in_a_step = sum(math.comb(done.steps[step].total(), 2) for step in steps)
        ratios.append(pairs / (same * in_a_step))
        assert run.epochs[epoch].gains["source_pairs"][1] == pairs
    assert meta.metrics["shared_source_ratio"] == pytest.approx(float(np.mean(ratios)))


def test_every_metric_has_its_formula(case: tuple[Path, Path, PlannedRun, PlanMeta]) -> None:
    meta = case[3]
    assert set(meta.metrics) == set(meta.formulas)
    assert all(np.isfinite(value) for value in meta.metrics.values())
    assert meta.formulas["used_share/epoch-0000"] == FORMULAS["used_share"]
    assert meta.metrics["predicted_hours"] > 0 and meta.metrics["time_over_bound"] >= 1.0 - 1e-12
    assert 0 <= meta.metrics["waste_step"] <= meta.metrics["waste_micro"] + 1e-12 < 1


def with_reads(run: PlannedRun, change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> dict[str, float]:
    """Metrics where the first epoch reads something else: `change(clips, first read of each lane)`."""
    epoch = run.epochs[0]
    clips = change(epoch.read_clip.copy(), epoch.read_start)
    values: dict[str, Any] = measure(replace(run, epochs=(replace(epoch, read_clip=clips), run.epochs[1])), 1)
    return values


def test_a_step_back_in_a_shard_is_not_sequential(case: tuple[Path, Path, PlannedRun, PlanMeta]) -> None:
    run = case[2]
    size = run.corpus.length
    back: list[int] = []

    def swap(clips: np.ndarray, start: np.ndarray) -> np.ndarray:
        same = np.flatnonzero(run.corpus.shard[clips[1 : start[1]]] == run.corpus.shard[clips[: start[1] - 1]])
        at = int(same[0])
        clips[[at, at + 1]] = clips[[at + 1, at]]
        back.append(int(size[clips[at + 1]]))
        return clips

    metrics = with_reads(run, swap)
    total = sum(int(size[epoch.read_clip].sum()) for epoch in run.epochs)
    assert metrics["sequential_share"] == pytest.approx(1 - back[0] / total)
    assert metrics["read_amplification"] == 1.0


def test_bytes_that_two_lanes_read_in_one_epoch_count_twice(case: tuple[Path, Path, PlannedRun, PlanMeta]) -> None:
    run = case[2]
    epoch = run.epochs[0]
    size = run.corpus.length[epoch.read_clip]
    first, last = 0, len(epoch.read_clip) - 1

    def twice(clips: np.ndarray, start: np.ndarray) -> np.ndarray:
        clips[last] = clips[first]
        return clips

    whole = int(size.sum()) - int(size[last]) + int(size[first])
    amplification = whole / (int(size.sum()) - int(size[last]))
    assert with_reads(run, twice)["read_amplification"] == pytest.approx((amplification + 1) / 2)
