"""`reelyard-train import`: weights of diffusers or of the released layout into a weights folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from schemas.command import say
from schemas.errors import UsageError

__all__ = ["import_weights"]


def import_weights(
    source: Annotated[
        Path,
        typer.Option("--from", help="A .safetensors file, or the folder of a diffusers transformer or pipeline."),
    ],
    output: Annotated[Path, typer.Option(help="Weights folder to write; it must not exist, or be empty.")],
    decoder_blocks: Annotated[
        int | None, typer.Option(min=0, help="Decoder blocks, where neither tensors nor config.json say it.")
    ] = None,
    rope_axes: Annotated[
        str | None, typer.Option(help="T,Y,X channels of the RoPE, where config.json does not say them.")
    ] = None,
    rope_theta: Annotated[float | None, typer.Option(help="Theta of the RoPE, likewise.")] = None,
    sca_source: Annotated[
        str, typer.Option(help="own: the cross-attention's keys and values are no copies of the block's.")
    ] = "block",
    without_query_norm: Annotated[
        bool,
        typer.Option(
            "--without-query-norm", help="Leave the cross-attention's query LayerNorm out, as diffusers does."
        ),
    ] = False,
) -> None:
    """Read weights of this architecture into a folder that training and `export` start from."""
    if sca_source not in ("block", "own"):
        raise UsageError(f"--sca-source is {sca_source!r}, expected block or own")
    from training.exporting.importing import ImportRequest
    from training.exporting.importing import import_weights as read
    from training.exporting.shape_detection import GivenShape

    given = GivenShape(
        decoder_blocks=decoder_blocks,
        rope_axes=_axes(rope_axes),
        rope_theta=rope_theta,
        sca_source=cast(Literal["block", "own"], sca_source),
    )
    summary = read(ImportRequest(source=source, output=output, given=given, without_query_norm=without_query_norm))
    for note in summary.notes:
        say(f"note: {note}")
    shape = summary.shape
    say(
        f"{output}: {shape.parameter_count():,} parameters from {summary.num_tensors} tensors of the {summary.layout} layout; "
        f"{shape.dual_blocks} dual, {shape.single_blocks} single and {shape.decoder_blocks} decoder blocks, width {shape.width}"
    )


def _axes(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"--rope-axes is {text!r}, expected three whole numbers separated by commas: 16,56,56")
    return int(parts[0]), int(parts[1]), int(parts[2])
