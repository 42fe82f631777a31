"""Attention mass by frame: against hand-made attention, against explicit softmax weights, and inside the real network."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from schemas.model_shape import TINY
from training.dit.initialization import build_model
from training.dit.model import MotifVideoDiT
from training.evaluation.attention.shares import FrameLayout, FrameMass, frame_masses, watch_attention

FRAMES, PER_FRAME = 5, 6


def measured(query: torch.Tensor, key: torch.Tensor, layout: FrameLayout, **options: Any) -> FrameMass:
    (mass,) = frame_masses(query, key, layout, **options)
    return FrameMass(layout=layout, mass_HQG=mass)


def one_hot_frames(shift: int, *, heads: int = 2, halves: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys for which a query of frame t sees frame t + shift alone (the first frame where there is none)."""
    frame_N = torch.arange(halves * FRAMES).repeat_interleave(PER_FRAME)
    wanted_N = (frame_N + shift).clamp(min=0)
    codes = torch.eye(halves * FRAMES) * 1000.0
    return codes[wanted_N][None, :, None].repeat(1, 1, heads, 1), codes[frame_N][None, :, None].repeat(1, 1, heads, 1)


def test_even_attention_gives_every_token_the_same() -> None:
    layout = FrameLayout(frames=FRAMES, tokens_per_frame=PER_FRAME, image_tokens=4, text_tokens=6)
    total = layout.total_tokens
    query = torch.zeros(1, total, 3, 8)
    mass = measured(query, torch.randn(1, total, 3, 8), layout)
    torch.testing.assert_close(
        mass.other_frames(), torch.full((3,), (FRAMES - 1) * PER_FRAME / total, dtype=torch.float64)
    )
    torch.testing.assert_close(mass.own_frame(), torch.full((3,), PER_FRAME / total, dtype=torch.float64))
    torch.testing.assert_close(mass.text(), torch.full((3,), 6 / total, dtype=torch.float64))
    torch.testing.assert_close(mass.image(), torch.full((3,), 4 / total, dtype=torch.float64))


def test_attention_to_the_own_frame_leaves_nothing_for_others() -> None:
    mass = measured(*one_hot_frames(0), FrameLayout(frames=FRAMES, tokens_per_frame=PER_FRAME))
    torch.testing.assert_close(mass.frames_between(0, 0), torch.eye(FRAMES, dtype=torch.float64).expand(2, -1, -1))
    torch.testing.assert_close(mass.own_frame(), torch.ones(2, dtype=torch.float64))
    assert mass.other_frames().abs().max() < 1e-12


def test_attention_one_frame_back_is_a_line_below_the_diagonal() -> None:
    mass = measured(*one_hot_frames(-1), FrameLayout(frames=FRAMES, tokens_per_frame=PER_FRAME))
    expected = torch.diag(torch.ones(FRAMES - 1, dtype=torch.float64), -1)
    expected[0, 0] = 1
    torch.testing.assert_close(mass.frames_between(0, 0), expected.expand(2, -1, -1))
    torch.testing.assert_close(mass.other_frames(), torch.full((2,), (FRAMES - 1) / FRAMES, dtype=torch.float64))


def test_halves_of_the_decoder_are_counted_apart() -> None:
    layout = FrameLayout(frames=FRAMES, tokens_per_frame=PER_FRAME, halves=2)
    mass = measured(*one_hot_frames(-FRAMES, halves=2), layout)  # encoder half looks at the decoder half's same frame
    eye = torch.eye(FRAMES, dtype=torch.float64).expand(2, -1, -1)
    torch.testing.assert_close(mass.frames_between(1, 0), eye)
    assert mass.frames_between(1, 1).abs().max() == 0
    torch.testing.assert_close(mass.own_frame(1, 0), torch.ones(2, dtype=torch.float64))
    assert mass.other_frames(1).abs().max() < 1e-12, "the same frame of the other half is the own frame"
    torch.testing.assert_close(mass.mass_HQG.sum(-1), torch.ones(2, 2 * FRAMES, dtype=torch.float64))


