"""`reelyard-train evaluate vbench`: VBench's prompts to videos under its names, and its scores where the package is there."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schemas.command import say
from schemas.errors import UsageError

if TYPE_CHECKING:
    from training.evaluation.vbench.package import VBenchPackage
    from training.evaluation.vbench.prompts import BenchPrompt
    from training.sampling import SampleRequest

__all__ = ["vbench"]

_LONG_SECONDS = 5.0


def vbench(
    run_folder: Annotated[Path, typer.Option("--run", help="Folder of a training run.")],
    output: Annotated[Path, typer.Option(help="Folder for videos/ and scores/. Run again to go on where it was.")],
    prompts: Annotated[
        str,
        typer.Option(
            help="`package` (the installed vbench's list), VBench_full_info.json, a vbench wheel, a text file, or a folder of them."
        ),
    ] = "package",
    dimensions: Annotated[str, typer.Option(help="Separated by commas; all of the list by default.")] = "",
    videos_per_prompt: Annotated[int, typer.Option(min=1, help="VBench looks at 5.")] = 5,
    flickering_videos: Annotated[
        int | None,
        typer.Option(min=1, help="More videos of the prompts for temporal_flickering, for VBench's static filter."),
    ] = None,
    part: Annotated[
        str, typer.Option(help="K/N: make only every N-th video, from the K-th; for several machines.")
    ] = "1/1",
    frames: Annotated[
        int | None, typer.Option(help="4k + 1: 1, 33, 65, 121, 161, ...; as the largest trained bucket by default.")
    ] = None,
    height: Annotated[int | None, typer.Option(help="Multiple of 16; likewise.")] = None,
    width: Annotated[int | None, typer.Option(help="Multiple of 16; likewise.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key of the sampler: guidance_kind=apg, num_steps=50.")
    ] = None,
    weights: Annotated[str, typer.Option(help="ema: the averages. trained: the weights of the step.")] = "ema",
    checkpoint: Annotated[int | None, typer.Option(help="Step of the checkpoint; the latest by default.")] = None,
    seed: Annotated[int, typer.Option(help="Each video's seed is a hash of this, its prompt and its index.")] = 0,
    score: Annotated[bool, typer.Option(help="Score, where the package and its weights are there.")] = True,
    vbench_python: Annotated[
        Path | None, typer.Option(help="Interpreter that has the vbench package; by default this one.")
    ] = None,
    vbench_cache: Annotated[
        Path | None, typer.Option(help="Folder of the package's weights; by default ~/.cache/vbench.")
    ] = None,
    allow_download: Annotated[bool, typer.Option(help="Let the package fetch weights that are not there.")] = False,
    text_encoder_path: Annotated[
        Path | None, typer.Option(help="Folder of the text encoder, if the run's has no entry in the registry.")
    ] = None,
    codec_path: Annotated[Path | None, typer.Option(help="Folder of the codec's weights, likewise.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; also of the package.")] = "auto",
) -> None:
    """Make VBench's videos with the run's sampler, and score them where the vbench package is there."""
    from training.commands.sample import build_request
    from training.evaluation.vbench.package import find_package
    from training.evaluation.vbench.preflight import INSTALL, preflight_lines
    from training.evaluation.vbench.prompts import check_dimensions, read_bench_prompts
    from training.evaluation.vbench.scoring import ScoreRequest, score_videos, wanted_dimensions

    which = _part(part)
    chosen = check_dimensions([name.strip() for name in dimensions.split(",") if name.strip()])
    python = Path(sys.executable) if vbench_python is None else vbench_python
    package = find_package(python) if score or prompts == "package" else None
    found = read_bench_prompts(_prompt_source(prompts, package), chosen)
    request = build_request(
        run=run_folder,
        prompt=found[0].text,
        prompts=None,
        size=(frames, height, width),
        overrides=override or [],
        weights=weights,
        checkpoint=checkpoint,
        seed=seed,
        text_encoder_path=text_encoder_path,
        codec_path=codec_path,
        device=device,
    )
    request = replace(request, prompts=tuple(prompt.text for prompt in found))
    needs = preflight_lines(
        package,
        python,
        wanted_dimensions(package, found, chosen),
        vbench_cache,
        allow_download=allow_download,
    )
    if score:
        say("\n".join(needs))
    complete = _make(request, found, output, (videos_per_prompt, flickering_videos), which)
    if not score or not complete:
        say("videos made, not scored: " + ("--no-score was given" if not score else "other parts are not there yet"))
        return
    if package is None:
        say("\n".join(needs[1:]))
        say(f"videos made, not scored: the vbench package is not installed for {python}; {INSTALL}")
        return
    done = score_videos(
        ScoreRequest(
            package=package,
            prompts=found,
            dimensions=chosen,
            output=output,
            cache=vbench_cache,
            device=device,
            allow_download=allow_download,
        )
    )
    for line in done.lines:
        print(line)
    say(done.last_line)
    if done.failed:
        raise typer.Exit(1)


def _make(
    request: SampleRequest,
    found: tuple[BenchPrompt, ...],
    output: Path,
    counts: tuple[int, int | None],
    part: tuple[int, int],
) -> bool:
    """Make this part's videos; whether all videos are there now."""
    from training.evaluation.vbench.generator import RunGenerator
    from training.evaluation.vbench.videos import is_standard_name, make_videos, plan_videos

    planned = plan_videos(found, seed=request.seed, per_prompt=counts[0], per_flickering_prompt=counts[1])
    odd = [prompt.text for prompt in found if not is_standard_name(prompt.text)]
    if odd:
        say(
            f"note: {len(odd)} prompts are no file names ({odd[0][:60]!r}, ...): VBench's standard mode will not find their videos"
        )
    generator = RunGenerator(request, on_note=lambda note: say(f"note: {note}"))
    seconds = generator.settings.frames / generator.settings.fps
    if seconds >= _LONG_SECONDS:
        say(
            f"note: videos last {seconds:.2f} s; VBench's board judges {_LONG_SECONDS:g} s and more by VBench-Long, which is not called here"
        )
    made = make_videos(
        planned,
        output,
        generator,
        generator.settings,
        mine=planned[part[0] :: part[1]],
        on_video=lambda done, total: (
            say(f"videos: {done} of {total}") if done in (1, total) or done % 20 == 0 else None
        ),
    )
    say(
        f"{output / 'videos'}: {made.made} videos made, {made.kept} were there"
        + (f"; {made.remade} of the made ones were there but broken or of another size" if made.remade else "")
    )
    return all((output / "videos" / video.file).is_file() for video in planned)


def _prompt_source(prompts: str, package: VBenchPackage | None) -> Path:
    if prompts != "package":
        return Path(prompts)
    if package is None:
        raise UsageError(
            "--prompts is package, but the vbench package is not there; give its VBench_full_info.json or wheel, a text file, "
            "or --vbench-python of an environment that has it"
        )
    return package.full_info


def _part(text: str) -> tuple[int, int]:
    """`2/4` to (1, 4): the index of the first video, and the stride."""
    first, _, parts = text.partition("/")
    if not (first.isdigit() and parts.isdigit() and 1 <= int(first) <= int(parts)):
        raise UsageError(f"--part is {text!r}, expected K/N with K from 1 to N: 1/4")
    return int(first) - 1, int(parts)
