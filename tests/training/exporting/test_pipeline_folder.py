"""Whole pipelines: loaded by diffusers, generating, with our text states, our times and our network's numbers; and what does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import MotifVideoImage2VideoPipeline, MotifVideoPipeline
from diffusers.guiders import ClassifierFreeGuidance
from PIL import Image

from encoders.image_tokens import SiglipTokens
from encoders.text import TextEncoder
from schemas.errors import ConfigError, ReelyardError, UsageError
from schemas.model_shape import ModelShape
from training.checkpoints.whole_network import load_run_network
from training.cli import main
from training.dit.model import MotifVideoDiT
from training.exporting.exporting import ExportRequest, export_weights
from training.flow import euler_schedule, euler_step, model_input, timestep_of
from training.weights import write_weights

SIZE: dict[str, Any] = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 2, "max_sequence_length": 16}


@pytest.fixture(scope="module")
def network(small_shape: Callable[..., ModelShape], random_network: Callable[[ModelShape], MotifVideoDiT]) -> Any:
    """A network that takes the tiny encoder's image tokens."""
    return random_network(small_shape())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, network: MotifVideoDiT) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "net"
    write_weights(folder, network.state_dict(), network.shape, origin="test")
    return folder


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory, weights: Path, tiny_parts: Path) -> Path:
    """Through the command, with each part given as the folder that has them all."""
    folder = tmp_path_factory.mktemp("pipelines") / "pipe"
    arguments = ["export", "--weights-folder", weights, "--output", folder, "--shift", 5, "--tokenizer"]
    arguments += [tiny_parts / "text_encoder", "--vae", tiny_parts, "--text-encoder", tiny_parts]
    assert main([str(argument) for argument in arguments]) == 0
    return folder


def load(folder: Path, kind: Any = MotifVideoPipeline) -> Any:
    pipeline = kind.from_pretrained(folder, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(seed))


def test_the_pipeline_loads_and_makes_a_video(pipeline_folder: Path) -> None:
    pipeline = load(pipeline_folder)
    names = {name: type(part).__name__ for name, part in pipeline.components.items()}
    assert names.pop("tokenizer")
    assert names == {
        "vae": "AutoencoderKLWan",
        "text_encoder": "T5Gemma2Encoder",
        "transformer": "MotifVideoTransformer3DModel",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "guider": "AdaptiveProjectedGuidance",
        "feature_extractor": "SiglipImageProcessor",
    }
    frames = pipeline("rain on a window", latents=noise(), output_type="np", **SIZE).frames
    assert frames.shape == (1, 9, 32, 48, 3) and np.isfinite(frames).all() and frames.std() > 0
    others = pipeline("cat on a sofa", latents=noise(), output_type="np", **SIZE).frames
    assert np.abs(frames - others).max() > 1e-3


def test_its_network_is_ours(pipeline_folder: Path, network: MotifVideoDiT, velocity_inputs: Any) -> None:
    inputs = velocity_inputs(network.shape)
    with torch.no_grad():
        theirs = load(pipeline_folder).transformer(*inputs).sample
        assert (network(*inputs).velocity_BCTYX - theirs).abs().max() < 1e-5


def test_its_text_states_are_those_of_the_sets(pipeline_folder: Path, tiny_parts: Path) -> None:
    """The encoder half was taken out of the whole model, and the pipeline pads where we trim."""
    states, _, mask, _ = load(pipeline_folder).encode_prompt("rain on a window", max_sequence_length=16)
    ours = TextEncoder("transformers", tiny_parts / "text_encoder").encode(["rain on a window"])[0]
    found = states[0][mask[0].bool()].detach().numpy()
    assert found.shape == ours.shape and np.abs(found - ours).max() < 5e-3 < np.abs(ours).max()


