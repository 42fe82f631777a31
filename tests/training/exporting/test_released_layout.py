"""The released layout against diffusers' class, made to compute as ComfyUI's code does: the LayerNorm right behind the cross-attention's query."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MotifVideoTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from schemas.errors import DataError
from schemas.model_shape import ModelShape
from training.dit.model import MotifVideoDiT
from training.exporting.importing import ImportRequest, import_weights
from training.exporting.released_layout import from_released, released_sizes, to_released
from training.interop import diffusers_config
from training.weights import load_weights

NAMES = {"cross_attn.to_q.0": "cross_attn_query_proj", "cross_attn.to_q.1": "cross_attn_query_norm"}
NAMES |= {"cross_attn.to_out.0": "cross_attn_out_proj"}
SHARED = ("to_k.weight", "to_k.bias", "to_v.weight", "to_v.bias", "norm_q.weight", "norm_k.weight")


def reference(shape: ModelShape) -> MotifVideoTransformer3DModel:
    """diffusers' network with shared keys and values and a LayerNorm on the query, all weights random."""
    torch.manual_seed(0)
    model = MotifVideoTransformer3DModel(**diffusers_config(shape)).eval()
    for block in model.single_transformer_blocks[: shape.single_blocks]:
        block.cross_attn.to_q = nn.Sequential(block.cross_attn.to_q, nn.LayerNorm(shape.width, eps=1e-6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for block in model.single_transformer_blocks[: shape.single_blocks]:
            for key in SHARED:
                block.cross_attn.get_parameter(key).copy_(block.attn.get_parameter(key))
    return model


def released_file(model: MotifVideoTransformer3DModel, file: Path) -> dict[str, Tensor]:
    """The names as the published code gives them, without the copies."""
    tensors = {}
    for name, value in model.state_dict().items():
        if ".cross_attn." in name and name.endswith(SHARED):
            continue
        for theirs, released in NAMES.items():
            name = name.replace(theirs, released)
        tensors[name] = value.clone()
    save_file(tensors, file)
    return tensors


@pytest.mark.parametrize("image_width", [16, None])
def test_output_is_that_of_the_reference(
    tmp_path: Path,
    image_width: int | None,
    small_shape: Callable[..., ModelShape],
    velocity_inputs: Callable[[ModelShape], Any],
) -> None:
    shape = small_shape(width=128, heads=1, head_width=128, rope_axes=(16, 56, 56), image_width=image_width)
    theirs = reference(shape)
    tensors = released_file(theirs, tmp_path / "motif.safetensors")
    summary = import_weights(ImportRequest(source=tmp_path / "motif.safetensors", output=tmp_path / "weights"))
    assert summary.shape == shape.model_copy(update={"sca_query_norm": True})
    assert summary.num_tensors == len(tensors) == len(released_sizes(summary.shape))
    ours = MotifVideoDiT(summary.shape).eval()
    ours.load_state_dict(load_weights(tmp_path / "weights"))
    inputs = velocity_inputs(shape)
    with torch.no_grad():
        expected = theirs(*inputs).sample
        assert (ours(*inputs).velocity_BCTYX - expected).abs().max() < 1e-5 < expected.abs().max()
        for block in theirs.single_transformer_blocks[: shape.single_blocks]:
            block.cross_attn.to_q = block.cross_attn.to_q[0]
        assert (theirs(*inputs).sample - expected).abs().max() > 1e-3  # the LayerNorm is seen


def test_names_are_exact_both_ways(
    small_shape: Callable[..., ModelShape], random_network: Callable[[ModelShape], MotifVideoDiT]
) -> None:
    shape = small_shape(
        width=128, heads=1, head_width=128, rope_axes=(16, 56, 56), decoder_blocks=8, sca_query_norm=True
    )
    state = random_network(shape).state_dict()
    released = to_released(state, shape)
    again = from_released(released, shape)
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    del released["single_transformer_blocks.1.cross_attn_query_norm.bias"]
    released["single_transformer_blocks.1.cross_attn_query_norm.scale"] = torch.ones(128)
    with pytest.raises(DataError, match=r"1 missing \(.*query_norm\.bias\); 1 unknown \(.*query_norm\.scale\)"):
        from_released(released, shape)
