"""`reelyard-train export`: weights for diffusers, or for ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from schemas.command import say
from schemas.errors import UsageError

__all__ = ["export"]


def export(
    output: Annotated[Path, typer.Option(help="Folder to write; it must not exist, or be empty.")],
    run_folder: Annotated[Path | None, typer.Option("--run", help="Folder of a training run.")] = None,
    checkpoint: Annotated[int | None, typer.Option(help="Step of the run's checkpoint; the latest by default.")] = None,
    weights: Annotated[str, typer.Option(help="ema (the run's first average) or trained.")] = "ema",
    weights_folder: Annotated[
        Path | None, typer.Option(help="Folder that `reelyard-train import` wrote, instead of --run.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, of the transformer.")] = "float32",
    layout: Annotated[
        str, typer.Option(help="diffusers, or released: one file with the names of the weights released for ComfyUI.")
    ] = "diffusers",
    vae: Annotated[
        Path | None, typer.Option(help="Folder of an AutoencoderKLWan; with the next two, a whole pipeline is written.")
    ] = None,
    text_encoder: Annotated[Path | None, typer.Option(help="Folder of a T5Gemma2, whole or its encoder.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of its tokenizer.")] = None,
    feature_extractor: Annotated[
        Path | None, typer.Option(help="Folder of a SiglipImageProcessor; by default one is made for the vision tower.")
    ] = None,
    shift: Annotated[
        float | None, typer.Option(help="Of the pipeline's scheduler; by default the training's at 121x736x1280.")
    ] = None,
) -> None:
    """Write a run's network as a folder that diffusers loads, or as a file for ComfyUI."""
    if weights not in ("ema", "trained"):
        raise UsageError(f"--weights is {weights!r}, expected ema or trained")
    if layout not in ("diffusers", "released"):
        raise UsageError(f"--layout is {layout!r}, expected diffusers or released")
    from training.exporting.exporting import ExportRequest, export_weights

    summary = export_weights(
        ExportRequest(
            output=output,
            run=run_folder,
            checkpoint=checkpoint,
            weights=cast(Literal["ema", "trained"], weights),
            weights_folder=weights_folder,
            dtype=dtype,
            layout=cast(Literal["diffusers", "released"], layout),
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            feature_extractor=feature_extractor,
            shift=shift,
        )
    )
    for note in summary.notes:
        say(f"note: {note}")
    loaders = {
        "transformer": "diffusers.MotifVideoTransformer3DModel",
        "pipeline": "diffusers.MotifVideoPipeline"
        + (" and MotifVideoImage2VideoPipeline" if summary.image_to_video else ""),
        "released": "ComfyUI's nodes for Motif-Video",
    }
    say(f"{output}: {summary.num_tensors} tensors in {dtype} from {summary.origin}, for {loaders[summary.kind]}")
