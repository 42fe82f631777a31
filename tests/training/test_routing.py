"""TREAD: what is kept, what passes by, and that no drop is no change."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from schemas.errors import ConfigError
from schemas.model_shape import TINY
from training.dit.initialization import build_model
from training.dit.model import MotifVideoDiT
from training.dit.rope import gather_rope, rope_table
from training.dit.routing import Route, RouteSpec, gather_tokens, scatter_tokens

SHAPE = TINY.model_copy(update={"text_width": 40})
LATENT = torch.randn(2, 33, 3, 8, 6, generator=torch.Generator().manual_seed(1))
TEXT = torch.randn(2, 7, 40, generator=torch.Generator().manual_seed(2))
TIMESTEP = torch.tensor([700.0, 20.0])
NUM_TOKENS = 3 * 4 * 3


def draw(spec: RouteSpec, step: int = 0) -> Route:
    return spec.for_clips(seed=9, step=step, clip_ids=["a", "b"], num_tokens=NUM_TOKENS)


def network() -> MotifVideoDiT:
    model = build_model(SHAPE, seed=5)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@given(ratio=st.floats(0.0, 0.999), num_tokens=st.integers(1, 300), seed=st.integers(0, 99), step=st.integers(0, 10**9))
def test_kept_tokens_are_sorted_unique_and_of_a_fixed_number(
    ratio: float, num_tokens: int, seed: int, step: int
) -> None:
    spec = RouteSpec(start=0, end=1, drop_ratio=ratio)
    kept = spec.for_clips(seed=seed, step=step, clip_ids=["a", "b"], num_tokens=num_tokens).kept_BK
    assert kept.shape == (2, max(1, round(num_tokens * (1 - ratio))))
    assert (kept.diff(dim=1) > 0).all()
    assert kept.min() >= 0 and kept.max() < num_tokens
    again = spec.for_clips(seed=seed, step=step, clip_ids=["b"], num_tokens=num_tokens).kept_BK
    assert torch.equal(kept[1:], again)


def test_kept_tokens_differ_by_step_clip_and_seed_and_cover_the_grid_evenly() -> None:
    spec = RouteSpec(start=0, end=1, drop_ratio=0.5)
    kept = draw(spec).kept_BK
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept, draw(spec, step=1).kept_BK)
    other = spec.for_clips(seed=10, step=0, clip_ids=["a", "b"], num_tokens=NUM_TOKENS)
    assert not torch.equal(kept, other.kept_BK)
    clips = [str(index) for index in range(2000)]
    many = spec.for_clips(seed=0, step=0, clip_ids=clips, num_tokens=NUM_TOKENS).kept_BK
    share = torch.bincount(many.flatten(), minlength=NUM_TOKENS) / 2000
    assert (share - 0.5).abs().max() < 0.05


def test_gather_and_scatter_are_inverse_and_leave_the_rest_alone() -> None:
    tokens = torch.randn(2, NUM_TOKENS, 5, generator=torch.Generator().manual_seed(0))
    kept = draw(RouteSpec(start=0, end=0, drop_ratio=0.6)).kept_BK
    part = gather_tokens(tokens, kept)
    assert torch.equal(part[1, 3], tokens[1, kept[1, 3]])
    assert torch.equal(scatter_tokens(tokens, kept, part), tokens)
    changed = scatter_tokens(tokens, kept, part + 1)
    moved = (changed - tokens).abs().amax(dim=2) > 0
    for row in range(2):
        assert moved[row].nonzero().flatten().tolist() == kept[row].tolist()


def test_rope_is_gathered_with_its_tokens() -> None:
    rope = rope_table((3, 4, 3), (4, 10, 10), 10000.0, torch.device("cpu"))
    kept = draw(RouteSpec(start=0, end=0, drop_ratio=0.6)).kept_BK
    gathered = gather_rope(rope, kept)
    assert gathered.shape == (2, kept.shape[1], 12, 2)
    assert torch.equal(gathered[1, 4], rope[0, kept[1, 4]])


@pytest.mark.parametrize(("start", "end"), [(0, 4), (1, 2), (3, 3), (5, 6), (6, 6)])
def test_dropping_nothing_equals_the_dense_pass_bit_for_bit(start: int, end: int) -> None:
    """Forward, and the gradient of every parameter, for routes in the encoder and in the decoder."""
    model = network()
    route = draw(RouteSpec(start=start, end=end, drop_ratio=0.0).validated(SHAPE))
    passes = []
    for chosen in (None, route):
        model.zero_grad(set_to_none=True)
        velocity = model(LATENT, TIMESTEP, TEXT, route=chosen).velocity_BCTYX
        velocity.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        passes.append((velocity.detach(), gradients))
    (dense, dense_gradients), (routed, routed_gradients) = passes
    assert torch.equal(dense, routed)
    # A route from block 0 on parts the patch tokens from the decoder's: three gradients meet there, and are added in another order.
    reordered = {"patch_embed.proj.weight", "patch_embed.proj.bias"} if start == 0 else set()
    for name, gradient in dense_gradients.items():
        assert gradient is not None
        if name in reordered:
            torch.testing.assert_close(gradient, routed_gradients[name], rtol=1e-4, atol=1e-6 * gradient.abs().max())
        else:
            assert torch.equal(gradient, routed_gradients[name]), name


class Recorder(nn.Module):
    """Stands around a block and keeps what went in and came out."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *arguments: object) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.video_in, self.context_in = arguments[:2]
        self.video_out, self.context_out = self.block(*arguments)
        return self.video_out, self.context_out


