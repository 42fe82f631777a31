"""Weights from elsewhere into a weights folder: diffusers' form or the released one, told apart by their tensors.

Everything is checked from the headers before the first tensor is read: which network it is, that each of its tensors is there in its size, and
that there is no other. Then one tensor after another is read, converted to float32 and put in its place. Price: the network in float32 is in
memory once (8 GB for 2 B).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from schemas.errors import ConfigError
from schemas.files import atomic_folder
from schemas.model_shape import ModelShape
from training.dit.model import MotifVideoDiT
from training.exact_keys import check_sizes
from training.exporting.released_layout import from_released, released_sizes
from training.exporting.shape_detection import GivenShape, Layout, detect_shape
from training.exporting.targets import refuse_filled
from training.exporting.tensor_files import open_tensor_source
from training.interop import from_diffusers, to_diffusers
from training.weights import write_weights

__all__ = ["ImportRequest", "ImportSummary", "expected_sizes", "import_weights"]


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What to read, and where to."""

    source: Path
    output: Path
    given: GivenShape = field(default_factory=GivenShape)
    without_query_norm: bool = False
    """Leave the query's LayerNorm of Shared Cross-Attention out, as diffusers' form of the released weights does."""


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """What was read."""

    shape: ModelShape
    layout: Layout
    num_tensors: int
    """Of the source."""
    notes: tuple[str, ...]


def import_weights(request: ImportRequest) -> ImportSummary:
    """Read the source whole and write the weights folder, or nothing.

    Raises:
        UsageError, ConfigError, DataError: with what is wrong and what to do.
    """
    refuse_filled(request.output)
    source = open_tensor_source(request.source)
    what = str(source.path)
    detected = detect_shape(source.tensors.sizes, source.config, request.given, source=what)
    shape, notes = detected.shape, [*source.notes, *detected.notes]
    readers: dict[Layout, Callable[[Mapping[str, Tensor], ModelShape], dict[str, Tensor]]] = {
        "diffusers": from_diffusers,
        "released": from_released,
    }
    check_sizes(source.tensors.sizes, expected_sizes(shape, detected.layout), what)
    state = readers[detected.layout](source.tensors, shape)
    if shape.sca_query_norm:
        notes.append(
            "the file has the LayerNorm of Shared Cross-Attention's query (sca_query_norm): ComfyUI applies it, diffusers leaves it out"
        )
    if request.without_query_norm:
        shape, state = _drop_query_norm(shape, state, what)
    with atomic_folder(request.output) as temporary:
        write_weights(temporary, state, shape, origin=f"{what} ({detected.layout} layout)")
    return ImportSummary(shape=shape, layout=detected.layout, num_tensors=len(source.tensors), notes=tuple(notes))


def expected_sizes(shape: ModelShape, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Name and size of every tensor of a file of this shape and layout."""
    if layout == "released":
        return released_sizes(shape)
    with torch.device("meta"):
        theirs = to_diffusers(MotifVideoDiT(shape).state_dict(), shape)
    return {name: tuple(value.shape) for name, value in theirs.items()}


def _drop_query_norm(shape: ModelShape, state: dict[str, Tensor], what: str) -> tuple[ModelShape, dict[str, Tensor]]:
    if not shape.sca_query_norm:
        raise ConfigError(
            f"--without-query-norm was given, but {what} has no LayerNorm on the cross-attention's query; leave it out"
        )
    kept = {name: value for name, value in state.items() if ".cross.query_norm." not in name}
    return shape.model_copy(update={"sca_query_norm": False}), kept
