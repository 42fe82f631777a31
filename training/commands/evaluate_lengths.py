"""`reelyard-train evaluate lengths`: sampling at lengths that training never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.command import say
from schemas.errors import UsageError

__all__ = ["lengths"]


def lengths(
    run_folder: Annotated[Path, typer.Option("--run", help="Folder of a training run.")],
    prompts: Annotated[Path, typer.Option(help="Text file with one prompt a line.")],
    output: Annotated[Path, typer.Option(help="Folder for the videos, lengths.json and lengths.html.")],
    lengths: Annotated[
        str, typer.Option(help="Frames, 4k + 1 each, separated by commas; the first is the longest of the training.")
    ] = "121,161,201,241",
    height: Annotated[int, typer.Option(help="Multiple of 16.")] = 64,
    width: Annotated[int, typer.Option(help="Multiple of 16.")] = 112,
    steps: Annotated[int, typer.Option(min=1, help="Of the solver.")] = 20,
    solver: Annotated[str, typer.Option(help="euler or dpmpp_2m.")] = "euler",
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is without.")] = 4.0,
    shift: Annotated[
        float | None, typer.Option(help="Of the schedule; by default as in training, for each length.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    checkpoint: Annotated[int | None, typer.Option(help="Step of the checkpoint; the latest by default.")] = None,
    weights: Annotated[str, typer.Option(help="ema or trained.")] = "ema",
    text_encoder_path: Annotated[
        Path | None, typer.Option(help="Folder of the text encoder, if the run's has no entry in the registry.")
    ] = None,
    codec_path: Annotated[Path | None, typer.Option(help="Folder of the codec's weights, likewise.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Sample at several lengths, and measure time, memory and drift against the frame number."""
    parts = [part.strip() for part in lengths.split(",")]
    if not all(part.isdigit() for part in parts):
        raise UsageError(f"--lengths is {lengths!r}, expected numbers of frames separated by commas: 121,161,241")
    from schemas.files import write_bytes
    from training.commands.sample import build_request
    from training.evaluation.lengths import measure_lengths, table_lines
    from training.evaluation.lengths_page import render_lengths
    from training.sampling import open_sampler

    frames = [int(part) for part in parts]
    request = build_request(
        run=run_folder,
        prompt=None,
        prompts=prompts,
        size=(frames[0], height, width),
        sampler={"solver": solver, "num_steps": steps, "shift": shift, "guidance": guidance},
        weights=weights,
        seed=seed,
        checkpoint=checkpoint,
        text_encoder_path=text_encoder_path,
        codec_path=codec_path,
        device=device,
    )
    opened = open_sampler(request)
    for note in opened.notes:
        say(f"note: {note}")
    report = measure_lengths(opened, frames, output)
    write_bytes(output / "lengths.html", render_lengths(report).encode())
    for line in table_lines(report):
        print(line)
    say(
        f"measures: mean of the last {report['window_frames']} frames over the first; latent: 1 is a usual frame of {frames[0]} frames\n"
        f"{output / 'lengths.html'}: curves against the frame number; {output}: the videos"
    )
