"""`reelyard-train run`: train on a plan; `training/train.py` is the same for launchers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas.command import say
from schemas.errors import UsageError
from training.control.job_paths import refuse_relative_paths
from training.control.launch import launch_local, launched_rank, launched_world_size
from training.control.rank_errors import restarts_so_far, said_on_each_machine, tells_launcher
from training.control.restarts import refuse_repeated_step
from training.control.spare_ranks import waited_as_spare
from training.control.stop_signals import StopSignals, signals_noted

if TYPE_CHECKING:
    from training.loop import TrainSummary
    from training.run_setup import RunRequest

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
    max_restarts: Annotated[
        int,
        typer.Option(min=0, help="After a crash start all processes again, from the last checkpoint, this many times."),
    ] = 0,
    on_ray: Annotated[
        bool,
        typer.Option("--ray", help="Start the processes on the Ray cluster of RAY_ADDRESS, not on this machine."),
    ] = False,
    min_processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --ray: go on with fewer processes, down to this, while there is room for no more."
        ),
    ] = None,
    cpus_per_process: Annotated[
        float | None, typer.Option(min=0.0, help="With --ray: CPUs that each reserves; by default 1.")
    ] = None,
    gpus_per_process: Annotated[
        float | None,
        typer.Option(min=0.0, help="With --ray: GPUs that each reserves; by default 1 if the cluster has GPUs."),
    ] = None,
    elastic: Annotated[
        bool,
        typer.Option(
            help="Under torchrun: if the number of ranks does not divide the plan's lanes, use as many as do; the others wait."
        ),
    ] = False,
) -> None:
    """Train on a plan. Run it again with the same --output to continue after an interruption."""
    from training.loading.set_folders import place_of

    with signals_noted() as signals:
        starts_others = processes > 1 or max_restarts > 0 or on_ray
        if starts_others:
            _refuse_second_launcher(processes, max_restarts, elastic)
        _refuse_without_ray(on_ray, min_processes, cpus_per_process, gpus_per_process)
        places = tuple(map(place_of, samples))
        local = [place for place in places if isinstance(place, Path)]
        refuse_relative_paths({"--output": [output], "--plan": [plan], "--samples": local})
        request = _request(
            config=config,
            plan=plan,
            samples=places,
            output=output,
            overrides=tuple(override or ()),
            init_from=init_from,
            checkpoint=checkpoint,
            allow_change=tuple(allow_change or ()),
            teacher_paths=teacher_path or (),
            validation_sets=tuple(validation or ()),
            text_encoder_path=text_encoder_path,
            codec_path=codec_path,
        )
        if on_ray:
            resources = (1.0 if cpus_per_process is None else cpus_per_process, gpus_per_process)
            raise typer.Exit(_start_on_ray(request, processes, min_processes or processes, max_restarts, resources))
        if starts_others:
            raise typer.Exit(_start_processes(request, processes, max_restarts, signals))
        if elastic and waited_as_spare(plan):
            return
        _run_rank(request, signals)


def _refuse_second_launcher(processes: int, max_restarts: int, elastic: bool) -> None:
    """UsageError where torchrun, or another launcher, starts the processes already, or is expected to."""
    if "RANK" in os.environ:
        raise UsageError(
            f"--processes {processes} and --max-restarts {max_restarts} were given under a launcher that has started "
            f"{launched_world_size()} processes already; leave them out (torchrun has its own --max-restarts)"
        )
    if elastic:
        raise UsageError(
            "--elastic is for ranks that torchrun starts; leave it out with --processes and --max-restarts, and with --ray give "
            "--min-processes instead"
        )


def _refuse_without_ray(on_ray: bool, least: int | None, cpus: float | None, gpus: float | None) -> None:
    """UsageError for an option that only Ray's launcher reads."""
    given = {"--min-processes": least, "--cpus-per-process": cpus, "--gpus-per-process": gpus}
    for flag, value in given.items():
        if value is not None and not on_ray:
            raise UsageError(
                f"{flag} {value:g} was given without --ray, where nothing reads it; add --ray or leave it out"
            )


def _request(*, teacher_paths: Sequence[str], **values: Any) -> RunRequest:
    from training.run_setup import RunRequest
    from training.teachers import parse_teacher_paths

    return RunRequest(teacher_paths=parse_teacher_paths(teacher_paths), **values)


def _start_processes(request: RunRequest, processes: int, max_restarts: int, signals: StopSignals) -> int:
    """Everything that can be checked is checked here, once; then the processes of this machine."""
    from training.run_setup import prepare_run

    prepare_run(request, world_size=processes)
    if signals:
        say(f"stopped by {signals.name} before the processes were started: resumable, run the same command again")
        return 0
    return launch_local(processes, _as_arguments(request), output=request.output, max_restarts=max_restarts)


def _start_on_ray(
    request: RunRequest, processes: int, least: int, max_restarts: int, resources: tuple[float, float | None]
) -> int:
    """The ranks check everything themselves, on machines that have the devices; rank 0 says what is wrong."""
    from schemas.plan import read_plan_meta
    from training.control.ray_launch import RayRequest, launch_on_ray

    if least > processes:
        raise UsageError(f"--min-processes is {least}, which is more than --processes {processes}; give at most that")
    request = request.with_absolute_paths()
    return launch_on_ray(
        RayRequest(
            lanes=read_plan_meta(request.plan).num_lanes,
            processes=processes,
            min_processes=least,
            cpus_per_process=resources[0],
            gpus_per_process=resources[1],
            arguments=_as_arguments(request),
            output=request.output,
            max_restarts=max_restarts,
        )
    )


def _run_rank(request: RunRequest, signals: StopSignals) -> None:
    from training.run_setup import prepare_run

    with tells_launcher():
        with said_on_each_machine():
            prepared = prepare_run(request)
            if restarts_so_far() and prepared.config.on_nonfinite == "stop":
                settings = prepared.config.model_dump(mode="json")
                refuse_repeated_step(request.output, settings, prepared.meta.plan_hash, prepared.start_step)
        from training.loop import OtherRankError, train

        try:
            summary = train(prepared, signals)
        except OtherRankError as error:
            raise typer.Exit(error.exit_code) from error
    if launched_rank() == 0:
        _say_summary(summary, request.output)


def _as_arguments(request: RunRequest) -> list[str]:
    """The request as arguments of `training/train.py`."""
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
            f"stopped by {summary.stopped_by} before the first step: resumable, run the same command again; "
            f"{output} is at step {summary.next_step}"
        )
        return
    if done == 0:
        say(f"nothing to do: {output} is at step {summary.next_step} of {summary.stop_step}")
        return
    losses = "" if summary.first_loss is None else f", loss {summary.first_loss:.4f} to {summary.last_loss:.4f}"
    skipped = (
        f", {summary.skipped_steps} of them skipped (see {output / 'skipped.jsonl'})" if summary.skipped_steps else ""
    )
    replaced = (
        f", {summary.replaced_clips} damaged clips replaced (see {output / 'ledger'})" if summary.replaced_clips else ""
    )
    say(f"{done} steps done{losses}{skipped}{replaced}")
    say(f"checkpoint: {summary.checkpoint}\nmetrics: {output / 'metrics.jsonl'}")
    if summary.interrupted:
        say(
            f"stopped by {summary.stopped_by} after step {summary.next_step} of {summary.stop_step}: resumable, run the same command again"
        )
    else:
        say(f"sample from it: reelyard-train sample --run {output} --prompt TEXT --output out.mp4")
