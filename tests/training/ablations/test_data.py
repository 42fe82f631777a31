"""Parts of the data: made again when what they are made of changes, and runs on them never taken for runs on others."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import PlanError, UsageError
from schemas.files import write_json
from schemas.plan import read_plan_meta
from schemas.shards import read_set_info
from training.ablations import runs
from training.ablations.config import DataPart
from training.ablations.data import Data, planner_command, prepare_data, samples_hash
from training.ablations.runs import RunRequest, finish_run
from training.cli import main
from training.loading.sample_sets import open_sample_sets

pytestmark = pytest.mark.timeout(240)
SETTINGS = (
    "{lanes: 1, micro_per_step: 1, max_steps: 6, epochs: null, seed: 0, admission: 144p, max_buffer_mb: 64, max_tokens_per_micro_batch: 128, "
    "anneal_steps: 10, spares_per_bucket: 0, cost: {preset: tiny, text_tokens: 8, teraflops_per_second: 0.05}}"
)


@pytest.fixture(scope="module")
def whole(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """`tiny_set` and a plan by the planner's command."""
    folder = tmp_path_factory.mktemp("planned")
    (folder / "plan.yaml").write_text(SETTINGS)
    build = [
        planner_command(),
        "build",
        "--samples",
        tiny_set,
        "--config",
        folder / "plan.yaml",
        "--output",
        folder / "plan",
    ]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Data(plan=folder / "plan", samples=(tiny_set,))


def hash_of(data: Data) -> str:
    return read_plan_meta(data.plan).plan_hash


