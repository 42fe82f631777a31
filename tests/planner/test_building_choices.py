"""What settings make of a plan: left-overs, repeats, tiers, caps, phases of the run, domains, rules, the paper's policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from planner.building import PlannedRun
from planner.verify import verify_plan
from schemas.errors import PlanError
from schemas.plan import PlanMeta

SetWriter = Callable[..., Path]
Planned = Callable[..., tuple[PlannedRun, PlanMeta]]
Check = Callable[..., Any]
Shards = list[list[tuple[str, int]]]
BUCKETS = ["1x64x112", "33x64x112", "65x64x112", "121x64x112", "33x112x64", "1x80x80"]


@pytest.mark.parametrize("policy", ["uniform", "tiers"])
def test_several_epochs_differ_and_turns_go_around(
    policy: str,
    write_set: SetWriter,
    make_shards: Callable[..., Shards],
    check: Check,
    tmp_path: Path,
    planned: Planned,
    brute_force: ModuleType,
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
    events = Counter((row["epoch"], row["event"]) for row in brute_force.ledger_of(tmp_path / "plan", meta))
    assert {event for epoch, event in events if epoch < 2} == {"carried"}
    assert {event for epoch, event in events if epoch == 2} == {"left_over"}


def test_carried_clips_come_first_in_the_next_epoch_and_dropped_ones_are_drawn_anew(
    write_set: SetWriter, check: Check, tmp_path: Path, planned: Planned, brute_force: ModuleType
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
        rows = brute_force.ledger_of(tmp_path / choice, meta)
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
    write_set: SetWriter, check: Check, tmp_path: Path, planned: Planned
) -> None:
    """Twenty-two clips, two lanes, three a micro-batch: four rows with two clips used twice."""
    folder = write_set(tmp_path / "set", [[("33x64x112", index) for index in range(11)] for _ in range(2)])
    _, meta = planned([folder], tmp_path / "plan", left_over="repeat", batch_clips={"33x64x112": 3})
    done = check([folder], tmp_path / "plan")
    assert (meta.num_steps, meta.used_share, meta.metrics["repeated_uses"]) == (4, 1.0, 2.0)
    assert Counter(done.uses[0].values()) == {1: 20, 2: 2}


def test_lanes_of_a_tier_row_run_different_buckets(
    write_set: SetWriter, check: Check, tmp_path: Path, planned: Planned
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
    write_set: SetWriter,
    make_shards: Callable[..., Shards],
    check: Check,
    tmp_path: Path,
    planned: Planned,
    brute_force: ModuleType,
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
    reasons = {row["reason"] for row in brute_force.ledger_of(tmp_path / "paper", paper)}
    assert any("its poorest lane" in reason for reason in reasons)
    with pytest.raises(PlanError, match="policy paper: the poorest of 4 lanes has micro-batches for 0 rows"):
        planned([write_set(tmp_path / "few", make_shards(2, 40))], tmp_path / "none", policy="paper", **values)


def test_clips_of_one_source_are_kept_apart(
    write_set: SetWriter, check: Check, tmp_path: Path, planned: Planned
) -> None:
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
    write_set: SetWriter, make_shards: Callable[..., Shards], check: Check, tmp_path: Path, planned: Planned
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
    write_set: SetWriter, make_shards: Callable[..., Shards], check: Check, tmp_path: Path, planned: Planned
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
    write_set: SetWriter, check: Check, tmp_path: Path, planned: Planned, brute_force: ModuleType
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
        reasons = {row["reason"] for row in brute_force.ledger_of(tmp_path / policy, meta)}
        assert any(reason.startswith("mix takes") for reason in reasons)
    # A single epoch over both phases has its images where the phases want them.
    _, meta = planned([folder], tmp_path / "one", mix=phases, batch_clips={"1x64x112": 1, "33x64x112": 1})
    done = check([folder], tmp_path / "one")
    half = meta.num_steps // 2
    images = [done.buckets[row][0].startswith("1x") for row in range(meta.num_steps)]
    assert sum(images[:half]) == pytest.approx(half / 2, abs=2)
    assert sum(images[half:]) == pytest.approx((meta.num_steps - half) / 5, abs=2)


def test_domains_take_part_in_their_share_of_epochs(
    write_set: SetWriter, brute_force: ModuleType, check: Check, tmp_path: Path, planned: Planned
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
    reasons = Counter(row["reason"] for row in brute_force.ledger_of(tmp_path / "plan", meta))
    assert reasons["domain 'cats' takes part in 0.5 of the epochs (mix)"] == 4 * 40 // 2
    assert "mix_index_1/domain" in meta.metrics


def test_a_score_that_lies_on_the_limit_is_in_for_builder_and_verifier(
    write_set: SetWriter, brute_force: ModuleType, check: Check, tmp_path: Path, planned: Planned
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
