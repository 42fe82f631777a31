"""`reelyard-train evaluate`: what a trained network is worth, a command for each question, each in a file `evaluate_*.py`."""

from __future__ import annotations

import typer

from training.commands.evaluate_attention import attention
from training.commands.evaluate_lengths import lengths
from training.commands.evaluate_validation import validation
from training.commands.evaluate_vbench import vbench

__all__ = ["evaluate"]

evaluate = typer.Typer(no_args_is_help=True, help="Measure what a trained network is worth.")

for command in (validation, lengths, attention, vbench):
    evaluate.command()(command)


@evaluate.callback()
def _about() -> None:
    """Measure what a trained network is worth."""
