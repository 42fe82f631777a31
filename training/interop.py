"""State dicts to and from `diffusers.MotifVideoTransformer3DModel`, with the matching configuration.

A table of names, one rule: every key of either side must be accounted for; sizes are then checked by the strict `load_state_dict`. Our fused products
are their separate layers, row block by row block. diffusers keeps separate copies of what Shared Cross-Attention shares (K, V and both head
norms): export writes the copies, import refuses copies that differ, unless the shape has `sca_source: own`, which gives them weights of their own.
diffusers has no query LayerNorm in the cross-attention, so a network with one (`sca_query_norm`) cannot be expressed there and is refused.
Works on tensors of any device and type, copying only what is fused; diffusers itself is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from schemas.errors import ConfigError, DataError
from schemas.model_shape import ModelShape
from training.exact_keys import check_tensors

__all__ = ["diffusers_config", "from_diffusers", "to_diffusers"]

_EMBEDDERS = {
    "patch_embed.proj": "x_embedder.proj",
    "text_embed.up": "context_embedder.linear_1",
    "text_embed.down": "context_embedder.linear_2",
    "time_embed.up": "time_text_embed.timestep_embedder.linear_1",
    "time_embed.down": "time_text_embed.timestep_embedder.linear_2",
    "final.modulation.linear": "norm_out.linear",
    "final.proj": "proj_out",
}

_IMAGE_EMBEDDER = {
    "image_embed.norm_in": "image_embedder.norm_in",
    "image_embed.up": "image_embedder.linear_1",
    "image_embed.down": "image_embedder.linear_2",
    "image_embed.norm_out": "image_embedder.norm_out",
}

_DUAL = {
    "video_modulation.linear": "norm1.linear",
    "context_modulation.linear": "norm1_context.linear",
    "video_heads.query_norm": "attn.norm_q",
    "video_heads.key_norm": "attn.norm_k",
    "context_heads.query_norm": "attn.norm_added_q",
    "context_heads.key_norm": "attn.norm_added_k",
    "video_out": "attn.to_out.0",
    "context_out": "attn.to_add_out",
    "video_mlp.up": "ff.net.0.proj",
    "video_mlp.down": "ff.net.2",
    "context_mlp.up": "ff_context.net.0.proj",
    "context_mlp.down": "ff_context.net.2",
}

_DUAL_FUSED = {
    "video_heads.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_heads.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}

_SINGLE = {
    "modulation.linear": "norm.linear",
    "heads.query_norm": "attn.norm_q",
    "heads.key_norm": "attn.norm_k",
    "mlp_up": "proj_mlp",
    "out": "proj_out",
}

_SINGLE_FUSED = {"heads.qkv": ("attn.to_q", "attn.to_k", "attn.to_v")}

_CROSS = {"cross.query": "cross_attn.to_q", "cross.out": "cross_attn.to_out.0"}

_CROSS_OWN = {"cross.own.query_norm": "cross_attn.norm_q", "cross.own.key_norm": "cross_attn.norm_k"}

_CROSS_OWN_FUSED = {"cross.own.key_value": ("cross_attn.to_k", "cross_attn.to_v")}

_CROSS_COPIES = {
    "cross_attn.to_k": "attn.to_k",
    "cross_attn.to_v": "attn.to_v",
    "cross_attn.norm_q": "attn.norm_q",
    "cross_attn.norm_k": "attn.norm_k",
}
"""Their copy to their original."""

_WITHOUT_BIAS = (".norm_q", ".norm_k", ".norm_added_q", ".norm_added_k")
"""RMSNorms have a weight only."""


def to_diffusers(state: Mapping[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """Our state dict under diffusers' names, with its copies of the shared weights.

    Raises ConfigError for a shape that diffusers cannot express, DataError when `state` is not a state dict of that shape.
    """
    names, copies = _name_map(shape)
    check_tensors(state.keys(), set(names), "the state dict to export")
    exported = {
        their: part
        for ours, theirs in names.items()
        for their, part in zip(theirs, state[ours].chunk(len(theirs)), strict=True)
    }
    return exported | {copy: exported[original] for copy, original in copies.items()}


def from_diffusers(state: Mapping[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """diffusers' state dict under our names; the copies of shared weights must equal their originals and are dropped.

    Raises ConfigError for a shape that diffusers cannot express, DataError for missing or unknown keys and for unequal copies.
    """
    names, copies = _name_map(shape)
    check_tensors(
        state.keys(), {*(their for theirs in names.values() for their in theirs), *copies}, "the diffusers state dict"
    )
    for copy, original in copies.items():
        if not torch.equal(state[copy], state[original]):
            raise DataError(
                f"diffusers state dict: {copy} differs from {original}, but Shared Cross-Attention has one weight for both; these weights "
                "were trained un-shared: import them with --sca-source own"
            )
    return {
        ours: state[theirs[0]] if len(theirs) == 1 else torch.cat([state[their] for their in theirs])
        for ours, theirs in names.items()
    }


def diffusers_config(shape: ModelShape) -> dict[str, Any]:
    """Keyword arguments of `MotifVideoTransformer3DModel` for this shape (its `config.json`)."""
    _check_expressible(shape)
    return {
        "in_channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "num_attention_heads": shape.heads,
        "attention_head_dim": shape.head_width,
        "num_layers": shape.dual_blocks,
        "num_single_layers": shape.single_blocks + shape.decoder_blocks,
        "num_decoder_layers": shape.decoder_blocks,
        "mlp_ratio": float(shape.mlp_ratio),
        "patch_size": shape.patch[1],
        "patch_size_t": shape.patch[0],
        "qk_norm": "rms_norm",
        "norm_type": "layer_norm",
        "text_embed_dim": shape.text_width,
        "image_embed_dim": shape.image_width,
        "rope_theta": shape.rope_theta,
        "rope_axes_dim": tuple(shape.rope_axes),
        "enable_text_cross_attention_dual": False,
        "enable_text_cross_attention_single": shape.shared_cross_attention,
    }


def _check_expressible(shape: ModelShape) -> None:
    if shape.shared_cross_attention and shape.sca_query_norm:
        raise ConfigError(
            "model.sca_query_norm is true, but diffusers' MotifVideoTransformer3DModel has no such LayerNorm and would compute something "
            "else; go on in a stage with model.sca_query_norm: false, export with --layout released, or import with --without-query-norm"
        )
    if shape.timestep_width != 256:
        raise ConfigError(f"model.timestep_width is {shape.timestep_width}, diffusers has 256 fixed; set it to 256")
    if shape.patch[1] != shape.patch[2]:
        raise ConfigError(f"model.patch is {shape.patch}, diffusers has one size for rows and columns; make them equal")


def _name_map(shape: ModelShape) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Full parameter names: ours to theirs (several where ours is fused), and their copies to their originals."""
    _check_expressible(shape)
    names = _parameters("", _plain(_EMBEDDERS), "")
    if shape.image_width is not None:
        names |= _parameters("", _plain(_IMAGE_EMBEDDER), "")
    copies: dict[str, str] = {}
    for index in range(shape.dual_blocks):
        table = _plain(_DUAL) | _DUAL_FUSED
        names |= _parameters(f"dual_blocks.{index}.", table, f"transformer_blocks.{index}.")
    for index in range(shape.single_blocks + shape.decoder_blocks):
        theirs, in_encoder = f"single_transformer_blocks.{index}.", index < shape.single_blocks
        ours = f"single_blocks.{index}." if in_encoder else f"decoder_blocks.{index - shape.single_blocks}."
        table = _plain(_SINGLE) | _SINGLE_FUSED
        if shape.shared_cross_attention and in_encoder:
            table |= _plain(_CROSS)
            if shape.sca_source == "own":
                table |= _plain(_CROSS_OWN) | _CROSS_OWN_FUSED
            else:
                pairs = _parameters(theirs, _plain(_CROSS_COPIES), theirs)
                copies |= {copy: original for copy, (original,) in pairs.items()}
        names |= _parameters(ours, table, theirs)
    return names, copies


def _plain(layers: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    return {ours: (theirs,) for ours, theirs in layers.items()}


def _parameters(
    our_prefix: str, layers: Mapping[str, tuple[str, ...]], their_prefix: str
) -> dict[str, tuple[str, ...]]:
    """Weight and bias names of a table of layers."""
    return {
        f"{our_prefix}{ours}.{suffix}": tuple(f"{their_prefix}{their}.{suffix}" for their in theirs)
        for ours, theirs in layers.items()
        for suffix in (("weight",) if theirs[0].endswith(_WITHOUT_BIAS) else ("weight", "bias"))
    }
