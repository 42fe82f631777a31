"""`reelyard-train plan-curriculum`: does the chain of stages fit together, and is the data for it there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.command import say

__all__ = ["plan_curriculum"]


def plan_curriculum(
    stages: Annotated[Path, typer.Option(help="Folder with the stage files, stage*.yaml.")] = Path("configs/train"),
    samples: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a packed set; repeat for more. Without, the data is not looked at."),
    ] = None,
    write_plans: Annotated[
        Path | None, typer.Option(help="Write the planner's configuration of each part of each stage into this folder.")
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(help="Look at this stage alone, by its name or number; repeat for more. Without, at all of them."),
    ] = None,
    details: Annotated[
        bool, typer.Option("--details", help="Print each stage in full: parts, buckets, modules, what is the report's.")
    ] = False,
    text_tokens: Annotated[int, typer.Option(min=1, help="Text tokens of a clip, for the FLOPs.")] = 256,
    table: Annotated[bool, typer.Option("--table", help="Print the table of the stages as Markdown.")] = False,
) -> None:
    """Check the curriculum: every module accounted for between stages, every set present. Lists all problems and exits with 1 if there are any."""
    from schemas.errors import PreflightError
    from training.curriculum.chain import check_chain, choose_stages, read_stages
    from training.curriculum.stage_data import open_sets
    from training.curriculum.stage_plan import write_plan_files
    from training.curriculum.stage_table import short_table, stage_lines, stage_table

    chain = read_stages(stages)
    only = None if stage is None else choose_stages(chain, stage)
    check_chain(chain, None if samples is None else open_sets(samples), only=only)
    write = stage_table if table else stage_lines if details else short_table
    for line in write(chain, text_tokens=text_tokens):
        print(line)
    for note in chain.notes:
        say(f"note: {note}")
    if chain.problems:
        count = len(chain.problems)
        listed = "\n- ".join(chain.problems)
        raise PreflightError(f"the curriculum in {stages} has {count} problem{'s' if count > 1 else ''}:\n- {listed}")
    if write_plans is not None:
        paths = [
            path
            for file in chain.files
            for path in write_plan_files(file.config, file.stage, write_plans, text_tokens=text_tokens)
        ]
        say(f"{len(paths)} planner files written to {write_plans}")
    data = "the data was not looked at (--samples)" if samples is None else f"{len(samples)} sets looked at"
    say(
        f"{len(chain.files)} stage{'' if len(chain.files) == 1 else 's'}: every module is accounted for; {data}; --details tells more"
    )
