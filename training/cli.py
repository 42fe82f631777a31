"""`reelyard-train`: the list of its commands, each in a file of `training/commands`."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from schemas.command import run_command
from training.commands.ablate import ablate
from training.commands.doctor import doctor
from training.commands.dump import dump
from training.commands.evaluate import evaluate
from training.commands.export import export
from training.commands.import_weights import import_weights
from training.commands.plan_curriculum import plan_curriculum
from training.commands.profile_batches import profile
from training.commands.report import report
from training.commands.run import run
from training.commands.sample import sample
from training.commands.whatwas import whatwas

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train the video DiT on a plan, and sample from it.",
)

for command in (run, doctor, report, whatwas, dump, plan_curriculum, sample, profile, export, ablate):
    app.command()(command)
app.command("import")(import_weights)
app.add_typer(evaluate, name="evaluate")


@app.callback()
def _about() -> None:
    """Train the video DiT on a plan, and sample from it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return run_command(app, arguments)
