"""`reelyard-train sample`: a prompt to an MP4."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.command import say
from schemas.errors import UsageError

__all__ = ["sample"]


def sample(
    run_folder: Annotated[Path, typer.Option("--run", help="Folder of a training run.")],
    prompt: Annotated[str, typer.Option(help="What to show.")],
    output: Annotated[Path, typer.Option(help="MP4 file to write; a contact sheet with suffix .png is put beside it.")],
    checkpoint: Annotated[int | None, typer.Option(help="Step of the checkpoint; the latest by default.")] = None,
    frames: Annotated[int, typer.Option(help="4k + 1: 1, 33, 65, 121.")] = 33,
    height: Annotated[int, typer.Option(help="Multiple of 16.")] = 64,
    width: Annotated[int, typer.Option(help="Multiple of 16.")] = 112,
    steps: Annotated[int, typer.Option(min=1, help="Euler steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 follows the prompt without it.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    shift: Annotated[float | None, typer.Option(help="Of the schedule; by default as in training.")] = None,
    text_encoder_path: Annotated[
        Path | None, typer.Option(help="Folder of the text encoder, if the run's has no entry in the registry.")
    ] = None,
    codec_path: Annotated[Path | None, typer.Option(help="Folder of the codec's weights, likewise.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Sample one video from a run's averaged weights."""
    if output.suffix != ".mp4":
        raise UsageError(f"--output is {output}, expected a file name that ends in .mp4")
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device is {device!r}, expected auto, cpu or cuda")
    from training.sampling import SampleRequest, sample_video
    from training.video import write_contact_sheet, write_mp4

    result = sample_video(
        SampleRequest(
            run=run_folder,
            prompt=prompt,
            frames=frames,
            height=height,
            width=width,
            num_steps=steps,
            guidance=guidance,
            seed=seed,
            checkpoint=checkpoint,
            shift=shift,
            text_encoder_path=text_encoder_path,
            codec_path=codec_path,
            device=device,
        ),
        on_step=lambda done, total: say(f"sampling: {done} of {total} steps") if done in (1, total) else None,
    )
    for note in result.notes:
        say(f"note: {note}")
    encoder = write_mp4(output, result.frames_THWC, result.fps)
    sheet = output.with_suffix(".png")
    write_contact_sheet(sheet, result.frames_THWC)
    say(
        f"{output}: {frames} frames of {width}x{height} at {result.fps:g} fps ({encoder}), from {result.checkpoint}\n"
        f"{sheet}: contact sheet"
    )