def test_its_latents_are_our_euler_steps(pipeline_folder: Path, network: MotifVideoDiT) -> None:
    """Same noise, prompt and plain guidance: the scheduler's times and the input's channels are those of training."""
    pipeline = load(pipeline_folder)
    pipeline.guider = ClassifierFreeGuidance(guidance_scale=3.0)
    theirs = pipeline("rain on a window", latents=noise(), output_type="latent", **{**SIZE, "num_inference_steps": 4})
    prompt, null, mask, null_mask = pipeline.encode_prompt("rain on a window", "", max_sequence_length=16)
    latent, text = noise(), torch.cat([prompt, null])
    nothing = torch.zeros(2, dtype=torch.bool)
    for sigma, next_sigma in pairwise(euler_schedule(4, 5.0).tolist()):
        twice = latent.expand(2, -1, -1, -1, -1)
        timestep = timestep_of(torch.full((2,), sigma, dtype=torch.float64))
        with torch.no_grad():
            velocity = network(
                model_input(twice, twice, nothing), timestep, text, torch.cat([mask, null_mask])
            ).velocity_BCTYX
        latent = euler_step(latent, velocity[1:] + 3.0 * (velocity[:1] - velocity[1:]), sigma, next_sigma)
    assert (theirs.frames - latent).abs().max() < 1e-3 * latent.abs().max()


def test_the_image_to_video_pipeline_loads_and_makes_a_video(pipeline_folder: Path) -> None:
    pipeline = load(pipeline_folder, MotifVideoImage2VideoPipeline)
    assert dict(pipeline.feature_extractor.size) == {"height": 28, "width": 28}
    generator = torch.Generator().manual_seed(0)
    pictures = [Image.fromarray(np.full((32, 48, 3), shade, np.uint8)) for shade in (20, 220)]
    videos = [
        pipeline(
            image=picture, prompt="a cat", latents=noise(), output_type="np", generator=generator.manual_seed(0), **SIZE
        ).frames
        for picture in pictures
    ]
    assert videos[0].shape == (1, 9, 32, 48, 3)
    assert np.abs(videos[0] - videos[1]).max() > 1e-3


def test_its_image_tokens_are_those_of_the_sets(pipeline_folder: Path, tiny_parts: Path) -> None:
    """A picture of the tower's own size, so that two resizers are not what is compared."""
    picture = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    pipeline = load(pipeline_folder, MotifVideoImage2VideoPipeline)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255.0
    tower, processor = pipeline.text_encoder.vision_tower, pipeline.feature_extractor
    with torch.no_grad():
        theirs = pipeline._get_image_embeds(tower, processor, pixels, torch.device("cpu"))[0].numpy()
    ours = SiglipTokens(tiny_parts / "text_encoder").tokens(picture)
    assert ours.shape == theirs.shape == (4, 16)
    assert np.abs(ours - theirs).max() < 1e-2 < np.abs(theirs).max()


