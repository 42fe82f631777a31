"""Whole plans of synthetic sets: what the tables say, replayed by brute force and proved by the verifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.admission import read_scores
from planner.building import PlannedRun, build_plan
from planner.folder import write_plan
from planner.samples import load_corpus
from planner.settings import PlanConfig
from planner.verify import verify_plan
from schemas.errors import DataError, PlanError
from schemas.plan import PlanMeta, lanes_of_rank

SetWriter = Callable[..., Path]
Shards = list[list[tuple[str, int]]]
BUCKETS = ["1x64x112", "33x64x112", "65x64x112", "121x64x112", "33x112x64", "1x80x80"]
REFUSALS = (
    "no bucket fills a row",
    "fills no step",
    "is admitted at",
    "meets the rules",
    "needs a buffer of",
    "mix asks for",
    "policy paper: the poorest of",
)


def config(**values: Any) -> PlanConfig:
    base = {"lanes": 2, "max_tokens_per_micro_batch": 2048, "anneal_steps": 60, "cost": {"preset": "tiny"}}
    return PlanConfig.model_validate(base | values)


def planned(
    folders: Sequence[Path], plan: Path, *, scores: Path | None = None, **values: Any
) -> tuple[PlannedRun, PlanMeta]:
    plan_config = config(**values)
    corpus = load_corpus(
        folders,
        plan_config.admission,
        plan_config.rules,
        scores=read_scores(scores, plan_config.rules),
        domain_column=plan_config.domain_column,
    )
    run = build_plan(corpus, plan_config)
    return run, write_plan(run, plan)


@pytest.fixture(scope="session")
def check(brute_force: ModuleType) -> Callable[..., Any]:
    """`check(folders, plan)`: replay, ledger, any world size, and the verifier; gives the replay."""

    def run(folders: Sequence[Path], plan: Path, admitted: set[str] | None = None, scores: Path | None = None) -> Any:
        done = brute_force.replay(plan, folders)
        meta = done.meta
        if admitted is None:
            admitted = {row["clip_id"] for row in done.samples if meta.admission in row["admissions"]}
        brute_force.check_ledger(plan, done, admitted)
        for world in range(1, meta.num_lanes + 1):
            if meta.num_lanes % world == 0:
                for step in meta.steps:
                    over_ranks: Counter[str] = Counter()
                    for rank in range(world):
                        for lane in lanes_of_rank(rank, world, meta.num_lanes):
                            over_ranks += done.lane_steps[lane, step]
                    assert over_ranks == done.steps[step]
        assert meta.metrics["read_amplification"] == meta.metrics["sequential_share"] == 1.0
        report = verify_plan(plan, folders, scores=scores)
        assert report.ok, report.broken
        assert not {"admission_rules", "continues", "admitted_clips"} & set(report.skipped)
        assert report.bounds["used_share"] <= report.bounds["used_share_upper_bound"] + 1e-12
        return done

    return run


@st.composite
def plan_settings(draw: st.DrawFn) -> dict[str, Any]:
    policy = draw(st.sampled_from(["uniform", "tiers", "tiers", "paper"]))
    mixes: list[Any] = [()]
    if policy != "paper":
        ratios = ({"until": 0.4, "images_per_video": 1.0}, {"until": 1.0, "images_per_video": 0.5})
        mixes += [ratios, ({"until": 0.5, "domain_weights": {"cats": 0.5}}, {"until": 1.0})]
    return {
        "lanes": draw(st.integers(1, 4)),
        "micro_per_step": draw(st.integers(1, 3)),
        "epochs": draw(st.sampled_from([1, 2, 3])),
        "max_steps": draw(st.sampled_from([None, None, 2])),
        "max_tokens_per_micro_batch": draw(st.sampled_from([868, 2048, 8192])),
        "policy": policy,
        "sync": draw(st.sampled_from(["micro", "step"])),
        "left_over": draw(st.sampled_from(["carry", "drop", "repeat"])),
        "repeat_at_most": draw(st.integers(2, 3)),
        "shorten_left_over": draw(st.booleans()),
        "mix": draw(st.sampled_from(mixes)),
        "max_buffer_mb": draw(st.sampled_from([4096.0, 4096.0, 2.0, 0.6])),
        "max_buffer_clips": draw(st.sampled_from([None, None, 24, 6])),
        "max_open_shards": draw(st.integers(1, 4)),
        "pool_micro_batches": draw(st.sampled_from([0, 2])),
        "read_chunk_kb": draw(st.sampled_from([0, 64])),
        "window_steps": draw(st.sampled_from([1, 64])),
        "anneal_steps": draw(st.sampled_from([0, 40])),
        "anneal_moves_per_clip": draw(st.sampled_from([0.0, 4.0])),
        "domain_column": draw(st.sampled_from(["domain", "branch"])),
        "rules": draw(
            st.sampled_from(
                [
                    (),
                    (),
                    ({"column": "frames", "at_most": 100},),
                    ({"column": "motion", "at_least": 0.25, "missing": "drop"},),
                    ({"column": "domain", "one_of": ("cats",)}, {"column": "motion", "at_most": 0.9}),
                ]
            )
        ),
        "seed": draw(st.integers(0, 99)),
    }


def motion(index: int) -> float | None:
    return None if index % 7 == 0 else (index * 37 % 100) / 100


def domain(index: int) -> str:
    return ("cats", "dogs", "")[index % 3]


def meets(row: dict[str, Any], index: int, rules: Sequence[dict[str, Any]]) -> bool:
    """The rules above, by hand."""
    value = motion(index)
    for rule in rules:
        if rule["column"] == "frames" and row["frames"] > 100:
            return False
        if rule["column"] == "motion" and "at_least" in rule and (value is None or value < 0.25):
            return False
        if rule["column"] == "motion" and "at_most" in rule and value is not None and value > 0.9:
            return False
        if rule["column"] == "domain" and row["domain"] != "cats":
            return False
    return True


@given(
    shards=st.lists(
        st.lists(st.tuples(st.sampled_from(BUCKETS), st.integers(0, 6)), min_size=1, max_size=16),
        min_size=1,
        max_size=5,
    ),
    values=plan_settings(),
)
@settings(max_examples=70)
def test_any_small_set_is_planned_exactly_or_refused_in_words(
    shards: Shards,
    values: dict[str, Any],
    write_set: SetWriter,
    brute_force: ModuleType,
    check: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("any")
    folder = write_set(
        home / "set",
        shards,
        seed=values["seed"],
        admissions=lambda index: ["144p"] if index % 5 else [],
        facts=lambda index: {"domain": domain(index)},
    )
    rows = brute_force.samples_of([folder])
    scores = home / "clips.parquet"
    pq.write_table(
        pa.table(
            {
                "clip_id": [row["clip_id"] for row in rows],
                "motion": pa.array([motion(index) for index in range(len(rows))], pa.float32()),
            }
        ),
        scores,
    )
    try:
        planned([folder], home / "plan", scores=scores, **values)
    except (PlanError, DataError) as error:
        assert any(refusal in str(error) for refusal in REFUSALS), error
        assert not (home / "plan").exists()
        return
    admitted = {row["clip_id"] for index, row in enumerate(rows) if index % 5 and meets(row, index, values["rules"])}
    done = check([folder], home / "plan", admitted, scores)
    if values["left_over"] != "repeat":
        assert all(set(counter.values()) == {1} for counter in done.uses.values())
