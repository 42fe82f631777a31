"""VBench's results files to a table and totals, and what is said where its package or weights are not there."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import DataError
from training.cli import main
from training.evaluation.vbench.dimensions import DIMENSIONS, Dimension
from training.evaluation.vbench.package import find_package, missing_files
from training.evaluation.vbench.scores import DimensionScore, read_results, report, table_lines, totals


def results_file(path: Path, **scores: Any) -> Path:
    """In the form of vbench 0.1.5's `<name>_eval_results.json`."""
    values = {name: [score, [{"video_path": "a-0.mp4", "video_results": score}]] for name, score in scores.items()}
    path.write_text(json.dumps(values, indent=4))
    return path


def all_at(score: float, **changes: float) -> dict[str, DimensionScore]:
    return {name: DimensionScore(dimension=name, score=changes.get(name, score), num_videos=5) for name in DIMENSIONS}


def test_results_are_read_as_the_package_writes_them(tmp_path: Path) -> None:
    found = read_results(results_file(tmp_path / "r.json", color=0.75, dynamic_degree=0.5))
    assert {name: (row.score, row.num_videos) for name, row in found.items()} == {
        "color": (0.75, 1),
        "dynamic_degree": (0.5, 1),
    }
    (row,) = read_results(results_file(tmp_path / "n.json", scene=float("nan"))).values()
    assert row.score is None and row.reason == "the package scored no video"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "cannot be read as VBench results"),
        ("[]", "holds a list"),
        ('{"colour": [0.5, []]}', "'colour' is no dimension of VBench"),
        ('{"color": 0.5}', "color is '0.5', expected [score, [a result for each video]]"),
        ('{"imaging_quality": [63.2, []]}', "imaging_quality is 63.2, expected 0 to 1"),
    ],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError) as caught:
        read_results(tmp_path / "r.json")
    assert message in str(caught.value)


def test_totals_are_those_of_vbenchs_script() -> None:
    best = {name: DimensionScore(dimension=name, score=dimension.high) for name, dimension in DIMENSIONS.items()}
    assert totals(best).total == pytest.approx(1.0)
    least = {name: DimensionScore(dimension=name, score=dimension.low) for name, dimension in DIMENSIONS.items()}
    assert totals(least).total == pytest.approx(0.0)
    found = totals(
        all_at(0.9, dynamic_degree=0.4, appearance_style=0.2, temporal_style=0.25, overall_consistency=0.27, scene=0.5)
    )
    quality = [
        (0.9 - 0.1462) / 0.8538,
        (0.9 - 0.2615) / 0.7385,
        (0.9 - 0.6293) / 0.3707,
        (0.9 - 0.706) / 0.2915,
        0.9,
        0.9,
        0.5 * 0.4,
    ]
    semantic = [0.9] * 5 + [0.5 / 0.8222, (0.2 - 0.0009) / 0.2846, 0.25 / 0.364, 0.27 / 0.364]
    assert found.quality == pytest.approx(sum(quality) / 6.5)
    assert found.semantic == pytest.approx(sum(semantic) / 9)
    assert found.total == pytest.approx((4 * sum(quality) / 6.5 + sum(semantic) / 9) / 5)


def test_a_total_needs_all_of_its_dimensions() -> None:
    scores = all_at(0.9)
    scores["color"] = DimensionScore(dimension="color", score=None, reason="weights are not there: x")
    found = totals(scores)
    assert found.quality is not None and found.semantic is None and found.total is None
    lines = table_lines(scores)
    assert len(lines) == 1 + 16 + 3
    assert any("color" in line and "none  weights are not there: x" in line for line in lines)
    assert lines[-1].split() == ["total", "score", "none", "1", "dimensions", "without", "a", "score"]
    assert report(scores, "0.1.5")["total"] is None


def test_weights_are_looked_for_below_the_cache(tmp_path: Path) -> None:
    dimension = DIMENSIONS["aesthetic_quality"]
    assert missing_files(dimension, tmp_path) == list(dimension.files)
    (tmp_path / "clip_model").mkdir()
    (tmp_path / "clip_model" / "ViT-L-14.pt").touch()
    assert missing_files(dimension, tmp_path) == ["aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"]
    assert missing_files(DIMENSIONS["temporal_flickering"], tmp_path) == []
    assert sum(dimension.quality for dimension in DIMENSIONS.values()) == 7 and len(DIMENSIONS) == 16
    assert Dimension(name="x", quality=True, low=0.5).normalized(0.75) == 0.5


def test_an_interpreter_without_the_package_has_none(tmp_path: Path) -> None:
    assert find_package(tmp_path / "no-python") is None
    if find_spec("vbench") is None:
        assert find_package(Path(sys.executable)) is None


@pytest.fixture
def prompt_list(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.json"
    path.write_text(
        json.dumps(
            [
                {"prompt_en": "a cat", "dimension": ["temporal_flickering"]},
                {"prompt_en": "up/down", "dimension": ["color"]},
            ]
        )
    )
    return path


def command(run: Path, output: Path, prompts: object, *extra: object) -> int:
    sizes = ["--frames", 5, "--height", 32, "--width", 48, "--set", "num_steps=1", "--videos-per-prompt", 2]
    return main(
        ["evaluate", "vbench", *map(str, ["--run", run, "--output", output, "--prompts", prompts, *sizes, *extra])]
    )


def test_without_the_package_videos_are_made_and_that_is_said_plainly(
    text_run: Path, prompt_list: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = ["--vbench-python", tmp_path / "no-python"]
    assert command(text_run, tmp_path / "out", prompt_list, "--part", "2/2", *absent) == 0
    assert "videos made, not scored: other parts are not there yet" in capsys.readouterr().err
    assert command(text_run, tmp_path / "out", prompt_list, *absent) == 0
    said = capsys.readouterr()
    assert "2 videos made, 2 were there" in said.err
    assert (
        said.err.strip().splitlines()[-1].startswith("videos made, not scored: the vbench package is not installed for")
    )
    assert said.out == ""
    names = sorted(path.name for path in (tmp_path / "out" / "videos").iterdir())
    assert (
        names[:2] == ["a cat-0.mp4", "a cat-1.mp4"]
        and all(name.startswith("up_down~") for name in names[2:])
        and len(names) == 4
    )
    assert "1 prompts are no file names ('up/down', ...)" in said.err
    facts = json.loads((tmp_path / "out" / "videos.json").read_text())["settings"]
    assert facts["sampler"]["num_steps"] == 1 and facts["checkpoint"] == "step-00000002"
    assert command(text_run, tmp_path / "out", prompt_list, "--no-score") == 0
    assert "videos made, not scored: --no-score was given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompts", "extra", "message"),
    [
        ("package", ["--vbench-python", "no-python"], "--prompts is package, but the vbench package is not there"),
        ("LIST", ["--part", "3/2"], "--part is '3/2', expected K/N with K from 1 to N"),
        ("LIST", ["--set", "guidnce=2"], "did you mean 'guidance'?"),
        ("LIST", ["--dimensions", "colour"], "--dimensions has colour"),
        ("LIST", ["--frames", "4"], "expected 4k + 1"),
        ("LIST", ["--weights", "best"], "--weights is 'best'"),
    ],
)
def test_mistakes_end_with_one_message(
    prompts: str, extra: list[str], message: str, prompt_list: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path / "run", tmp_path / "out", prompt_list if prompts == "LIST" else prompts, *extra) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and not (tmp_path / "out").exists()
