"""The network's shape from the names and sizes of stored tensors; a `config.json` beside them may not contradict it.

What the tensors say is believed: a configuration's missing key would mean a class's default there, and those are not the released model's. Three
facts are in no tensor: the RoPE axes, its theta, and, without Shared Cross-Attention, how many of the single blocks are the decoder. They come from
the configuration or the caller; heads of 128 without either take the released model's RoPE, which is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from schemas.errors import ConfigError, DataError, UsageError
from schemas.model_shape import MOTIF_2B, ModelShape
from training.interop import diffusers_config

__all__ = ["DetectedShape", "GivenShape", "Layout", "detect_shape"]

Layout = Literal["diffusers", "released"]
"""`diffusers`: Shared Cross-Attention in a module of its own, with copies. `released`: its query and output only, as in motif_core and ComfyUI."""

Sizes = Mapping[str, tuple[int, ...]]

_NULL_KEYS = ("pooled_projection_dim", "base_latent_size")
"""Keys of motif_core's configuration that this network lacks; null means that they are off."""


@dataclass(frozen=True, kw_only=True)
class GivenShape:
    """What the caller says, where the files do not."""

    decoder_blocks: int | None = None
    rope_axes: tuple[int, int, int] | None = None
    rope_theta: float | None = None
    sca_source: Literal["block", "own"] = "block"
    """Whether the cross-attention's keys and values are copies of the block's, or weights of their own (diffusers' layout cannot tell)."""


@dataclass(frozen=True, kw_only=True)
class DetectedShape:
    """The shape, how the tensors are laid out, and what was taken for granted."""

    shape: ModelShape
    layout: Layout
    notes: tuple[str, ...]


def detect_shape(sizes: Sizes, config: Mapping[str, Any] | None, given: GivenShape, *, source: str) -> DetectedShape:
    """Find the shape of the network that the tensors belong to.

    Raises:
        DataError: tensors that every such network has are missing or of impossible sizes.
        UsageError: the decoder's depth or the RoPE axes are said nowhere.
        ConfigError: the configuration contradicts the tensors, or asks for what this network does not have.
    """
    reader = _Sizes(sizes, source)
    width, in_channels, *patch = reader.of("x_embedder.proj.weight", axes=5)
    num_dual, num_single = reader.blocks("transformer_blocks"), reader.blocks("single_transformer_blocks")
    first = "transformer_blocks.0." if num_dual else "single_transformer_blocks.0."
    head_width = reader.of(f"{first}attn.norm_q.weight", axes=1)[0]
    hidden = reader.of(f"{first}{'ff.net.0.proj' if num_dual else 'proj_mlp'}.weight", axes=2)[0]
    cross, layout = _cross_blocks(sizes, num_single, source)
    if given.sca_source == "own" and (layout == "released" or not cross):
        raise UsageError(
            f"{source}: there is no cross-attention with keys and values of its own in this file; leave sca_source at 'block'"
        )
    config = config or {}
    notes: list[str] = []
    decoder = _decoder_blocks(cross, num_single, config, given, source)
    axes, theta = _rope(head_width, config, given, source, notes)
    patch_volume = patch[0] * patch[1] * patch[2]
    shape = ModelShape(
        width=width,
        heads=_whole(width, head_width, "width", "head width", source),
        head_width=head_width,
        dual_blocks=num_dual,
        single_blocks=num_single - decoder,
        decoder_blocks=decoder,
        mlp_ratio=_whole(hidden, width, "MLP width", "width", source),
        patch=(patch[0], patch[1], patch[2]),
        in_channels=in_channels,
        out_channels=_whole(reader.of("proj_out.weight", axes=2)[0], patch_volume, "output", "patch volume", source),
        text_width=reader.of("context_embedder.linear_1.weight", axes=2)[1],
        image_width=sizes["image_embedder.linear_1.weight"][1] if "image_embedder.linear_1.weight" in sizes else None,
        rope_axes=axes,
        rope_theta=theta,
        shared_cross_attention=cross > 0,
        sca_query_norm=any(".cross_attn_query_norm." in name for name in sizes),
        sca_source=given.sca_source,
        timestep_width=reader.of("time_text_embed.timestep_embedder.linear_1.weight", axes=2)[1],
    )
    _check_config(shape, config, source)
    return DetectedShape(shape=shape, layout=layout, notes=tuple(notes))


@dataclass(frozen=True)
class _Sizes:
    """Sizes by name, with the message for a name that is not there."""

    sizes: Sizes
    source: str

    def of(self, name: str, *, axes: int) -> tuple[int, ...]:
        if name not in self.sizes:
            raise DataError(f"{self.source}: tensor {name} is missing; it is no Motif-Video transformer")
        size = self.sizes[name]
        if len(size) != axes:
            raise DataError(f"{self.source}: tensor {name} has the shape {size}, expected {axes} axes")
        return size

    def blocks(self, name: str) -> int:
        """One more than the highest index; gaps show as missing tensors later."""
        pattern = re.compile(rf"{name}\.(\d+)\.")
        return 1 + max((int(match[1]) for key in self.sizes if (match := pattern.match(key))), default=-1)


