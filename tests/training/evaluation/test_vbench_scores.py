"""VBench's results files to a table and totals, and what is said where its package or weights are not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import DataError, UsageError
from training.cli import main
from training.evaluation.vbench import generator
from training.evaluation.vbench.dimensions import DIMENSIONS, Dimension
from training.evaluation.vbench.package import VBenchPackage, find_package, missing_files
from training.evaluation.vbench.preflight import preflight_lines
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


def interpreter(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """An interpreter that has no vbench, whatever this environment has."""
    return interpreter(tmp_path / "bare-python", f'exec "{sys.executable}" -S "$@"')


def test_an_interpreter_without_the_package_is_told_from_none(bare_python: Path, tmp_path: Path) -> None:
    assert find_package(bare_python) is None
    flat, broken = tmp_path / "flat", interpreter(tmp_path / "broken", "echo no module encodings >&2; exit 3")
    flat.touch()
    for path, words in (
        (tmp_path / "no-python", "no-python, which is not there; expected a Python interpreter"),
        (flat, "flat, which cannot be run"),
        (tmp_path, "which cannot be run"),
        (broken, "broken, which does not answer like a Python interpreter (exit code 3: no module encodings)"),
        (interpreter(tmp_path / "other", "echo hello"), "other, which does not answer like a Python interpreter ("),
    ):
        with pytest.raises(UsageError) as caught:
            find_package(path)
        assert words in str(caught.value) and "--vbench-python is" in str(caught.value)


def test_a_relative_interpreter_is_the_same_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = json.dumps({"place": "/there", "version": "0.1.5"})
    interpreter(tmp_path / "python", f"echo '{answer}'")
    monkeypatch.chdir(tmp_path)
    found = find_package(Path("./python"))
    assert found is not None and (found.version, found.python) == ("0.1.5", tmp_path / "python")


def test_the_preflight_says_what_is_there_of_each_dimension(tmp_path: Path) -> None:
    (tmp_path / "clip_model").mkdir()
    (tmp_path / "clip_model" / "ViT-B-32.pt").touch()
    names = ("background_consistency", "temporal_flickering", "color")
    lines = preflight_lines(None, Path("py"), names, tmp_path, allow_download=False)
    assert lines[0].startswith("vbench: not installed for py, so videos will not be scored; install it")
    assert lines[1:5] == [
        f"weights: those of 2 of 3 dimensions are in {tmp_path}",
        "  background_consistency: there",
        "  temporal_flickering: needs none",
        "  color: not there: grit_model/grit_b_densecap_objectdet.pth",
    ]
    assert "--allow-download" in lines[5] and len(lines) == 6
    package = VBenchPackage(python=Path("py"), version="0.1.5", full_info=tmp_path / "none.json")
    there = preflight_lines(package, Path("py"), names[:2], tmp_path, allow_download=False)
    assert there[0] == "vbench: 0.1.5 for py" and len(there) == 4, "nothing to fetch"
    assert "fetched by the package" in preflight_lines(package, Path("py"), names, tmp_path, allow_download=True)[-1]
    assert "does not say which dimensions" in preflight_lines(None, Path("py"), (), tmp_path, allow_download=False)[1]


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
    text_run: Path, prompt_list: Path, bare_python: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = ["--vbench-python", bare_python, "--vbench-cache", tmp_path / "cache"]
    assert command(text_run, tmp_path / "out", prompt_list, "--part", "2/2", *absent) == 0
    lines = capsys.readouterr().err.splitlines()
    said_first = [line.split(":")[0].strip() for line in lines[:4]]
    assert said_first == ["vbench", "weights", "temporal_flickering", "color"], "before the first video"
    assert lines[-1] == "videos made, not scored: other parts are not there yet"
    assert command(text_run, tmp_path / "out", prompt_list, *absent) == 0
    said = capsys.readouterr()
    assert "2 videos made, 2 were there" in said.err
    assert (
        said.err.strip().splitlines()[-1].startswith("videos made, not scored: the vbench package is not installed for")
    )
    assert said.out == "" and said.err.count("color: not there: grit_model") == 2, "at the start, and again at the end"
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


def test_a_folder_that_has_its_videos_loads_no_network(
    text_run: Path,
    prompt_list: Path,
    bare_python: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = (text_run, tmp_path / "out", prompt_list, "--vbench-python", bare_python)
    wanted = ["--dimensions", " temporal_flickering , color,"]
    assert command(*arguments, *wanted) == 0
    opened: list[object] = []
    monkeypatch.setattr(generator, "open_sampler", lambda request: opened.append(request) or pytest.fail("opened"))
    capsys.readouterr()
    assert command(*arguments) == 0 and not opened
    assert "0 videos made, 4 were there" in capsys.readouterr().err
    assert command(*arguments, "--set", "num_steps=2") == 2, "other settings are still told"
    assert "sampler: was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompts", "extra", "message"),
    [
        ("package", ["--vbench-python", "BARE"], "--prompts is package, but the vbench package is not there"),
        ("LIST", ["--vbench-python", "no-python"], "--vbench-python is no-python, which is not there"),
        ("LIST", ["--part", "3/2"], "--part is '3/2', expected K/N with K from 1 to N"),
        ("LIST", ["--set", "guidnce=2"], "did you mean 'guidance'?"),
        ("LIST", ["--dimensions", "colour"], "--dimensions has colour"),
        ("LIST", ["--frames", "4"], "expected 4k + 1"),
        ("LIST", ["--weights", "best"], "--weights is 'best'"),
    ],
)
def test_mistakes_end_with_one_message(
    prompts: str,
    extra: list[str],
    message: str,
    prompt_list: Path,
    bare_python: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    extra = [str(bare_python) if word == "BARE" else word for word in extra]
    assert command(tmp_path / "run", tmp_path / "out", prompt_list if prompts == "LIST" else prompts, *extra) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and not (tmp_path / "out").exists()
