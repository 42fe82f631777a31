"""`reelyard-train whatwas`: what a run's steps were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from schemas.command import say
from schemas.errors import UsageError

__all__ = ["whatwas"]


def whatwas(
    run_folder: Annotated[Path, typer.Option("--run", help="Folder of a training run.")],
    step: Annotated[
        list[int] | None, typer.Option(help="A step, 0-based as in metrics.jsonl; repeat for more.")
    ] = None,
    spikes: Annotated[
        int | None, typer.Option(min=1, help="The so many steps that stand out most among their neighbours.")
    ] = None,
    by: Annotated[str, typer.Option(help="What stands out with --spikes: loss or grad_norm.")] = "loss",
    clip: Annotated[str | None, typer.Option(help="A clip id: in which steps it was, with their losses.")] = None,
    plan: Annotated[
        list[Path] | None,
        typer.Option(help="Where the run's plan is now, if it moved; repeat for a run of several plans."),
    ] = None,
    samples: Annotated[
        list[str] | None,
        typer.Option(help="Folder or URL where the plan's sets are now, if they moved; repeat for more."),
    ] = None,
    losses: Annotated[
        bool,
        typer.Option(
            "--losses", help="Compute each clip's loss anew, by the checkpoint before the step (forward passes of it)."
        ),
    ] = False,
    checkpoint: Annotated[
        int | None, typer.Option(help="With --losses: by the checkpoint of this step instead.")
    ] = None,
    pictures: Annotated[
        str,
        typer.Option(help="In the page: strip (first, middle and last frame), first (cheap for large codecs) or none."),
    ] = "strip",
    codec_path: Annotated[
        Path | None, typer.Option(help="Folder of the weights of the sets' codec, if it has no entry in the registry.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file too.")] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write a page with pictures to this file too.")
    ] = None,
) -> None:
    """What was in a step: clips, captions, draws, pictures. Or the steps that stand out, or the steps of a clip."""
    asked = [name for name, value in (("--step", step), ("--spikes", spikes), ("--clip", clip)) if value]
    if len(asked) != 1:
        raise UsageError(f"asked for: {', '.join(asked) or 'nothing'}; give one of --step N, --spikes K and --clip ID")
    if by not in ("loss", "grad_norm"):
        raise UsageError(f"--by is {by!r}, expected loss or grad_norm")
    if pictures not in ("strip", "first", "none"):
        raise UsageError(f"--pictures is {pictures!r}, expected strip, first or none")
    if codec_path is not None and html_file is None:
        raise UsageError("--codec-path is for the pictures of the page; add --html FILE, or leave it out")
    if checkpoint is not None and not losses:
        raise UsageError(f"--checkpoint {checkpoint} says whose weights give the losses; add --losses, or leave it out")
    if losses and clip:
        raise UsageError("--losses is for the clips of steps; ask for --step or --spikes, or leave it out")
    from training.loading.set_folders import place_of
    from training.whatwas.answer import clip_answer, priced, spikes_answer, steps_answer
    from training.whatwas.listing import print_answer
    from training.whatwas.run_folder import open_run_folder
    from training.whatwas.writing import write_answer

    show = cast(Literal["strip", "first", "none"], pictures)
    with open_run_folder(run_folder, plan or (), [place_of(place) for place in samples or ()]) as run:
        if step:
            answer = steps_answer(run, step)
        elif spikes is not None:
            answer = spikes_answer(run, spikes, "loss" if by == "loss" else "grad_norm")
        else:
            answer = clip_answer(run, clip or "")
        if losses:
            answer = priced(run, answer, checkpoint)
        print_answer(answer)
        said = write_answer(run, answer, json_file=json_file, html_file=html_file, show=show, codec_path=codec_path)
    for line in said:
        say(line)
