"""Whole plans of synthetic sets: what the tables say, checked here by brute force and by the verifier."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.building import PlannedRun, build_plan
from planner.folder import write_plan
from planner.samples import load_corpus
from planner.settings import PlanConfig
from planner.verify import verify_plan
from schemas.errors import DataError, PlanError
from schemas.plan import (
    LEDGER,
    ROWS,
    PlanMeta,
    lane_path,
    lanes_of_rank,
    read_lane,
    read_plan_meta,
    read_plan_table,
)
from schemas.shards import samples_path
from schemas.tables import SAMPLES, read_table

SetWriter = Callable[..., Path]
Shards = list[list[tuple[str, int]]]
BUCKETS = ["1x64x112", "33x64x112", "65x64x112", "121x64x112", "33x112x64", "1x80x80"]


def config(**values: Any) -> PlanConfig:
    base = {"lanes": 2, "max_tokens_per_micro_batch": 2048, "anneal_steps": 60, "cost": {"preset": "tiny"}}
    return PlanConfig.model_validate(base | values)


def planned(folders: Sequence[Path], plan: Path, **values: Any) -> tuple[PlannedRun, PlanMeta]:
    settings_of_plan = config(**values)
    run = build_plan(load_corpus(folders, settings_of_plan.admission), settings_of_plan)
    return run, write_plan(run, plan)


def brute_force(folder: Path, plan: Path) -> dict[int, Counter[str]]:
    """Replay the plan clip by clip in plain Python and return how often each clip id is used per epoch."""
    meta = read_plan_meta(plan)
    samples = read_table(samples_path(folder), SAMPLES).to_pylist()
    at = {(row["shard_index"], row["ordinal"]): row for row in samples}
    starts = {(row["shard_index"], row["offset"]): row for row in samples}
    of_step: Counter[tuple[int, str]] = Counter()
    batch = {entry.bucket: entry.clips_per_lane for entry in meta.batches}
    uses: dict[int, Counter[str]] = {epoch: Counter() for epoch in range(meta.num_epochs)}
    rows = read_plan_table(plan, "rows", ROWS, meta).to_pylist()
    keys = [(row["epoch"], row["step"], row["micro"]) for row in rows]
    assert [key[1:] for key in keys] == [
        (step, micro) for step in range(meta.num_steps) for micro in range(meta.micro_per_step)
    ]
    for lane in range(meta.num_lanes):
        held: dict[str, int] = {}
        front: dict[tuple[int, int], int] = {}
        peak = 0
        table = read_lane(plan, lane, meta).to_pylist()
        assert [(row["epoch"], row["step"], row["micro"]) for row in table] == keys
        for row in table:
            for item in row["reads"]:
                position, end = item["offset"], item["offset"] + item["length"]
                assert position >= front.get((row["epoch"], item["shard"]), 0)
                front[row["epoch"], item["shard"]] = end
                while position < end:
                    sample = starts[item["shard"], position]
                    assert sample["clip_id"] not in held
                    held[sample["clip_id"]] = sample["length"]
                    position += sample["length"]
                assert position == end
            peak = max(peak, sum(held.values()))
            assert len(row["clips"]) == batch[f"{row['frames']}x{row['height']}x{row['width']}"]
            for place in row["clips"]:
                sample = at[place["shard"], place["ordinal"]]
                assert (sample["height"], sample["width"]) == (row["height"], row["width"])
                assert sample["frames"] >= row["frames"]
                del held[sample["clip_id"]]
                uses[row["epoch"]][sample["clip_id"]] += 1
                of_step[row["step"], sample["clip_id"]] += 1
        assert not held, "everything that is read is used"
        assert peak == meta.peak_buffer_bytes[lane] <= meta.max_buffer_bytes
    assert max(of_step.values()) == 1, "a clip comes twice in a step"
    return uses


def check(folder: Path, plan: Path) -> None:
    meta = read_plan_meta(plan)
    uses = brute_force(folder, plan)
    left: dict[int, set[str]] = {epoch: set() for epoch in uses}
    for row in read_plan_table(plan, "ledger", LEDGER, meta).to_pylist():
        left[row["epoch"]].add(row["clip_id"])
    admitted = {
        row["clip_id"]
        for row in read_table(samples_path(folder), SAMPLES).to_pylist()
        if meta.admission in row["admissions"]
    }
    for epoch, counter in uses.items():
        assert set(counter.values()) <= {1}
        assert set(counter) | left[epoch] == admitted
        assert not set(counter) & left[epoch]
    total = sum(len(counter) for counter in uses.values())
    assert meta.used_share == pytest.approx(total / (len(admitted) * meta.num_epochs), abs=1e-12)
    report = verify_plan(plan, [folder])
    assert report.ok, report.broken
    assert report.bounds["used_share"] <= report.bounds["used_share_upper_bound"] + 1e-12


@given(
    shards=st.lists(
        st.lists(st.tuples(st.sampled_from(BUCKETS), st.integers(0, 6)), min_size=1, max_size=14),
        min_size=1,
        max_size=5,
    ),
    lanes=st.integers(1, 4),
    micro=st.integers(1, 3),
    epochs=st.integers(1, 3),
    tokens=st.sampled_from([868, 2048, 8192]),
    policy=st.sampled_from(["uniform", "tiers"]),
    anneal_steps=st.sampled_from([0, 40]),
    shorten=st.booleans(),
    max_steps=st.sampled_from([None, 2]),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_any_small_set_is_planned_exactly_or_refused_in_words(
    shards: Shards,
    lanes: int,
    micro: int,
    epochs: int,
    tokens: int,
    policy: str,
    anneal_steps: int,
    shorten: bool,
    max_steps: int | None,
    seed: int,
    write_set: SetWriter,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("any")
    folder = write_set(home / "set", shards, seed=seed, admissions=lambda index: ["144p"] if index % 5 else [])
    try:
        planned(
            [folder],
            home / "plan",
            lanes=lanes,
            micro_per_step=micro,
            epochs=epochs,
            max_tokens_per_micro_batch=tokens,
            policy=policy,
            anneal_steps=anneal_steps,
            shorten_left_over=shorten,
            max_steps=max_steps,
            seed=seed,
        )
    except (PlanError, DataError) as error:
        assert "no bucket fills a row" in str(error) or "fills no step" in str(error) or "is admitted at" in str(error)
        return
    check(folder, home / "plan")


def test_a_small_set_uses_all_its_clips_over_several_epochs(write_set: SetWriter, tmp_path: Path) -> None:
    """Fifty clips in eight buckets on two lanes; some buckets have one clip."""
    names = {
        "1x64x112": 9,
        "33x64x112": 14,
        "65x64x112": 7,
        "121x64x112": 1,
        "33x112x64": 11,
        "65x112x64": 1,
        "1x112x64": 4,
        "33x80x80": 3,
    }
    clips = [(name, index) for name, count in names.items() for index in range(count)]
    folder = write_set(tmp_path / "set", [clips[0::2], clips[1::2]])
    run, meta = planned(
        [folder], tmp_path / "plan", lanes=2, micro_per_step=2, epochs=None, max_steps=20, anneal_steps=200
    )
    check(folder, tmp_path / "plan")
    assert (meta.num_steps, meta.metrics["clips_ever_used_share"]) == (20, 1.0)
    assert meta.metrics["used_share_full_epochs"] >= 0.94
    assert meta.metrics["shortened_uses"] > 0
    assert run.uses.min() >= meta.num_epochs // 2


SMALL = {
    "1x64x112": 6,
    "1x80x80": 8,
    "1x80x96": 2,
    "33x48x144": 3,
    "33x64x112": 2,
    "33x80x96": 23,
    "65x64x112": 1,
    "65x80x96": 13,
    "121x80x96": 2,
}


@pytest.mark.parametrize("policy", ["uniform", "tiers"])
def test_no_clip_comes_twice_in_a_step_where_the_rows_do_not_fill_steps(
    policy: str, write_set: SetWriter, tmp_path: Path
) -> None:
    """Sixty clips in ten buckets, all used in each epoch: a step over two epochs could hardly avoid a repeat."""
    clips = [(name, index) for name, count in SMALL.items() for index in range(count)]
    folder = write_set(tmp_path / "set", [clips[part::4] for part in range(4)])
    settings_of_plan = {"epochs": None, "max_steps": 20, "max_tokens_per_micro_batch": 4096, "policy": policy}
    whole = build_plan(load_corpus([folder], "144p"), config(**settings_of_plan))
    rows_per_epoch = whole.starts[0].num_rows
    assert rows_per_epoch % 3
    run, meta = planned([folder], tmp_path / "plan", micro_per_step=3, **settings_of_plan)
    check(folder, tmp_path / "plan")
    assert all(start.num_rows % 3 == 0 for start in run.starts)
    assert meta.num_steps == 20
    assert meta.metrics["clips_ever_used_share"] == 1.0, "the rows that stay out take turns"
    assert run.uses.min() >= meta.num_epochs // 4
    assert meta.metrics["used_share_full_epochs"] > 0.8
    reasons = {row["reason"] for row in read_plan_table(tmp_path / "plan", "ledger", LEDGER, meta).to_pylist()}
    assert "its row does not fill a step of 3 rows within the epoch" in reasons
    with pytest.raises(PlanError, match="a step over two epochs would name clips twice"):
        build_plan(load_corpus([folder], "144p"), config(**settings_of_plan, micro_per_step=rows_per_epoch + 1))


def test_the_used_share_does_not_depend_on_how_uneven_the_shards_are(
    write_set: SetWriter, make_shards: Callable[..., Shards], tmp_path: Path
) -> None:
    shards = make_shards(12, 60, seed=3)
    ordered = [sorted(shard) for shard in shards]
    shares = []
    for name, content in (("mixed", shards), ("sorted", ordered)):
        folder = write_set(tmp_path / name, content)
        _, meta = planned([folder], tmp_path / f"plan-{name}", lanes=4, epochs=2, micro_per_step=2)
        check(folder, tmp_path / f"plan-{name}")
        shares.append(meta.used_share)
        assert meta.metrics["read_amplification"] == meta.metrics["sequential_share"] == 1.0
        assert meta.metrics["anneal_peak_buffer_gain_bytes"] >= 0
    assert shares[0] == shares[1] > 0.97


def test_epochs_differ_and_any_divisor_of_the_lanes_runs_the_same_clips_per_step(
    write_set: SetWriter, make_shards: Callable[..., Shards], tmp_path: Path
) -> None:
    folder = write_set(tmp_path / "set", make_shards(4, 60))
    _, meta = planned([folder], tmp_path / "plan", lanes=4, epochs=2)
    lanes = [read_lane(tmp_path / "plan", lane, meta).to_pylist() for lane in range(4)]
    first = [row["clips"] for row in lanes[0] if row["epoch"] == 0]
    assert first != [row["clips"] for row in lanes[0] if row["epoch"] == 1]
    for world in (1, 2, 4):
        ranks = [lanes_of_rank(rank, world, 4) for rank in range(world)]
        assert sorted(lane for rank in ranks for lane in rank) == [0, 1, 2, 3]


def test_lanes_of_a_tier_row_run_different_buckets(write_set: SetWriter, tmp_path: Path) -> None:
    clips = [("33x64x112", 0), ("33x112x64", 1)] * 40
    folder = write_set(tmp_path / "set", [clips[:40], clips[40:]])
    mixed = {}
    for policy in ("uniform", "tiers"):
        _, meta = planned(
            [folder], tmp_path / policy, lanes=4, policy=policy, batch_clips={"33x64x112": 2, "33x112x64": 2}
        )
        check(folder, tmp_path / policy)
        widths = [read_lane(tmp_path / policy, lane, meta).column("width").to_pylist() for lane in range(4)]
        mixed[policy] = sum(len(set(row)) > 1 for row in zip(*widths, strict=True))
    assert mixed["uniform"] == 0 < mixed["tiers"]


def test_clips_of_one_source_are_kept_apart(write_set: SetWriter, tmp_path: Path) -> None:
    """Each source has four clips in a row in its shard; without care, four of them would often meet in one step."""
    folder = write_set(
        tmp_path / "set", [[("33x64x112", 10 * shard + index // 4) for index in range(40)] for shard in range(4)]
    )
    _, meta = planned([folder], tmp_path / "plan", lanes=2, batch_clips={"33x64x112": 4})
    check(folder, tmp_path / "plan")
    assert meta.metrics["shared_source_share"] < 0.75
    assert meta.metrics["used_share/epoch-0000"] == 1.0


def test_a_tight_cap_bends_the_row_order_and_a_tighter_one_is_refused_with_numbers(
    write_set: SetWriter, make_shards: Callable[..., Shards], tmp_path: Path
) -> None:
    folder = write_set(tmp_path / "set", [sorted(shard) for shard in make_shards(2, 120, seed=5)])
    wide, meta = planned([folder], tmp_path / "wide", lanes=2)
    assert meta.metrics.get("follow/epoch-0000") is None
    cap = 0.8 * max(meta.peak_buffer_bytes) / 1e6
    _, tight = planned([folder], tmp_path / "tight", lanes=2, max_buffer_mb=cap)
    check(folder, tmp_path / "tight")
    assert tight.metrics["follow/epoch-0000"] > 0
    assert tight.used_share == meta.used_share
    with pytest.raises(PlanError, match=r"lane \d needs a buffer of [\d,]+ bytes in epoch 0, the cap is 100,000"):
        planned([folder], tmp_path / "none", lanes=2, max_buffer_mb=0.1)
    assert not (tmp_path / "none").exists()
    assert wide.num_steps == meta.num_steps


def test_two_sets_share_one_plan(write_set: SetWriter, make_shards: Callable[..., Shards], tmp_path: Path) -> None:
    images = write_set(tmp_path / "images", [[("1x144x256", index) for index in range(30)]], name="144p", seed=1)
    videos = write_set(tmp_path / "videos", make_shards(3, 30))
    _, meta = planned([videos, images], tmp_path / "plan", lanes=2)
    assert [item.first_shard for item in meta.sets] == [0, 3]
    assert verify_plan(tmp_path / "plan", [videos, images]).ok
    assert verify_plan(tmp_path / "plan", [images, videos]).ok, "sets are recognised by their hash"


def test_the_folder_holds_what_the_format_says(
    write_set: SetWriter, make_shards: Callable[..., Shards], tmp_path: Path
) -> None:
    folder = write_set(tmp_path / "set", make_shards(2, 30))
    _, meta = planned([folder], tmp_path / "plan", lanes=2)
    names = sorted(
        str(path.relative_to(tmp_path / "plan")) for path in (tmp_path / "plan").rglob("*") if path.is_file()
    )
    assert names == [
        "lanes/lane-0000.parquet",
        "lanes/lane-0001.parquet",
        "ledger.parquet",
        "plan.json",
        "rows.parquet",
        "spares.parquet",
    ]
    assert lane_path(tmp_path / "plan", 1).is_file()
    assert set(meta.formulas) == set(meta.metrics)
    assert str(tmp_path) not in json.dumps(meta.model_dump(mode="json"))
