"""`reelyard-plan` as a user meets it: exit codes, one message per error, the same plan in two processes, nothing left by Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from planner.cli import app
from planner.settings import PlanConfig
from schemas.command import run_command
from schemas.config import load_config
from schemas.model_shape import MOTIF_2B
from schemas.plan import read_lane, read_plan_meta
from schemas.shards import samples_path
from schemas.tables import SAMPLES, read_table

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "configs" / "plan_demo.yaml"


@pytest.fixture(scope="module")
def samples(
    write_set: Callable[..., Path],
    make_shards: Callable[..., list[list[tuple[str, int]]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return write_set(tmp_path_factory.mktemp("cli") / "set", make_shards(3, 40))


@pytest.fixture(scope="module")
def plan(samples: Path) -> Path:
    output = samples.parent / "plan"
    assert run_command(app, build_arguments(samples, output)) == 0
    return output


def build_arguments(samples: Path, output: Path, *more: str) -> list[str]:
    return [
        "build",
        "--samples",
        str(samples),
        "--config",
        str(CONFIG),
        "--output",
        str(output),
        "--set",
        "anneal_steps=200",
        *more,
    ]


def in_a_process(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from planner.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


def test_build_verify_and_show(plan: Path, samples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(app, ["verify", str(plan), "--samples", str(samples_path(samples))]) == 0
    shown = capsys.readouterr().out
    assert "holds    once_per_epoch" in shown and "BROKEN" not in shown
    assert json.loads((plan / "certificate.json").read_text())["plan_hash"] == read_plan_meta(plan).plan_hash
    assert run_command(app, ["show", str(plan)]) == 0
    summary = capsys.readouterr().out
    assert "20 steps x 2 rows on 2 lanes" in summary
    assert "annealing over the constructive start" in summary and "peak buffer" in summary


def test_show_step_gives_a_rank_exactly_its_lanes(
    plan: Path, samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_command(app, ["show", str(plan), "--step", "3", "--rank", "1", "--world", "2", "--samples", str(samples)])
        == 0
    )
    shown = capsys.readouterr().out
    assert "lane 1, micro 0" in shown and "lane 0" not in shown
    meta = read_plan_meta(plan)
    ids = {
        (row["shard_index"], row["ordinal"]): row["clip_id"]
        for row in read_table(samples_path(samples), SAMPLES).to_pylist()
    }
    for row in read_lane(plan, 1, meta).to_pylist():
        for clip in row["clips"]:
            assert (ids[clip["shard"], clip["ordinal"]] in shown) == (row["step"] == 3) or row["step"] != 3


def test_show_clip_finds_every_use(plan: Path, samples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = read_table(samples_path(samples), SAMPLES).to_pylist()[5]
    place = {"shard": row["shard_index"], "ordinal": row["ordinal"]}
    meta = read_plan_meta(plan)
    steps = [
        item["step"] for lane in range(2) for item in read_lane(plan, lane, meta).to_pylist() if place in item["clips"]
    ]
    assert run_command(app, ["show", str(plan), "--clip", row["clip_id"], "--samples", str(samples)]) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if "step" in line and "left over" not in line] and shown.count(
        "\n"
    ) == meta.num_epochs
    assert all(f"step {step}," in shown for step in steps)
    assert run_command(app, ["show", str(plan), "--clip", f"{place['shard']}:{place['ordinal']}"]) == 0
    assert capsys.readouterr().out == shown


def test_two_processes_make_the_same_plan(samples: Path, plan: Path, tmp_path: Path) -> None:
    runs = [in_a_process(build_arguments(samples, tmp_path / name)) for name in ("one", "two")]
    for run in runs:
        _, errors = run.communicate(timeout=100)
        assert run.returncode == 0, errors
    hashes = {read_plan_meta(folder).plan_hash for folder in (tmp_path / "one", tmp_path / "two", plan)}
    assert len(hashes) == 1
    assert run_command(app, build_arguments(samples, tmp_path / "three", "--set", "seed=1")) == 0
    assert read_plan_meta(tmp_path / "three").plan_hash not in hashes


def test_the_planner_loads_neither_torch_nor_ray_nor_webdataset() -> None:
    code = (
        "import sys, planner.cli, planner.building, planner.verify, planner.looking.show, planner.samples\n"
        "bad = {'torch', 'ray', 'webdataset', 'curation', 'training', 'encoders'} & {name.split('.')[0] for name in sys.modules}\n"
        "sys.exit(', '.join(sorted(bad)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_verifier_shares_nothing_with_the_builder() -> None:
    code = (
        "import sys, planner.verify\n"
        "ours = {name for name in sys.modules if name.startswith('planner')}\n"
        "theirs = {name for name in ours if name not in ('planner', 'planner.verify') and not name.startswith('planner.proof')}\n"
        "sys.exit(str(theirs) if theirs else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_ctrl_c_leaves_nothing(samples: Path, tmp_path: Path) -> None:
    run = in_a_process(build_arguments(samples, tmp_path / "out" / "plan", "--set", "anneal_steps=1000000"))
    assert run.stderr is not None
    assert run.stderr.readline().startswith("planning "), "annealing comes next, and lasts"
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    assert run.returncode not in (0, None)
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_existing_output_is_refused_and_overwritten_on_request(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "plan"
    assert run_command(app, build_arguments(samples, output)) == 0
    first = read_plan_meta(output).plan_hash
    assert run_command(app, build_arguments(samples, output)) == 2
    assert "exists already" in capsys.readouterr().err
    failing = build_arguments(samples, output, "--overwrite", "--set", "max_buffer_mb=0.01")
    assert run_command(app, failing) == 1
    assert read_plan_meta(output).plan_hash == first
    assert run_command(app, build_arguments(samples, output, "--overwrite", "--set", "seed=5")) == 0
    assert read_plan_meta(output).plan_hash != first
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("keep")
    assert run_command(app, build_arguments(samples, tmp_path / "precious", "--overwrite")) == 2
    assert (tmp_path / "precious" / "file").read_text() == "keep"


def test_a_kill_while_overwriting_keeps_the_old_plan(samples: Path, tmp_path: Path) -> None:
    """SIGKILL comes when the first lane of the new plan is written: nothing may run to put things back."""
    output = tmp_path / "plan"
    assert run_command(app, build_arguments(samples, output)) == 0
    first = read_plan_meta(output)
    code = (
        "import os, signal, planner.folder\n"
        "planner.folder.lane_table = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from planner.cli import main; main()"
    )
    arguments = build_arguments(samples, output, "--overwrite", "--set", "seed=5")
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, timeout=100, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert read_plan_meta(output) == first
    assert read_lane(output, 1, first).num_rows == first.num_steps * first.micro_per_step
    fresh = tmp_path / "fresh" / "plan"
    arguments = build_arguments(samples, fresh)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, timeout=100, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not fresh.exists(), "no half plan"
    assert run_command(app, arguments) == 0, "and what was left behind is in nobody's way"
    assert read_plan_meta(fresh) == first


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["build", "--samples", "{tmp}/none", "--config", "{config}", "--output", "{tmp}/x"], 1, "set.json is missing"),
        (
            ["build", "--samples", "{samples}", "--config", "{tmp}/none.yaml", "--output", "{tmp}/x"],
            2,
            "cannot be read",
        ),
        (
            ["build", "--samples", "{samples}", "--config", "{config}", "--output", "{tmp}/x", "--set", "lane=2"],
            2,
            "did you mean 'lanes'",
        ),
        (
            [
                "build",
                "--samples",
                "{samples}",
                "--config",
                "{config}",
                "--output",
                "{tmp}/x",
                "--set",
                "cost.presett=tiny",
            ],
            2,
            "'preset'",
        ),
        (
            ["build", "--samples", "{samples}", "--config", "{config}", "--output", "{tmp}/x", "--set", "lanes=500"],
            1,
            "use fewer lanes",
        ),
        (
            [
                "build",
                "--samples",
                "{samples}",
                "--config",
                "{config}",
                "--output",
                "{tmp}/x",
                "--set",
                "admission=sft",
            ],
            1,
            "the samples know",
        ),
        (
            [
                "build",
                "--samples",
                "{samples}",
                "--samples",
                "{samples}",
                "--config",
                "{config}",
                "--output",
                "{tmp}/x",
            ],
            2,
            "give each set once",
        ),
        (["build", "--config", "{config}", "--output", "{tmp}/x"], 2, "--samples"),
        (["verify", "{tmp}/none", "--samples", "{samples}"], 1, "plan.json is missing"),
        (["verify", "{plan}", "--samples", "{other}"], 1, "give the set it was built from"),
        (["verify", "{plan}", "--samples", "{other}", "--samples", "{samples}"], 1, "the plan reads 1 sets"),
        (["show", "{tmp}/none"], 1, "plan.json is missing"),
        (["show", "{plan}", "--step", "99"], 2, "steps 0 to 19"),
        (
            ["show", "{plan}", "--step", "0", "--rank", "0", "--world", "3"],
            1,
            "use a world size that divides the lanes (1, 2)",
        ),
        (["show", "{plan}", "--step", "0", "--rank", "2", "--world", "2"], 1, "has ranks 0 to 1, not 2"),
        (["show", "{plan}", "--step", "0", "--rank", "0"], 2, "--rank and --world go together"),
        (["show", "{plan}", "--rank", "0", "--world", "1"], 2, "add --step"),
        (["show", "{plan}", "--clip", "99:0"], 2, "the plan has shards 0 to"),
        (["show", "{plan}", "--clip", "abc"], 2, "add --samples"),
        (["show", "{plan}", "--clip", "abc", "--samples", "{samples}"], 2, "no sample of"),
    ],
)
def test_bad_input_ends_with_one_message_and_a_code(
    arguments: list[str],
    code: int,
    message: str,
    samples: Path,
    plan: Path,
    write_set: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = write_set(tmp_path / "other", [[("33x64x112", index) for index in range(9)]])
    places = {"tmp": tmp_path, "config": CONFIG, "samples": samples, "plan": plan, "other": other}
    assert run_command(app, [argument.format(**places) for argument in arguments]) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors and "build it again" not in errors
    assert not (tmp_path / "x").exists()


def test_the_config_to_copy_for_a_real_run_is_valid() -> None:
    config = load_config(PlanConfig, REPOSITORY / "configs" / "plan.yaml")
    assert config.lanes == 64 and config.cost.model_shape == MOTIF_2B
