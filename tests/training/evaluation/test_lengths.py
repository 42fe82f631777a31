"""Lengths beyond training: measures on pictures that are known, and the command on a real run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training.cli import main
from training.evaluation.drift import LatentReference, frame_measures, head_and_tail
from training.evaluation.lengths_page import render_lengths


def test_measures_of_known_pictures() -> None:
    grey = np.full((3, 8, 10, 3), 100, np.uint8)
    grey[2] = 130
    found = frame_measures(grey)
    assert found["brightness"].tolist() == pytest.approx([100, 100, 130], rel=1e-5)
    for name in ("contrast", "sharpness", "colour"):
        assert found[name] == pytest.approx([0, 0, 0], abs=1e-4)
    assert np.isnan(found["change"][0]) and found["change"][1:] == pytest.approx([0, 30], rel=1e-5, abs=1e-5)
    ramp = np.broadcast_to((10 * np.arange(10, dtype=np.uint8))[None, None, :, None], (1, 8, 10, 3))
    assert frame_measures(ramp)["sharpness"][0] == pytest.approx(10, rel=1e-4)
    red = np.zeros((1, 4, 4, 3), np.uint8)
    red[..., 0] = 255
    luma = 0.2126 * 255
    assert frame_measures(red)["colour"][0] == pytest.approx((255 - luma + 2 * luma) / 3, rel=1e-4)


@pytest.mark.parametrize(("clips", "frames"), [(1, 9), (2, 9), (4, 31), (20, 1)])
def test_frames_like_those_of_the_reference_are_at_one_however_few_it_has(clips: int, frames: int) -> None:
    generator = np.random.default_rng(0)

    def draw() -> np.ndarray:
        return generator.standard_normal((frames, 16, 6, 8)).astype(np.float32)

    start, own, new = 1 if frames > 1 else 0, [], []
    for _ in range(20):
        reference = LatentReference([draw() for _ in range(clips)])
        own += [reference.own_distances(index)[start:].mean() for index in range(clips)]
        new += [reference.distances(draw())[start:].mean() for _ in range(5)]
    assert np.mean(own) == pytest.approx(1.0, abs=0.05)
    assert np.mean(new) == pytest.approx(1.0, abs=0.06)


def test_a_drifting_clip_is_ever_farther_off() -> None:
    generator = np.random.default_rng(0)
    clips = [generator.standard_normal((31, 16, 4, 6)).astype(np.float32) for _ in range(4)]
    distances = LatentReference(clips).distances(clips[0] * np.linspace(1, 3, 31)[:, None, None, None])
    assert distances[-1] > 5 and distances[-1] > distances[15] > distances[1]


def test_windows_leave_out_what_is_not_known() -> None:
    values = np.array([np.nan, 1.0, 3.0, 5.0, 7.0])
    assert head_and_tail(values, 2) == (1.0, 6.0)
    assert head_and_tail(values, 100) == (4.0, 4.0)


@pytest.fixture(scope="module")
def measured(text_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lengths")
    (folder / "prompts.txt").write_text("a cat <b>\na red bus\n")
    arguments = ["--run", text_run, "--prompts", folder / "prompts.txt", "--output", folder / "out"]
    arguments += ["--lengths", "33,121,161", "--height", 32, "--width", 48, "--set", "num_steps=2"]
    assert main(["evaluate", "lengths", *map(str, arguments)]) == 0
    return folder / "out"


def test_every_length_has_its_videos_and_its_curves(measured: Path) -> None:
    report = json.loads((measured / "lengths.json").read_text())
    assert [one["frames"] for one in report["lengths"]] == [33, 121, 161]
    for one in report["lengths"]:
        folder = measured / f"frames-{one['frames']:04d}"
        assert sorted(path.name for path in folder.iterdir()) == [
            "0001.mp4",
            "0002.mp4",
            "contact-sheet.png",
            "samples.json",
        ]
        for name, curve in one["curves"].items():
            expected = (one["frames"] + 3) // 4 if name == "latent_distance" else one["frames"]
            assert len(curve) == expected, name
        assert one["curves"]["change"][0] is None and one["curves"]["change"][1] > 0
        assert one["seconds_per_step"] > 0 and one["forward_tflops"] > 0
        assert one["sample_bytes"] is None or one["sample_bytes"] > 10**7
    tokens = [one["video_tokens"] for one in report["lengths"]]
    assert tokens == [9 * 6, 31 * 6, 41 * 6]
    assert 0.7 < np.mean(report["lengths"][0]["curves"]["latent_distance"][1:]) < 1.3


def test_the_page_is_self_contained_and_escapes_prompts(measured: Path) -> None:
    html = (measured / "lengths.html").read_text()
    assert html == render_lengths(json.loads((measured / "lengths.json").read_text()))
    assert "a cat &lt;b&gt;" in html and "<b>\n" not in html
    assert "http" not in html.replace("http-equiv", "") and "<script" not in html
    assert html.count("<svg") == 6 and html.count("<polyline") == 18


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ("33,121,65", "expected each once, rising"),
        ("33,34", "frames is 34, expected 4k + 1"),
        ("65,121", "the longest bucket of the run has 33 frames"),
        ("33,long", "expected numbers of frames separated by commas"),
    ],
)
def test_impossible_lengths_are_refused(
    text_run: Path, tmp_path: Path, lengths: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("x\n")
    arguments = ["--run", text_run, "--prompts", tmp_path / "prompts.txt", "--output", tmp_path, "--lengths", lengths]
    assert main(["evaluate", "lengths", *map(str, arguments)]) == 2
    assert message in capsys.readouterr().err
