"""`reelyard-train plan-curriculum`: a good chain is told, a wrong one is refused with all that is wrong; planner files are the planner's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from planner.cli import app as planner
from planner.settings import PlanConfig
from schemas.command import run_command
from schemas.config import load_config
from schemas.shards import read_set_info, samples_path, write_set_info
from schemas.tables import LABELS, SAMPLES, read_table, table_from_rows, write_table
from training.cli import main
from training.curriculum.chain import check_chain, read_stages
from training.curriculum.stage_table import stage_table

ROOT = Path(__file__).resolve().parents[3]
Edit = Callable[[dict[str, dict[str, Any]]], None]


def write_chain(folder: Path, configs: dict[str, dict[str, Any]]) -> Path:
    folder.mkdir()
    for number, (name, config) in enumerate(configs.items(), start=1):
        stage = {**config["stage"], "name": f"stage{number:02d}_{name}"}
        before = stage["init_from"]
        if before in configs:
            stage["init_from"] = f"stage{list(configs).index(before) + 1:02d}_{before}"
        (folder / f"{stage['name']}.yaml").write_text(yaml.safe_dump({**config, "stage": stage}))
    return folder


@pytest.fixture
def configs(tiny_chain: Any) -> dict[str, dict[str, Any]]:
    """The tiny chain's files, to be changed; its teacher has no published width."""
    copied: dict[str, dict[str, Any]] = json.loads(json.dumps(tiny_chain.configs))
    return copied


def samples(tiny_chain: Any) -> list[str]:
    return [part for folder in tiny_chain.sets.values() for part in ("--samples", str(folder))]


