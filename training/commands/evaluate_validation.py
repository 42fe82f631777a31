"""`reelyard-train evaluate validation`: the dense validation loss of a checkpoint on packed sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.command import say

__all__ = ["validation"]


def validation(
    run_folder: Annotated[Path, typer.Option("--run", help="Folder of a training run.")],
    samples: Annotated[list[Path], typer.Option(help="Folder of a packed set to measure on; repeat for more.")],
    checkpoint: Annotated[int | None, typer.Option(help="Step of the checkpoint; the latest by default.")] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="ema or trained; repeat for both, which is the default.")
    ] = None,
    clips: Annotated[
        int | None, typer.Option(min=1, help="At most this many clips of each size; all by default.")
    ] = None,
    timesteps: Annotated[int, typer.Option(min=1, help="Times at which every clip is measured.")] = 8,
    caption: Annotated[str, typer.Option(help="long, short or first.")] = "long",
    max_frames: Annotated[
        int, typer.Option(help="Longer clips are cut to a bucket of at most this many frames.")
    ] = 121,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    clips_per_pass: Annotated[int, typer.Option(min=1, help="Clips that go through the network together.")] = 1,
    output: Annotated[Path | None, typer.Option(help="JSON file to write, too.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Dense loss of a checkpoint on the clips of packed sets, at fixed times and with fixed noise."""
    from schemas.config import build_config
    from schemas.files import said_if_unwritten, write_json
    from training.evaluation.checkpoint_validation import ValidationRequest, table_lines, validate_checkpoint
    from training.evaluation.settings import ValidationConfig

    config = build_config(
        ValidationConfig,
        {
            "weights": weights or ["ema", "trained"],
            "clips_per_bucket": clips,
            "num_timesteps": timesteps,
            "caption": caption,
            "seed": seed,
        },
        source="command line",
    )
    measured = validate_checkpoint(
        ValidationRequest(
            run=run_folder,
            samples=tuple(samples),
            config=config,
            checkpoint=checkpoint,
            max_frames=max_frames,
            clips_per_pass=clips_per_pass,
            device=device,
        )
    )
    for line in table_lines(measured):
        print(line)
    say(f"mean squared velocity error of {measured.checkpoint}; shares are of the training density, noise last")
    if output is not None:
        with said_if_unwritten(output):
            write_json(output, measured.facts())
        say(f"written to {output}")
