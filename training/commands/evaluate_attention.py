"""`reelyard-train evaluate attention`: how much each block looks from frame to frame."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.command import say
from schemas.errors import UsageError

__all__ = ["attention"]


def attention(
    run_folder: Annotated[Path, typer.Option("--run", help="Folder of a training run.")],
    samples: Annotated[Path, typer.Option(help="Folder of a packed set; held-out clips say more than trained ones.")],
    output: Annotated[Path, typer.Option(help="Folder for attention.json and attention.html.")],
    clips: Annotated[int, typer.Option(min=1, help="Clips to look at, drawn by the seed.")] = 8,
    sigma: Annotated[str, typer.Option(help="Times from 0 (data) to 1 (noise), separated by commas.")] = "0.2,0.5,0.8",
    bucket: Annotated[
        str | None, typer.Option(help="FRAMESxHEIGHTxWIDTH; otherwise the video bucket with most clips.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw of clips, and of their noise.")] = 0,
    checkpoint: Annotated[int | None, typer.Option(help="Step of the checkpoint; the latest by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Attention mass between frames, per block: a JSON file and a page."""
    from schemas.files import write_bytes, write_json
    from training.evaluation.attention.page import headline, render_attention
    from training.evaluation.attention.report import AttentionRequest, measure_attention
    from training.pages.markup import percent

    report = measure_attention(
        AttentionRequest(
            run=run_folder,
            samples=samples,
            num_clips=clips,
            sigmas=_times(sigma),
            seed=seed,
            bucket=None if bucket is None else _bucket(bucket),
            checkpoint=checkpoint,
            device=device,
        ),
        on_pass=lambda done, total: say(f"attention: {done} of {total} passes") if done in (1, total) else None,
    )
    write_json(output / "attention.json", report)
    write_bytes(output / "attention.html", render_attention(report).encode())
    shares = headline(report)
    words = ", ".join(f"{kind} {percent(share)}" for kind, share in shares.items() if share is not None)
    print(f"video mass that goes to other frames: {words}")
    if len(report["clips"]) < clips:
        say(f"note: the set has {len(report['clips'])} clips of bucket {report['bucket']}, {clips} were asked for")
    say(f"{output / 'attention.html'}: bars and maps of each block\n{output / 'attention.json'}: the same as numbers")


def _times(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--sigma is {text!r}, expected numbers separated by commas: 0.2,0.5,0.8") from error


def _bucket(text: str):  # type: ignore[no-untyped-def]  # a Bucket, imported late
    from schemas.buckets import Bucket

    try:
        return Bucket.parse(text)
    except ValueError as error:
        raise UsageError(f"--bucket: {error}") from error