def recorded(model: MotifVideoDiT) -> list[Recorder]:
    """Put a recorder around every block of the network."""
    recorders = []
    for blocks in (model.dual_blocks, model.single_blocks, model.decoder_blocks):
        for index, block in enumerate(blocks):
            blocks[index] = Recorder(block)
            recorders.append(blocks[index])
    return recorders


def test_dropped_tokens_pass_by_and_kept_ones_are_processed() -> None:
    model = network()
    blocks = recorded(model)
    route = draw(RouteSpec(start=1, end=3, drop_ratio=0.5).validated(SHAPE))
    with torch.no_grad():
        output = model(LATENT, TIMESTEP, TEXT, route=route, tap=3)
    assert [block.video_in.shape[1] for block in blocks] == [36, 18, 18, 18, 36, 36, 36]
    before, after = blocks[0].video_out, blocks[4].video_in
    assert torch.equal(blocks[1].video_in, gather_tokens(before, route.kept_BK))
    assert torch.equal(gather_tokens(after, route.kept_BK), blocks[3].video_out)
    dropped = torch.ones(2, 36, dtype=torch.bool).scatter(1, route.kept_BK, False)
    assert torch.equal(after[dropped], before[dropped])
    assert all(block.context_out.shape[1] == 7 for block in blocks[:4])
    assert blocks[4].context_out is None and blocks[6].context_out is None, "nobody reads it"
    assert torch.equal(output.tapped_BLD, blocks[3].video_out)
    assert torch.equal(output.kept_BK, route.kept_BK)


def test_a_decoder_route_gathers_both_halves() -> None:
    model = network()
    blocks = recorded(model)
    route = draw(RouteSpec(start=5, end=5, drop_ratio=0.5).validated(SHAPE))
    with torch.no_grad():
        model(LATENT, TIMESTEP, TEXT, route=route)
    assert blocks[5].video_in.shape[1] == blocks[5].context_out.shape[1] == 18
    assert blocks[6].video_in.shape[1] == blocks[6].context_in.shape[1] == 36


def test_a_tap_outside_the_route_is_dense() -> None:
    model = network()
    route = draw(RouteSpec(start=1, end=2, drop_ratio=0.5).validated(SHAPE))
    for tap in (0, 3):
        output = model(LATENT, TIMESTEP, TEXT, route=route, tap=tap)
        assert output.kept_BK is None
        assert output.tapped_BLD.shape == (2, 36, SHAPE.width)
    assert model(LATENT, TIMESTEP, TEXT).tapped_BLD is None


def test_routing_in_evaluation_is_refused() -> None:
    route = draw(RouteSpec(start=1, end=2, drop_ratio=0.5))
    with pytest.raises(ConfigError, match="routing is for training only"):
        network().eval()(LATENT, TIMESTEP, TEXT, route=route)


@pytest.mark.parametrize(
    ("start", "end", "ratio", "message"),
    [
        (3, 2, 0.5, "blocks 3 to 2"),
        (0, 7, 0.5, "end <= 6"),
        (-1, 2, 0.5, "blocks -1 to 2"),
        (2, 5, 0.5, r"cross from the encoder \(0 to 4\)"),
        (1, 2, 1.0, r"drop_ratio is 1\.0"),
    ],
)
def test_impossible_routes_are_refused(start: int, end: int, ratio: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RouteSpec(start=start, end=end, drop_ratio=ratio).validated(SHAPE)
