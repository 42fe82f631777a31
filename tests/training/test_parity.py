"""Output and gradients against diffusers' own class over the configurations that matter: parts on and off, images, captions of mixed length."""

import pytest
import torch
from torch import Tensor

from schemas.model_shape import TINY, ModelShape
from tests.training.test_interop import reference
from training.dit.model import MotifVideoDiT
from training.interop import from_diffusers

FULL = TINY.model_copy(update={"sca_query_norm": False, "image_width": 20, "text_width": 40})

# name: (change of the shape, latent (T, Y, X), real text tokens of each clip, image tokens)
CONFIGURATIONS: dict[str, tuple[dict[str, object], tuple[int, int, int], tuple[int, ...], int]] = {
    "all parts, captions of mixed length": ({}, (3, 8, 6), (7, 4, 1), 0),
    "all parts, image tokens, mixed captions": ({}, (3, 8, 6), (7, 2), 5),
    "image tokens, full captions": ({}, (2, 4, 4), (7, 7), 3),
    "equal short captions": ({}, (4, 6, 10), (3, 3, 3), 0),
    "one latent frame": ({}, (1, 10, 14), (7, 5), 0),
    "two latent frames, odd grid": ({}, (2, 6, 10), (7, 6, 2), 4),
    "four latent frames, wide": ({}, (4, 2, 18), (5, 7), 0),
    "five latent frames, tall": ({}, (5, 14, 6), (7, 3), 2),
    "no decoder": ({"decoder_blocks": 0}, (3, 8, 6), (7, 4), 0),
    "no decoder, image tokens": ({"decoder_blocks": 0}, (3, 6, 6), (7, 4), 5),
    "no cross-attention": ({"shared_cross_attention": False}, (3, 8, 6), (6, 7), 3),
    "neither": ({"decoder_blocks": 0, "shared_cross_attention": False}, (5, 6, 6), (7, 1), 0),
    "single-stream alone": ({"dual_blocks": 0}, (2, 6, 10), (4, 7), 3),
    "dual-stream alone": ({"single_blocks": 0, "decoder_blocks": 1}, (3, 6, 6), (7, 2), 0),
    "cross-attention with keys of its own": ({"sca_source": "own"}, (3, 6, 10), (7, 4, 2), 3),
    "without image embedder": ({"image_width": None}, (3, 10, 6), (2, 7), 0),
}


def given(shape: ModelShape, latent: tuple[int, int, int], lengths: tuple[int, ...], images: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    batch = len(lengths)
    values = {
        "latent": torch.randn(batch, shape.in_channels, *latent, generator=generator),
        "timestep": torch.linspace(999.5, 13.25, batch),
        "text": torch.randn(batch, 7, shape.text_width, generator=generator),
        "mask": torch.arange(7)[None] < torch.tensor(lengths)[:, None],
    }
    return values | ({"image": torch.randn(batch, images, 20, generator=generator)} if images else {})


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_output_and_gradients_equal_diffusers(name: str, pack: bool) -> None:
    change, latent, lengths, images = CONFIGURATIONS[name]
    shape = ModelShape.model_validate(FULL.model_dump() | change)
    own = shape.sca_source == "own"
    theirs = reference(shape, equal_copies=not own)
    ours = MotifVideoDiT(shape)
    ours.load_state_dict(from_diffusers(theirs.state_dict(), shape))
    ours.packs_context = pack
    values = given(shape, latent, lengths, images)
    expected = theirs(values["latent"], values["timestep"], values["text"], values["mask"], values.get("image")).sample
    found = ours.eval()(
        values["latent"], values["timestep"], values["text"], values["mask"], values.get("image")
    ).velocity_BCTYX
    assert expected.abs().max() > 1.0
    assert (found - expected).abs().max() < 1e-5
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5))
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    assert_equal_gradients(ours, theirs, shape)


def assert_equal_gradients(ours: MotifVideoDiT, theirs: torch.nn.Module, shape: ModelShape) -> None:
    """Every gradient within 1e-4 of the largest of its parameter; what diffusers keeps in copies counts as one weight."""
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in theirs.named_parameters()}
    if shape.sca_source == "block":
        for name in [key for key in gradients if ".cross_attn." in key]:
            original = name.replace(".cross_attn.", ".attn.")
            if any(f".{part}." in name for part in ("to_k", "to_v", "norm_q", "norm_k")):
                total = gradients[original] + gradients[name]
                gradients[original] = gradients[name] = total
    expected = from_diffusers(gradients, shape)
    for name, parameter in ours.named_parameters():
        largest = expected[name].abs().max().clamp(min=1e-3)
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert (found - expected[name]).abs().max() / largest < 1e-4, name
