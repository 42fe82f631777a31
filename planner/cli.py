"""`reelyard-plan`: build, verify and show plans. Results go to standard output, progress and errors to standard error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.indexing.command import index
from planner.looking.command import add_commands
from schemas.command import run_command, say

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Plan every read of a training run before it starts, and prove the plan.",
)

SamplesOption = Annotated[
    list[Path],
    typer.Option(
        "--samples", help="A set folder (set.json, samples.parquet), or its samples.parquet; may be repeated."
    ),
]
OptionalSamples = Annotated[
    list[Path] | None, typer.Option("--samples", help="The sets of the plan, in its order, to show clip ids.")
]
PlanArgument = Annotated[Path, typer.Argument(help="A plan folder.")]


@app.command()
def build(
    samples: SamplesOption,
    config: Annotated[Path, typer.Option("--config", help="YAML file, for example configs/plan.yaml.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the plan; must not exist yet.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: --set lanes=8, --set cost.preset=tiny.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="The same as --set epochs=N.")] = None,
    scores: Annotated[
        Path | None, typer.Option("--scores", help="A clips.parquet, for rules on scores (config: rules).")
    ] = None,
    cost_table: Annotated[
        Path | None, typer.Option("--cost-table", help="What `reelyard-train profile` measured; else FLOPs are used.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a plan that is at --output.")] = False,
) -> None:
    """Samples to a plan: which lane reads and uses which clip in which step."""
    from planner.commands import build_command

    given = [*(settings or []), *([] if epochs is None else [f"epochs={epochs}"])]
    for line in build_command(
        samples, config, given, output, scores=scores, cost_table=cost_table, overwrite=overwrite
    ):
        print(line)


@app.command()
def replan(
    plan: PlanArgument,
    from_step: Annotated[int, typer.Option("--from-step", help="The first step that was not run.")],
    lanes: Annotated[int, typer.Option("--lanes", min=1, help="Lanes of the new plan; any number.")],
    samples: SamplesOption,
    output: Annotated[Path, typer.Option("--output", help="Folder of the new plan; must not exist yet.")],
    micro_per_step: Annotated[
        int | None,
        typer.Option(
            "--micro-per-step", min=1, help="K of the new plan; by default what keeps the micro-batches of a step."
        ),
    ] = None,
    continues: Annotated[
        list[Path] | None, typer.Option("--continues", help="Plans that PLAN itself continues, oldest first.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of the plan: --set max_buffer_mb=8192.")
    ] = None,
    scores: Annotated[Path | None, typer.Option("--scores", help="As the plan was built with.")] = None,
    cost_table: Annotated[Path | None, typer.Option("--cost-table", help="As for build.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a plan that is at --output.")] = False,
) -> None:
    """Go on with a plan from a step, on another number of lanes; each clip of the epoch once over both parts."""
    from planner.commands import replan_command

    for line in replan_command(
        plan,
        from_step,
        lanes,
        samples,
        settings or [],
        output,
        micro_per_step=micro_per_step,
        continues=continues or [],
        scores=scores,
        cost_table=cost_table,
        overwrite=overwrite,
    ):
        print(line)


@app.command()
def verify(
    plan: PlanArgument,
    samples: SamplesOption,
    scores: Annotated[
        Path | None, typer.Option("--scores", help="The table of scores that the plan was built with, for its rules.")
    ] = None,
    continues: Annotated[
        list[Path] | None,
        typer.Option("--continues", help="The plan that this one continues; repeat it for a chain, oldest first."),
    ] = None,
) -> None:
    """Check every promise of a plan from its files alone; writes certificate.json when all hold, else exits with 1."""
    from planner.verify import RULES, advice, held_line, report_lines, verify_plan, write_certificate

    report = verify_plan(plan, samples, scores=scores, continues=continues or [])
    for line in report_lines(report):
        print(line)
    broken = [rule for rule in report.broken if rule != "samples_hash"]
    if report.other_samples:
        say(
            f"error: plan {plan} was built from other samples than {', '.join(map(str, samples))} "
            f"(its sets: {', '.join(item.name for item in report.meta.sets)}); give the set it was built from"
        )
    if broken:
        say(f"error: plan {plan} breaks {len(broken)} of {len(RULES)} rules: {', '.join(broken)}; {advice(broken)}")
    if not report.ok:
        raise typer.Exit(1)
    say(
        f"plan {report.meta.plan_hash[:12]} holds ({held_line(report)}); certificate in {write_certificate(plan, report)}"
    )


@app.command()
def show(
    plan: PlanArgument,
    step: Annotated[int | None, typer.Option("--step", help="What every lane does in this step.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="Only the lanes of this rank; needs --world.")] = None,
    world: Annotated[int | None, typer.Option("--world", help="Number of ranks; must divide the lanes.")] = None,
    clip: Annotated[
        str | None, typer.Option("--clip", help="When this clip is used: a clip id (with --samples) or SHARD:ORDINAL.")
    ] = None,
    samples: OptionalSamples = None,
) -> None:
    """The plan's summary, one step, or one clip."""
    from planner.looking.show import clip_lines, step_lines, summary_lines
    from schemas.errors import UsageError
    from schemas.plan import read_plan_meta

    if step is not None and clip is not None:
        raise UsageError("--step and --clip ask for two things; give one of them")
    if step is None and (rank is not None or world is not None):
        raise UsageError("--rank and --world narrow down a step; add --step N")
    if step is not None:
        lines = step_lines(plan, step, rank, world, samples or [])
    elif clip is not None:
        lines = clip_lines(plan, clip, samples or [])
    else:
        lines = summary_lines(read_plan_meta(plan))
    for line in lines:
        print(line)


