"""`reelyard-plan index`: its options, and what it prints. Light to import; what it runs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas.command import say
from schemas.errors import UsageError

if TYPE_CHECKING:
    from planner.indexing.indexer import IndexOutcome

__all__ = ["index"]

_MOST_LINES = 5


def index(
    tars: Annotated[
        list[str] | None,
        typer.Argument(
            help="Tars, folders of tars, globs or braces ('a-{000..099}.tar'): paths, s3://, gs://, https://. All of the set."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Folder of the set; an indexed set that is there is brought up to date."),
    ] = None,
    set_name: Annotated[
        str | None, typer.Option("--set-name", help="Name of the set in plans; default: that of the folder.")
    ] = None,
    frames_key: Annotated[
        str | None,
        typer.Option("--frames-key", help="Dotted path in the .json member; default: frames, else num_frames."),
    ] = None,
    height_key: Annotated[str, typer.Option("--height-key", help="Dotted path in the .json member.")] = "height",
    width_key: Annotated[str, typer.Option("--width-key", help="Dotted path in the .json member.")] = "width",
    default_frames: Annotated[
        int | None, typer.Option("--default-frames", help="Frames where nothing else says it; 1 for images.")
    ] = None,
    json_member: Annotated[
        str, typer.Option("--json-member", help="Suffix of the member that holds the keys.")
    ] = "json",
    no_json: Annotated[
        bool, typer.Option("--no-json", help="Read no member for keys; then --npy or --regex tells the size.")
    ] = False,
    npy: Annotated[
        str | None,
        typer.Option("--npy", help="Suffix of the member whose array shape tells the size, for example latent.npy."),
    ] = None,
    npy_axes: Annotated[str, typer.Option("--npy-axes", help="What the axes of that array are.")] = "T C H W",
    frame_stride: Annotated[
        int, typer.Option("--frame-stride", help="Frames per T after the first: frames = stride (T-1) + 1.")
    ] = 4,
    side_stride: Annotated[int, typer.Option("--side-stride", help="Pixels per H and W of that array.")] = 8,
    regex: Annotated[
        str | None,
        typer.Option(
            "--regex", help="With groups (?P<frames>), (?P<height>) and (?P<width>), searched in member paths."
        ),
    ] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            help="COLUMN=PATH in the .json member: domain, source, branch, subject, style, fps, start_us, text_tokens_long, ...",
        ),
    ] = None,
    fps: Annotated[float, typer.Option("--fps", help="Frames per second of the clips.")] = 24.0,
    admission: Annotated[
        list[str] | None, typer.Option("--admission", help="Level that all clips are admitted at; default: all levels.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Tars read at once; default: a core each, or 32 requests.")
    ] = None,
    skip_damaged: Annotated[
        bool,
        typer.Option(
            "--skip-damaged", help="Of damaged tars keep the samples in front of the damage, but for the last."
        ),
    ] = False,
    keys_per_tar: Annotated[
        bool, typer.Option("--keys-per-tar", help="The same key may stand in several tars.")
    ] = False,
    dali: Annotated[
        Path | None, typer.Option("--dali", help="Write DALI's .idx beside the tars of this set, and nothing else.")
    ] = None,
    energon: Annotated[
        Path | None,
        typer.Option(
            "--energon", help="Write Energon's .tar.idx and .nv-meta beside the tars of this set, and nothing else."
        ),
    ] = None,
) -> None:
    """Make a set of tars that somebody else packed, from their headers; or index files for DALI and Energon."""
    if dali or energon:
        if tars or output:
            raise UsageError(
                "--dali and --energon take a set folder and make no set; give the tars and --output in a call of their own"
            )
        _sidecars(dali, energon)
        return
    if output is None:
        raise UsageError("--output is missing: give the folder of the set, for example --output sets/theirs")
    from planner.indexing.indexer import index_set
    from planner.indexing.rules import IndexRules
    from schemas.config import build_config

    values: dict[str, Any] = {
        "set_name": set_name or output.resolve().name,
        "fps": fps,
        "json_member": None if no_json else json_member.lower(),
        "frames_key": frames_key,
        "height_key": height_key,
        "width_key": width_key,
        "default_frames": default_frames,
        "npy_member": npy and npy.lower(),
        "npy_axes": npy_axes,
        "frame_stride": frame_stride,
        "side_stride": side_stride,
        "regex": regex,
        "keys": dict(_pair(text) for text in keys or []),
        **({"admissions": tuple(admission)} if admission else {}),
    }
    rules = build_config(IndexRules, values, source="command line")
    outcome = index_set(
        tars or [], output, rules, workers=workers, skip_damaged=skip_damaged, keys_per_tar=keys_per_tar
    )
    for line in _summary(outcome):
        print(line)
    say(
        f"set written to {output}; what was left out is in {output / 'index_report.json'}; plan it with: reelyard-plan build --samples {output}"
    )


def _pair(text: str) -> tuple[str, str]:
    column, mark, path = text.partition("=")
    if not (mark and column and path):
        raise UsageError(f"--key {text!r} is not of the form COLUMN=PATH; write for example --key domain=meta.category")
    return column, path


def _sidecars(dali: Path | None, energon: Path | None) -> None:
    from planner.indexing.sidecars import write_dali, write_energon

    for folder, write, kind in ((dali, write_dali, "DALI"), (energon, write_energon, "Energon")):
        if folder is not None:
            written = write(folder)
            print(
                f"{len(written)} files for {kind}: {written[0]} ... {written[-1]}"
                if written
                else f"no files for {kind}: the set is empty"
            )


def _summary(outcome: IndexOutcome) -> list[str]:
    report, info = outcome.report, outcome.info
    total = sum(shard.size_bytes for shard in info.shards)
    lines = [
        f"tars       {len(info.shards)}: {outcome.tars_read} read, {outcome.tars_unchanged} unchanged, {outcome.tars_gone} gone",
        f"samples    {report.samples}: {report.kept} kept, {report.samples - report.kept} left out",
    ]
    if outcome.reread_because:
        lines.append(f"           all tars were read: {outcome.reread_because}")
    lines.extend(f"left out   {count}: {reason}" for reason, count in report.left_out.items())
    shortened = sum(tar.shortened for tar in report.tars)
    if shortened:
        lines.append(f"shortened  {shortened} samples to the longest bucket that fits")
    damaged = [tar for tar in report.tars if tar.damaged is not None]
    lines.extend(
        f"damaged    {tar.name}, byte {tar.damaged.offset}: {tar.damaged.reason}"
        for tar in damaged[:_MOST_LINES]
        if tar.damaged
    )
    if len(damaged) > _MOST_LINES:
        lines.append(f"damaged    ... and {len(damaged) - _MOST_LINES} more")
    appended = [tar.name for tar in report.tars if tar.appended]
    if appended:
        lines.append(
            f"warning    {len(appended)} tars go on behind their end ({appended[0]}, ...), which no reader of tars sees"
        )
    lines.append(f"read       {outcome.bytes_read} of {total} bytes in {outcome.requests} ranges")
    return lines
