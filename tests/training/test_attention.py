"""The seam that all attention goes through, and the layouts that keep padding out of it."""

import pytest
import torch
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from schemas.model_shape import TINY
from training.dit.attention import Attention
from training.dit.initialization import build_model
from training.dit.model import MotifVideoDiT
from training.dit.routing import RouteSpec
from training.dit.token_layout import ContextLayout

SHAPE = TINY.model_copy(update={"text_width": 40, "image_width": 20})


def network() -> MotifVideoDiT:
    model = build_model(SHAPE, seed=2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def values(batch: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "latent_BCTYX": torch.randn(batch, 33, 2, 6, 8, generator=generator),
        "timestep_B": torch.linspace(900.0, 20.0, batch),
        "text_BED": torch.randn(batch, 7, 40, generator=generator),
        "text_mask_BE": torch.arange(7)[None] < torch.tensor([7, 2, 5])[:batch, None],
        "image_BID": torch.randn(batch, 4, 20, generator=generator),
    }


class Recorder(Attention):
    """Notes the shapes that pass."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], tuple[int, ...], bool]] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, visible_BM: Tensor | None = None) -> Tensor:
        self.calls.append((tuple(query.shape), tuple(key.shape), visible_BM is not None))
        return super().__call__(query, key, value, visible_BM)


class HeadHalves(Attention):
    """Heads apart, as a context-parallel attention has them between its exchanges."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, visible_BM: Tensor | None = None) -> Tensor:
        halves = zip(*(tensor.chunk(2, dim=2) for tensor in (query, key, value)), strict=True)
        return torch.cat([super(HeadHalves, self).__call__(*half, visible_BM) for half in halves], dim=-1)


def test_everything_attends_through_the_seam_and_it_can_be_replaced() -> None:
    model, recorder = network(), Recorder()
    expected = model(**values()).velocity_BCTYX
    model.set_attention(HeadHalves())
    assert (model(**values()).velocity_BCTYX - expected).abs().max() < 1e-5
    model.set_attention(recorder)
    assert torch.equal(model(**values()).velocity_BCTYX, expected)
    # Three clips one by one: 2 dual and 3 single blocks, cross-attention in the singles; 2 decoder blocks with all clips at once.
    assert len(recorder.calls) == 3 * (2 + 3 + 3) + 2
    assert recorder.calls[-2] == ((3, 48, 4, 24), (3, 48, 4, 24), False)
    # Nothing reads the second half of the last block: it asks for nothing.
    assert recorder.calls[-1] == ((3, 24, 4, 24), (3, 48, 4, 24), False)


def test_the_seam_is_found_inside_checkpoint_wrappers() -> None:
    model, recorder = network(), Recorder()
    for blocks in (model.dual_blocks, model.single_blocks, model.decoder_blocks):
        for index, block in enumerate(blocks):
            blocks[index] = checkpoint_wrapper(block)
    model.set_attention(recorder)
    model(**values())
    assert len(recorder.calls) == 3 * (2 + 3 + 3) + 2


def test_nothing_padded_is_attended_to_or_computed() -> None:
    model, recorder = network(), Recorder()
    model.set_attention(recorder)
    model(**values())
    lengths = [key[1] for _, key, _ in recorder.calls[:3]]
    assert lengths == [24 + 4 + real for real in (7, 2, 5)]
    assert not any(masked for *_, masked in recorder.calls)


def test_equal_captions_are_one_batch_however_they_were_padded() -> None:
    model, recorder, given = network(), Recorder(), values()
    given["text_mask_BE"] = torch.arange(7)[None].expand(3, -1) < 4
    model.set_attention(recorder)
    trimmed = model(**given).velocity_BCTYX
    assert [key[:2] for _, key, _ in recorder.calls[:1]] == [(3, 24 + 4 + 4)]
    given["text_BED"], given["text_mask_BE"] = given["text_BED"][:, :4], None
    assert torch.equal(model(**given).velocity_BCTYX, trimmed)


@pytest.mark.parametrize("pack", [True, False])
def test_image_tokens_are_seen_by_the_clips_that_are_given_them_alone(pack: bool) -> None:
    model, given = network(), values()
    model.packs_context = pack
    mixed = model(**given, image_given_B=torch.tensor([True, False, True])).velocity_BCTYX
    with_all = model(**given).velocity_BCTYX
    given["image_BID"] = None
    without = model(**given).velocity_BCTYX
    assert (mixed[0] - with_all[0]).abs().max() < 1e-5 and (mixed[1] - without[1]).abs().max() < 1e-5
    assert (with_all - without).abs().max() > 1e-3


@pytest.mark.parametrize("pack", [True, False])
def test_the_image_embedder_is_in_every_training_graph(pack: bool) -> None:
    model, given = network().train(), values()
    model.packs_context, given["image_BID"] = pack, None
    before = model.eval()(**given).velocity_BCTYX
    after = model.train()(**given).velocity_BCTYX
    assert torch.equal(before, after)
    after.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.image_embed.parameters())


def test_layouts_join_and_part() -> None:
    layout = ContextLayout.packed([3, 1], [1, 0], torch.device("cpu"))
    video, context = torch.randn(2, 5, 8), torch.randn(4, 8)
    tokens = layout.beside(5)
    joined = tokens.join(video, context)
    assert torch.equal(joined, torch.cat([video[0], context[:3], video[1], context[3:]]))
    assert all(torch.equal(a, b) for a, b in zip(tokens.part(joined), (video, context), strict=True))
    assert torch.equal(tokens.text_of(context), context[1:])
    assert tokens.spread(torch.tensor([[[1.0]], [[2.0]]]))[:, 0].tolist() == [1.0] * 3 + [2.0]
    assert tokens.joined is not None and tokens.joined.ends.tolist() == [0, 8, 14]
    assert ContextLayout.packed([3, 3], [1, 1], torch.device("cpu")) == ContextLayout(num_image=1)


@pytest.mark.parametrize(("start", "end"), [(0, 4), (1, 3), (5, 6)])
def test_packed_and_padded_agree_under_a_route(start: int, end: int) -> None:
    model, given = network().train(), values()
    given["image_given_B"] = torch.tensor([True, False, True])
    spec = RouteSpec(start=start, end=end, drop_ratio=0.5).validated(SHAPE)
    route = spec.for_clips(seed=1, step=0, clip_ids=["a", "b", "c"], num_tokens=24)
    found = []
    for pack in (True, False):
        model.packs_context = pack
        model.zero_grad()
        output = model(**given, route=route).velocity_BCTYX
        output.square().sum().backward()
        found.append((output.detach(), [parameter.grad for parameter in model.parameters()]))
    (packed, packed_gradients), (padded, padded_gradients) = found
    assert (packed - padded).abs().max() < 1e-5
    for ours, theirs in zip(packed_gradients, padded_gradients, strict=True):
        assert ours is not None and theirs is not None
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max().clamp(min=1e-3)
