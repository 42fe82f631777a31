"""Whole plans of synthetic sets: what the tables say, replayed by brute force and proved by the verifier."""

from __future__ import annotations

import json
import os
from collections import Counter
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

from planner.admission import read_scores
from planner.building import PlannedRun, build_plan
from planner.folder import write_plan
from planner.samples import load_corpus
from planner.settings import PlanConfig
from planner.verify import verify_plan
from schemas.errors import DataError, PlanError
from schemas.plan import LEDGER, PlanMeta, lane_path, lanes_of_rank, read_plan_table

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


def ledger_of(plan: Path, meta: PlanMeta) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_plan_table(plan, "ledger", LEDGER, meta).to_pylist()
    return rows


def test_a_small_set_uses_all_its_clips_over_several_epochs(
    write_set: SetWriter, check: Callable[..., Any], tmp_path: Path
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
    policy: str, write_set: SetWriter, check: Callable[..., Any], tmp_path: Path
) -> None:
    """Sixty clips in nine buckets, all used in each epoch: a step over two epochs could hardly avoid a repeat."""
    small = {"1x64x112": 6, "1x80x80": 8, "1x80x96": 2, "33x48x144": 3, "33x64x112": 2, "33x80x96": 23}
    small |= {"65x64x112": 1, "65x80x96": 13, "121x80x96": 2}
    clips = [(name, index) for name, count in small.items() for index in range(count)]
    folder = write_set(tmp_path / "set", [clips[part::4] for part in range(4)])
    values: dict[str, Any] = {"max_tokens_per_micro_batch": 4096, "policy": policy}
    endless = values | {"epochs": None, "max_steps": 20}
    whole = build_plan(load_corpus([folder], "144p"), config(**values))
    rows_per_epoch = whole.epochs[0].rows.shape[1]
    per_step = next(count for count in (3, 4, 5, 7) if rows_per_epoch % count)
    run, meta = planned([folder], tmp_path / "plan", micro_per_step=per_step, **endless)
    check([folder], tmp_path / "plan")
    assert all(epoch.rows.shape[1] % per_step == 0 for epoch in run.epochs)
    assert (meta.num_steps, meta.metrics["clips_ever_used_share"]) == (20, 1.0), "the rows that stay out take turns"
    assert run.uses.min() >= meta.num_epochs // 4
    assert meta.metrics["used_share_full_epochs"] > 0.8
    reasons = {row["reason"] for row in ledger_of(tmp_path / "plan", meta)}
    assert f"its row does not fill a step of {per_step} rows within the epoch" in reasons
    with pytest.raises(PlanError, match="a step over two epochs would name clips twice"):
        build_plan(load_corpus([folder], "144p"), config(**endless, micro_per_step=3 * rows_per_epoch))


