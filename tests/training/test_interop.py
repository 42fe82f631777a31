"""diffusers' own class is the reference: same numbers, same names, both ways."""

import pytest
import torch
from diffusers import MotifVideoTransformer3DModel
from torch import Tensor

from schemas.errors import ConfigError, DataError
from schemas.model_shape import TINY, ModelShape
from training.dit.model import MotifVideoDiT
from training.interop import diffusers_config, from_diffusers, to_diffusers

SHAPE = TINY.model_copy(update={"sca_query_norm": False, "image_width": 20, "text_width": 40})
SHARED = ("to_k.weight", "to_k.bias", "to_v.weight", "to_v.bias", "norm_q.weight", "norm_k.weight")


def reference(shape: ModelShape, *, equal_copies: bool = True) -> MotifVideoTransformer3DModel:
    """diffusers' model with weights large enough for every path to matter (its own start barely lets text through)."""
    torch.manual_seed(0)
    model = MotifVideoTransformer3DModel(**diffusers_config(shape)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
            elif "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for block in model.single_transformer_blocks:
            if equal_copies and block.cross_attn is not None:
                for key in SHARED:
                    block.cross_attn.get_parameter(key).copy_(block.attn.get_parameter(key))
    return model


def inputs(shape: ModelShape) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "latent": torch.randn(2, shape.in_channels, 3, 8, 6, generator=generator),
        "timestep": torch.tensor([999.5, 13.25]),
        "text": torch.randn(2, 7, shape.text_width, generator=generator),
        "mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3], dtype=torch.bool),
        "image": torch.randn(2, 4, 20, generator=generator),
    }


def both(shape: ModelShape, *, masked: bool, with_image: bool) -> tuple[Tensor, Tensor]:
    theirs = reference(shape)
    ours = MotifVideoDiT(shape).eval()
    ours.load_state_dict(from_diffusers(theirs.state_dict(), shape))
    given = inputs(shape)
    mask, image = given["mask"] if masked else None, given["image"] if with_image else None
    with torch.no_grad():
        expected = theirs(given["latent"], given["timestep"], given["text"], mask, image).sample
        return ours(given["latent"], given["timestep"], given["text"], mask, image).velocity_BCTYX, expected


@pytest.mark.parametrize("with_image", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_velocity_equals_diffusers(masked: bool, with_image: bool) -> None:
    velocity, expected = both(SHAPE, masked=masked, with_image=with_image)
    assert expected.abs().max() > 1.0
    assert (velocity - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    "change", [{"shared_cross_attention": False}, {"decoder_blocks": 0}, {"dual_blocks": 0}, {"image_width": None}]
)
def test_velocity_equals_diffusers_with_parts_left_out(change: dict[str, object]) -> None:
    velocity, expected = both(SHAPE.model_copy(update=change), masked=True, with_image=False)
    assert (velocity - expected).abs().max() < 1e-5


def test_every_input_changes_the_reference() -> None:
    """Otherwise the parity above would prove nothing about masks and image tokens."""
    plain = both(SHAPE, masked=False, with_image=False)[1]
    masked = both(SHAPE, masked=True, with_image=False)[1]
    assert torch.equal(plain[0], masked[0])
    assert (plain[1] - masked[1]).abs().max() > 1e-2
    assert (plain - both(SHAPE, masked=False, with_image=True)[1]).abs().max() > 1e-2


def test_round_trip_is_exact_and_loads_into_diffusers() -> None:
    theirs = reference(SHAPE)
    state = from_diffusers(theirs.state_dict(), SHAPE)
    exported = to_diffusers(state, SHAPE)
    assert exported.keys() == theirs.state_dict().keys()
    assert all(torch.equal(exported[key], value) for key, value in theirs.state_dict().items())
    MotifVideoTransformer3DModel(**diffusers_config(SHAPE)).load_state_dict(exported)


def test_unequal_copies_are_refused_by_name() -> None:
    state = reference(SHAPE, equal_copies=False).state_dict()
    with pytest.raises(DataError, match=r"single_transformer_blocks\.0\.cross_attn\.to_k\.weight differs"):
        from_diffusers(state, SHAPE)


def test_missing_and_unknown_keys_are_refused_by_name() -> None:
    state = reference(SHAPE).state_dict()
    state["stranger.weight"] = state.pop("proj_out.weight")
    with pytest.raises(DataError, match=r"1 missing \(proj_out.weight\); 1 unknown \(stranger.weight\)"):
        from_diffusers(state, SHAPE)
    with pytest.raises(DataError, match="has 0 tensors, expected"):
        to_diffusers({}, SHAPE)


def test_a_network_that_diffusers_cannot_express_is_refused() -> None:
    with pytest.raises(ConfigError, match="sca_query_norm"):
        diffusers_config(TINY)


def test_unshared_parameter_count_of_the_2b_model() -> None:
    shape = ModelShape(sca_query_norm=False)
    with torch.device("meta"):
        theirs = MotifVideoTransformer3DModel(**diffusers_config(shape))
        ours = MotifVideoDiT(shape)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == 2_037_809_600
    exported = to_diffusers(ours.state_dict(), shape)
    assert {key: value.shape for key, value in exported.items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
