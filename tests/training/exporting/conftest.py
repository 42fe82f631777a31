"""Small networks with weights that all matter, and a trained run whose network diffusers can express."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.model_shape import ModelShape
from schemas.shards import read_set_info, write_set_info
from training.cli import main
from training.dit.initialization import build_model
from training.dit.model import MotifVideoDiT

SMALL: dict[str, Any] = {
    "width": 32,
    "heads": 2,
    "head_width": 16,
    "dual_blocks": 2,
    "single_blocks": 2,
    "decoder_blocks": 1,
    "text_width": 32,
    "image_width": 16,
    "rope_axes": (4, 6, 6),
    "sca_query_norm": False,
}


@pytest.fixture(scope="session")
def small_shape() -> Callable[..., ModelShape]:
    """A shape that diffusers can express; `changes` replace keys."""
    return lambda **changes: ModelShape(**{**SMALL, **changes})


@pytest.fixture(scope="session")
def random_network() -> Callable[[ModelShape], MotifVideoDiT]:
    """A network no weight of which is at its start, so that each one shows in the output."""

    def make(shape: ModelShape) -> MotifVideoDiT:
        model = build_model(shape, seed=1).eval()
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
        return model

    return make


@pytest.fixture(scope="session")
def velocity_inputs() -> Callable[[ModelShape], tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]]:
    """Latent, timestep, text, mask and image tokens of two clips, in the order that both networks take."""

    def make(shape: ModelShape) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        generator = torch.Generator().manual_seed(3)
        latent = torch.randn(2, shape.in_channels, 3, 4, 6, generator=generator)
        text = torch.randn(2, 5, shape.text_width, generator=generator)
        mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2], dtype=torch.bool)
        image = None if shape.image_width is None else torch.randn(2, 4, shape.image_width, generator=generator)
        return latent, torch.tensor([999.5, 13.25]), text, mask, image

    return make


@pytest.fixture(scope="session")
def exportable_run(
    tmp_path_factory: pytest.TempPathFactory,
    make_set: Callable[..., Path],
    make_plan: Callable[..., Any],
    clip_type: Callable[..., Any],
    config_file: Callable[..., Path],
) -> Path:
    """A run of three steps on latents of the codec wan, with checkpoints of steps 2 and 3; not to be changed."""
    folder = tmp_path_factory.mktemp("exportable")
    samples = make_set(folder / "set", [clip_type(33), clip_type(1)] * 4, text_width=SMALL["text_width"])
    write_set_info(samples, read_set_info(samples).model_copy(update={"codec": "wan"}))
    plan = make_plan(folder / "plan", [samples], lanes=1, micro=1, steps=3).folder
    model = {**SMALL, "rope_axes": list(SMALL["rope_axes"]), "image_width": None}
    flow = {"shift": 3.0}
    config = config_file(model=model, flow=flow, checkpoint={"every_steps": 2, "keep": 3})
    arguments = ["--config", config, "--plan", plan, "--samples", samples, "--output", folder / "run"]
    assert main(["run", *map(str, arguments)]) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of whole words, made here."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", "rain", "on", "a", "window", "cat", "sofa"]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    make: Any = PreTrainedTokenizerFast
    make(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory: pytest.TempPathFactory, tiny_models: ModuleType, tiny_tokenizer: Path) -> Path:
    """`vae/` (AutoencoderKLWan) and `text_encoder/` (a whole T5Gemma2 with its tokenizer), as a pipeline's folder has them."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_models.tiny_wan(folder)
    tiny_models.tiny_t5gemma2(folder / "text_encoder", tiny_tokenizer)
    return folder