def _whole(value: int, divisor: int, what: str, of_what: str, source: str) -> int:
    if value <= 0 or value % divisor:
        raise DataError(
            f"{source}: the {what} is {value}, expected a multiple of the {of_what} {divisor}; it is no Motif-Video transformer"
        )
    return value // divisor


def _cross_blocks(sizes: Sizes, num_single: int, source: str) -> tuple[int, Layout]:
    """How many single blocks have Shared Cross-Attention (they must be the first ones), and the layout."""
    dual = sorted(name for name in sizes if re.match(r"transformer_blocks\.\d+\.cross_attn", name))
    if dual:
        raise ConfigError(
            f"{source}: {dual[0]} is a cross-attention in a dual-stream block, which this network does not have; "
            "such weights cannot be imported"
        )
    found: dict[Layout, list[int]] = {"diffusers": [], "released": []}
    layers: dict[Layout, str] = {"diffusers": "cross_attn.to_q", "released": "cross_attn_query_proj"}
    for kind, layer in layers.items():
        found[kind] = [i for i in range(num_single) if f"single_transformer_blocks.{i}.{layer}.weight" in sizes]
    if found["diffusers"] and found["released"]:
        raise DataError(f"{source}: both layouts of Shared Cross-Attention are in one file; import one of them")
    layout: Layout = "released" if found["released"] else "diffusers"
    blocks = found[layout]
    if blocks != list(range(len(blocks))):
        raise DataError(
            f"{source}: single blocks {blocks} have a cross-attention, expected the first ones without a gap; the file is not complete"
        )
    return len(blocks), layout


def _decoder_blocks(cross: int, num_single: int, config: Mapping[str, Any], given: GivenShape, source: str) -> int:
    """Single blocks of the decoder: those without cross-attention, or what is said."""
    if cross:
        return num_single - cross
    said = given.decoder_blocks if given.decoder_blocks is not None else config.get("num_decoder_layers")
    if said is None:
        raise UsageError(
            f"{source}: the tensors do not say how many of the {num_single} single blocks are the decoder, and there is no config.json; "
            f"say it with --decoder-blocks (the released model has {MOTIF_2B.decoder_blocks})"
        )
    if not 0 <= said <= num_single:
        raise UsageError(f"{source}: {said} decoder blocks, expected 0 to {num_single}, the single blocks of the file")
    return int(said)


def _rope(
    head_width: int, config: Mapping[str, Any], given: GivenShape, source: str, notes: list[str]
) -> tuple[tuple[int, int, int], float]:
    """Axes and theta: as given, as configured, or the released model's."""
    axes = given.rope_axes if given.rope_axes is not None else config.get("rope_axes_dim")
    theta = given.rope_theta if given.rope_theta is not None else config.get("rope_theta")
    if axes is None:
        if head_width != MOTIF_2B.head_width:
            raise UsageError(
                f"{source}: the tensors do not say the RoPE axes of heads {head_width} wide, and there is no config.json; "
                f"say them with --rope-axes T,Y,X, which add up to {head_width}"
            )
        axes = MOTIF_2B.rope_axes
        notes.append(f"RoPE axes {axes} are the released model's: the file does not say them")
    if theta is None:
        theta = MOTIF_2B.rope_theta
        notes.append(f"RoPE theta {theta:g} is the released model's: the file does not say it")
    if len(axes) != 3 or sum(axes) != head_width:
        raise UsageError(
            f"{source}: RoPE axes {tuple(axes)}, expected three that add up to the head width {head_width}"
        )
    return (int(axes[0]), int(axes[1]), int(axes[2])), float(theta)


def _check_config(shape: ModelShape, config: Mapping[str, Any], source: str) -> None:
    """ConfigError if a key of `config.json` is unknown, or says something else than the tensors or the caller."""
    expected = diffusers_config(shape.model_copy(update={"sca_query_norm": False}))
    for key, found in config.items():
        if key.startswith("_") or (key in _NULL_KEYS and found is None):
            continue
        if key not in expected:
            raise ConfigError(
                f"{source}: config.json: {key} is {found!r}, which this network does not know; such weights cannot be imported"
            )
        value = tuple(found) if isinstance(found, list) else found
        if value != expected[key]:
            raise ConfigError(
                f"{source}: config.json: {key} is {found!r}, the tensors (or the options given) say {expected[key]!r}; "
                "the configuration is of another checkpoint, or asks for what this network does not have"
            )
