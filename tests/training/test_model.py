"""The network: sizes, starting weights, Shared Cross-Attention's insertion, gradients, refusals."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from schemas.errors import ConfigError
from schemas.model_shape import MOTIF_2B, TINY, ModelShape
from training.alignment import AlignmentProjector, TeacherFeatures, alignment_loss
from training.dit.initialization import build_model, initialize_weights
from training.dit.model import MotifVideoDiT
from training.dit.rope import apply_rope, rope_table
from training.dit.routing import RouteSpec
from training.flow import flow_loss, model_input

SHAPE = TINY.model_copy(update={"text_width": 40, "image_width": 20})


def perturb(module: nn.Module, deviation: float = 0.2) -> None:
    """Move every weight off its start, where zero gates would hide most of the network."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(deviation * torch.randn(parameter.shape, generator=generator))


def inputs(shape: ModelShape = SHAPE, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "latent_BCTYX": torch.randn(batch, shape.in_channels, 3, 8, 6, generator=generator),
        "timestep_B": torch.linspace(900.0, 20.0, batch),
        "text_BED": torch.randn(batch, 7, shape.text_width, generator=generator),
    }


@pytest.mark.parametrize(
    ("shape", "count"),
    [(MOTIF_2B, 1_962_308_032), (MOTIF_2B.model_copy(update={"sca_query_norm": False}), 1_962_258_880)],
)
def test_2b_parameter_count_on_meta(shape: ModelShape, count: int) -> None:
    with torch.device("meta"):
        model = MotifVideoDiT(shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == count == shape.parameter_count()
    assert not list(model.buffers())


@settings(max_examples=20, deadline=None)
@given(
    dual=st.integers(0, 3),
    single=st.integers(0, 3),
    decoder=st.integers(0, 2),
    cross=st.booleans(),
    norm=st.booleans(),
    image=st.sampled_from([None, 20]),
    patch=st.sampled_from([(1, 2, 2), (2, 1, 4)]),
)
def test_parameter_count_is_the_formula(
    dual: int, single: int, decoder: int, cross: bool, norm: bool, image: int | None, patch: tuple[int, int, int]
) -> None:
    shape = ModelShape.model_validate(
        TINY.model_dump()
        | {
            "dual_blocks": dual,
            "single_blocks": single,
            "decoder_blocks": decoder,
            "shared_cross_attention": cross,
            "sca_query_norm": norm,
            "image_width": image,
            "patch": patch,
        }
    )
    with torch.device("meta"):
        model = MotifVideoDiT(shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameter_count()


def test_block_sizes_of_the_2b_model() -> None:
    """The figures behind the totals, computed from the released configuration (arXiv 2604.16503, diffusers)."""
    with torch.device("meta"):
        model = MotifVideoDiT(MOTIF_2B)

    def size(module: nn.Module | None) -> int:
        assert module is not None
        return sum(parameter.numel() for parameter in module.parameters())

    assert size(model.dual_blocks[0]) == 84_981_248
    assert size(model.decoder_blocks[0]) == 35_406_592
    assert size(model.single_blocks[0]) - size(model.single_blocks[0].cross) == 35_406_592
    assert 16 * size(model.single_blocks[0].cross) == 75_595_776


def test_the_start_predicts_zero_and_depends_on_the_seed_alone() -> None:
    model = build_model(SHAPE, seed=5)
    assert model(**inputs()).velocity_BCTYX.abs().max() == 0.0
    again, other = build_model(SHAPE, seed=5), build_model(SHAPE, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.patch_embed.proj.weight, other.patch_embed.proj.weight)
    first, second = model.dual_blocks[0].video_out.weight, model.dual_blocks[1].video_out.weight
    assert not torch.equal(first, second)
    assert abs(model.time_embed.up.weight.std().item() - 0.02) < 1e-3


def test_weights_keep_their_start_when_parts_are_added() -> None:
    """A stage that inserts Shared Cross-Attention or blocks starts all else as before."""
    plain = build_model(SHAPE.model_copy(update={"shared_cross_attention": False}), seed=5).state_dict()
    full = build_model(SHAPE, seed=5).state_dict()
    assert plain.keys() < full.keys()
    assert all(torch.equal(value, full[name]) for name, value in plain.items())


SHARDED_START = """
import sys
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from schemas.model_shape import TINY
from training.dit.initialization import build_model, initialize_weights
from training.dit.model import MotifVideoDiT

rank = int(sys.argv[1])
whole = build_model(TINY, seed=5)
torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2)
with torch.device("meta"):
    model = MotifVideoDiT(TINY)
mesh = torch.distributed.init_device_mesh("cpu", (2,))
policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
for block in [*model.dual_blocks, *model.single_blocks, *model.decoder_blocks]:
    fully_shard(block, mesh=mesh, mp_policy=policy)
fully_shard(model, mesh=mesh, mp_policy=policy)
model.to_empty(device="cpu")
initialize_weights(model, seed=5)
held = 0
for (name, sharded), full in zip(model.named_parameters(), whole.parameters(), strict=True):
    local = sharded.to_local()
    assert torch.equal(local, full.chunk(2)[rank]), name
    held += local.numel()
assert held == TINY.parameter_count() / 2, held
print("equal", len(list(model.parameters())))
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_sharded_start_is_the_slice_of_the_whole(rank: int) -> None:
    """In a process of its own: torch keeps what it learnt of a mesh beyond the end of its process group."""
    printed = subprocess.run(
        [sys.executable, "-c", SHARDED_START, str(rank)], check=True, capture_output=True, text=True
    )
    assert printed.stdout.startswith("equal")


def test_initialization_refuses_meta_and_unknown_layers() -> None:
    with torch.device("meta"):
        model = MotifVideoDiT(SHAPE)
    with pytest.raises(ConfigError, match="on the meta device"):
        initialize_weights(model, seed=0)
    with pytest.raises(ConfigError, match="no starting rule for Embedding"):
        initialize_weights(nn.Sequential(nn.Embedding(3, 4)), seed=0)


@pytest.mark.parametrize("query_norm", [False, True])
def test_inserting_shared_cross_attention_changes_no_bit(query_norm: bool) -> None:
    shape = SHAPE.model_copy(update={"sca_query_norm": query_norm})
    plain = build_model(shape.model_copy(update={"shared_cross_attention": False}), seed=5)
    perturb(plain)
    inserted = build_model(shape, seed=5)
    inserted.load_state_dict(inserted.state_dict() | plain.state_dict())
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    with torch.no_grad():
        before, after = (model(**inputs(), text_mask_BE=mask).velocity_BCTYX for model in (plain, inserted))
        assert torch.equal(before, after)
        inserted.single_blocks[1].cross.out.weight.add_(0.01)
        assert not torch.equal(before, inserted(**inputs(), text_mask_BE=mask).velocity_BCTYX)


def test_padding_does_not_reach_the_velocity() -> None:
    """Masked text gives what trimmed text gives, in the joint and in the cross attention."""
    model = build_model(SHAPE, seed=5)
    perturb(model)
    given = inputs()
    mask = torch.tensor([[True] * 4 + [False] * 3] * 2)
    image = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        masked = model(**given, text_mask_BE=mask, image_BID=image).velocity_BCTYX
        trimmed = model(**(given | {"text_BED": given["text_BED"][:, :4]}), image_BID=image).velocity_BCTYX
    assert (masked - trimmed).abs().max() < 1e-4 * trimmed.abs().max()


@pytest.mark.parametrize("query_norm", [False, True])
def test_gradients_reach_every_parameter(query_norm: bool) -> None:
    """With route, alignment, image tokens and first-frame channels on."""
    shape = SHAPE.model_copy(update={"sca_query_norm": query_norm})
    model = build_model(shape, seed=5)
    projector = AlignmentProjector(shape.width, teacher_width=10, hidden=32)
    initialize_weights(projector, seed=5)
    perturb(model)
    given = inputs(shape)
    clean, noise = torch.randn(2, 2, 16, 3, 8, 6, generator=torch.Generator().manual_seed(4)).unbind(0)
    given["latent_BCTYX"] = model_input(noise, clean, torch.tensor([True, False]))
    route = RouteSpec(start=1, end=3, drop_ratio=0.5).validated(shape)
    drawn = route.for_clips(seed=0, step=0, clip_ids=["a", "b"], num_tokens=36)
    image = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(2))
    output = model(**given, image_BID=image, route=drawn, tap=2)
    features = torch.randn(1, 36, 10, generator=torch.Generator().manual_seed(5))
    teacher = TeacherFeatures(rows_N=torch.tensor([0]), features_NLC=features)
    aligned = alignment_loss(projector, output.tapped_BLD, teacher, output.kept_BK)
    (flow_loss(output.velocity_BCTYX, clean, noise).total + aligned.total).backward()
    for name, parameter in [*model.named_parameters(), *projector.named_parameters()]:
        assert parameter.grad is not None, name
        # A key's bias shifts all scores of a query alike, but the RMSNorm after it lets it act; so no exception is made.
        assert parameter.grad.abs().max() > 0.0, name


def test_timestep_keeps_float32_precision_in_a_bf16_network() -> None:
    model = build_model(SHAPE, seed=5).to(torch.bfloat16)
    near, far = model.time_embed(torch.tensor([900.0, 901.0]))
    assert near.dtype == torch.bfloat16
    # bfloat16 cannot tell 900 from 901.
    assert torch.tensor(900.0).bfloat16() == torch.tensor(901.0).bfloat16()
    assert (near - far).abs().max() > 1e-3


def test_bf16_network_follows_the_float32_one() -> None:
    model = build_model(SHAPE, seed=5)
    perturb(model, 0.05)
    with torch.no_grad():
        exact = model(**inputs()).velocity_BCTYX
        rounded = model.to(torch.bfloat16)(**inputs()).velocity_BCTYX
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


def test_rope_scores_depend_on_relative_position_only() -> None:
    rope = rope_table((4, 5, 6), (4, 10, 10), 10000.0, torch.device("cpu"))
    assert rope.shape == (1, 120, 12, 2)
    query, key = torch.randn(2, 1, 1, 1, 24, generator=torch.Generator().manual_seed(0)).double().unbind(0)

    def score(at_query: tuple[int, int, int], at_key: tuple[int, int, int]) -> Tensor:
        def rotated(head: Tensor, at: tuple[int, int, int]) -> Tensor:
            token = (at[0] * 5 + at[1]) * 6 + at[2]
            return apply_rope(head.float(), rope[:, token : token + 1])

        return (rotated(query, at_query) * rotated(key, at_key)).sum()

    assert torch.allclose(score((0, 0, 0), (1, 2, 3)), score((2, 1, 2), (3, 3, 5)), atol=1e-5)
    assert not torch.allclose(score((0, 0, 0), (1, 2, 3)), score((0, 0, 0), (2, 1, 3)), atol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_BCTYX": torch.zeros(2, 16, 3, 8, 6)}, "16 channels, model.in_channels is 33"),
        ({"text_BED": torch.zeros(2, 7, 384)}, "384 wide, model.text_width is 40"),
        ({"image_BID": torch.zeros(2, 7, 4)}, "4 wide, model.image_width is 20"),
        ({"tap": 5}, "tap is block 5, expected an encoder block, 0 to 4"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(SHAPE, seed=0)(**(inputs() | change))
