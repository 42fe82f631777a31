"""Sampling: the integrator against known fields, and the real path from a trained run to a playing MP4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from encoders.registry import fetch
from schemas.errors import UsageError
from schemas.model_shape import TINY
from training import randomness
from training.cli import main
from training.model import DiTOutput
from training.sampling import SampleRequest, integrate, sample_video
from training.video import write_contact_sheet, write_mp4


class Field(nn.Module):
    """A known velocity field: `text mean + scale * x`, in place of the network."""

    shape = TINY

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(
        self, latent_BCTYX: torch.Tensor, timestep_B: torch.Tensor, text_BED: torch.Tensor, mask_BE: torch.Tensor
    ) -> DiTOutput:
        count = mask_BE.sum(dim=1) * text_BED.shape[2]
        mean_B = text_BED.float().sum(dim=(1, 2)) / count
        velocity = mean_B.view(-1, 1, 1, 1, 1) + self.scale * latent_BCTYX[:, :16]
        return DiTOutput(velocity_BCTYX=velocity, tapped_BLD=None, kept_BK=None)


def read_png(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def run_field(scale: float, **options: Any) -> torch.Tensor:
    text, null = np.full((3, 4), 0.5, np.float16), np.full((1, 4), 0.125, np.float16)
    options = {"num_steps": 4, "guidance": 1.0, "seed": 3, "shift": 1.0, **options}
    model: Any = Field(scale)
    return integrate(model, text, null, frames=5, height=16, width=32, **options)


def test_a_constant_velocity_is_integrated_exactly_and_guidance_extrapolates() -> None:
    noise = randomness.noise(3, 0, ["sample"], (16, 2, 2, 4))[0].transpose(0, 1)
    torch.testing.assert_close(run_field(0.0), noise - 0.5)
    torch.testing.assert_close(run_field(0.0, guidance=0.0), noise - 0.125)
    torch.testing.assert_close(run_field(0.0, guidance=4.0, shift=3.0), noise - (0.125 + 4.0 * 0.375))


def test_more_steps_come_closer_to_the_exact_flow() -> None:
    noise = randomness.noise(3, 0, ["sample"], (16, 2, 2, 4))[0].transpose(0, 1)
    exact = (noise + 0.5) * np.exp(-1.0) - 0.5  # dx/ds = 0.5 + x from s = 1 to 0
    errors = [float((run_field(1.0, num_steps=steps) - exact).abs().max()) for steps in (5, 10, 20)]
    assert errors[0] > 1.8 * errors[1] > 3.2 * errors[2] > 0


def test_mp4_and_contact_sheet_hold_the_frames(tmp_path: Path) -> None:
    shades = np.linspace(20, 230, 33).astype(np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (33, 48, 64, 3)).copy()
    encoder = write_mp4(tmp_path / "a" / "out.mp4", frames, 24.0)
    assert encoder in ("libx264", "mpeg4")
    with av.open(str(tmp_path / "a" / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 24
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 3
    write_contact_sheet(tmp_path / "sheet.png", frames)
    sheet = read_png(tmp_path / "sheet.png")
    assert sheet.shape == (3 * 48, 4 * 64, 3)
    assert (sheet[0, 0] == frames[0, 0, 0]).all() and (sheet[-1, -1] == frames[-1, 0, 0]).all()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []


@pytest.fixture(scope="module")
def text_run(
    tmp_path_factory: pytest.TempPathFactory,
    make_set: Callable[..., Path],
    make_plan: Callable[..., Any],
    clip_type: Callable[..., Any],
    config_file: Callable[..., Path],
    small_config: Callable[..., dict[str, Any]],
) -> Path:
    """A short run whose text width is that of the real default text encoder."""
    fetch("text.minilm")
    folder = tmp_path_factory.mktemp("text")
    samples = make_set(folder / "set", [clip_type(33), clip_type(1)] * 4, text_width=384)
    plan = make_plan(folder / "plan", [samples], lanes=1, micro=1, steps=2).folder
    config = config_file(model={**small_config()["model"], "text_width": 384})
    run = folder / "run"
    arguments = ["--config", config, "--plan", plan, "--samples", samples, "--output", run]
    assert main(["run", *map(str, arguments)]) == 0
    return run


def test_the_command_writes_a_playing_mp4_and_a_contact_sheet(
    text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "cat.mp4"
    arguments = ["--run", text_run, "--prompt", "a cat on a sofa", "--output", output, "--steps", 2, "--frames", 9]
    assert main(["sample", *map(str, arguments)]) == 0
    with av.open(str(output)) as container:
        frames = list(container.decode(video=0))
        assert container.streams.video[0].average_rate == 24
    assert len(frames) == 9 and (frames[0].width, frames[0].height) == (112, 64)
    assert read_png(tmp_path / "cat.png").shape == (3 * 64, 4 * 112, 3)
    said = capsys.readouterr().err
    assert "step-00000002" in said and "not the one that the run was trained with" in said


def request(run: Path, **changes: Any) -> SampleRequest:
    values = {"prompt": "rain", "frames": 5, "height": 32, "width": 48, "num_steps": 2, "guidance": 4.0, "seed": 0}
    return SampleRequest(run=run, **{**values, **changes})


def test_a_sample_is_a_function_of_prompt_seed_and_checkpoint(text_run: Path) -> None:
    first = sample_video(request(text_run)).frames_THWC
    assert first.shape == (5, 32, 48, 3) and first.dtype == np.uint8
    assert np.array_equal(first, sample_video(request(text_run)).frames_THWC)
    assert not np.array_equal(first, sample_video(request(text_run, seed=1)).frames_THWC)
    assert sample_video(request(text_run, checkpoint=2)).checkpoint.name == "step-00000002"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 32}, "--frames is 32, expected 4k"),
        ({"height": 60}, "--height is 60, expected a positive multiple of 16"),
        ({"width": 0}, "--width is 0"),
        ({"checkpoint": 7}, "has no checkpoint of step 7; it has 2"),
    ],
)
def test_impossible_samples_are_refused_in_words(text_run: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        sample_video(request(text_run, **changes))
    assert message in str(caught.value)
