"""Whole plans of synthetic sets: what the tables say, replayed by brute force and proved by the verifier."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.building import PlannedRun, build_plan
from planner.samples import load_corpus
from planner.verify import verify_plan
from schemas.errors import DataError, PlanError
from schemas.plan import PlanMeta, lane_path

SetWriter = Callable[..., Path]
Planned = Callable[..., tuple[PlannedRun, PlanMeta]]
Check = Callable[..., Any]
Shards = list[list[tuple[str, int]]]
BUCKETS = ["1x64x112", "33x64x112", "65x64x112", "121x64x112", "33x112x64", "1x80x80"]
REFUSALS = (
    "no bucket fills a row",
    "fills no step",
    "fill no row of",
    "is admitted at",
    "meets the rules",
    "needs a buffer of",
    "mix asks for",
    "policy paper: the poorest of",
)


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
    check: Check,
    tmp_path_factory: pytest.TempPathFactory,
    planned: Planned,
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


def test_a_small_set_uses_all_its_clips_over_several_epochs(
    write_set: SetWriter, check: Check, tmp_path: Path, planned: Planned
) -> None:
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
    run, meta = planned([folder], tmp_path / "plan", micro_per_step=2, epochs=None, max_steps=20, anneal_steps=200)
    check([folder], tmp_path / "plan")
    assert (meta.num_steps, meta.metrics["clips_ever_used_share"]) == (20, 1.0)
    assert meta.metrics["used_share_full_epochs"] >= 0.94
    assert meta.metrics["shortened_uses"] > 0
    assert run.uses.min() >= meta.num_epochs // 2


@pytest.mark.parametrize("policy", ["uniform", "tiers"])
def test_no_clip_comes_twice_in_a_step_where_the_rows_do_not_fill_steps(
    policy: str,
    write_set: SetWriter,
    check: Check,
    tmp_path: Path,
    planned: Planned,
    brute_force: ModuleType,
    small_plans: ModuleType,
) -> None:
    """Sixty clips in nine buckets, all used in each epoch: a step over two epochs could hardly avoid a repeat."""
    small = {"1x64x112": 6, "1x80x80": 8, "1x80x96": 2, "33x48x144": 3, "33x64x112": 2, "33x80x96": 23}
    small |= {"65x64x112": 1, "65x80x96": 13, "121x80x96": 2}
    clips = [(name, index) for name, count in small.items() for index in range(count)]
    folder = write_set(tmp_path / "set", [clips[part::4] for part in range(4)])
    values: dict[str, Any] = {"max_tokens_per_micro_batch": 4096, "policy": policy}
    endless = values | {"epochs": None, "max_steps": 20}
    whole = build_plan(load_corpus([folder], "144p"), small_plans.small_config(**values))
    rows_per_epoch = whole.epochs[0].rows.shape[1]
    per_step = next(count for count in (3, 4, 5, 7) if rows_per_epoch % count)
    run, meta = planned([folder], tmp_path / "plan", micro_per_step=per_step, **endless)
    check([folder], tmp_path / "plan")
    assert all(epoch.rows.shape[1] % per_step == 0 for epoch in run.epochs)
    assert (meta.num_steps, meta.metrics["clips_ever_used_share"]) == (20, 1.0), "the rows that stay out take turns"
    assert run.uses.min() >= meta.num_epochs // 4
    assert meta.metrics["used_share_full_epochs"] > 0.8
    reasons = {row["reason"] for row in brute_force.ledger_of(tmp_path / "plan", meta)}
    assert f"its row does not fill a step of {per_step} rows within the epoch" in reasons
    with pytest.raises(PlanError, match="a step over two epochs would name clips twice"):
        build_plan(
            load_corpus([folder], "144p"), small_plans.small_config(**endless, micro_per_step=3 * rows_per_epoch)
        )


def test_the_used_share_does_not_depend_on_how_uneven_the_shards_are(
    write_set: SetWriter, make_shards: Callable[..., Shards], check: Check, tmp_path: Path, planned: Planned
) -> None:
    shards = make_shards(12, 60, seed=3)
    shares = []
    for name, content in (("mixed", shards), ("sorted", [sorted(shard) for shard in shards])):
        folder = write_set(tmp_path / name, content)
        _, meta = planned([folder], tmp_path / f"plan-{name}", lanes=4, epochs=2, micro_per_step=2)
        check([folder], tmp_path / f"plan-{name}")
        shares.append(meta.used_share)
        assert meta.metrics["opens_per_shard"] <= 2.0 + 4 * 6 / 12, "tars + lanes x buckets"
    assert shares[0] == shares[1] > 0.97


def test_two_sets_share_one_plan(
    write_set: SetWriter, make_shards: Callable[..., Shards], check: Check, tmp_path: Path, planned: Planned
) -> None:
    images = write_set(tmp_path / "images", [[("1x144x256", 1000 + at) for at in range(30)]], name="144p", seed=1)
    videos = write_set(tmp_path / "videos", make_shards(3, 30))
    _, meta = planned([videos, images], tmp_path / "plan")
    check([videos, images], tmp_path / "plan")
    assert [item.first_shard for item in meta.sets] == [0, 3]
    assert verify_plan(tmp_path / "plan", [images, videos]).ok, "sets are recognised by their hash"


def test_the_folder_holds_what_the_format_says(
    write_set: SetWriter, make_shards: Callable[..., Shards], tmp_path: Path, planned: Planned
) -> None:
    folder = write_set(tmp_path / "set", make_shards(2, 30))
    _, meta = planned([folder], tmp_path / "plan")
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


def test_what_annealing_added_is_recorded_and_never_a_loss(
    write_set: SetWriter, make_shards: Callable[..., Shards], check: Check, tmp_path: Path, planned: Planned
) -> None:
    folder = write_set(tmp_path / "set", make_shards(16, 40, seed=4))
    for policy, tiers in (("uniform", None), ("tiers", 2)):
        values = {"policy": policy, "tiers": tiers, "anneal_steps": 500, "anneal_moves_per_clip": 8.0}
        _, meta = planned([folder], tmp_path / policy, lanes=4, **values)
        check([folder], tmp_path / policy)
        metrics = meta.metrics
        # Not the peak: an order that mixes better is taken while it is no worry.
        for name in ("opens", "order_energy", "bucket_mix_energy", "row_seconds", "window_energy"):
            assert metrics[f"anneal_{name}_gain"] >= 0
            assert metrics[f"anneal_{name}_gain"] <= metrics[f"anneal_{name}_start"]
        assert metrics["anneal_order_energy_gain"] > 0 and metrics["anneal_epochs_won"] == 1.0
        assert metrics["opens_per_shard"] * 16 == metrics["anneal_opens_start"] - metrics["anneal_opens_gain"]
        _, still = planned(
            [folder], tmp_path / f"{policy}-still", lanes=4, policy=policy, anneal_steps=0, anneal_moves_per_clip=0.0
        )
        check([folder], tmp_path / f"{policy}-still")
        assert still.metrics["anneal_order_energy_gain"] == still.metrics["anneal_window_energy_gain"] == 0.0
        assert still.used_share == pytest.approx(meta.used_share, abs=0.02)


@contextmanager
def processors(count: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("policy", ["uniform", "tiers", "paper"])
def test_one_thread_and_two_and_every_repeat_give_the_same_hash(
    policy: str, write_set: SetWriter, make_shards: Callable[..., Shards], tmp_path: Path, planned: Planned
) -> None:
    folder = write_set(tmp_path / "set", make_shards(16, 40, seed=1), facts=lambda index: {"domain": domain(index)})
    hashes = []
    for number, count in enumerate((1, 2, 2)):
        with processors(count):
            _, meta = planned(
                [folder],
                tmp_path / str(number),
                lanes=4,
                policy=policy,
                epochs=2,
                micro_per_step=2,
                max_tokens_per_micro_batch=900,
                window_steps=4,
                anneal_moves_per_clip=4.0,
            )
        hashes.append(meta.plan_hash)
    assert len(set(hashes)) == 1
    _, other = planned([folder], tmp_path / "other", lanes=4, policy=policy, epochs=2, micro_per_step=2, seed=1)
    assert other.plan_hash != hashes[0]
