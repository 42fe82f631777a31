"""The commands: a run to diffusers and back bit for bit, the released layout out and in, and options that make no sense."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MotifVideoTransformer3DModel
from safetensors.torch import load_file

from schemas.model_shape import ModelShape
from training.checkpoints.whole_network import load_run_network
from training.cli import main
from training.exporting.released_layout import released_sizes
from training.weights import load_weights, write_weights


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("which", ["ema", "trained"])
def test_a_run_to_diffusers_and_back_is_exact(tmp_path: Path, exportable_run: Path, which: str) -> None:
    """Checkpoint, export, diffusers' reader and writer, import: every weight is the checkpoint's."""
    assert run("export", "--run", exportable_run, "--weights", which, "--output", tmp_path / "out") == 0
    theirs = MotifVideoTransformer3DModel.from_pretrained(tmp_path / "out", low_cpu_mem_usage=False)
    theirs.save_pretrained(tmp_path / "again")
    assert run("import", "--from", tmp_path / "again", "--output", tmp_path / "weights") == 0
    found = load_weights(tmp_path / "weights")
    model, _ = load_run_network(exportable_run, None, which)  # type: ignore[arg-type]
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_a_weights_folder_to_diffusers_and_back_is_the_same_file(tmp_path: Path, exportable_run: Path) -> None:
    assert run("export", "--run", exportable_run, "--checkpoint", 2, "--output", tmp_path / "out") == 0
    assert run("import", "--from", tmp_path / "out", "--output", tmp_path / "a") == 0
    assert run("export", "--weights-folder", tmp_path / "a", "--output", tmp_path / "again") == 0
    assert run("import", "--from", tmp_path / "again", "--output", tmp_path / "b") == 0
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


RELEASED: dict[str, Any] = {
    "width": 128,
    "heads": 1,
    "head_width": 128,
    "single_blocks": 1,
    "decoder_blocks": 8,
    "mlp_ratio": 2,
    "rope_axes": (16, 56, 56),
    "sca_query_norm": True,
}


def test_the_released_layout_goes_out_and_comes_in(
    tmp_path: Path,
    small_shape: Callable[..., ModelShape],
    random_network: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = random_network(small_shape(**RELEASED))
    write_weights(tmp_path / "net", model.state_dict(), model.shape, origin="test")
    assert run("export", "--weights-folder", tmp_path / "net", "--output", tmp_path / "out") == 2
    assert "sca_query_norm is true" in capsys.readouterr().err
    released = ["--layout", "released", "--output", tmp_path / "out"]
    assert run("export", "--weights-folder", tmp_path / "net", *released) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["motif_video.safetensors"]
    tensors = load_file(tmp_path / "out/motif_video.safetensors")
    assert {name: tuple(value.shape) for name, value in tensors.items()} == released_sizes(model.shape)
    assert run("import", "--from", tmp_path / "out", "--output", tmp_path / "again") == 0
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "net/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sca_query_norm": False}, "model.sca_query_norm is false, but the released layout always has that LayerNorm"),
        ({"decoder_blocks": 2}, "model.decoder_blocks is 2, the readers of the released layout take 8 for granted"),
        ({"rope_theta": 256.0}, "model.rope_theta is 256.0"),
        ({"sca_source": "own"}, "model.sca_source is own"),
        ({"image_width": None}, "know the network by its image embedder"),
    ],
)
def test_what_the_released_layout_cannot_say_is_refused(
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
    small_shape: Callable[..., ModelShape],
    random_network: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = random_network(small_shape(**{**RELEASED, **changes}))
    write_weights(tmp_path / "net", model.state_dict(), model.shape, origin="test")
    released = ["--layout", "released", "--output", tmp_path / "out"]
    assert run("export", "--weights-folder", tmp_path / "net", *released) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --run RUN or --weights-folder FOLDER, one of both"),
        (["--run", "RUN", "--weights-folder", "RUN"], "one of both"),
        (["--weights-folder", "RUN"], "is not a weights folder: model.json is missing"),
        (["--weights-folder", "RUN", "--checkpoint", "3"], "a weights folder has no checkpoints"),
        (["--run", "RUN", "--checkpoint", "9"], "has no checkpoint of step 9; it has 2, 3"),
        (["--run", "RUN", "--weights", "best"], "--weights is 'best', expected ema or trained"),
        (["--run", "RUN", "--dtype", "float16"], "--dtype is 'float16', expected float32 or bfloat16"),
        (["--run", "RUN", "--layout", "gguf"], "--layout is 'gguf', expected diffusers or released"),
        (["--run", "RUN", "--vae", "RUN"], "--text-encoder, --tokenizer missing: a pipeline needs"),
        (["--run", "RUN", "--shift", "3"], "--shift is of a pipeline"),
        (["--run", "RUN", "--feature-extractor", "RUN"], "--feature-extractor is of a pipeline"),
        (
            ["--run", "RUN", "--vae", "RUN", "--text-encoder", "RUN", "--tokenizer", "RUN", "--shift", "-1"],
            "--shift is -1, expected a number above 0",
        ),
        (
            ["--run", "RUN", "--vae", "RUN", "--text-encoder", "RUN", "--tokenizer", "RUN", "--layout", "released"],
            "--layout released is a file for ComfyUI, not a pipeline",
        ),
        (
            ["--run", "RUN", "--vae", "RUN", "--text-encoder", "RUN", "--tokenizer", "RUN"],
            "config.json is missing; give the folder of the vae",
        ),
        (["--run", "RUN", "--output", "RUN"], "which exists already; give a name that is free"),
    ],
)
def test_options_that_make_no_sense_end_in_one_message(
    tmp_path: Path, exportable_run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = [] if "--output" in arguments else ["--output", tmp_path / "out"]
    code = run("export", *output, *(exportable_run if part == "RUN" else part for part in arguments))
    said = capsys.readouterr().err
    assert code in (1, 2) and message in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_an_import_does_not_write_over_anything(
    tmp_path: Path, exportable_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", "--run", exportable_run, "--output", tmp_path / "out") == 0
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/note.txt").write_text("mine")
    assert run("import", "--from", tmp_path / "out", "--output", tmp_path / "taken") == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["note.txt"]
    assert run("import", "--from", tmp_path / "nowhere", "--output", tmp_path / "new") == 2