def test_a_trained_run_becomes_a_pipeline_with_its_own_shift(
    tmp_path: Path, exportable_run: Path, tiny_parts: Path, velocity_inputs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = tiny_parts / "text_encoder"
    parts = ["--vae", tiny_parts, "--text-encoder", encoder, "--tokenizer", encoder]
    arguments = ["export", "--run", exportable_run, "--output", tmp_path / "pipe", *parts]
    assert main([str(argument) for argument in arguments]) == 0
    said = capsys.readouterr().err
    assert "no image-to-video pipeline: the network has no image embedder" in said
    assert "step-00000003 (ema weights), for diffusers.MotifVideoPipeline\n" in said
    pipeline = load(tmp_path / "pipe")
    assert pipeline.scheduler.config.shift == 3.0 and pipeline.feature_extractor is None
    frames = pipeline("rain on a window", latents=noise(), output_type="np", **SIZE).frames
    assert frames.shape == (1, 9, 32, 48, 3)
    model, _ = load_run_network(exportable_run, None, "ema")
    inputs = velocity_inputs(model.shape)
    with torch.no_grad():
        assert (pipeline.transformer(*inputs).sample - model(*inputs).velocity_BCTYX).abs().max() < 1e-5


def test_bfloat16_pipelines_load_as_a_whole(tmp_path: Path, weights: Path, tiny_parts: Path) -> None:
    request = ExportRequest(output=tmp_path / "pipe", weights_folder=weights, dtype="bfloat16", **given(tiny_parts))
    notes = export_weights(request).notes
    assert notes == ("shift 15, as recommended for the released model; --shift sets another",)
    pipeline = MotifVideoPipeline.from_pretrained(tmp_path / "pipe", dtype=torch.bfloat16, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a cat", output_type="np", **SIZE).frames.shape == (1, 9, 32, 48, 3)


def given(parts: Path, **changes: Path) -> dict[str, Any]:
    encoder = parts / "text_encoder"
    return {"vae": parts / "vae", "text_encoder": encoder, "tokenizer": encoder, **changes}


def test_an_encoder_alone_is_copied_byte_for_byte(
    tmp_path: Path, weights: Path, tiny_parts: Path, pipeline_folder: Path
) -> None:
    """A pipeline's own parts make a pipeline again; pickles beside them stay behind."""
    again = tmp_path / "again"
    source = tmp_path / "source"
    shutil.copytree(pipeline_folder, source)
    (source / "vae/diffusion_pytorch_model.bin").write_bytes(b"pickle")
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "feature_extractor"), source)
    summary = export_weights(ExportRequest(output=again, weights_folder=weights, shift=5.0, **parts))  # type: ignore[arg-type]
    assert summary.kind == "pipeline" and summary.image_to_video
    for path in sorted(path.relative_to(pipeline_folder) for path in pipeline_folder.rglob("*") if path.is_file()):
        assert (again / path).read_bytes() == (pipeline_folder / path).read_bytes(), path
    assert not list(again.rglob("*.bin"))


def edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, **changes}))


def other_vae(parts: Path) -> None:
    edit(parts / "vae/config.json", _class_name="AutoencoderKL")


def other_channels(parts: Path) -> None:
    edit(parts / "vae/config.json", z_dim=48)


def other_mean(parts: Path) -> None:
    edit(parts / "vae/config.json", latents_mean=[0.0] * 16)


def pickled_vae(parts: Path) -> None:
    file = parts / "vae/diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))


def other_encoder(parts: Path) -> None:
    edit(parts / "text_encoder/config.json", model_type="bert")


def wider_encoder(parts: Path) -> None:
    config = json.loads((parts / "text_encoder/config.json").read_text())
    config["encoder"]["text_config"]["hidden_size"] = 64
    (parts / "text_encoder/config.json").write_text(json.dumps(config))


def smaller_vocabulary(parts: Path) -> None:
    config = json.loads((parts / "text_encoder/config.json").read_text())
    config["encoder"]["text_config"]["vocab_size"] = config["decoder"]["vocab_size"] = 8
    (parts / "text_encoder/config.json").write_text(json.dumps(config))


def unbalanced_encoder(parts: Path) -> None:
    """What transformers itself refuses."""
    config = json.loads((parts / "text_encoder/config.json").read_text())
    config["decoder"]["vocab_size"] = 8
    (parts / "text_encoder/config.json").write_text(json.dumps(config))


def no_text_config(parts: Path) -> None:
    edit(parts / "text_encoder/config.json", encoder={})


def no_pad_token(parts: Path) -> None:
    edit(parts / "text_encoder/tokenizer_config.json", pad_token=None)


def no_tokenizer(parts: Path) -> None:
    (parts / "text_encoder/tokenizer_config.json").unlink()


