"""The ten stage files: complete, the report's table, a chain in which every module has its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from schemas.buckets import Bucket, bucket_sizes
from schemas.config import load_config
from schemas.model_shape import MOTIF_2B, ModelShape
from training.config import RepaConfig, TrainConfig, TreadConfig
from training.curriculum.chain import Chain, check_chain, read_stages
from training.curriculum.stage import StageConfig, StagePart

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "train"
FILES = sorted(FOLDER.glob("stage*.yaml"))

REPORTED = {
    # number: (set, frames, text width, teachers) as in the report's table of stages
    1: ("144p", 1, 384, ("dinov2", None)),
    2: ("144p", 33, 384, (None, "vjepa2")),
    3: ("144p", 65, 384, (None, "vjepa2")),
    4: ("360p", 65, 2560, (None, None)),
    5: ("480p", 65, 2560, (None, None)),
    6: ("480p", 121, 2560, (None, None)),
    7: ("480p", 121, 2560, (None, None)),
    8: ("720p", 121, 2560, (None, None)),
    9: ("360p", 121, 2560, (None, None)),
    10: ("720p", 121, 2560, (None, None)),
}


@pytest.fixture(scope="module")
def chain() -> Chain:
    found = read_stages(FOLDER)
    check_chain(found)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_file_is_written_out_in_full(path: Path) -> None:
    written = yaml.safe_load(path.read_text())
    assert set(written) == set(TrainConfig.model_fields)
    assert set(written["model"]) == set(ModelShape.model_fields)
    assert set(written["stage"]) == set(StageConfig.model_fields)
    assert all(set(part) == set(StagePart.model_fields) for part in written["stage"]["parts"])
    for section in ("optimizer", "flow", "text", "checkpoint", "i2v"):
        known = TrainConfig.model_fields[section].default
        assert set(written[section]) == set(type(known).model_fields)
    for section, kind in (("tread", TreadConfig), ("repa", RepaConfig)):
        assert written[section] is None or set(written[section]) == set(kind.model_fields)


def test_they_are_the_stages_of_the_report(chain: Chain) -> None:
    assert [file.stage.number for file in chain.files] == list(REPORTED)
    for file in chain.files:
        name, frames, text_width, teachers = REPORTED[file.stage.number]
        last = file.stage.parts[-1]
        assert max(last.frames[name]) == frames
        assert file.config.model.text_width == text_width
        by_branch = {} if file.config.repa is None else file.config.repa.teacher_by_branch or {}
        assert tuple(by_branch.get(f"{kind}_real") for kind in ("image", "video")) == teachers
        assert file.config.model.shared_cross_attention == (file.stage.number >= 9)
        assert (file.config.text.dropout_probability, *file.config.text.shares.values()) == (0.1, 0.5, 0.3, 0.2)
    by_number = {file.stage.number: file.stage for file in chain.files}
    assert by_number[8].init_from == by_number[7].name, "720p starts from the fine-tuned 480p weights"
    assert [part.name for part in by_number[5].parts] == ["bridge", "main"]
    assert by_number[5].parts[0].frames == {"360p": (33, 65), "480p": (1,)}
    assert {number for number, stage in by_number.items() if any(part.admission == "sft" for part in stage.parts)} == {
        7,
        10,
    }


def test_every_module_is_accounted_for_at_full_size(chain: Chain) -> None:
    assert chain.problems == []
    found = {name: transition.line() for name, transition in chain.transitions.items()}
    assert len(found) == 10
    for name in ("stage03_144p_video65", "stage06_480p_video121", "stage08_720p_video121", "stage10_720p_sft"):
        assert found[name].endswith(" carried")
    assert "6 new (projectors.vjepa2), 6 dropped (projectors.dinov2)" in found["stage02_144p_video33"]
    assert "4 reset (dit.text_embed), 6 dropped (projectors" in found["stage04_360p_video65"]
    assert "(dit.single_blocks.*.cross)" in found["stage09_360p_sca"]
    assert chain.parameters["stage01_144p_image"] == 1_883_369_920
    assert chain.parameters["stage08_720p_video121"] == 1_886_712_256
    assert chain.parameters["stage10_720p_sft"] == MOTIF_2B.parameter_count() == 1_962_308_032


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_size_of_a_class_is_a_bucket(path: Path) -> None:
    stage = load_config(TrainConfig, path).stage
    assert stage is not None
    for part in stage.parts:
        wanted = {
            Bucket(length, *size)
            for name, lengths in part.frames.items()
            for length in lengths
            for size in bucket_sizes(name)
        }
        assert set(part.buckets) == wanted


REPORTED_KEYS = {"model", "stage.init_from", "stage.note", "text", "precision"}
"""In every stage: the released network, the order of the stages, text dropout and captions, bf16."""
OUR_EXCEPTIONS = {"model.sca_query_norm", "text.length_multiple"}
PROVENANCE = {
    # number: (further keys of the report, further exceptions that are ours)
    1: ({"stage.parts.0.frames", "repa.teacher_by_branch.image_real"}, {"model.text_width"}),
    2: ({"stage.parts.0.frames"}, {"model.text_width"}),
    3: ({"stage.parts.0.frames"}, {"model.text_width", "stage.parts.0.frames.144p.1"}),
    4: ({"stage.parts.0.frames"}, {"stage.parts.0.frames.360p.1"}),
    5: (
        {"stage.parts.0.frames", "stage.parts.1.frames"},
        {"stage.parts.0.frames.360p.0", "stage.parts.1.frames.480p.1"},
    ),
    6: ({"stage.parts.0.frames"}, {"stage.parts.0.frames.480p.1", "stage.parts.0.frames.480p.2"}),
    7: ({"stage.parts.0.frames", "stage.parts.0.rules"}, set()),
    8: ({"stage.parts.0.frames"}, {"stage.parts.0.frames.720p.1"}),
    9: ({"stage.parts.0.frames"}, {"stage.parts.0.frames.360p.1", "stage.parts.0.frames.360p.2"}),
    10: ({"stage.parts.0.frames", "stage.parts.1.frames"}, {"stage.parts.0.frames.720p.1"}),
}


def test_what_is_the_reports_is_said_and_no_more(chain: Chain) -> None:
    assert {file.stage.number for file in chain.files} == set(PROVENANCE)
    for file in chain.files:
        stage = file.stage
        paper, ours = PROVENANCE[stage.number]
        later = {"stage.text_encoder", "repa"} if stage.number >= 4 else set()
        assert set(stage.paper) == REPORTED_KEYS | later | paper, stage.name
        assert set(stage.ours) == OUR_EXCEPTIONS | ours, stage.name


def test_every_length_under_paper_is_the_reports(chain: Chain) -> None:
    """An image, or the length that the report's table has for the stage; any other is among the exceptions."""
    for file in chain.files:
        longest = REPORTED[file.stage.number][1]
        for place, part in enumerate(file.stage.parts):
            for name, lengths in part.frames.items():
                own = {
                    index
                    for index in range(len(lengths))
                    if f"stage.parts.{place}.frames.{name}.{index}" in file.stage.ours
                }
                assert {length for index, length in enumerate(lengths) if index not in own} <= {1, longest}
                assert all(lengths[index] not in (1, longest) for index in own)
