"""`reelyard-train evaluate lengths`: sampling at lengths that training never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.command import say
from schemas.errors import UsageError

__all__ = ["lengths"]

_MORE_FRAMES = (0, 40, 80, 120)
"""Than the longest trained length, by default."""


def lengths(
    run_folder: Annotated[Path, typer.Option("--run", help="Folder of a training run.")],
    prompts: Annotated[Path, typer.Option(help="Text file with one prompt a line.")],
    output: Annotated[Path, typer.Option(help="Folder for the videos, lengths.json and lengths.html.")],
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Frames, 4k + 1 each, separated by commas; the first is the longest of the training. By default that, and 40, 80 and 120 more."
        ),
    ] = None,
    height: Annotated[
        int | None, typer.Option(help="Multiple of 16; as the largest trained bucket by default.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Multiple of 16; likewise.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key of the sampler: num_steps=50, solver=dpmpp_2m.")
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
    from schemas.files import write_bytes
    from training.commands.sample import build_request
    from training.evaluation.lengths import measure_lengths, table_lines
    from training.evaluation.lengths_page import render_lengths
    from training.run_setup import read_run_info
    from training.sampling import open_sampler

    frames = _frames(lengths, read_run_info(run_folder).longest_frames)
    request = build_request(
        run=run_folder,
        prompt=None,
        prompts=prompts,
        size=(frames[0], height, width),
        overrides=override or [],
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


def _frames(text: str | None, longest: int) -> list[int]:
    """The lengths; UsageError unless the first is the longest that was trained."""
    if text is None:
        return [longest + more for more in _MORE_FRAMES]
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise UsageError(f"--lengths is {text!r}, expected numbers of frames separated by commas: 121,161,241")
    frames = [int(part) for part in parts]
    if frames[0] != longest:
        raise UsageError(
            f"--lengths begins with {frames[0]}, but the longest bucket of the run has {longest} frames (run.json: buckets), "
            f"which the others are compared with; begin with {longest}"
        )
    return frames
