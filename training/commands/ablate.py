"""`reelyard-train ablate`: a base and its variants on the same small data, one after another, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schemas.command import say
from schemas.errors import PreflightError, UsageError

if TYPE_CHECKING:
    from training.ablations.suite import Row

__all__ = ["ablate"]


def ablate(
    config: Annotated[Path, typer.Option(help="YAML file of base and variants; see configs/ablations.yaml.")],
    plan: Annotated[Path, typer.Option(help="Folder that `reelyard-plan build` wrote.")],
    samples: Annotated[list[Path], typer.Option(help="Folder of a packed set that the plan reads; repeat for more.")],
    output: Annotated[Path, typer.Option(help="Folder for runs, table and page. Run again to go on where it was.")],
    validation: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a packed set that is not trained on, for the validation loss; repeat for more."),
    ] = None,
    only: Annotated[str, typer.Option(help="Variants, separated by commas; what they need and the base run too.")] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the base; by default as in the file.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of the base; by default as in the file.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PLAN,SET: data of the file that was made by hand, rather than by reelyard-plan."),
    ] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="Override a key: base.optimizer.lr=1e-3.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and all that would end one, and stop.")
    ] = False,
) -> None:
    """Train base and variants one after another, and compare them. Run it again to continue after an interruption."""
    from schemas.files import write_bytes
    from training.ablations.config import chosen_variants, read_ablations
    from training.ablations.data import Data, parse_data
    from training.ablations.page import render_ablations
    from training.ablations.preflight import all_problems, shared_problems
    from training.ablations.runs import StoppedError
    from training.ablations.suite import SuiteRequest, check_steps, run_suite
    from training.ablations.table import table_lines

    counts = [f"{key}={value}" for key, value in (("steps", steps), ("seeds", seeds)) if value is not None]
    ablations = read_ablations(config, (*(override or ()), *counts))
    variants = chosen_variants(ablations, only)
    made = parse_data(tuple(data or ()))
    unknown = sorted(made.keys() - ablations.data.keys())
    if unknown:
        raise UsageError(f"--data names {', '.join(unknown)}, expected some of {', '.join(ablations.data) or 'none'}")
    request = SuiteRequest(
        config=ablations,
        variants=variants,
        data=Data(plan=plan, samples=tuple(samples)),
        other_data=made,
        validation=tuple(validation or ()),
        output=output,
    )
    if dry_run:
        print(f"base: {ablations.steps} steps, {ablations.seeds} seeds")
        for variant in variants:
            print(f"{variant.name} ({variant.group}, against {variant.against}): {variant.question}")
        _refuse(all_problems(request))
        return
    check_steps(request)
    _refuse(shared_problems(request))
    total = ablations.seeds + len(variants)
    done = 0

    def on_row(row: Row, was_done: bool) -> None:
        nonlocal done
        done += 1
        words = f"failed: {row.reason}" if row.result is None else f"flow loss {row.result.final_flow_loss:.4f}"
        say(f"{done} of {total}: {row.name}: {words}{' (was done)' if was_done else ''}")

    try:
        table = run_suite(request, on_row=on_row)
    except StoppedError as error:
        say(f"{error}, {done} of {total} runs are done: resumable, run the same command again")
        return
    for line in table_lines(table):
        print(line)
    page = output / "ablations.html"
    subtitle = f"{ablations.steps} steps of {plan.name}, {ablations.seeds} seeds of the base; {config.name}"
    write_bytes(page, render_ablations(table, title="Ablations", subtitle=subtitle).encode())
    failed = sum(row.result is None for row in table.rows)
    say(
        f"{page}: table and curves; {output / 'table.json'}: the same as numbers"
        + (f"; {failed} runs failed and are tried again by the same command" if failed else "")
    )
    if failed:
        raise typer.Exit(1)


def _refuse(problems: list[str]) -> None:
    """PreflightError that lists all problems, if there is any."""
    if problems:
        listed = "\n  ".join(problems)
        raise PreflightError(
            f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'} before any run:\n  {listed}"
        )