def test_parts_get_plans_by_the_planners_command_and_follow_what_they_are_made_of(whole: Data, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    half = prepare_data(DataPart(share=0.5), whole, folder)
    meta, first = read_plan_meta(half.plan), hash_of(half)
    assert meta.num_steps == 6 and len(meta.sets[0].shard_names) == 3
    assert open_sample_sets(meta, half.samples).infos[0].set_name == "tiny"
    made = (folder / "plan" / "plan.json").stat().st_mtime_ns
    assert prepare_data(DataPart(share=0.5), whole, folder) == half
    assert (folder / "plan" / "plan.json").stat().st_mtime_ns == made, "made once"

    third = prepare_data(DataPart(share=0.34), whole, folder)
    assert len(read_set_info(third.samples[0]).shards) == 2 and hash_of(third) != first, "another share is other data"
    (folder / "stamp.json").unlink()
    assert hash_of(prepare_data(DataPart(share=0.5), whole, folder)) == first, "an unfinished one is made again, alike"


def test_another_base_plan_makes_the_parts_again(whole: Data, tmp_path: Path) -> None:
    first = hash_of(prepare_data(DataPart(share=0.5), whole, tmp_path / "half"))
    longer = prepare_data(DataPart(), whole, tmp_path / "longer")
    assert hash_of(longer) == hash_of(whole), "the same settings give the same plan"
    settings = tmp_path / "plan.yaml"
    settings.write_text(SETTINGS.replace("max_steps: 6", "max_steps: 7"))
    build = [
        planner_command(),
        "build",
        "--samples",
        whole.samples[0],
        "--config",
        settings,
        "--output",
        tmp_path / "plan",
    ]
    subprocess.run(build, capture_output=True, check=True)
    other = Data(plan=tmp_path / "plan", samples=whole.samples)
    again = prepare_data(DataPart(share=0.5), other, tmp_path / "half")
    assert hash_of(again) != first and read_plan_meta(again.plan).num_steps == 7


def test_other_samples_and_another_level_are_not_the_same_data(
    whole: Data, tmp_path: Path, make_set: Callable[..., Path], clip_type: Callable[..., Any]
) -> None:
    prepare_data(DataPart(share=0.5), whole, tmp_path / "half")
    other = make_set(tmp_path / "set", [clip_type(33)] * 8, per_shard=2, seed=5)
    remade = prepare_data(DataPart(share=0.5), Data(plan=whole.plan, samples=(other,)), tmp_path / "half")
    assert len(read_set_info(remade.samples[0]).shards) == 2
    with pytest.raises(PlanError, match="reelyard-plan build gave up: "):
        prepare_data(DataPart(share=0.5, admission="sft"), whole, tmp_path / "half")
    assert not (tmp_path / "half" / "stamp.json").exists(), "the plan of the other level is not taken for it"


def test_a_share_that_is_all_is_refused(whole: Data, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has 6 shards: 0\.95 of them cannot be taken"):
        prepare_data(DataPart(share=0.95), whole, tmp_path / "most")


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Runs that end at once; the list has their names."""
    trained: list[str] = []

    def train(request: RunRequest) -> None:
        trained.append(request.name)
        line = '{"step": 0, "flow_loss": 1.0, "step_ms": 1.0, "buckets": {"33x32x48": 1}}\n'
        request.run.mkdir(parents=True, exist_ok=True)
        (request.run / "metrics.jsonl").write_text(line)
        (request.run / "validation.jsonl").write_text("")

    monkeypatch.setattr(runs, "_train", train)
    yield trained


@pytest.fixture
def run_request(
    tiny_plan: Any, tiny_set: Path, tmp_path: Path, small_config: Callable[..., Any]
) -> Callable[..., RunRequest]:
    def make(name: str = "base", **changes: Any) -> RunRequest:
        values: dict[str, Any] = {
            "name": name,
            "folder": tmp_path / "runs" / name,
            "settings": {**small_config(), "steps": 1},
            "data": Data(plan=tiny_plan.folder, samples=(tiny_set,)),
            "init_from": None,
            "validation": (),
            "last_steps": 5,
            "text_tokens": 8,
        }
        return RunRequest(**{**values, **changes})

    return make


def test_an_edited_share_is_not_answered_with_the_old_number(
    no_training: list[str],
    ablation_file: Callable[..., Path],
    whole: Data,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    variants = [{"name": "less", "group": "g", "question": "q", "data": "half"}]
    file = ablation_file(seeds=1, steps=1, variants=variants)
    paths = ["--config", file, "--plan", whole.plan, "--samples", whole.samples[0], "--output", tmp_path / "out"]
    command = ["ablate", *map(str, paths)]
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--set", "data.half.share=0.34"]) == 2
    assert "runs/less holds a run of another configuration, plan, held-out set or first run" in capsys.readouterr().err
    assert main(command) == 0
    assert capsys.readouterr().err.count("(was done)") == 2 and no_training == ["base", "less"]


def test_held_out_sets_are_told_by_their_clips_not_by_their_folders(
    no_training: list[str],
    run_request: Callable[..., RunRequest],
    tmp_path: Path,
    make_set: Callable[..., Path],
    clip_type: Callable[..., Any],
) -> None:
    held = make_set(tmp_path / "held", [clip_type(33)], first=1000)
    assert not finish_run(run_request(validation=(held,)))[1]
    moved = tmp_path / "elsewhere"
    shutil.copytree(held, moved)
    assert samples_hash(moved) == samples_hash(held) and finish_run(run_request(validation=(moved,)))[1]
    shutil.rmtree(held)
    make_set(tmp_path / "held", [clip_type(33)], first=2000)
    with pytest.raises(UsageError, match="held-out set"):
        finish_run(run_request(validation=(held,)))
    assert no_training == ["base"]


def test_a_change_of_the_first_run_goes_through_to_those_after_it(
    no_training: list[str], run_request: Callable[..., RunRequest]
) -> None:
    base = run_request()
    finish_run(base)
    follower = run_request("later", init_from=base.run)
    finish_run(follower)
    assert finish_run(follower)[1]
    shutil.rmtree(base.folder)
    finish_run(run_request(settings={**base.settings, "seed": 9}))
    with pytest.raises(UsageError, match="first run"):
        finish_run(follower)
    assert no_training == ["base", "later", "base"]


def test_another_way_of_measuring_reads_the_run_again(
    no_training: list[str], run_request: Callable[..., RunRequest]
) -> None:
    first, _ = finish_run(run_request())
    second, was_done = finish_run(run_request(text_tokens=80))
    assert was_done and second.flops_per_clip > first.flops_per_clip and no_training == ["base"]
    write_json(
        run_request().folder / "result.json",
        {"measured": {"last_steps": 5, "text_tokens": 80}, "result": second.to_json()},
    )
    assert finish_run(run_request(text_tokens=80))[0] == second
