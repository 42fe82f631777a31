"""`reelyard-train report`: everything that a run wrote down, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.command import say

__all__ = ["report"]


def report(
    run_folder: Annotated[Path, typer.Option("--run", help="Folder of a training run, also one that is going on.")],
    output: Annotated[Path | None, typer.Option(help="HTML file; by default report.html in the run's folder.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Folder of another run, drawn and counted beside it.")] = None,
) -> None:
    """Losses, waits, times by bucket, samples, checkpoints and settings of a run as one self-contained HTML page."""
    from schemas.files import said_if_unwritten, write_bytes
    from training.report.page import render_report
    from training.report.run_data import read_run

    target = run_folder / "report.html" if output is None else output
    run = read_run(run_folder)
    html = render_report(run, target, None if compare is None else read_run(compare))
    with said_if_unwritten(target):
        write_bytes(target, html.encode())
    say(f"{len(run.metrics):,} steps, {run.state()}: {target}")
