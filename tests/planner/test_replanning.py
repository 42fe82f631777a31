"""Going on from any step on any number of lanes: each clip of the epoch once over all parts, by brute force and by the verifier."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from planner.building import build_plan
from planner.folder import write_plan
from planner.pricing.costs import cost_model
from planner.replanning import continued_config, plan_chain, replan, replan_in_smaller_steps
from planner.samples import load_corpus
from planner.settings import PlanConfig
from planner.verify import verify_plan
from schemas.errors import ConfigError, PlanError, UsageError
from schemas.plan import PlanMeta

SetWriter = Callable[..., Path]
Shards = list[list[tuple[str, int]]]
BUCKETS = ["1x64x112", "33x64x112", "65x64x112", "33x112x64"]


def built(folder: Path, plan: Path, **values: Any) -> PlanMeta:
    base = {"lanes": 2, "max_tokens_per_micro_batch": 900, "anneal_steps": 40, "cost": {"preset": "tiny"}}
    config = PlanConfig.model_validate(base | values)
    return write_plan(build_plan(load_corpus([folder], config.admission), config), plan)


def continued(
    parents: Sequence[Path],
    from_step: int,
    lanes: int,
    folder: Path,
    plan: Path,
    *overrides: str,
    micro_per_step: int | None = None,
) -> PlanMeta:
    """What `reelyard-plan replan` does; `parents` oldest first."""
    chain = plan_chain(parents[-1], parents[:-1])
    config = continued_config(chain[-1][1], lanes, micro_per_step, overrides)
    corpus = load_corpus([folder], config.admission, config.rules)
    go_on = replan if micro_per_step is not None else replan_in_smaller_steps
    return write_plan(go_on(chain, from_step, corpus, config, cost_model(config, None)), plan)


@pytest.fixture(scope="session")
def check(brute_force: ModuleType) -> Callable[..., Counter[str]]:
    """`check(plans, folder)`: the last of a chain, oldest first, against the samples; gives the uses of its first epoch over all parts."""

    def run(plans: Sequence[Path], folder: Path) -> Counter[str]:
        parts = [brute_force.replay(plan, [folder]) for plan in plans]
        last = parts[-1]
        epoch = last.meta.first_epoch
        before: Counter[str] = Counter()
        for part, after in itertools.pairwise(parts):
            for step, clips in part.steps.items():
                if step < after.meta.first_step and part.epoch_of_step[step] == epoch:
                    before += clips
        admitted = {row["clip_id"] for row in last.samples if last.meta.admission in row["admissions"]}
        brute_force.check_ledger(plans[-1], last, admitted, set(before))
        total = before + last.uses[epoch]
        assert max(total.values()) <= last.meta.max_uses_per_epoch, "a clip comes twice in the epoch, over both parts"
        report = verify_plan(plans[-1], [folder], continues=plans[:-1])
        assert report.ok, report.broken
        assert "continues" not in report.skipped
        assert report.bounds["used_share"] <= report.bounds["used_share_upper_bound"] + 1e-12
        return total

    return run


MIXES: dict[str, tuple[dict[str, Any], ...]] = {
    "none": (),
    "ratios": ({"until": 0.4, "images_per_video": 1.0}, {"until": 1.0, "images_per_video": 0.5}),
    "domains": ({"until": 0.5, "domain_weights": {"cats": 0.5}}, {"until": 1.0}),
}
REFUSALS = (
    "fills no step",
    "fill no row of",
    "needs a buffer of",
    "nothing is left to plan",
    "no bucket fills a row",
    "mix asks for",
)


@given(
    shards=st.lists(
        st.lists(st.tuples(st.sampled_from(BUCKETS), st.integers(0, 6)), min_size=4, max_size=16),
        min_size=1,
        max_size=4,
    ),
    lanes=st.integers(1, 4),
    micro=st.integers(1, 2),
    epochs=st.integers(1, 2),
    policy=st.sampled_from(["uniform", "tiers", "paper"]),
    left_over=st.sampled_from(["carry", "drop", "repeat"]),
    max_steps=st.sampled_from([None, 4]),
    mix=st.sampled_from(["none", "none", "ratios", "domains"]),
    others=st.lists(st.integers(1, 5), min_size=2, max_size=2, unique=True),
    seed=st.integers(0, 99),
)
@settings(max_examples=12, phases=(Phase.explicit, Phase.reuse, Phase.generate))
def test_every_step_of_a_plan_may_be_gone_on_from(
    shards: Shards,
    lanes: int,
    micro: int,
    epochs: int,
    policy: str,
    left_over: str,
    max_steps: int | None,
    mix: str,
    others: list[int],
    seed: int,
    write_set: SetWriter,
    check: Callable[..., Counter[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("replan")
    folder = write_set(home / "set", shards, seed=seed, facts=lambda index: {"domain": ("cats", "dogs")[index % 2]})
    values: dict[str, Any] = {"policy": policy, "left_over": left_over, "max_steps": max_steps}
    if policy != "paper":
        values["mix"] = MIXES[mix]
    try:
        meta = built(folder, home / "plan", lanes=lanes, micro_per_step=micro, epochs=epochs, seed=seed, **values)
    except PlanError as error:
        assert any(refusal in str(error) for refusal in (*REFUSALS, "policy paper: the poorest")), error
        return
    for step in range(meta.num_steps):
        for other in others:
            name = home / f"step-{step}-lanes-{other}"
            try:
                child = continued([home / "plan"], step, other, folder, name)
            except PlanError as error:
                assert any(refusal in str(error) for refusal in (*REFUSALS, "policy paper: the poorest")), error
                continue
            assert (child.first_step, child.num_lanes) == (step, other)
            check([home / "plan", name], folder)


THREE_EPOCHS: dict[str, Any] = {
    "lanes": 4,
    "micro_per_step": 3,
    "epochs": 3,
    "batch_clips": {f"{frames}x{size}": 1 for frames in (1, 33, 65, 121) for size in ("64x112", "112x64")},
}


@pytest.fixture(scope="module")
def case(
    write_set: SetWriter, make_shards: Callable[..., Shards], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, PlanMeta]:
    """(set, plan, its meta): three epochs on four lanes."""
    home = tmp_path_factory.mktemp("parent")
    folder = write_set(home / "set", make_shards(6, 50))
    meta = built(folder, home / "plan", **THREE_EPOCHS)
    return folder, home / "plan", meta


def test_the_rest_of_the_run_follows_the_rest_of_the_epoch(
    case: tuple[Path, Path, PlanMeta], check: Callable[..., Counter[str]], brute_force: ModuleType, tmp_path: Path
) -> None:
    folder, plan, meta = case
    parent = brute_force.replay(plan, [folder])
    step = meta.num_steps // 2
    assert parent.epoch_of_step[step] == 1 and parent.epoch_of_step[step - 1] == 1
    child = continued([plan], step, 6, folder, tmp_path / "child")
    assert (child.num_lanes, child.micro_per_step) == (6, 2), "a step has as many micro-batches as before"
    assert {entry.bucket: entry.clips_per_lane for entry in child.batches} == {
        entry.bucket: entry.clips_per_lane for entry in meta.batches
    }
    assert (child.first_step, child.first_epoch, child.num_epochs) == (step, 1, 2)
    assert child.continues is not None
    assert (child.continues.plan_hash, child.continues.from_step, child.continues.num_lanes) == (
        meta.plan_hash,
        step,
        4,
    )
    total = check([plan, tmp_path / "child"], folder)
    assert sum(total.values()) >= 0.9 * meta.admitted_clips, "what is lost to whole steps is small"
    # Over the whole run nobody was used more than once more than anybody else of its bucket.
    done = brute_force.replay(tmp_path / "child", [folder])
    uses = Counter({row["clip_id"]: 0 for row in done.samples})
    for part, below in ((parent, step), (done, 10**9)):
        for number, clips in part.steps.items():
            if number < below:
                uses.update(clips)
    assert set(uses.values()) <= {1, 2, 3}


def test_partly_read_shards_are_read_on_from_the_clips_that_remain(
    write_set: SetWriter, check: Callable[..., Counter[str]], brute_force: ModuleType, tmp_path: Path
) -> None:
    """One lane and one tar at a time: what was used lies in front, so the child begins behind it."""
    folder = write_set(tmp_path / "set", [[("33x64x112", 20 * shard + at) for at in range(20)] for shard in range(2)])
    still = {"anneal_moves_per_clip": 0.0, "max_open_shards": 1, "pool_micro_batches": 0, "read_chunk_kb": 0}
    meta = built(folder, tmp_path / "plan", lanes=1, batch_clips={"33x64x112": 1}, **still)
    assert meta.num_steps == 40
    parent = brute_force.replay(tmp_path / "plan", [folder])
    for step in (7, 20, 33):
        child = tmp_path / f"child-{step}"
        continued([tmp_path / "plan"], step, 1, folder, child)
        check([tmp_path / "plan", child], folder)
        done = brute_force.replay(child, [folder])
        used = {clip for number, clips in parent.steps.items() if number < step for clip in clips}
        left = {}
        for row in done.samples:
            if row["clip_id"] not in used:
                left.setdefault(row["shard"], row["offset"])
        assert {shard: offset for (_, _, shard), offset in done.first_reads.items()} == left
        assert done.meta.metrics["read_amplification"] == 1.0


def test_a_chain_of_two(case: tuple[Path, Path, PlanMeta], check: Callable[..., Counter[str]], tmp_path: Path) -> None:
    folder, plan, _ = case
    child, grandchild = tmp_path / "child", tmp_path / "grandchild"
    first = continued([plan], 2, 3, folder, child)
    second = continued([plan, child], 4, 2, folder, grandchild)
    assert (first.first_step, second.first_step, second.first_epoch) == (2, 4, 0)
    check([plan, child], folder)
    check([plan, child, grandchild], folder)
    with pytest.raises(UsageError, match="give it, and what it continues, with --continues, oldest first"):
        continued([child], 4, 2, folder, tmp_path / "x")
    with pytest.raises(UsageError, match=f"does not continue plan {second.plan_hash[:12]}|continues plan"):
        continued([grandchild, child], 4, 2, folder, tmp_path / "x")
    other = built(folder, tmp_path / "other", **THREE_EPOCHS, seed=9)
    with pytest.raises(UsageError, match=f"does not continue plan {other.plan_hash[:12]}"):
        continued([tmp_path / "other", child], 4, 2, folder, tmp_path / "x")


def test_behind_the_end_the_next_epoch_or_the_rest_of_a_cut_one(
    case: tuple[Path, Path, PlanMeta], check: Callable[..., Counter[str]], tmp_path: Path
) -> None:
    folder, plan, meta = case
    with pytest.raises(PlanError, match=r"nothing is left to plan.*set epochs or max_steps higher"):
        continued([plan], meta.num_steps, 4, folder, tmp_path / "x")
    more = continued([plan], meta.num_steps, 2, folder, tmp_path / "more", "epochs=4")
    assert (more.first_step, more.first_epoch, more.num_epochs) == (meta.num_steps, 3, 1)
    check([plan, tmp_path / "more"], folder)
    cut = built(folder, tmp_path / "cut", **(THREE_EPOCHS | {"epochs": 2}), max_steps=2)
    assert cut.num_steps == 2
    rest = continued([tmp_path / "cut"], 2, 4, folder, tmp_path / "rest", "max_steps=null")
    assert (rest.first_step, rest.first_epoch, rest.num_epochs) == (2, 0, 2)
    total = check([tmp_path / "cut", tmp_path / "rest"], folder)
    assert set(total.values()) == {1}


def test_what_cannot_be_gone_on_with_is_refused_in_words(
    case: tuple[Path, Path, PlanMeta], write_set: SetWriter, make_shards: Callable[..., Shards], tmp_path: Path
) -> None:
    folder, plan, meta = case
    last = meta.num_steps - 1
    with pytest.raises(
        UsageError, match=rf"--from-step {last + 2}: plan .* has steps 0 to {last}; give one of them, or {last + 1} to"
    ):
        continued([plan], last + 2, 4, folder, tmp_path / "x")
    with pytest.raises(UsageError, match="--from-step -1"):
        continued([plan], -1, 4, folder, tmp_path / "x")
    with pytest.raises(PlanError, match="was built from other samples"):
        continued([plan], 2, 4, write_set(tmp_path / "other", make_shards(6, 50, seed=1), seed=1), tmp_path / "x")
    with pytest.raises(
        PlanError, match="uses clips that these settings do not admit; leave admission and rules as they were"
    ):
        continued([plan], 2, 4, folder, tmp_path / "x", "rules=[{column: frames, at_most: 1}]")
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        continued([plan], 2, 4, folder, tmp_path / "x", "sed=3")
    with pytest.raises(
        PlanError, match=r"what is left of epoch 2 cannot be planned by itself.*fills no step of 50 rows"
    ):
        continued([plan], last, 4, folder, tmp_path / "x", micro_per_step=50)
    assert not (tmp_path / "x").exists()


def test_the_rest_of_the_last_epoch_is_run_in_smaller_steps_rather_than_lost(
    write_set: SetWriter, check: Callable[..., Counter[str]], tmp_path: Path
) -> None:
    """Ten rows of two lanes in two steps; 20 clips are left of the first: one row of six lanes, where a step would have two."""
    folder = write_set(tmp_path / "set", [[("33x64x112", index) for index in range(40)]])
    values = {"lanes": 2, "micro_per_step": 5, "batch_clips": {"33x64x112": 2}}
    assert built(folder, tmp_path / "plan", **values, epochs=1).num_steps == 2
    child = continued([tmp_path / "plan"], 1, 6, folder, tmp_path / "rest")
    assert (child.num_lanes, child.micro_per_step, child.num_steps) == (6, 1, 1)
    assert sum(check([tmp_path / "plan", tmp_path / "rest"], folder).values()) == 20 + 12
    with pytest.raises(
        PlanError, match=r"what is left of epoch 0 cannot be planned by itself.*fills no step of 2 rows"
    ):
        continued([tmp_path / "plan"], 1, 6, folder, tmp_path / "none", micro_per_step=2)
    built(folder, tmp_path / "two", **values, epochs=2)
    with pytest.raises(PlanError, match=r"what is left of epoch 0 .*fills no step of 2 rows"):
        continued([tmp_path / "two"], 1, 6, folder, tmp_path / "none")


@pytest.mark.parametrize("run", [{"epochs": 1}, {"epochs": None, "max_steps": 40}], ids=["by epochs", "by steps"])
def test_phases_of_the_run_go_on_where_they_are(
    run: dict[str, Any],
    write_set: SetWriter,
    check: Callable[..., Counter[str]],
    brute_force: ModuleType,
    tmp_path: Path,
) -> None:
    """Every second row is an image up to the middle of the run, every fifth behind it; the run is cut in its second half."""
    clips = [("1x64x112", at) for at in range(80)] + [("33x64x112", 100 + at) for at in range(160)]
    folder = write_set(tmp_path / "set", [clips[part::3] for part in range(3)])
    phases = ({"until": 0.5, "images_per_video": 1.0}, {"until": 1.0, "images_per_video": 0.25})
    batches = {"1x64x112": 1, "33x64x112": 1}
    meta = built(folder, tmp_path / "plan", mix=phases, batch_clips=batches, **run)
    step = meta.num_steps * 3 // 4
    child = continued([tmp_path / "plan"], step, 1, folder, tmp_path / "child", micro_per_step=2)
    check([tmp_path / "plan", tmp_path / "child"], folder)
    done = brute_force.replay(tmp_path / "child", [folder])
    names = [done.buckets[row][0] for row in range(child.num_steps * child.micro_per_step)]
    images = sum(name.startswith("1x") for name in names)
    assert len(names) > 5 and images == pytest.approx(len(names) / 5, abs=1.5)


def test_a_step_of_another_size_is_said(
    case: tuple[Path, Path, PlanMeta],
    check: Callable[..., Counter[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, plan, _ = case
    continued([plan], 1, 5, folder, tmp_path / "five")
    assert "a step had 4 x 3 micro-batches and will have 5 x 2; give --micro-per-step" in capsys.readouterr().err
    check([plan, tmp_path / "five"], folder)
    child = continued([plan], 1, 5, folder, tmp_path / "one", micro_per_step=1)
    assert child.micro_per_step == 1
    check([plan, tmp_path / "one"], folder)


def test_a_changed_plan_is_not_gone_on_with(case: tuple[Path, Path, PlanMeta], tmp_path: Path) -> None:
    folder, plan, _ = case
    copy = tmp_path / "copy"
    shutil.copytree(plan, copy)
    text = (copy / "plan.json").read_text()
    (copy / "plan.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(PlanError, match="does not fit its content"):
        continued([copy], 2, 4, folder, tmp_path / "x")
    (copy / "plan.json").write_text(text)
    shutil.copy(copy / "lanes" / "lane-0000.parquet", copy / "lanes" / "lane-0001.parquet")
    with pytest.raises(PlanError, match="the plan was changed after it was built"):
        continued([copy], 2, 4, folder, tmp_path / "x")
