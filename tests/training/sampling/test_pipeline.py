"""The real path from a trained run and prompts to playing MP4s and contact sheets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from schemas.config import build_config
from schemas.errors import ConfigError, UsageError
from schemas.model_shape import TINY
from training.checkpoints.checkpoint import find_checkpoint, read_record
from training.checkpoints.whole_network import load_network
from training.cli import main
from training.commands.sample import build_request
from training.config import TrainConfig
from training.dit.initialization import build_model
from training.dit.model import DiTOutput, MotifVideoDiT
from training.run_setup import read_run_info
from training.sampler_config import SamplerConfig
from training.sampling import (
    Conditions,
    LatentSize,
    SampleRequest,
    open_sampler,
    sample_latents,
    velocity_of,
)
from training.sampling.images import encode_image_tokens, read_picture
from training.video import write_contact_sheet, write_mp4


def read_png(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


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


def test_the_command_writes_a_playing_mp4_and_a_contact_sheet(
    text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "cat.mp4"
    arguments = [
        "--run",
        text_run,
        "--prompt",
        "a cat on a sofa",
        "--output",
        output,
        "--set",
        "num_steps=2",
        "--frames",
        9,
    ]
    assert main(["sample", *map(str, arguments)]) == 0
    with av.open(str(output)) as container:
        frames = list(container.decode(video=0))
        assert container.streams.video[0].average_rate == 24
    assert len(frames) == 9 and (frames[0].width, frames[0].height) == (48, 32)
    assert read_png(tmp_path / "cat.png").shape == (3 * 32, 4 * 48, 3)
    said = capsys.readouterr().err
    assert "step-00000002" in said and "not the one that the run was trained with" in said


def request(run: Path, **changes: Any) -> SampleRequest:
    values: dict[str, Any] = {
        "prompts": ("rain",),
        "size": LatentSize(5, 32, 48),
        "sampler": SamplerConfig(num_steps=2),
    }
    return SampleRequest(run=run, **{**values, **changes})


def frames_of(run: Path, **changes: Any) -> list[np.ndarray]:
    return [video.frames_THWC for video in open_sampler(request(run, **changes)).videos()]


def test_a_sample_is_a_function_of_prompt_seed_and_checkpoint(text_run: Path) -> None:
    (first,) = frames_of(text_run)
    assert first.shape == (5, 32, 48, 3) and first.dtype == np.uint8
    assert np.array_equal(first, frames_of(text_run, prompts=("sun", "rain"))[1])
    assert not np.array_equal(first, frames_of(text_run, seed=1)[0])
    assert open_sampler(request(text_run, checkpoint=2)).checkpoint.name == "step-00000002"


def test_averaged_and_trained_weights_are_told_apart(text_run: Path) -> None:
    checkpoint = find_checkpoint(text_run, None)
    config = build_config(TrainConfig, read_record(checkpoint).config, source="record")
    averaged, trained = (dict(load_network(checkpoint, config, kind).named_parameters()) for kind in ("ema", "trained"))
    assert averaged.keys() == trained.keys()
    assert any(not torch.equal(averaged[name], trained[name]) for name in averaged)
    with pytest.raises(UsageError, match="ema_decays"):
        load_network(checkpoint, config.model_copy(update={"ema_decays": ()}), "ema")


def test_a_run_is_sampled_at_its_largest_bucket(text_run: Path) -> None:
    info = read_run_info(text_run)
    assert set(info.buckets) == {"1x32x48", "33x32x48"} and info.longest_frames == 33
    assert str(info.largest_bucket) == "33x32x48"
    sideways = info.model_copy(update={"buckets": ("33x48x32", "33x32x48", "65x16x16")})
    assert str(sideways.largest_bucket) == "33x32x48" and sideways.longest_frames == 65
    opened = open_sampler(
        build_request(
            run=text_run, prompt="rain", prompts=None, size=(None, None, 16), overrides=["num_steps=1"], weights="ema"
        )
    )
    assert opened.request.size == LatentSize(33, 32, 16)


def test_the_runs_precision_is_kept(
    text_set: tuple[Path, Path], text_model: dict[str, Any], config_file: Callable[..., Path], tmp_path: Path
) -> None:
    config = config_file(model=text_model, steps=1, precision="bf16")
    arguments = ["--config", config, "--plan", text_set[1], "--samples", text_set[0], "--output", tmp_path / "run"]
    assert main(["run", *map(str, arguments)]) == 0
    seen = []

    def watched(self: MotifVideoDiT, latent: torch.Tensor, *_: object, **__: object) -> DiTOutput:
        seen.append(next(self.parameters()).dtype)
        return DiTOutput(velocity_BCTYX=latent[:, :16], tapped_BLD=None, kept_BK=None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MotifVideoDiT, "forward", watched)
        frames_of(tmp_path / "run")
    assert set(seen) == {torch.bfloat16}


def test_a_picture_for_a_run_that_never_saw_one_is_noted(
    text_set: tuple[Path, Path], text_model: dict[str, Any], config_file: Callable[..., Path], tmp_path: Path
) -> None:
    config = config_file(model=text_model, steps=1, i2v={"probability": 0.0})
    arguments = ["--config", config, "--plan", text_set[1], "--samples", text_set[0], "--output", tmp_path / "run"]
    assert main(["run", *map(str, arguments)]) == 0
    picture = save_picture(tmp_path / "a.png", (48, 32))
    notes = open_sampler(request(tmp_path / "run", image=picture)).notes
    assert any("i2v.probability is 0" in note for note in notes)
    assert not any("i2v" in note for note in open_sampler(request(tmp_path / "run")).notes)


def test_a_missing_checkpoint_is_refused_in_words(text_run: Path) -> None:
    with pytest.raises(UsageError, match="has no checkpoint of step 7; it has 2"):
        open_sampler(request(text_run, checkpoint=7))


def test_a_negative_prompt_takes_the_null_texts_place(text_run: Path) -> None:
    plain, negative = (
        open_sampler(request(text_run, sampler=SamplerConfig(num_steps=1, negative_prompt=text))).null_text_ED
        for text in (None, "blurred")
    )
    assert plain.shape != negative.shape and negative.shape[1] == 384


def save_picture(path: Path, size: tuple[int, int]) -> Path:
    width, height = size
    columns = np.linspace(0, 255, width).astype(np.uint8)
    Image.fromarray(np.broadcast_to(columns[None, :, None], (height, width, 3)).copy()).save(path)
    return path


def test_a_picture_becomes_the_first_latent_frame(text_run: Path, tmp_path: Path) -> None:
    picture = save_picture(tmp_path / "wide.png", (200, 50))
    opened = open_sampler(request(text_run, image=picture))
    assert opened.first_frame_CYX is not None and opened.image_ID is None
    shown = opened.decode(opened.first_frame_CYX[None])[0]
    expected = read_picture(picture, LatentSize(5, 32, 48))
    assert expected.shape == (32, 48, 3) and expected[0, 0, 0] > 60, "its middle was not cut out"
    assert np.abs(shown.astype(int) - expected).mean() < 6
    assert not np.array_equal(next(opened.videos()).frames_THWC, frames_of(text_run)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": LatentSize(1, 32, 48)}, "--image gives the first frame of a video, but --frames is 1"),
        ({"image": Path("missing.png")}, "missing.png cannot be read as a picture"),
        ({"image": Path(__file__)}, "cannot be read as a picture"),
    ],
)
def test_impossible_pictures_are_refused_in_words(
    text_run: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        open_sampler(request(text_run, **{"image": save_picture(tmp_path / "a.png", (48, 32)), **changes}))
    assert message in str(caught.value)


def test_prompts_of_a_file_become_numbered_clips_and_one_sheet(text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat on a sofa\n\n  a red bus in the rain \n", encoding="utf-8")
    arguments = ["--run", text_run, "--prompts", tmp_path / "prompts.txt", "--output", tmp_path / "many"]
    arguments += ["--frames", 5, "--height", 32, "--width", 48, "--weights", "trained", "--clips-per-pass", 2]
    for override in ("num_steps=2", "solver=dpmpp_2m", "guidance_kind=apg", "apg.eta=0.5", "negative_prompt=blurred"):
        arguments += ["--set", override]
    arguments += ["--image", save_picture(tmp_path / "first.png", (48, 32)), "--set", "low_pass.share=0.5"]
    assert main(["sample", *map(str, arguments)]) == 0
    names = sorted(path.name for path in (tmp_path / "many").iterdir())
    assert names == ["0001.mp4", "0002.mp4", "contact-sheet.png", "samples.json"]
    assert read_png(tmp_path / "many" / "contact-sheet.png").shape == (2 * 32, 5 * 48, 3)
    listed = json.loads((tmp_path / "many" / "samples.json").read_text())
    assert [clip["prompt"] for clip in listed["clips"]] == ["a cat on a sofa", "a red bus in the rain"]
    assert listed["sampler"]["guidance"] == 8.0 and listed["sampler"]["solver"] == "dpmpp_2m"
    assert listed["sampler"]["apg"]["eta"] == 0.5 and listed["sampler"]["low_pass"]["share"] == 0.5
    assert listed["weights"] == "trained"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "a.mp4"], "either --prompt TEXT or --prompts FILE"),
        (["--output", "a.mp4", "--prompt", "x", "--prompts", "y"], "either --prompt TEXT or --prompts FILE"),
        (["--output", "a.avi", "--prompt", "x"], "expected a file name that ends in .mp4"),
        (["--output", "a.mp4", "--prompts", "y"], "expected a folder"),
        (["--output", "a", "--prompts", "missing.txt"], "--prompts missing.txt cannot be read"),
        (["--output", "a.mp4", "--prompt", "x", "--frames", "32"], "frames is 32, expected 4k + 1"),
        (
            ["--output", "a.mp4", "--prompt", "x", "--weights", "best"],
            "--weights is 'best', expected one of ema, trained",
        ),
        (["--output", "a.mp4", "--prompt", "x", "--device", "tpu"], "device is 'tpu', expected auto, cpu or cuda"),
        (["--output", "a.mp4", "--prompt", "x", "--set", "solver=heun"], "solver"),
        (["--output", "a.mp4", "--prompt", "x", "--set", "guidance=-1"], "guidance"),
        (
            ["--output", "a.mp4", "--prompt", "x", "--no-image-tokens"],
            "--no-image-tokens: has no effect without --image",
        ),
        (["--output", "a.mp4", "--prompt", "x", "--set", "low_pass.factor=0.5"], "--set low_pass: has no effect"),
        (["--output", "a.mp4", "--prompt", "x", "--image-encoder-path", "y"], "--image-encoder-path: has no effect"),
    ],
)
def test_mistakes_end_with_a_message_and_exit_code_2(
    text_run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "--run", str(text_run), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_a_wrong_text_encoder_is_refused_by_its_width(
    run_arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["run", *run_arguments(run, steps=1)]) == 0
    arguments = ["--run", run, "--prompt", "x", "--output", tmp_path / "a.mp4"]
    assert main(["sample", *map(str, arguments)]) == 2
    assert "gives states of width 384, the network's model.text_width is 16" in capsys.readouterr().err


def test_image_tokens_come_from_the_vision_tower_and_move_the_network(tmp_path: Path, tiny_models: ModuleType) -> None:
    folder = tiny_models.tiny_siglip(tmp_path / "siglip", width=24)
    frame = read_picture(save_picture(tmp_path / "a.png", (48, 32)), LatentSize(5, 32, 48))
    tokens_ID, fingerprint = encode_image_tokens(frame, path=folder, width=24, device="cpu")
    assert tokens_ID.shape == (16, 24) and fingerprint
    with pytest.raises(ConfigError, match=r"tokens of width 24, model\.image_width is 32"):
        encode_image_tokens(frame, path=folder, width=32, device="cpu")
    shape = TINY.model_copy(update={"image_width": 24})
    network = build_model(shape, seed=0)
    network.requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():  # the starting weights of gates and outputs are zero
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    text = np.zeros((3, shape.text_width), np.float16)
    found = [
        sample_latents(
            velocity_of(network),
            Conditions(texts=[text], null_text_ED=text[:1], first_frame_BCYX=torch.ones(1, 16, 4, 6), image_BID=image),
            LatentSize(5, 32, 48),
            SamplerConfig(num_steps=2),
            channels=16,
            shift=1.0,
            seeds=[0],
            device=torch.device("cpu"),
        )
        for image in (None, tokens_ID[None], 2.0 * tokens_ID[None].flip(1))
    ]
    assert all(torch.isfinite(latent).all() for latent in found)
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])
