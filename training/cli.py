"""`reelyard-train`: run a plan, sample from a run, profile micro-batches. `training/train.py` is `reelyard-train run` for launchers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schemas.command import run_command, say
from schemas.errors import ReelyardError, UsageError
from training.launch import launch_local, launched_rank, launched_world_size

if TYPE_CHECKING:
    from training.loop import TrainSummary

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train the video DiT on a plan, and sample from it.",
)


@app.callback()
def _about() -> None:
    """Train the video DiT on a plan, and sample from it."""


@app.command()
def run(
    config: Annotated[Path, typer.Option(help="YAML file of the run; see configs/train/.")],
    plan: Annotated[Path, typer.Option(help="Folder that `reelyard-plan build` wrote.")],
    samples: Annotated[list[Path], typer.Option(help="Folder of a packed set that the plan reads; repeat for more.")],
    output: Annotated[
        Path, typer.Option(help="Folder of the run. If it holds a checkpoint, training continues from it.")
    ],
    override: Annotated[list[str] | None, typer.Option("--set", help="Override a key: optimizer.lr=1e-4.")] = None,
    checkpoint: Annotated[
        int | None, typer.Option(help="Continue from the checkpoint of this step, not the latest.")
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(help="A key (or section, or `plan`) that may differ from the checkpoint's; repeat for more."),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Start this many processes on this machine. Leave it out under torchrun.")
    ] = 1,
) -> None:
    """Train on a plan. Run it again with the same --output to continue after an interruption."""
    if processes > 1 and launched_world_size() > 1:
        raise UsageError(
            f"--processes {processes} was given under a launcher that has started {launched_world_size()} already; leave it out"
        )
    from training.run_setup import RunRequest, prepare_run

    request = RunRequest(
        config=config,
        plan=plan,
        samples=tuple(samples),
        output=output,
        overrides=tuple(override or ()),
        checkpoint=checkpoint,
        allow_change=tuple(allow_change or ()),
    )
    if processes > 1:
        prepare_run(request, world_size=processes)
        raise typer.Exit(launch_local(processes, _as_arguments(request)))
    try:
        prepared = prepare_run(request)
    except ReelyardError as error:
        if launched_rank() == 0:
            raise
        raise typer.Exit(error.exit_code) from error  # every rank finds the same mistake; rank 0 says it
    from training.loop import OtherRankError, train

    try:
        summary = train(prepared)
    except OtherRankError as error:
        raise typer.Exit(error.exit_code) from error
    if launched_rank() == 0:
        _say_summary(summary, output)


@app.command()
def sample(
    run_folder: Annotated[Path, typer.Option("--run", help="Folder of a training run.")],
    prompt: Annotated[str, typer.Option(help="What to show.")],
    output: Annotated[Path, typer.Option(help="MP4 file to write; a contact sheet with suffix .png is put beside it.")],
    checkpoint: Annotated[int | None, typer.Option(help="Step of the checkpoint; the latest by default.")] = None,
    frames: Annotated[int, typer.Option(help="4k + 1: 1, 33, 65, 121.")] = 33,
    height: Annotated[int, typer.Option(help="Multiple of 16.")] = 64,
    width: Annotated[int, typer.Option(help="Multiple of 16.")] = 112,
    steps: Annotated[int, typer.Option(min=1, help="Euler steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 follows the prompt without it.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    shift: Annotated[float | None, typer.Option(help="Of the schedule; by default as in training.")] = None,
    text_encoder_path: Annotated[
        Path | None, typer.Option(help="Folder of the text encoder, if the run's has no entry in the registry.")
    ] = None,
    codec_path: Annotated[Path | None, typer.Option(help="Folder of the codec's weights, likewise.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Sample one video from a run's averaged weights."""
    if output.suffix != ".mp4":
        raise UsageError(f"--output is {output}, expected a file name that ends in .mp4")
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device is {device!r}, expected auto, cpu or cuda")
    from training.sampling import SampleRequest, sample_video
    from training.video import write_contact_sheet, write_mp4

    result = sample_video(
        SampleRequest(
            run=run_folder,
            prompt=prompt,
            frames=frames,
            height=height,
            width=width,
            num_steps=steps,
            guidance=guidance,
            seed=seed,
            checkpoint=checkpoint,
            shift=shift,
            text_encoder_path=text_encoder_path,
            codec_path=codec_path,
            device=device,
        ),
        on_step=lambda done, total: say(f"sampling: {done} of {total} steps") if done in (1, total) else None,
    )
    for note in result.notes:
        say(f"note: {note}")
    encoder = write_mp4(output, result.frames_THWC, result.fps)
    sheet = output.with_suffix(".png")
    write_contact_sheet(sheet, result.frames_THWC)
    say(
        f"{output}: {frames} frames of {width}x{height} at {result.fps:g} fps ({encoder}), from {result.checkpoint}\n"
        f"{sheet}: contact sheet"
    )


@app.command()
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
    of_sets, width = set_facts(samples or [])
    request = ProfileRequest(
        config=train_config,
        output=output,
        buckets=of_sets if buckets is None else parse_buckets(buckets),
        batches=parse_batches(batches),
        text_tokens=text_tokens,
        teacher_width=width if teacher_width is None else teacher_width,
        repeats=repeats,
        max_seconds_per_point=max_seconds_per_point,
    )
    table = measure(request)
    for line in summary_lines(table, train_config):
        print(line)
    say(f"cost table written to {output}; plan with it: reelyard-plan build --cost-table {output} ...")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return run_command(app, arguments)


def _as_arguments(request: object) -> list[str]:
    """The request as arguments of `training/train.py`."""
    from training.run_setup import RunRequest

    assert isinstance(request, RunRequest)
    arguments = ["--config", request.config, "--plan", request.plan, "--output", request.output]
    arguments += [part for folder in request.samples for part in ("--samples", folder)]
    arguments += [part for text in request.overrides for part in ("--set", text)]
    arguments += [part for key in request.allow_change for part in ("--allow-change", key)]
    arguments += [] if request.checkpoint is None else ["--checkpoint", request.checkpoint]
    return [str(argument) for argument in arguments]


def _say_summary(summary: TrainSummary, output: Path) -> None:
    done = summary.next_step - summary.first_step
    if done == 0:
        say(f"nothing to do: {output} is at step {summary.next_step} of {summary.stop_step}")
        return
    say(
        f"{done} steps done, loss {summary.first_loss:.4f} to {summary.last_loss:.4f}"
        + (
            f", {summary.replaced_clips} damaged clips replaced (see {output / 'ledger'})"
            if summary.replaced_clips
            else ""
        )
    )
    say(f"checkpoint: {summary.checkpoint}\nmetrics: {output / 'metrics.jsonl'}")
    if summary.interrupted:
        say(
            f"stopped by SIGTERM after step {summary.next_step} of {summary.stop_step}: resumable, run the same command again"
        )
    else:
        say(f"sample from it: reelyard-train sample --run {output} --prompt TEXT --output out.mp4")
