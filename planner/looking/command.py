"""Commands that look at plans which exist: `simulate`, `diff`, `explain`, `export`. `planner.cli` adds them to `reelyard-plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from schemas.command import say

__all__ = ["add_commands"]

PlanArgument = Annotated[Path, typer.Argument(help="A plan folder.")]
OptionalSamples = Annotated[
    list[Path] | None,
    typer.Option("--samples", help="The sets of the plan (folder, or samples.parquet), in its order; may be repeated."),
]
RanksOption = Annotated[
    int | None, typer.Option("--ranks", help="World size R; must divide the lanes. Default: one rank per lane.")
]


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command()(simulate)
    app.command("diff")(diff)
    app.command()(explain)
    app.command()(export)


def simulate(
    plan: PlanArgument,
    bandwidth_mb_per_s: Annotated[
        float, typer.Option("--bandwidth-mb-per-s", "--bandwidth-mbps", help="10^6 BYTES per second of each rank.")
    ],
    open_latency_ms: Annotated[float, typer.Option("--open-latency-ms", help="Before a shard's first byte.")] = 0.0,
    request_latency_ms: Annotated[
        float, typer.Option("--request-latency-ms", help="Before the first byte of every read.")
    ] = 0.0,
    ranks: RanksOption = None,
    sync: Annotated[
        Literal["micro", "step"] | None, typer.Option("--sync", help="What ranks wait for. Default: as the plan says.")
    ] = None,
    read_ahead_steps: Annotated[
        int | None,
        typer.Option("--read-ahead-steps", help="Most steps read ahead. Default: 1 unless --prefetch-mb is given."),
    ] = None,
    prefetch_mb: Annotated[
        float | None, typer.Option("--prefetch-mb", help="Most bytes (10^6) of later steps that a rank holds.")
    ] = None,
    samples: OptionalSamples = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write totals and arrays per step here.")] = None,
) -> None:
    """The run before it is run: step times, idle share, stalls, opens and memory, for a bandwidth and a latency."""
    from planner.looking.read_events import Storage
    from planner.looking.simulate import simulate_plan, simulation_lines, simulation_values
    from planner.looking.wording import folded
    from schemas.files import write_json

    if read_ahead_steps is None and prefetch_mb is None:
        read_ahead_steps = 1
    storage = Storage(
        bandwidth_mb_per_s=bandwidth_mb_per_s,
        open_latency_ms=open_latency_ms,
        request_latency_ms=request_latency_ms,
        prefetch_mb=prefetch_mb,
        read_ahead_steps=read_ahead_steps,
    )
    simulation = simulate_plan(plan, samples or [], storage, ranks=ranks, sync=sync)
    for line in folded(simulation_lines(simulation)):
        print(line)
    if json_path is not None:
        write_json(json_path, simulation_values(simulation))
        say(f"totals and arrays per step written to {json_path}")


def diff(
    plan: Annotated[Path, typer.Argument(help="Plan A.")], other: Annotated[Path, typer.Argument(help="Plan B.")]
) -> None:
    """How two plans differ: samples, settings, metrics, steps, clips, reads. Exits with 0 if they are the same, with 1 if not."""
    from planner.looking.difference import compare_plans, difference_lines
    from planner.looking.wording import folded

    difference = compare_plans(plan, other)
    for line in folded(difference_lines(difference)):
        print(line)
    if not difference.equal:
        raise typer.Exit(1)


def explain(plan: PlanArgument, ranks: RanksOption = None, samples: OptionalSamples = None) -> None:
    """What limits a plan (clips left over, idle time, buffer, mixing) and what a change of a setting would give, in numbers."""
    from planner.explain import explain_lines
    from planner.looking.wording import folded

    for line in folded(explain_lines(plan, samples or [], ranks=ranks)):
        print(line)


def export(
    plan: PlanArgument,
    npz: Annotated[
        Path | None, typer.Option("--npz", help="New folder for one rank{r}.npz per rank; needs --samples.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="New file: the shards and byte ranges of each rank, in reading order.")
    ] = None,
    ranks: RanksOption = None,
    samples: OptionalSamples = None,
) -> None:
    """The plan for other programs: per-rank NumPy archives as the paper's, or the plain shard list of each rank."""
    from planner.looking.export import export_json, export_npz
    from schemas.errors import UsageError

    if npz is None and json_path is None:
        raise UsageError("nothing to write; give --npz FOLDER, --json FILE, or both")
    if npz is not None:
        for path in export_npz(plan, samples or [], npz, ranks):
            print(path)
    if json_path is not None:
        print(export_json(plan, json_path, ranks))
