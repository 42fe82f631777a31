"""`reelyard-train dump`: a step whose loss or gradient was not finite, looked at and run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.command import say

__all__ = ["dump"]


def dump(
    folder: Annotated[Path, typer.Argument(help="Folder RUN/dumps/step-... that the run wrote.")],
    again: Annotated[
        bool,
        typer.Option(
            "--replay", help="Run the stored micro-batches again with the weights as they were before the step."
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; for --replay.")] = "auto",
) -> None:
    """Say which clips a step had whose loss or gradient was not finite, and run it again."""
    from training.control.nonfinite_replay import read_dump, replay, words_of_dump

    print(words_of_dump(read_dump(folder), folder))
    if again:
        say("running the stored micro-batches again")
        for one in replay(folder, device):
            print(one.line())
