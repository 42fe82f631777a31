"""A run's network, or that of a weights folder, to a folder that others load: a transformer, a whole pipeline, or the released layout.

What cannot be said in the other's terms is refused before the weights are read. The folder appears whole or not at all. Price: the network in
float32 and one converted shard are in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from schemas.buckets import latent_frames
from schemas.errors import ConfigError, UsageError
from schemas.files import atomic_folder
from schemas.model_shape import ModelShape
from training.checkpoints.whole_network import WeightsKind, load_run_network, read_run_config
from training.config import FlowConfig
from training.exporting.components import Components, check_components
from training.exporting.pipeline_folder import write_pipeline_parts
from training.exporting.released_layout import check_released, to_released
from training.exporting.targets import refuse_filled
from training.exporting.transformer_folder import MAX_SHARD_BYTES, save_tensors, write_transformer
from training.interop import diffusers_config
from training.run_setup import read_run_info
from training.weights import load_weights, read_weights_info

__all__ = ["DTYPES", "ExportRequest", "ExportSummary", "export_weights"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_PIPELINE_SIZE = (121, 736, 1280)
"""Frames, rows and columns that the pipeline makes when it is not asked for others."""

_RELEASED_FILE = "motif_video.safetensors"

_RELEASED_SHIFT = 15.0
"""Recommended for the released model."""


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export, and into what. Either `run` or `weights_folder`."""

    output: Path
    run: Path | None = None
    checkpoint: int | None = None
    """Step; None takes the latest."""
    weights: WeightsKind = "ema"
    weights_folder: Path | None = None
    dtype: str = "float32"
    layout: Literal["diffusers", "released"] = "diffusers"
    vae: Path | None = None
    text_encoder: Path | None = None
    tokenizer: Path | None = None
    feature_extractor: Path | None = None
    shift: float | None = None
    """Of the pipeline's scheduler; None takes the training's at the pipeline's own size."""
    max_shard_bytes: int = MAX_SHARD_BYTES


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What was written."""

    kind: Literal["transformer", "pipeline", "released"]
    origin: str
    num_tensors: int
    image_to_video: bool
    notes: tuple[str, ...]


def export_weights(request: ExportRequest) -> ExportSummary:
    """Check, read the weights, write the folder.

    Raises:
        UsageError, ConfigError, DataError: with what is wrong and what to do.
    """
    _check_request(request)
    refuse_filled(request.output)
    shape, flow, origin = _read_facts(request)
    parts, shift, notes = _plan_pipeline(request, shape, flow)
    if request.layout == "released":
        check_released(shape)
    else:
        diffusers_config(shape)
    state = _read_state(request)
    with atomic_folder(request.output) as temporary:
        if request.layout == "released":
            num_tensors = _write_released(temporary, state, shape, DTYPES[request.dtype])
        else:
            num_tensors = write_transformer(
                temporary if parts is None else temporary / "transformer",
                state,
                shape,
                dtype=DTYPES[request.dtype],
                max_shard_bytes=request.max_shard_bytes,
            )
        if parts is not None:
            write_pipeline_parts(temporary, parts, shift=shift)
    return ExportSummary(
        kind="released" if request.layout == "released" else "transformer" if parts is None else "pipeline",
        origin=origin,
        num_tensors=num_tensors,
        image_to_video=parts is not None and parts.image_size is not None,
        notes=tuple(notes),
    )


def _check_request(request: ExportRequest) -> None:
    """Refuse combinations of options that make no sense."""
    if (request.run is None) == (request.weights_folder is None):
        raise UsageError("give --run RUN or --weights-folder FOLDER, one of both: where the weights come from")
    if request.weights_folder is not None and request.checkpoint is not None:
        raise UsageError(f"--checkpoint is {request.checkpoint}, but a weights folder has no checkpoints; leave it out")
    if request.dtype not in DTYPES:
        raise UsageError(f"--dtype is {request.dtype!r}, expected {' or '.join(DTYPES)}")
    parts = {"--vae": request.vae, "--text-encoder": request.text_encoder, "--tokenizer": request.tokenizer}
    missing = [flag for flag, path in parts.items() if path is None]
    if missing and len(missing) < len(parts):
        raise UsageError(
            f"{', '.join(missing)} missing: a pipeline needs {', '.join(parts)}; give all of them, or none"
        )
    whole = {"--feature-extractor": request.feature_extractor, "--shift": request.shift}
    for flag, value in whole.items():
        if value is not None and missing:
            raise UsageError(f"{flag} is of a pipeline; give {', '.join(parts)} as well, or leave it out")
    if request.shift is not None and not request.shift > 0:
        raise UsageError(f"--shift is {request.shift:g}, expected a number above 0")
    if request.layout == "released" and not missing:
        raise UsageError("--layout released is a file for ComfyUI, not a pipeline; leave the VAE and text encoder out")


def _read_facts(request: ExportRequest) -> tuple[ModelShape, FlowConfig | None, str]:
    """Shape, flow (None for a weights folder) and origin, before any weights are read."""
    if request.run is not None:
        checkpoint, config = read_run_config(request.run, request.checkpoint)
        return config.model, config.flow, f"{checkpoint} ({request.weights} weights)"
    assert request.weights_folder is not None
    return read_weights_info(request.weights_folder).shape, None, str(request.weights_folder)


def _read_state(request: ExportRequest) -> Mapping[str, Tensor]:
    if request.run is not None:
        return load_run_network(request.run, request.checkpoint, request.weights)[0].state_dict()
    assert request.weights_folder is not None
    return load_weights(request.weights_folder)


def _plan_pipeline(
    request: ExportRequest, shape: ModelShape, flow: FlowConfig | None
) -> tuple[Components | None, float, list[str]]:
    """The parts of a pipeline (None for the transformer alone), the shift of its scheduler, and what to tell."""
    if request.vae is None or request.text_encoder is None or request.tokenizer is None:
        return None, 1.0, []
    if request.run is not None and (codec := read_run_info(request.run).codec) != "wan":
        raise ConfigError(
            f"{request.run} was trained on latents of the codec {codec!r} (run.json), but the pipeline's VAE decodes those of 'wan'; "
            "export the transformer alone, without --vae, --text-encoder and --tokenizer"
        )
    parts = check_components(
        shape,
        vae=request.vae,
        text_encoder=request.text_encoder,
        tokenizer=request.tokenizer,
        feature_extractor=request.feature_extractor,
    )
    shift, notes = _shift(request, flow)
    return parts, shift, [*parts.notes, *notes]


def _shift(request: ExportRequest, flow: FlowConfig | None) -> tuple[float, list[str]]:
    """The scheduler has one shift for all sizes; ours may grow with the tokens, and is then taken at the pipeline's own size."""
    if request.shift is not None:
        return request.shift, []
    if flow is None:
        return _RELEASED_SHIFT, [
            f"shift {_RELEASED_SHIFT:g}, as recommended for the released model; --shift sets another"
        ]
    if flow.shift_base_tokens is None:
        return flow.shift, []
    frames, rows, columns = _PIPELINE_SIZE
    shift = flow.shift_of(latent_frames(frames) * (rows // 16) * (columns // 16))
    size = f"{frames} frames of {columns}x{rows}"
    return shift, [f"shift {shift:g}, the training's for {size}; diffusers has one for all sizes, --shift sets another"]


def _write_released(folder: Path, state: Mapping[str, Tensor], shape: ModelShape, dtype: torch.dtype) -> int:
    tensors = to_released(state, shape)
    save_tensors(folder / _RELEASED_FILE, tensors, tensors, dtype)
    return len(tensors)