@app.command()
def compare(
    samples: SamplesOption,
    config: Annotated[Path, typer.Option("--config", help="YAML file, for example configs/plan.yaml.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set micro_per_step=8.")] = None,
    lanes: Annotated[
        list[int] | None, typer.Option("--lanes", help="Instead of the configuration's; repeat for one table each.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option("--scores", help="A clips.parquet, for rules on scores (config: rules).")
    ] = None,
    cost_table: Annotated[
        Path | None, typer.Option("--cost-table", help="What `reelyard-train profile` measured; else FLOPs are used.")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write every value to this file too.")] = None,
) -> None:
    """Our plans beside the strategies of other loaders and of the paper, on the same clips, all measured alike."""
    from planner.baselines.compare import compare as compare_strategies
    from planner.baselines.compare import comparison_lines, comparison_values
    from planner.commands import open_corpus
    from planner.pricing.costs import cost_model
    from planner.settings import PlanConfig
    from schemas.config import load_config
    from schemas.cost_table import read_cost_table
    from schemas.files import write_json

    given = settings or []
    first = load_config(PlanConfig, config, given)
    configs = [load_config(PlanConfig, config, [*given, f"lanes={count}"]) for count in lanes or []] or [first]
    costs = cost_model(first, None if cost_table is None else read_cost_table(cost_table))
    corpus = open_corpus(samples, first, scores)
    found = []
    for number, plan_config in enumerate(configs):
        found.append(compare_strategies(corpus, plan_config, costs))
        for line in [""] * (number > 0) + comparison_lines(found[-1]):
            print(line)
    if json_path is not None:
        write_json(json_path, {"comparisons": [comparison_values(item) for item in found]})
        say(f"values written to {json_path}")


@app.command()
def report(
    plan: PlanArgument,
    output: Annotated[Path, typer.Option("--output", help="The HTML file to write.")],
    samples: OptionalSamples = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is at --output.")] = False,
) -> None:
    """A plan as one HTML page: used share, time, lanes, mixing, buffers, reads, ledger; with --samples also buffers over time and domains."""
    from planner.report.page import write_report

    size = write_report(plan, samples or [], output, overwrite=overwrite)
    say(f"report of {plan} written to {output}, {size / 1e6:.1f} MB; open it in a browser, it needs no network")


app.command()(index)
add_commands(app)


def main() -> None:
    """Entry point of the console command."""
    raise SystemExit(run_command(app))