def test_a_good_chain_is_told_with_its_data(
    tiny_chain: Any, configs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_chain(tmp_path / "stages", configs)
    assert main(["plan-curriculum", "--stages", str(folder), *samples(tiny_chain), "--details"]) == 0
    said = capsys.readouterr()
    assert "starts from stage01_a (ema weights): 74 carried, 4 reset (dit.text_embed), 6 dropped" in said.out
    assert "18 new (dit.single_blocks.*.cross)" in said.out
    assert "33x32x48     2 clips a lane" in said.out and "TFLOPs a clip" in said.out
    assert "ours        stage: the rest, model, optimizer" in said.out
    assert "part main: 40 clips in 4 buckets" in said.err
    assert "3 stages: every module is accounted for; 2 sets looked at" in said.err


def _no_reset(configs: dict[str, dict[str, Any]]) -> None:
    configs["b"]["stage"]["reset"] = []


def _wrong_pattern(configs: dict[str, dict[str, Any]]) -> None:
    configs["c"]["stage"]["new"] = ["dit.dual_blocks.*.cross"]


def _unknown_source(configs: dict[str, dict[str, Any]]) -> None:
    configs["c"]["stage"]["init_from"] = "stage09_elsewhere"


def _own_number(configs: dict[str, dict[str, Any]]) -> None:
    configs["c"]["stage"]["number"] = 2


def _fixed_part(configs: dict[str, dict[str, Any]]) -> None:
    configs["c"]["stage"]["part"] = "main"


def _other_encoder(configs: dict[str, dict[str, Any]]) -> None:
    configs["c"]["stage"]["text_encoder"] = "t5gemma2"


def _missing_set(configs: dict[str, dict[str, Any]]) -> None:
    configs["b"]["stage"]["parts"][0]["frames"] = {"360p": [1, 33, 65]}


def _missing_bucket(configs: dict[str, dict[str, Any]]) -> None:
    configs["b"]["stage"]["parts"][0]["batch_clips"] = {"1x32x48": 3, "33x32x48": 2, "65x32x48": 1}


def _missing_kind(configs: dict[str, dict[str, Any]]) -> None:
    part = configs["b"]["stage"]["parts"][0]
    part["frames"] = {"tiny": [1, 121]}
    part["batch_clips"] = {"1x32x48": 3, "1x48x32": 3, "121x32x48": 1}


def _missing_level(configs: dict[str, dict[str, Any]]) -> None:
    configs["b"]["stage"]["parts"][0]["admission"] = "720p"


def _missing_domain(configs: dict[str, dict[str, Any]]) -> None:
    configs["b"]["stage"]["parts"][0] |= {"domain_column": "subject", "domain_weights": {"people": 0.5}}


def _missing_teacher(configs: dict[str, dict[str, Any]]) -> None:
    configs["a"]["repa"]["teacher_by_branch"] = {"video_real": "vjepa2"}


def _not_a_file(configs: dict[str, dict[str, Any]]) -> None:
    configs["a"]["optimizer"]["lr"] = -1


@pytest.mark.parametrize(
    ("edits", "messages"),
    [
        (
            [_no_reset],
            ["of another shape (dit.text_embed.up.weight: (32, 16) to (32, 24)); add 'dit.text_embed.up.weight'"],
        ),
        ([_wrong_pattern], ["add 'dit.single_blocks.*.cross' to stage.new", "'dit.dual_blocks.*.cross' meets nothing"]),
        ([_unknown_source], ["stage.init_from is 'stage09_elsewhere', which is no earlier stage"]),
        ([_own_number], ["stage.number 2 is taken by an earlier file"]),
        ([_fixed_part], ["stage.part is 'main', expected null in a file"]),
        ([_other_encoder], ["dit.text_embed is carried over; add", "model.text_width is 24, t5gemma2 has 2560"]),
        ([_missing_set], ["part main: wants the set 360p, --samples gives: tiny"]),
        ([_missing_bucket], ["10 clips are of bucket 1x48x32, which batch_clips lacks; add it (1x48x32: 1)"]),
        ([_missing_kind], ["no video is used at 121 frames; take [121] out of frames.tiny"]),
        ([_missing_level], ["no clip is admitted at 720p", "the set knows the levels ['144p']"]),
        (
            [_missing_domain],
            ["domain_weights names 'people', which no clip admitted at 144p has in its column 'subject'"],
        ),
        (
            [_missing_teacher],
            ["repa.teacher_by_branch gives video_real the teacher 'vjepa2', the set 'tiny' has 'random' stored"],
        ),
        ([_not_a_file], ["optimizer.lr: give a number above 0 (got -1)"]),
        (
            [_wrong_pattern, _missing_bucket, _missing_domain, _own_number],
            ["has 4 problems:", "to stage.new", "which batch_clips lacks", "names 'people'", "is taken by"],
        ),
    ],
    ids=lambda value: "+".join(edit.__name__ for edit in value) if callable(value[0]) else "",
)
def test_all_that_is_wrong_is_listed(
    edits: list[Edit],
    messages: list[str],
    tiny_chain: Any,
    configs: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for edit in edits:
        edit(configs)
    folder = write_chain(tmp_path / "stages", configs)
    plans = tmp_path / "plans"
    arguments = ["--stages", str(folder), *samples(tiny_chain), "--write-plans", str(plans)]
    assert main(["plan-curriculum", *arguments]) == 1
    said = capsys.readouterr().err
    assert said.count("error:") == 1 and "Traceback" not in said
    for message in messages:
        assert message in said
    assert not plans.exists(), "nothing is written from a chain that is wrong"


@pytest.fixture
def labelled_set(tiny_chain: Any, tmp_path: Path) -> Path:
    """The narrow set with the subjects people and animal by turns, and every third clip synthetic."""
    folder = Path(shutil.copytree(tiny_chain.sets["narrow"], tmp_path / "set"))
    rows = read_table(samples_path(folder), SAMPLES).to_pylist()
    for index, row in enumerate(rows):
        row["subject"] = "people" if index % 2 else "animal"
        row["branch"] = f"{'image' if row['frames'] == 1 else 'video'}_{'real' if index % 3 else 'synthetic'}"
    write_table(samples_path(folder), table_from_rows(SAMPLES, rows), SAMPLES)
    write_set_info(folder, read_set_info(folder))
    return folder


def test_what_a_stage_can_do_without_is_a_note(
    labelled_set: Path, configs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A length that other videos stand in for, a domain of another captioner, a rule over labels: said, and no problem."""
    part = configs["a"]["stage"]["parts"][0]
    part["frames"] = {"tiny": [1, 33, 65, 121]}
    part["batch_clips"] = {**part["batch_clips"], "121x32x48": 1}
    part |= {"domain_column": "subject", "domain_weights": {"people": 0.5, "sport": 0.5}}
    part["rules"] = [
        {"column": "action", "one_of": ["fast"]},
        {"column": "branch", "one_of": ["image_real", "video_real"]},
    ]
    configs["a"]["repa"] = None
    folder = write_chain(tmp_path / "stages", {"a": configs["a"]})
    assert main(["plan-curriculum", "--stages", str(folder), "--samples", str(labelled_set), "--details"]) == 0
    said = capsys.readouterr()
    assert "26 clips in 4 buckets; no clip in 121x32x48" in said.err, "the rule over branches took 14 of 40"
    assert "domain_weights names 'sport', which no clip" in said.err
    assert "it has: 'animal', 'people'; these weights do nothing" in said.err
    assert "the rule on 'action' is not looked at here" in said.err and "build --scores FILE" in said.err
    assert "rule on branch: one of image_real, video_real; without a value: keep" in said.out


def test_one_stage_alone_is_looked_at_if_asked_for(
    tiny_chain: Any, configs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs["c"]["stage"]["parts"][0]["batch_clips"] = {"1x32x48": 3, "33x32x48": 2, "65x32x48": 1}
    folder, plans = write_chain(tmp_path / "stages", configs), tmp_path / "plans"
    arguments = ["plan-curriculum", "--stages", str(folder), *samples(tiny_chain), "--write-plans", str(plans)]
    assert main([*arguments, "--stage", "2"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2 and "stage02_b" in said.out
    assert "1 stage: every module is accounted for" in said.err
    assert [path.name for path in plans.iterdir()] == ["stage02_b_main.yaml"]
    assert main([*arguments, "--stage", "stage02_b", "--stage", "stage03_c"]) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 3 and "has 1 problem:" in said.err and "stage03_c.yaml" in said.err
    assert main([*arguments, "--stage", "4"]) == 2
    assert (
        "--stage is '4', expected the name or number of a stage; there are: 1 stage01_a, 2 st"
        in capsys.readouterr().err
    )


def test_the_ten_stages_take_a_line_each(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["plan-curriculum"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(lines) == 11 and len(said.err.splitlines()) == 1
    assert (
        lines[9].split()[:5] == ["9", "stage09_360p_sca", "8", "360p:", "1"]
        and "new dit.single_blocks.*.cross" in lines[9]
    )


def test_without_stage_files_the_message_says_where_it_looked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan-curriculum"]) == 2
    said = capsys.readouterr().err
    assert f"--stages is configs/train: {tmp_path.resolve()}/configs/train is no folder; give the folder" in said


def test_folders_that_hold_no_stages_or_no_set_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan-curriculum", "--stages", str(tmp_path)]) == 2
    assert f"--stages is {tmp_path}: {tmp_path} has no file stage*.yaml" in capsys.readouterr().err
    assert main(["plan-curriculum", "--samples", str(tmp_path)]) == 1
    assert "set.json is missing" in capsys.readouterr().err


def test_the_planner_files_of_the_ten_stages_are_the_planners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["plan-curriculum", "--write-plans", str(tmp_path)]) == 0
    chain = read_stages(ROOT / "configs" / "train")
    names = {f"{file.stage.name}_{part.name}.yaml" for file in chain.files for part in file.stage.parts}
    assert {path.name for path in tmp_path.iterdir()} == names and len(names) == 12
    for file in chain.files:
        for part in file.stage.parts:
            plan = load_config(PlanConfig, tmp_path / f"{file.stage.name}_{part.name}.yaml")
            assert plan.admission == part.admission and plan.frames == part.frames
            assert plan.batch_clips == part.batch_clips and plan.lanes == part.lanes
            assert plan.cost.model_shape == file.config.model
            assert (plan.cost.route is None) == (file.config.tread is None)
            weights = {} if not plan.mix else plan.mix[0].domain_weights
            assert weights == part.domain_weights


def actions_of(folder: Path, path: Path) -> Path:
    """A labels table of the set's clips, as curation writes it: images have no action, every fifth video stands still."""
    rows = read_table(samples_path(folder), SAMPLES).to_pylist()
    texts = dict.fromkeys(("caption_long", "caption_short", "caption_first", "subject", "style", "camera_move"), "x")
    flags = dict.fromkeys(("watermark", "nsfw", "padded", "multi_scene", "timelapse", "quality"))
    labels = []
    for index, row in enumerate(rows):
        action = "none" if row["frames"] == 1 else "dynamic" if index % 5 else "static"
        more = {"action": action, "tags": ["x"], "model": "m", "prompt_version": "1"}
        labels.append({"clip_id": row["clip_id"], **texts, **flags, **more})
    write_table(path, table_from_rows(LABELS, labels), LABELS)
    return path


def test_a_plan_built_from_the_written_file_is_one_that_the_stage_takes(
    labelled_set: Path, tmp_path: Path, configs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """From the stage's file to a plan, by the planner, and into training: domains balanced, no synthetic clips, videos no longer than the stage's.

    What the stage asks for otherwise is refused, each setting by name.
    """
    folder = labelled_set
    stage = configs["a"]["stage"]
    stage["parts"][0] |= {
        "frames": {"tiny": [1, 33]},
        "batch_clips": {"1x32x48": 2, "1x48x32": 2, "33x32x48": 2},
        "micro_per_step": 1,
        "epochs": 2,
        "domain_column": "subject",
        "domain_weights": {"people": 0.5},
        "rules": [
            {"column": "branch", "one_of": ["image_real", "video_real"]},
            {"column": "action", "one_of": ["dynamic", "none"], "missing": "drop"},
        ],
    }
    only_a = {"a": configs["a"]}
    stages = write_chain(tmp_path / "stages", only_a)
    plans = tmp_path / "plans"
    assert (
        main(["plan-curriculum", "--stages", str(stages), "--samples", str(folder), "--write-plans", str(plans)]) == 0
    )
    written, plan = plans / "stage01_a_main.yaml", tmp_path / "plan"
    assert "--scores curated/tables/labels.parquet" in written.read_text()
    scores = ["--scores", str(actions_of(folder, tmp_path / "labels.parquet"))]
    assert (
        run_command(
            planner, ["build", "--samples", str(folder), "--config", str(written), "--output", str(plan), *scores]
        )
        == 0
    )
    assert run_command(planner, ["verify", str(plan), "--samples", str(folder), *scores]) == 0
    arguments = [
        "--config",
        stages / "stage01_a.yaml",
        "--plan",
        plan,
        "--samples",
        folder,
        "--output",
        tmp_path / "run",
    ]
    assert main(["run", *map(str, arguments)]) == 0
    assert "2 steps done" in capsys.readouterr().err
    stage["parts"][0] |= {"domain_weights": {"people": 0.9}, "rules": [], "images_per_video": 1.0, "max_steps": 3}
    write_chain(tmp_path / "changed", only_a)
    arguments[1], arguments[-1] = tmp_path / "changed" / "stage01_a.yaml", tmp_path / "other"
    assert main(["run", *map(str, arguments)]) == 1
    said = capsys.readouterr().err
    assert "domain_weights: the stage has {'people': 0.9}, the plan {'people': 0.5}" in said
    assert (
        "images_per_video: the stage has 1.0, the plan None" in said
        and "max_steps: the stage has 3, the plan None" in said
    )
    assert "rules: the stage has [], the plan [{'column': 'branch', 'one_of': ['image_real', 'video_real']}, {" in said
    assert said.count(": the stage has") == 4, "and nothing else differs"


def test_the_table_in_the_docs_is_the_one_that_the_command_prints() -> None:
    chain = read_stages(ROOT / "configs" / "train")
    check_chain(chain)
    page = (ROOT / "docs" / "curriculum.md").read_text(encoding="utf-8")
    for line in stage_table(chain, text_tokens=256):
        assert line in page, "run `reelyard-train plan-curriculum --table` and put its table into docs/curriculum.md"
