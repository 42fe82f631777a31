"""`reelyard-curate`: run the phases, decide again, write the report again, and look after model weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from curation.config import load_curate_config
from curation.pipeline import PHASES
from schemas.command import run_command, say
from schemas.errors import UsageError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Raw video to tables and shards."
)
models_app = typer.Typer(no_args_is_help=True, help="Weights: what there is, what is here, what its licence says.")
app.add_typer(models_app, name="models")

Config = Annotated[Path, typer.Option("--config", help="YAML file of the run.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value over the file; several times.")]
Names = Annotated[
    list[str] | None, typer.Argument(help="Names as `models list` prints them; none: what the defaults need.")
]
CacheDir = Annotated[Path | None, typer.Option("--cache-dir", help="Model cache folder; else the user's own.")]


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check what the run needs, and stop.")] = False,
    phase: Annotated[str | None, typer.Option("--phase", help=f"Only this phase: {', '.join(PHASES)}.")] = None,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help="Try units again that an earlier run gave up.")
    ] = False,
) -> None:
    """Run every phase in order (or one), leaving out what is committed."""
    from curation.command import curate

    if phase is not None and phase not in PHASES:
        raise UsageError(f"--phase {phase!r} is unknown; expected one of {', '.join(PHASES)}")
    settings = load_curate_config(config, overrides or [])
    curate(settings, phases=PHASES if phase is None else (phase,), dry_run=dry_run, retry_quarantined=retry_quarantined)


@app.command()
def decide(
    config: Config,
    overrides: Overrides = None,
    clip: Annotated[
        str | None,
        typer.Option(
            "--explain", help="Only tell the whole story of a clip (its id, or the start of it) or of a source."
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--what-if", help="Only tell how the funnel would change with levels.144p.min_motion=0.2; several times."
        ),
    ] = None,
) -> None:
    """Decide again from the tables on disk, after a changed threshold; no video is touched.

    With --explain or --what-if nothing is written.
    """
    from curation.command import curate, explain_clip, tell_what_if
    from curation.what_if import changed_config

    settings = load_curate_config(config, overrides or [])
    if clip is not None:
        print(explain_clip(settings, clip), end="")
    if changes:
        print(tell_what_if(settings, changed_config(config, overrides or [], changes)), end="")
    if clip is None and not changes:
        curate(settings, phases=("decide", "report"))


@app.command()
def report(config: Config, overrides: Overrides = None) -> None:
    """Write the funnel and the contact sheet again from the tables on disk."""
    from curation.command import curate

    curate(load_curate_config(config, overrides or []), phases=("report",))


@app.command()
def status(
    output: Annotated[Path | None, typer.Argument(help="Output folder of the run; or give --config.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of the run.")] = None,
    overrides: Overrides = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again until the command ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
) -> None:
    """How far the last command on an output is: units, rates, busy shares, queues, the estimated end; also after its end."""
    from curation.places import status_folder
    from curation.status_view import show_status

    if (output is None) == (config is None):
        raise UsageError("give the output folder of the run, or --config of it, and not both")
    folder = output if config is None else status_folder(load_curate_config(config, overrides or []))
    assert folder is not None
    show_status(folder, watch=watch, as_json=as_json)


@models_app.command("list")
def list_models(cache_dir: CacheDir = None) -> None:
    """Every model: purpose, licences, whether it is in the cache."""
    from encoders.registry import Registry

    registry = Registry(cache_dir=cache_dir)
    print(f"cache: {registry.cache_dir}")
    for entry in registry.entries.values():
        if entry.name.startswith("media."):
            continue
        states = {status.state for status in registry.verify(entry.name)}
        state = "here" if states <= {"ok", "unpinned"} else "damaged" if "damaged" in states else "not here"
        print(f"{entry.name:28} {state:9} {'open' if entry.open else 'needs --accept'}")
        if not entry.pinned:
            print(f"{'':28} not pinned: first download is recorded")
        print(f"{'':28} {entry.purpose}\n{'':28} code: {entry.licence_code}; weights: {entry.licence_weights}")


@models_app.command()
def pull(
    names: Names = None,
    accept: Annotated[bool, typer.Option("--accept", help="Accept licences that are not open ones.")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Fetch weights, check their sha256, show their licences."""
    from encoders.registry import Registry

    registry = Registry(cache_dir=cache_dir)
    wanted = names or _default_names()
    for name in wanted:
        entry = registry.entry(name)
        say(f"{name}: {entry.purpose}\n  code: {entry.licence_code}\n  weights: {entry.licence_weights}")
        if entry.notes:
            say(f"  {entry.notes}")
    paths = registry.fetch_many(wanted, accept_licence=accept)
    for name, path in paths.items():
        print(f"{name} {path}")


@models_app.command()
def verify(names: Names = None, cache_dir: CacheDir = None) -> None:
    """Compare the sha256 of what is in the cache with the registry's; exit code 1 when something is missing or damaged."""
    from encoders.registry import Registry

    registry = Registry(cache_dir=cache_dir)
    bad = 0
    for name in names or _default_names():
        for status in registry.verify(name):
            bad += status.state in ("missing", "damaged")
            print(f"{name} {status.name} {status.state} {status.sha256 or '-'}")
    if bad:
        say(f"{bad} files are missing or damaged; run `reelyard-curate models pull`")
        raise typer.Exit(1)


def _default_names() -> list[str]:
    """What a run with default settings needs."""
    from curation.config import CurateConfig
    from curation.preflight import needed_models

    return needed_models(CurateConfig(output=".", sources=(".",)), PHASES)  # type: ignore[arg-type]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 failed, 2 usage."""
    return run_command(app, arguments)