def test_the_used_share_does_not_depend_on_how_uneven_the_shards_are(
    write_set: SetWriter, make_shards: Callable[..., Shards], check: Callable[..., Any], tmp_path: Path
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


@pytest.mark.parametrize("policy", ["uniform", "tiers"])
def test_several_epochs_differ_and_turns_go_around(
    policy: str, write_set: SetWriter, make_shards: Callable[..., Shards], check: Callable[..., Any], tmp_path: Path
) -> None:
    """Without shortening each bucket is for itself: nobody is used twice before all of its bucket were used once."""
    folder = write_set(tmp_path / "set", make_shards(4, 61))
    run, meta = planned(
        [folder], tmp_path / "plan", lanes=4, epochs=3, policy=policy, shorten_left_over=False, micro_per_step=2
    )
    done = check([folder], tmp_path / "plan")
    for bucket in range(len(run.corpus.buckets)):
        uses = run.uses[run.corpus.bucket == bucket]
        assert uses.max() - uses.min() <= 1
    order = [
        [sorted(done.steps[step]) for step in meta.steps if step // (meta.num_steps // 3) == part] for part in range(3)
    ]
    assert order[0] != order[1] != order[2]
    events = Counter((row["epoch"], row["event"]) for row in ledger_of(tmp_path / "plan", meta))
    assert {event for epoch, event in events if epoch < 2} == {"carried"}
    assert {event for epoch, event in events if epoch == 2} == {"left_over"}


def test_carried_clips_come_first_in_the_next_epoch_and_dropped_ones_are_drawn_anew(
    write_set: SetWriter, check: Callable[..., Any], tmp_path: Path
) -> None:
    folder = write_set(tmp_path / "set", [[("33x64x112", index) for index in range(22)]])
    left: dict[str, list[set[str]]] = {}
    for event, choice in (("carried", "carry"), ("left_over", "drop")):
        _, meta = planned(
            [folder],
            tmp_path / choice,
            epochs=8,
            left_over=choice,
            batch_clips={"33x64x112": 3},
            shorten_left_over=False,
        )
        done = check([folder], tmp_path / choice)
        rows = ledger_of(tmp_path / choice, meta)
        left[choice] = [{row["clip_id"] for row in rows if row["epoch"] == epoch} for epoch in range(8)]
        assert all(len(clips) == 4 for clips in left[choice])
        assert {row["event"] for row in rows if row["epoch"] < 7} == {event}
        if choice == "carry":
            for epoch in range(7):
                assert left[choice][epoch] <= set(done.uses[epoch + 1])
    assert any(one & other for one, other in zip(left["drop"], left["drop"][1:], strict=False)), (
        "some are out twice in a row"
    )


def test_repeats_fill_rows_and_are_spread_over_steps(
    write_set: SetWriter, check: Callable[..., Any], tmp_path: Path
) -> None:
    """Twenty-two clips, two lanes, three a micro-batch: four rows with two clips used twice."""
    folder = write_set(tmp_path / "set", [[("33x64x112", index) for index in range(11)] for _ in range(2)])
    _, meta = planned([folder], tmp_path / "plan", left_over="repeat", batch_clips={"33x64x112": 3})
    done = check([folder], tmp_path / "plan")
    assert (meta.num_steps, meta.used_share, meta.metrics["repeated_uses"]) == (4, 1.0, 2.0)
    assert Counter(done.uses[0].values()) == {1: 20, 2: 2}


def test_lanes_of_a_tier_row_run_different_buckets(
    write_set: SetWriter, check: Callable[..., Any], tmp_path: Path
) -> None:
    clips = [("33x64x112", 0), ("33x112x64", 1)] * 40
    folder = write_set(tmp_path / "set", [clips[:40], clips[40:]])
    mixed = {}
    for policy in ("uniform", "tiers"):
        planned([folder], tmp_path / policy, lanes=4, policy=policy, batch_clips={"33x64x112": 2, "33x112x64": 2})
        done = check([folder], tmp_path / policy)
        mixed[policy] = sum(len(set(names)) > 1 for names in done.buckets.values())
    assert mixed["uniform"] == 0 < mixed["tiers"]


def test_the_policy_of_the_paper_puts_whole_tars_on_lanes_and_loses_what_ours_uses(
    write_set: SetWriter, make_shards: Callable[..., Shards], check: Callable[..., Any], tmp_path: Path
) -> None:
    folder = write_set(tmp_path / "set", make_shards(16, 40, seed=2))
    values: dict[str, Any] = {"lanes": 4, "batch_clips": dict.fromkeys(("1x64x112", "33x64x112", "65x64x112"), 4)}
    _, paper = planned([folder], tmp_path / "paper", policy="paper", **values)
    _, ours = planned([folder], tmp_path / "ours", **values)
    done = check([folder], tmp_path / "paper")
    check([folder], tmp_path / "ours")
    shards = Counter(shard for _, _, shard in done.first_reads)
    assert set(shards.values()) == {1}, "a tar is read by one lane"
    assert paper.used_share < ours.used_share
    reasons = {row["reason"] for row in ledger_of(tmp_path / "paper", paper)}
    assert any("its poorest lane" in reason for reason in reasons)
    with pytest.raises(PlanError, match="policy paper: the poorest of 4 lanes has micro-batches for 0 rows"):
        planned([write_set(tmp_path / "few", make_shards(2, 40))], tmp_path / "none", policy="paper", **values)


def test_clips_of_one_source_are_kept_apart(write_set: SetWriter, check: Callable[..., Any], tmp_path: Path) -> None:
    """Each source has four clips in a row in its shard; without care, four of them would often meet in one step."""
    folder = write_set(
        tmp_path / "set", [[("33x64x112", 10 * shard + index // 4) for index in range(40)] for shard in range(4)]
    )
    values: dict[str, Any] = {"batch_clips": {"33x64x112": 4}}
    _, meta = planned([folder], tmp_path / "plan", anneal_moves_per_clip=20.0, **values)
    _, rough = planned([folder], tmp_path / "rough", anneal_moves_per_clip=0.0, anneal_steps=0, **values)
    check([folder], tmp_path / "plan")
    check([folder], tmp_path / "rough")
    assert meta.metrics["shared_source_ratio"] < 0.6 * rough.metrics["shared_source_ratio"]
    assert meta.metrics["anneal_source_pairs_gain"] > 0 == rough.metrics["anneal_source_pairs_gain"]
    assert meta.metrics["used_share/epoch-0000"] == 1.0


def test_a_tight_cap_is_held_by_other_reading_or_other_rows_and_a_tighter_one_refused_with_numbers(
    write_set: SetWriter, make_shards: Callable[..., Shards], check: Callable[..., Any], tmp_path: Path
) -> None:
    """Two tars sorted by bucket: two lanes, one open shard each, even rows need nearly a whole tar in memory."""
    folder = write_set(tmp_path / "set", [sorted(shard) for shard in make_shards(2, 120, seed=5)])
    values: dict[str, Any] = {"max_open_shards": 1, "pool_micro_batches": 0, "read_chunk_kb": 0}
    _, wide = planned([folder], tmp_path / "wide", **values)
    assert wide.metrics.get("follow/epoch-0000") is None
    cap = 0.8 * max(wide.peak_buffer_bytes) / 1e6
    _, tight = planned([folder], tmp_path / "tight", max_buffer_mb=cap, **values)
    check([folder], tmp_path / "tight")
    assert tight.metrics["follow/epoch-0000"] > 0
    assert tight.used_share == wide.used_share and tight.num_steps == wide.num_steps
    clips = int(0.8 * max(wide.peak_buffer_clips))
    _, few = planned([folder], tmp_path / "few", max_buffer_clips=clips, **values)
    check([folder], tmp_path / "few")
    assert few.used_share == wide.used_share
    message = r"lane \d needs a buffer of [\d,]+ bytes in epoch 0, the cap is 100,000 \(config: max_buffer_mb 0.1\).*Set max_buffer_mb to"
    with pytest.raises(PlanError, match=message):
        planned([folder], tmp_path / "none", max_buffer_mb=0.1)
    with pytest.raises(
        PlanError, match=r"lane \d needs a buffer of \d+ clips in epoch 0, the cap is 2 \(config: max_buffer_clips\)"
    ):
        planned([folder], tmp_path / "none", max_buffer_clips=2)
    assert not (tmp_path / "none").exists()


def test_more_open_shards_need_less_buffer(
    write_set: SetWriter, make_shards: Callable[..., Shards], check: Callable[..., Any], tmp_path: Path
) -> None:
    folder = write_set(tmp_path / "set", [sorted(shard) for shard in make_shards(8, 60, seed=5)])
    peaks = {}
    for most in (1, 4):
        _, meta = planned(
            [folder], tmp_path / f"open-{most}", max_open_shards=most, pool_micro_batches=0, read_chunk_kb=0
        )
        check([folder], tmp_path / f"open-{most}")
        peaks[most] = max(meta.peak_buffer_bytes)
    assert peaks[4] < peaks[1]


def test_images_and_videos_follow_the_phases_of_the_run(
    write_set: SetWriter, check: Callable[..., Any], tmp_path: Path
) -> None:
    """As many rows of images as of videos up to the middle of the run, then one in five; two epochs."""
    clips = [("1x64x112", index) for index in range(90)] + [("33x64x112", 100 + index) for index in range(90)]
    folder = write_set(tmp_path / "set", [clips[part::3] for part in range(3)])
    phases = ({"until": 0.5, "images_per_video": 1.0}, {"until": 1.0, "images_per_video": 0.25})
    for policy in ("uniform", "tiers"):
        _, meta = planned(
            [folder],
            tmp_path / policy,
            epochs=2,
            policy=policy,
            mix=phases,
            batch_clips={"1x64x112": 1, "33x64x112": 1},
        )
        done = check([folder], tmp_path / policy)
        names = [done.buckets[row][0] for row in range(meta.num_steps)]
        epochs = [sum(done.uses[epoch].values()) // 2 for epoch in range(2)]
        first, second = names[: epochs[0]], names[epochs[0] :]
        assert sum(name.startswith("1x") for name in first) == pytest.approx(len(first) / 2, abs=1)
        assert sum(name.startswith("1x") for name in second) == pytest.approx(len(second) / 5, abs=1)
        reasons = {row["reason"] for row in ledger_of(tmp_path / policy, meta)}
        assert any(reason.startswith("mix takes") for reason in reasons)
    # A single epoch over both phases has its images where the phases want them.
    _, meta = planned([folder], tmp_path / "one", mix=phases, batch_clips={"1x64x112": 1, "33x64x112": 1})
    done = check([folder], tmp_path / "one")
    half = meta.num_steps // 2
    images = [done.buckets[row][0].startswith("1x") for row in range(meta.num_steps)]
    assert sum(images[:half]) == pytest.approx(half / 2, abs=2)
    assert sum(images[half:]) == pytest.approx((meta.num_steps - half) / 5, abs=2)


def test_domains_take_part_in_their_share_of_epochs(
    write_set: SetWriter, brute_force: ModuleType, check: Callable[..., Any], tmp_path: Path
) -> None:
    folder = write_set(
        tmp_path / "set",
        [[("33x64x112", 40 * shard + index) for index in range(40)] for shard in range(2)],
        facts=lambda index: {"domain": "cats" if index % 2 else "dogs"},
    )
    _, meta = planned(
        [folder],
        tmp_path / "plan",
        epochs=4,
        mix=({"until": 1.0, "domain_weights": {"cats": 0.5}},),
        spares_per_bucket=0,
    )
    done = check([folder], tmp_path / "plan")
    uses = done.uses_in_all()
    for row in brute_force.samples_of([folder]):
        assert uses[row["clip_id"]] <= 2 if row["domain"] == "cats" else uses[row["clip_id"]] >= 3
    reasons = Counter(row["reason"] for row in ledger_of(tmp_path / "plan", meta))
    assert reasons["domain 'cats' takes part in 0.5 of the epochs (mix)"] == 4 * 40 // 2
    assert "mix_index_1/domain" in meta.metrics


def test_a_score_that_lies_on_the_limit_is_in_for_builder_and_verifier(
    write_set: SetWriter, brute_force: ModuleType, check: Callable[..., Any], tmp_path: Path
) -> None:
    """Stored in 32 bits, 0.3 is a little more than 0.3."""
    folder = write_set(tmp_path / "set", [[("33x64x112", index) for index in range(24)]])
    ids = [row["clip_id"] for row in brute_force.samples_of([folder])]
    scores = tmp_path / "clips.parquet"
    pq.write_table(pa.table({"clip_id": ids, "motion": pa.array([0.3, 0.7] * 12, pa.float32())}), scores)
    planned([folder], tmp_path / "plan", rules=({"column": "motion", "at_most": 0.3},), scores=scores)
    done = check([folder], tmp_path / "plan", set(ids[::2]), scores)
    assert set(done.uses[0]) == set(ids[::2])
    assert not verify_plan(tmp_path / "plan", [folder], scores=None).broken


def test_two_sets_share_one_plan(
    write_set: SetWriter, make_shards: Callable[..., Shards], check: Callable[..., Any], tmp_path: Path
) -> None:
    images = write_set(tmp_path / "images", [[("1x144x256", 1000 + at) for at in range(30)]], name="144p", seed=1)
    videos = write_set(tmp_path / "videos", make_shards(3, 30))
    _, meta = planned([videos, images], tmp_path / "plan")
    check([videos, images], tmp_path / "plan")
    assert [item.first_shard for item in meta.sets] == [0, 3]
    assert verify_plan(tmp_path / "plan", [images, videos]).ok, "sets are recognised by their hash"


def test_the_folder_holds_what_the_format_says(
    write_set: SetWriter, make_shards: Callable[..., Shards], tmp_path: Path
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
    write_set: SetWriter, make_shards: Callable[..., Shards], check: Callable[..., Any], tmp_path: Path
) -> None:
    folder = write_set(tmp_path / "set", make_shards(16, 40, seed=4))
    for policy in ("uniform", "tiers"):
        _, meta = planned(
            [folder], tmp_path / policy, lanes=4, policy=policy, anneal_steps=500, anneal_moves_per_clip=8.0, tiers=2
        )
        check([folder], tmp_path / policy)
        metrics = meta.metrics
        for name in ("opens", "order_energy", "peak_buffer_bytes", "bucket_mix_energy", "row_seconds", "window_energy"):
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
    policy: str, write_set: SetWriter, make_shards: Callable[..., Shards], tmp_path: Path
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