def no_vae(parts: Path) -> None:
    shutil.rmtree(parts / "vae")


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (other_vae, ConfigError, "is a AutoencoderKL, expected an AutoencoderKLWan"),
        (other_channels, ConfigError, "z_dim is 48, the network was trained on latents with 16 .model.out_channels"),
        (other_mean, ConfigError, "latents_mean is .* give the VAE that made the set's latents"),
        (pickled_vae, UsageError, "holds no .safetensors file; pickled weights are not copied"),
        (other_encoder, ConfigError, "is a bert, expected a t5gemma2 or a t5gemma2_encoder"),
        (wider_encoder, ConfigError, "is 64 wide, the network was trained on states 32 wide"),
        (smaller_vocabulary, ConfigError, "has 9 words, the text encoder knows 8"),
        (unbalanced_encoder, UsageError, "cannot be read by transformers .*Imbalanced encoder-decoder vocabulary"),
        (no_text_config, UsageError, "config.json: text_config is missing"),
        (no_pad_token, ConfigError, "has no pad token"),
        (no_tokenizer, UsageError, "tokenizer_config.json is missing; give the folder of the tokenizer"),
        (no_vae, UsageError, "is not a folder on this machine; names of a hub are not looked up"),
    ],
)
def test_parts_that_do_not_fit_are_refused_and_nothing_is_left(
    tmp_path: Path,
    weights: Path,
    tiny_parts: Path,
    damage: Callable[[Path], None],
    kind: type[ReelyardError],
    message: str,
) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(tiny_parts, parts)
    damage(parts)
    with pytest.raises(kind, match=message):
        export_weights(ExportRequest(output=tmp_path / "out/pipe", weights_folder=weights, **given(parts)))
    assert not (tmp_path / "out").exists()


def test_image_processors_are_checked(
    tmp_path: Path, weights: Path, tiny_parts: Path, pipeline_folder: Path, exportable_run: Path
) -> None:
    processor = tmp_path / "processor"
    shutil.copytree(pipeline_folder / "feature_extractor", processor)
    request: dict[str, Any] = {"output": tmp_path / "out", **given(tiny_parts), "feature_extractor": processor}
    with pytest.raises(ConfigError, match="--feature-extractor was given, but the network has no image embedder"):
        export_weights(ExportRequest(run=exportable_run, **request))
    edit(processor / "preprocessor_config.json", size={"height": 56, "width": 56})
    with pytest.raises(ConfigError, match=r"size is .*56.* the vision tower wants squares of 28"):
        export_weights(ExportRequest(weights_folder=weights, **request))
    edit(processor / "preprocessor_config.json", image_processor_type="CLIPImageProcessor")
    with pytest.raises(ConfigError, match="is a CLIPImageProcessor, expected a SiglipImageProcessor"):
        export_weights(ExportRequest(weights_folder=weights, **request))


def test_image_tokens_of_another_width_cost_only_image_to_video(
    tmp_path: Path, tiny_parts: Path, small_shape: Callable[..., ModelShape], random_network: Any
) -> None:
    model = random_network(small_shape(image_width=24))
    write_weights(tmp_path / "net", model.state_dict(), model.shape, origin="test")
    request = ExportRequest(output=tmp_path / "pipe", weights_folder=tmp_path / "net", shift=1.0, **given(tiny_parts))
    summary = export_weights(request)
    assert (
        not summary.image_to_video and "vision tower is 16 wide, the network wants image tokens 24" in summary.notes[0]
    )


def test_latents_of_another_codec_are_no_pipelines(tmp_path: Path, exportable_run: Path, tiny_parts: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(exportable_run, run)
    edit(run / "run.json", codec="dct")
    with pytest.raises(ConfigError, match="trained on latents of the codec 'dct'"):
        export_weights(ExportRequest(output=tmp_path / "pipe", run=run, **given(tiny_parts)))


def test_the_shift_of_a_size_is_said(tmp_path: Path, exportable_run: Path, tiny_parts: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(exportable_run, run)
    record = run / "checkpoints/step-00000003/record.json"
    config = json.loads(record.read_text())["config"]
    config["flow"] = {**config["flow"], "shift": 1.0, "shift_base_tokens": 114_080 // 4}
    edit(record, config=config)
    summary = export_weights(ExportRequest(output=tmp_path / "pipe", run=run, **given(tiny_parts)))
    assert any(note.startswith("shift 2, the training's for 121 frames of 1280x736") for note in summary.notes)
    assert json.loads((tmp_path / "pipe/scheduler/scheduler_config.json").read_text())["shift"] == 2.0
