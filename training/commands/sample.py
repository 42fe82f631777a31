"""`reelyard-train sample`: prompts, and a first frame if one is given, to MP4s."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from schemas.command import say
from schemas.errors import UsageError

if TYPE_CHECKING:
    from training.checkpoints.whole_network import WeightsKind
    from training.sampling import OpenSampler, SampleRequest

__all__ = ["build_request", "sample"]


def sample(
    run_folder: Annotated[Path, typer.Option("--run", help="Folder of a training run.")],
    output: Annotated[
        Path,
        typer.Option(
            help="MP4 file to write, a contact sheet with suffix .png is put beside it; with --prompts a folder of numbered MP4s."
        ),
    ],
    prompt: Annotated[str | None, typer.Option(help="What to show.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file with one prompt a line, in place of --prompt.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Picture to begin with: the first frame is given.")] = None,
    checkpoint: Annotated[int | None, typer.Option(help="Step of the checkpoint; the latest by default.")] = None,
    weights: Annotated[str, typer.Option(help="ema: the averages. trained: the weights of the step.")] = "ema",
    frames: Annotated[
        int | None, typer.Option(help="4k + 1: 1, 33, 65, 121, 161, ...; as the largest trained bucket by default.")
    ] = None,
    height: Annotated[int | None, typer.Option(help="Multiple of 16; likewise.")] = None,
    width: Annotated[int | None, typer.Option(help="Multiple of 16; likewise.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Override a key of the sampler: num_steps=50, guidance_kind=apg, low_pass.share=0.1."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise, the same for every prompt.")] = 0,
    image_tokens: Annotated[
        bool, typer.Option(help="With --image: give its tokens, where the run was trained with any.")
    ] = True,
    clips_per_pass: Annotated[int, typer.Option(min=1, help="Prompts that go through the network together.")] = 1,
    text_encoder_path: Annotated[
        Path | None, typer.Option(help="Folder of the text encoder, if the run's has no entry in the registry.")
    ] = None,
    image_encoder_path: Annotated[Path | None, typer.Option(help="Folder of the image encoder, likewise.")] = None,
    codec_path: Annotated[Path | None, typer.Option(help="Folder of the codec's weights, likewise.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Sample videos from a run's weights, of a prompt or of many."""
    if (prompt is None) == (prompts is None):
        raise UsageError("expected either --prompt TEXT or --prompts FILE")
    if prompt is not None and output.suffix != ".mp4":
        raise UsageError(f"--output is {output}, expected a file name that ends in .mp4")
    if prompts is not None and (output.suffix or output.is_file()):
        raise UsageError(f"--output is {output}, expected a folder for the videos of --prompts")
    from training.sampling import open_sampler

    opened = open_sampler(
        build_request(
            run=run_folder,
            prompt=prompt,
            prompts=prompts,
            size=(frames, height, width),
            overrides=override or [],
            weights=weights,
            seed=seed,
            clips_per_pass=clips_per_pass,
            checkpoint=checkpoint,
            image=image,
            image_tokens=image_tokens,
            text_encoder_path=text_encoder_path,
            image_encoder_path=image_encoder_path,
            codec_path=codec_path,
            device=device,
        )
    )
    for note in opened.notes:
        say(f"note: {note}")
    if prompt is not None:
        _write_one(opened, output)
    else:
        _write_many(opened, output)


def build_request(
    *,
    run: Path,
    prompt: str | None,
    prompts: Path | None,
    size: tuple[int | None, int | None, int | None],
    overrides: Sequence[str],
    weights: str,
    **others: Any,
) -> SampleRequest:
    """The request; what is None of frames, height and width is that of the run's largest bucket. UsageError names the flag that is wrong."""
    from schemas.config import build_config, merge_overrides
    from training.run_setup import read_run_info
    from training.sampler_config import SamplerConfig
    from training.sampling import LatentSize, SampleRequest
    from training.sampling.prompts import read_prompts

    if weights != "ema" and weights != "trained":
        raise UsageError(f"--weights is {weights!r}, expected one of ema, trained")
    sampler = build_config(SamplerConfig, merge_overrides({}, overrides), source="--set")
    LatentSize(*(usual if given is None else given for given, usual in zip(size, (1, 16, 16), strict=True)))
    if prompts is None:
        assert prompt is not None
        texts: tuple[str, ...] = (prompt,)
    else:
        texts = read_prompts(prompts)
    trained = read_run_info(run).largest_bucket
    usual = (trained.frames, trained.height, trained.width)
    return SampleRequest(
        run=run,
        prompts=texts,
        size=LatentSize(*(mine if given is None else given for given, mine in zip(size, usual, strict=True))),
        sampler=sampler,
        weights=cast("WeightsKind", weights),
        **others,
    )


def _say_step(done: int, total: int) -> None:
    if done in (1, total):
        say(f"sampling: {done} of {total} steps")


def _words(opened: OpenSampler) -> str:
    size, averaged = opened.request.size, "averages of" if opened.request.weights == "ema" else "trained weights of"
    return f"{size.frames} frames of {size.width}x{size.height} at {opened.info.fps:g} fps, from the {averaged} {opened.checkpoint}"


def _write_one(opened: OpenSampler, output: Path) -> None:
    from training.video import write_contact_sheet, write_mp4

    (video,) = opened.videos(on_step=_say_step)
    encoder = write_mp4(output, video.frames_THWC, opened.info.fps)
    sheet = output.with_suffix(".png")
    write_contact_sheet(sheet, video.frames_THWC)
    say(f"{output}: {_words(opened)} ({encoder})\n{sheet}: contact sheet")


def _write_many(opened: OpenSampler, output: Path) -> None:
    from schemas.command import progress
    from training.sampling.gallery import clip_path, write_index
    from training.video import thumbnails, write_mp4

    rows = []
    for video in progress(opened.videos(), what="sampling", total=len(opened.request.prompts)):
        write_mp4(clip_path(output, video.index), video.frames_THWC, opened.info.fps)
        rows.append(thumbnails(video.frames_THWC))
    request = opened.request
    write_index(
        output,
        rows,
        [{"prompt": text, "seed": request.seed} for text in request.prompts],
        {
            "checkpoint": str(opened.checkpoint),
            "weights": request.weights,
            "size": str(request.size),
            "fps": opened.info.fps,
            "sampler": request.sampler.model_dump(mode="json"),
            "image": None if request.image is None else str(request.image),
            "notes": list(opened.notes),
        },
    )
    say(f"{output}: {len(rows)} videos, each {_words(opened)}\n{output / 'contact-sheet.png'}: a row for each")