@pytest.mark.parametrize("most_scores", [1, 700, 1 << 25])
@pytest.mark.parametrize("halves", [1, 2])
def test_masses_are_sums_of_the_softmax_weights_whatever_the_chunks(halves: int, most_scores: int) -> None:
    extra = {"image_tokens": 3, "text_tokens": 5} if halves == 1 else {}
    layout = FrameLayout(frames=FRAMES, tokens_per_frame=PER_FRAME, halves=halves, **extra)
    generator = torch.Generator().manual_seed(0)
    query, key = (2 * torch.randn(2, layout.total_tokens, 2, 8, generator=generator) for _ in range(2))
    found = frame_masses(query, key, layout, most_scores=most_scores)
    weights = (torch.einsum("bnha,bmha->bhnm", query.double(), key.double()) / math.sqrt(8)).softmax(-1)
    for q in range(halves * FRAMES):
        rows = weights[:, :, q * PER_FRAME : (q + 1) * PER_FRAME]
        for g in range(halves * FRAMES):
            expected = rows[..., g * PER_FRAME : (g + 1) * PER_FRAME].sum(-1).mean(-1)
            torch.testing.assert_close(found[:, :, q, g], expected, atol=1e-6, rtol=1e-5)
        video = layout.video_tokens
        torch.testing.assert_close(
            found[:, :, q, -2], rows[..., video : video + layout.image_tokens].sum(-1).mean(-1), atol=1e-6, rtol=1e-5
        )
        torch.testing.assert_close(
            found[:, :, q, -1], rows[..., video + layout.image_tokens :].sum(-1).mean(-1), atol=1e-6, rtol=1e-5
        )


@pytest.fixture(scope="module")
def model() -> MotifVideoDiT:
    model = build_model(TINY, seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(1, 33, FRAMES, 4, 6, generator=generator),
        torch.tensor([400.0]),
        torch.randn(1, 7, TINY.text_width, generator=generator),
    )


def test_watching_changes_no_bit_and_ends_with_the_blocks_as_they_were(model: MotifVideoDiT) -> None:
    blocks = [*model.dual_blocks, *model.single_blocks, *model.decoder_blocks]
    before = [block.attention for block in blocks]
    with torch.no_grad():
        alone = model(*inputs()).velocity_BCTYX
        with watch_attention(model, FrameLayout(frames=FRAMES, tokens_per_frame=6, text_tokens=7)) as watched:
            seen = model(*inputs()).velocity_BCTYX
    assert torch.equal(alone, seen)
    assert [block.attention for block in blocks] == before
    assert [block.name for block in watched] == [
        "dual 0",
        "dual 1",
        "single 2",
        "single 3",
        "single 4",
        "decoder 5",
        "decoder 6",
    ]
    assert [len(block.seen) for block in watched] == [1] * 7
    for block in watched:
        mass = block.seen[0]
        halves = 2 if block.kind == "decoder" else 1
        asking = 1 if block is watched[-1] else halves  # nobody reads the encoder half after the last block
        assert mass.mass_HQG.shape == (TINY.heads, asking * FRAMES, halves * FRAMES + 2)
        assert mass.query_halves == asking
        torch.testing.assert_close(
            mass.mass_HQG.sum(-1), torch.ones(TINY.heads, asking * FRAMES, dtype=torch.float64), atol=1e-5, rtol=0
        )
        assert (mass.text() > 0).all() == (block.kind != "decoder")


def test_blocks_get_their_attention_back_after_an_error(model: MotifVideoDiT) -> None:
    before = [block.attention for block in model.single_blocks]
    with pytest.raises(KeyError), watch_attention(model, FrameLayout(frames=FRAMES, tokens_per_frame=6)):
        raise KeyError
    assert [block.attention for block in model.single_blocks] == before
