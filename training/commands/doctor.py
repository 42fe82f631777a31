"""`reelyard-train doctor`: check everything that can be checked before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.command import say
from training.control.launch import launched_world_size

__all__ = ["doctor"]


def doctor(
    config: Annotated[Path, typer.Option(help="YAML file of the run; see configs/train/.")],
    plan: Annotated[Path, typer.Option(help="Folder that `reelyard-plan build` wrote.")],
    samples: Annotated[
        list[str], typer.Option(help="Folder or URL of a packed set that the plan reads; repeat for more.")
    ],
    output: Annotated[Path, typer.Option(help="Folder of the run; it may hold checkpoints, nothing in it is changed.")],
    override: Annotated[list[str] | None, typer.Option("--set", help="Override a key: optimizer.lr=1e-4.")] = None,
    init_from: Annotated[Path | None, typer.Option(help="As for `run`.")] = None,
    checkpoint: Annotated[int | None, typer.Option(help="As for `run`.")] = None,
    allow_change: Annotated[list[str] | None, typer.Option(help="As for `run`.")] = None,
    teacher_path: Annotated[list[str] | None, typer.Option(help="As for `run`.")] = None,
    text_encoder_path: Annotated[Path | None, typer.Option(help="As for `run`.")] = None,
    codec_path: Annotated[Path | None, typer.Option(help="As for `run`.")] = None,
    validation: Annotated[list[Path] | None, typer.Option(help="As for `run`.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes of the run.")] = None,
    deep: Annotated[bool, typer.Option(help="Read every member of every sample and check its crc32.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the findings here as well.")] = None,
) -> None:
    """Check configuration, plan, sets, devices, memory and disk before a run; exit code 1 when something would stop it."""
    from training.doctor.examination import examine, show, summary, write_findings
    from training.doctor.request_checks import Patient
    from training.loading.set_folders import place_of
    from training.run_setup import RunRequest
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
        text_encoder_path=text_encoder_path,
        codec_path=codec_path,
        validation_sets=tuple(validation or ()),
    )
    findings = examine(Patient(request, processes or launched_world_size(), deep))
    show(findings)
    say(summary(findings))
    if json_file is not None:
        write_findings(json_file, findings)
    if any(one.status == "fail" for one in findings):
        raise typer.Exit(1)
