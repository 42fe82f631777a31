"""The layout in which the 2B weights were released for ComfyUI, which is that of the code they were trained with (motif_core).

It has diffusers' names but for Shared Cross-Attention, where keys, values and head norms are the block's own, without copies, and the query and
output have names beside `attn`; and it always has the query's LayerNorm. 838 tensors for the 2B shape, 902 in diffusers' form.
Source: the module names of MotifTechnologies/ComfyUI-MotifVideo2B, `models/transformer`. The table is applied to names only, around the one for
diffusers, so that there is one place that knows the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from schemas.errors import ConfigError
from schemas.model_shape import MOTIF_2B, ModelShape
from training.dit.model import MotifVideoDiT
from training.exact_keys import check_tensors
from training.interop import from_diffusers, to_diffusers

__all__ = ["check_released", "from_released", "released_sizes", "to_released"]

_RENAMED = {
    ".cross_attn.to_q.": ".cross_attn_query_proj.",
    ".cross_attn.to_out.0.": ".cross_attn_out_proj.",
    ".cross_attn.to_k.": ".attn.to_k.",
    ".cross_attn.to_v.": ".attn.to_v.",
    ".cross_attn.norm_q.": ".attn.norm_q.",
    ".cross_attn.norm_k.": ".attn.norm_k.",
}
"""Parts of diffusers' names to those of the released files; the last four are copies that the released files do not hold."""


class _AsDiffusers(Mapping[str, Tensor]):
    """A released state dict under diffusers' names, its copies served from the one weight; tensors are read when asked for."""

    def __init__(self, state: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._state, self._names = state, names

    def __getitem__(self, name: str) -> Tensor:
        return self._state[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def from_released(state: Mapping[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """Our state dict of a released one.

    Raises:
        DataError: missing or unknown tensors.
    """
    names, norms = _names(shape)
    check_tensors(set(state), {*names.values(), *norms.values()}, "the released state dict")
    ours = from_diffusers(_AsDiffusers(state, names), _without_norm(shape))
    return ours | {name: state[theirs] for name, theirs in norms.items()}


def check_released(shape: ModelShape) -> None:
    """ConfigError if readers of the released layout would build another network than this one."""
    if shape.shared_cross_attention and not shape.sca_query_norm:
        raise ConfigError(
            "model.sca_query_norm is false, but the released layout always has that LayerNorm and would compute something else; "
            "export to diffusers instead"
        )
    fixed_keys = ("head_width", "decoder_blocks", "rope_axes", "rope_theta", "sca_source", "timestep_width")
    fixed = {key: getattr(MOTIF_2B, key) for key in fixed_keys}
    for key, value in fixed.items():
        if getattr(shape, key) != value:
            raise ConfigError(
                f"model.{key} is {getattr(shape, key)}, the readers of the released layout take {value} for granted; export to diffusers instead"
            )
    if shape.image_width is None:
        raise ConfigError(
            "model.image_width is null, but the readers of the released layout know the network by its image embedder; export to diffusers instead"
        )


def to_released(state: Mapping[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """The released layout of our state dict.

    Raises:
        ConfigError: see `check_released`.
    """
    check_released(shape)
    names, norms = _names(shape)
    plain = {name: value for name, value in state.items() if name not in norms}
    theirs = to_diffusers(plain, _without_norm(shape))
    released = {released: theirs[name] for name, released in names.items()}
    return released | {name: state[ours] for ours, name in norms.items()}


def released_sizes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name and size of every tensor of a released file of this shape."""
    plain = _without_norm(shape)
    with torch.device("meta"):
        theirs = to_diffusers(MotifVideoDiT(plain).state_dict(), plain)
    names, norms = _names(shape)
    sizes = {released: tuple(theirs[name].shape) for name, released in names.items()}
    return sizes | dict.fromkeys(norms.values(), (shape.width,))


def _names(shape: ModelShape) -> tuple[dict[str, str], dict[str, str]]:
    """diffusers' names to the released ones, and our names of the query's LayerNorm to theirs."""
    plain = _without_norm(shape)
    with torch.device("meta"):
        theirs = to_diffusers(MotifVideoDiT(plain).state_dict(), plain)
    norms = {
        f"single_blocks.{index}.cross.query_norm.{kind}": f"single_transformer_blocks.{index}.cross_attn_query_norm.{kind}"
        for index in range(shape.single_blocks if shape.shared_cross_attention and shape.sca_query_norm else 0)
        for kind in ("weight", "bias")
    }
    return {name: _released(name) for name in theirs}, norms


def _released(name: str) -> str:
    for part, other in _RENAMED.items():
        name = name.replace(part, other)
    return name


def _without_norm(shape: ModelShape) -> ModelShape:
    return shape.model_copy(update={"sca_query_norm": False})
