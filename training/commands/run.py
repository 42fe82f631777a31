"""`reelyard-train run`: train on a plan; `training/train.py` is the same for launchers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schemas.command import say
from schemas.errors import ReelyardError, UsageError
from training.launch import launch_local, launched_rank, launched_world_size

if TYPE_CHECKING:
    from training.loop import TrainSummary

__all__ = ["run"]


def run(
    config: Annotated[Path, typer.Option(help="YAML file of the run; see configs/train/.")],
    plan: Annotated[Path, typer.Option(help="Folder that `reelyard-plan build` wrote.")],
    samples: Annotated[
        list[str],
        typer.Option(help="Folder or URL (s3://bucket/set) of a packed set that the plan reads; repeat for more."),
    ],
    output: Annotated[
        Path, typer.Option(help="Folder of the run. If it holds a checkpoint, training continues from it.")
    ],
    override: Annotated[list[str] | None, typer.Option("--set", help="Override a key: optimizer.lr=1e-4.")] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(help="Weights to start from: the folder of a run, of one checkpoint, or of imported weights."),
    ] = None,
    checkpoint: Annotated[
        int | None, typer.Option(help="Continue from the checkpoint of this step, not the latest.")
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(help="A key (or section, or `plan`) that may differ from the checkpoint's; repeat for more."),
    ] = None,
    teacher_path: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH of the weights of a teacher that runs in training (repa.source=online)."),
    ] = None,
    validation: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of a packed set that is not trained on, for the section `validation`; repeat for more."
        ),
    ] = None,
    text_encoder_path: Annotated[
        Path | None,
        typer.Option(help="Folder of the set's text encoder, for `evaluation`, if it has no entry in the registry."),
    ] = None,
    codec_path: Annotated[Path | None, typer.Option(help="Folder of the weights of the set's codec, likewise.")] = None,
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
    from training.set_folders import place_of
    from training.teachers import parse_teacher_paths

    request = RunRequest(
        config=config,
        plan=plan,
        samples=tuple(map(place_of, samples)),
        output=output,
        overrides=tuple(override or ()),
        init_from=init_from,
        checkpoint=checkpoint,
        allow_change=tuple(allow_change or ()),
        teacher_paths=parse_teacher_paths(teacher_path or ()),
        validation_sets=tuple(validation or ()),
        text_encoder_path=text_encoder_path,
        codec_path=codec_path,
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


def _as_arguments(request: object) -> list[str]:
    """The request as arguments of `training/train.py`."""
    from training.run_setup import RunRequest

    assert isinstance(request, RunRequest)
    arguments = ["--config", request.config, "--plan", request.plan, "--output", request.output]
    arguments += [part for folder in request.samples for part in ("--samples", folder)]
    arguments += [part for text in request.overrides for part in ("--set", text)]
    arguments += [part for key in request.allow_change for part in ("--allow-change", key)]
    arguments += [] if request.init_from is None else ["--init-from", request.init_from]
    arguments += [part for name, path in request.teacher_paths.items() for part in ("--teacher-path", f"{name}={path}")]
    arguments += [] if request.checkpoint is None else ["--checkpoint", request.checkpoint]
    arguments += [part for folder in request.validation_sets for part in ("--validation", folder)]
    arguments += [] if request.text_encoder_path is None else ["--text-encoder-path", request.text_encoder_path]
    arguments += [] if request.codec_path is None else ["--codec-path", request.codec_path]
    return [str(argument) for argument in arguments]


def _say_summary(summary: TrainSummary, output: Path) -> None:
    done = summary.next_step - summary.first_step
    if done == 0 and summary.interrupted:
        say(
            f"stopped by SIGTERM before the first step: run the same command again; {output} is at step {summary.next_step}"
        )
        return
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
