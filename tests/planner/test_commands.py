"""`reelyard-plan build` and `replan` with everything they take: epochs, rules with scores, measured costs, changed tars, progress."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from planner.cli import app
from schemas.command import run_command
from schemas.cost_table import CostMeasurement, CostTable, write_cost_table
from schemas.plan import read_plan_meta
from schemas.shards import read_set_info, shard_name, write_set_info

Shards = list[list[tuple[str, int]]]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def samples(
    write_set: Callable[..., Path], make_shards: Callable[..., Shards], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_set(tmp_path_factory.mktemp("commands") / "set", make_shards(3, 40), tars=True)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("build", samples, "plan", "--epochs", 2, key=value)`: (exit code, output, errors); keys are settings, the output is in tmp_path."""

    def execute(command: str, samples: Path, name: str, *more: object, **settings: object) -> tuple[int, str, str]:
        config = tmp_path / f"{name}.yaml"
        base = {"lanes": 2, "micro_per_step": 2, "max_tokens_per_micro_batch": 900, "anneal_steps": 60}
        config.write_text(yaml.safe_dump(base | {"cost": {"preset": "tiny"}} | settings))
        arguments = [command, "--samples", samples, "--output", tmp_path / name, *more]
        if command == "build":
            arguments += ["--config", config]
        capsys.readouterr()
        code = run_command(app, [str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return execute


def test_epochs_of_the_command_line_win_over_the_file(run: Run, samples: Path, tmp_path: Path) -> None:
    code, shown, _ = run("build", samples, "plan", "--epochs", 2, epochs=5)
    assert code == 0
    meta = read_plan_meta(tmp_path / "plan")
    assert meta.num_epochs == 2 and meta.config["epochs"] == 2
    assert f"{meta.num_steps} steps x 2 rows on 2 lanes" in shown
    assert run("build", samples, "same", epochs=2)[0] == 0
    assert read_plan_meta(tmp_path / "same").plan_hash == meta.plan_hash, "nothing of where files are is in a plan"
    code, _, errors = run("build", samples, "none", "--epochs", 0)
    assert code == 2 and "epochs" in errors


def test_progress_says_what_is_done_and_how_to_prove_it(run: Run, samples: Path, tmp_path: Path) -> None:
    code, _, errors = run("build", samples, "plan")
    assert code == 0
    for line in (
        "planning 120 of 120 clips in 3 shards on 2 lanes",
        "planning epochs: ",
        "writing 2 lanes",
        "measuring the mix: ",
    ):
        assert line in errors
    assert f"prove it with: reelyard-plan verify {tmp_path / 'plan'} --samples {samples}" in errors
    assert run_command(app, ["verify", str(tmp_path / "plan"), "--samples", str(samples)]) == 0


def test_rules_with_scores(run: Run, samples: Path, brute_force: ModuleType, tmp_path: Path) -> None:
    rows = brute_force.samples_of([samples])
    scores = tmp_path / "clips.parquet"
    motion = pa.array([index / len(rows) for index in range(len(rows))], pa.float32())
    pq.write_table(pa.table({"clip_id": [row["clip_id"] for row in rows], "motion": motion}), scores)
    rules = [{"column": "motion", "at_least": 0.5}]
    code, _, errors = run("build", samples, "none", rules=rules)
    assert code == 2 and "give the table that has them with --scores" in errors
    assert run("build", samples, "plan", "--scores", scores, rules=rules)[0] == 0
    meta = read_plan_meta(tmp_path / "plan")
    assert meta.admitted_clips == 60 and meta.rules[0].at_least == 0.5 and meta.scores_hash
    done = brute_force.replay(tmp_path / "plan", [samples])
    brute_force.check_ledger(tmp_path / "plan", done, {row["clip_id"] for row in rows[60:]})
    verify = ["verify", str(tmp_path / "plan"), "--samples", str(samples)]
    assert run_command(app, [*verify, "--scores", str(scores)]) == 0
    code, _, errors = run("replan", samples, "child", tmp_path / "plan", "--from-step", 1, "--lanes", 1)
    assert code == 2 and "--scores" in errors
    code = run("replan", samples, "child", tmp_path / "plan", "--from-step", 1, "--lanes", 1, "--scores", scores)[0]
    assert code == 0
    more = ["--scores", str(scores), "--continues", str(tmp_path / "plan")]
    assert run_command(app, ["verify", str(tmp_path / "child"), "--samples", str(samples), *more]) == 0


def test_a_measured_cost_table_gives_the_seconds_and_bounds_memory(run: Run, samples: Path, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    measured = tuple(
        CostMeasurement(
            bucket=bucket, clips=clips, seconds=0.5 + clips * each, peak_memory_bytes=int(clips * each * 1e9)
        )
        for bucket, each in (("1x64x112", 0.1), ("33x64x112", 1.0), ("65x64x112", 2.0), ("121x64x112", 4.0))
        for clips in (1, 2, 4)
    )
    write_cost_table(
        path, CostTable(device="test device", model="tiny", text_tokens=8, repeats=3, measurements=measured)
    )
    assert run("build", samples, "plan", "--cost-table", path)[0] == 0
    meta = read_plan_meta(tmp_path / "plan")
    assert "test device" in meta.cost_model and set(meta.cost_errors) >= {"mape", "p95", "worst"}
    seconds = {(item.bucket, item.clips): item.seconds for item in measured}
    predicted = {(entry.bucket, entry.clips_per_lane): entry.predicted_seconds for entry in meta.batches}
    both = seconds.keys() & predicted.keys()
    assert both and all(predicted[key] == pytest.approx(seconds[key]) for key in both)
    assert run_command(app, ["verify", str(tmp_path / "plan"), "--samples", str(samples)]) == 0
    code = run("build", samples, "capped", "--cost-table", path, max_memory_gb=4.2)[0]
    assert code == 0
    for entry in read_plan_meta(tmp_path / "capped").batches:
        assert entry.memory_bytes is not None and entry.memory_bytes <= 4.2e9
    code, _, errors = run("build", samples, "none", "--cost-table", tmp_path / "gone.json")
    assert code == 2 and "cannot be read" in errors


def test_replan_through_the_command_line(run: Run, samples: Path, brute_force: ModuleType, tmp_path: Path) -> None:
    assert run("build", samples, "plan", epochs=2)[0] == 0
    plan, child, grandchild = (tmp_path / name for name in ("plan", "child", "grandchild"))
    code, shown, errors = run("replan", samples, "child", plan, "--from-step", 2, "--lanes", 4)
    assert code == 0
    assert "going on from step 2" in errors and f"--continues {plan}" in errors and "4 lanes" in shown
    meta = read_plan_meta(child)
    assert (meta.num_lanes, meta.micro_per_step, meta.first_step, meta.continues.from_step) == (4, 1, 2, 2)
    verify = ["verify", str(child), "--samples", str(samples), "--continues", str(plan)]
    assert run_command(app, verify) == 0
    more = ["--from-step", 3, "--lanes", 1, "--micro-per-step", 3, "--set", "seed=4", "--continues", plan]
    assert run("replan", samples, "grandchild", child, *more)[0] == 0
    assert read_plan_meta(grandchild).seed == 4 and read_plan_meta(grandchild).micro_per_step == 3
    verify = ["verify", str(grandchild), "--samples", str(samples), "--continues", str(plan), "--continues", str(child)]
    assert run_command(app, verify) == 0
    uses: Counter[str] = Counter()
    for part, begin, end in ((plan, 0, 2), (child, 2, 3), (grandchild, 3, 10**9)):
        done = brute_force.replay(part, [samples])
        for step, clips in done.steps.items():
            if begin <= step < end and done.epoch_of_step[step] == 0:
                uses += clips
    assert set(uses.values()) == {1}
    code, _, errors = run("replan", samples, "none", child, "--from-step", 3, "--lanes", 1)
    assert code == 2 and "with --continues, oldest first" in errors
    code, _, errors = run("replan", samples, "child", plan, "--from-step", 2, "--lanes", 4)
    assert code == 2 and "exists already" in errors
    code, _, errors = run("replan", samples, "plan", plan, "--from-step", 2, "--lanes", 4, "--overwrite")
    assert code == 2 and "is a plan that the new one goes on from" in errors
    assert read_plan_meta(plan).num_lanes == 2, "it is still there"
    for setting, origin in (("lanes=3", "--lanes"), ("batch_clips={1x64x112: 1}", "the plan that it continues")):
        code, _, errors = run("replan", samples, "none", plan, "--from-step", 2, "--lanes", 4, "--set", setting)
        assert code == 2 and f"from {origin}; leave it out" in errors
    assert run("replan", samples, "none", plan, "--from-step", 2, "--lanes", 0)[0] == 2
    code, _, errors = run("replan", samples, "none", plan, "--from-step", 999, "--lanes", 4)
    assert code == 2 and "--from-step 999" in errors
    assert not (tmp_path / "none").exists()


def test_names_that_the_clips_do_not_have_are_noted(run: Run, samples: Path) -> None:
    mix = [{"until": 1.0, "domain_weights": {"catz": 0.5}}]
    code, _, errors = run("build", samples, "plan", mix=mix, batch_clips={"33x64x112": 2, "33x640x368": 2})
    assert code == 0
    assert "note: mix gives domain 'catz' a weight, but no admitted clip has it in domain; the domains are" in errors
    assert "note: batch_clips gives bucket 33x640x368 a size, but no admitted clip fits it" in errors
    assert "bucket 33x64x112 a size" not in errors
    code, _, errors = run("build", samples, "none", rules=[{"column": "members", "one_of": ["latent.npy"]}])
    assert code == 2 and "the rule on 'members' cannot be applied" in errors
    code, _, errors = run("build", samples, "none", max_buffer_mb=1e-9)
    assert code == 2 and "max_buffer_mb" in errors


def test_tars_that_have_changed_are_refused(
    run: Run, write_set: Callable[..., Path], make_shards: Callable[..., Shards], tmp_path: Path
) -> None:
    folder = write_set(tmp_path / "set", make_shards(3, 40), tars=True)
    assert run("build", folder, "plan")[0] == 0
    tar = folder / shard_name(1)
    tar.write_bytes(tar.read_bytes() + bytes(512))
    code, _, errors = run("build", folder, "x")
    size = tar.stat().st_size
    assert code == 1 and f"1 tars of {folder} are not what its set.json says" in errors
    assert f"{size} bytes, set.json says {size - 512}" in errors and "index or pack the set again" in errors
    code, _, errors = run("replan", folder, "x", tmp_path / "plan", "--from-step", 1, "--lanes", 2)
    assert code == 1 and "are not what its set.json says" in errors
    tar.write_bytes(bytes(size - 512))
    info = read_set_info(folder)
    stamped = [
        shard.model_copy(update={"modified_ns": (folder / shard.name).stat().st_mtime_ns}) for shard in info.shards
    ]
    write_set_info(folder, info.model_copy(update={"shards": tuple(stamped)}))
    assert run("build", folder, "stamped")[0] == 0
    os.utime(tar, ns=(0, 1_700_000_000_000_000_000))
    code, _, errors = run("build", folder, "x")
    assert code == 1 and f"{tar} has changed: last changed 2023-11-14 22:13:20" in errors
    tar.unlink()
    code, _, errors = run("build", folder, "x")
    assert code == 1 and "is gone" in errors
    assert not (tmp_path / "x").exists()


def test_a_limit_of_steps_that_the_epochs_do_not_reach_is_noted(run: Run, samples: Path, tmp_path: Path) -> None:
    code, shown, _ = run("build", samples, "short", epochs=1, max_steps=100_000)
    steps = read_plan_meta(tmp_path / "short").num_steps
    assert code == 0 and f"note: max_steps is 100000, but 1 epochs end after {steps} steps" in shown
    assert "max_steps" not in run("build", samples, "exact", epochs=1, max_steps=steps)[1]


def test_tiers_without_their_policy_are_refused(run: Run, samples: Path) -> None:
    code, _, errors = run("build", samples, "none", tiers=2)
    assert code == 2 and "tiers is 2, but policy is uniform" in errors
