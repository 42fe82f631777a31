"""`reelyard-train profile`: seconds and memory of micro-batches, for the planner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.command import say

__all__ = ["profile"]


def profile(
    config: Annotated[Path, typer.Option(help="YAML file of the run; see configs/train/.")],
    output: Annotated[Path, typer.Option(help="JSON file to write, for `reelyard-plan build --cost-table`.")],
    buckets: Annotated[
        str | None, typer.Option(help="FRAMESxHEIGHTxWIDTH, separated by commas. Otherwise all buckets of --samples.")
    ] = None,
    samples: Annotated[
        list[Path] | None, typer.Option(help="Folder of a packed set whose buckets are measured; repeat for more.")
    ] = None,
    batches: Annotated[str, typer.Option(help="Clips of a micro-batch, separated by commas.")] = "1,2,4,8,16,32",
    text_tokens: Annotated[int, typer.Option(min=1, help="Text tokens of every clip.")] = 256,
    image_tokens: Annotated[
        int | None, typer.Option(min=1, help="Image tokens of every video, where the configuration gives them.")
    ] = None,
    teacher_width: Annotated[
        int | None, typer.Option(help="Channels of the teacher's features, where no set says it.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each micro-batch; their median counts.")] = 5,
    max_seconds_per_point: Annotated[
        float, typer.Option(help="No more repeats, and no larger batch of the bucket, after this long.")
    ] = 60.0,
    override: Annotated[list[str] | None, typer.Option("--set", help="Override a key: tread=null.")] = None,
) -> None:
    """Measure seconds and memory of micro-batches on this device, for the planner's cost model."""
    from schemas.config import load_config
    from training.config import TrainConfig
    from training.profiling import ProfileRequest, parse_batches, parse_buckets, set_facts, summary_lines
    from training.profiling import profile as measure

    train_config = load_config(TrainConfig, config, override or [])
    of_sets, widths = set_facts(samples or [])
    request = ProfileRequest(
        config=train_config,
        output=output,
        buckets=of_sets if buckets is None else parse_buckets(buckets),
        batches=parse_batches(batches),
        text_tokens=text_tokens,
        image_tokens=image_tokens,
        teacher_widths=widths if teacher_width is None else {"given": teacher_width},
        repeats=repeats,
        max_seconds_per_point=max_seconds_per_point,
    )
    table = measure(request)
    for line in summary_lines(table, train_config):
        print(line)
    say(f"cost table written to {output}; plan with it: reelyard-plan build --cost-table {output} ...")
