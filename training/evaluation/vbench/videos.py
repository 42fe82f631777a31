"""The videos of a benchmark: VBench's names, a seed for each, made in order, and none made twice.

    <output>/videos/{prompt}-{index}.mp4    nothing else lies there: VBench takes the suffix of the first file it lists for that of all
    <output>/videos.json                    settings, then file, prompt, index, seed and dimensions of each video
    <output>/prompts.json                   file to prompt, as VBench's mode `custom_input` takes it

VBench finds a video by the exact prompt in its name. Each prompt of its own lists is such a name; one that no file system takes (a slash, too long)
gets a name of its first characters and a hash, and is only for `custom_input`. A video is written elsewhere and moved to its place when it is
whole, so a run that was killed goes on where it was. Price: existing videos are opened once each.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schemas.config import read_yaml
from schemas.errors import DataError, UsageError
from schemas.files import TEMPORARY_PREFIX, write_json
from training.evaluation.vbench.prompts import BenchPrompt
from training.video import write_mp4

__all__ = [
    "FLICKERING",
    "Generate",
    "MadeVideos",
    "PlannedVideo",
    "VideoSettings",
    "is_standard_name",
    "make_videos",
    "plan_videos",
    "video_name",
    "video_seed",
]

Generate = Callable[[str, int], np.ndarray]
"""(prompt, seed) to frames T H W C, uint8 RGB."""

FLICKERING = "temporal_flickering"
_MOST_BYTES = 255
"""Of a file name, on the usual file systems."""
_KEPT_CHARACTERS = 80
_SEED_BYTES = 6


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """What all videos of a folder have in common; a folder is never a mixture."""

    run: str
    checkpoint: str
    weights: str
    frames: int
    height: int
    width: int
    fps: float
    seed: int
    sampler: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PlannedVideo:
    """One video to make."""

    file: str
    prompt: str
    index: int
    seed: int
    dimensions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class MadeVideos:
    """What `make_videos` found and did."""

    made: int
    kept: int
    """Were there, and whole."""
    remade: int
    """Were there, but of another size or unreadable; counted in `made`."""


def video_name(prompt: str, index: int) -> str:
    """`{prompt}-{index}.mp4`, or where that is no file's name its first characters and a hash of the prompt."""
    name = f"{prompt}-{index}.mp4"
    if is_standard_name(prompt, index):
        return name
    kept = re.sub(r"[^\w ,.'-]", "_", prompt, flags=re.ASCII)[:_KEPT_CHARACTERS]
    return f"{kept}~{hashlib.sha256(prompt.encode()).hexdigest()[:12]}-{index}.mp4"


def is_standard_name(prompt: str, index: int = 0) -> bool:
    """Whether a file can bear the name under which VBench looks for the prompt."""
    name = f"{prompt}-{index}.mp4"
    return "/" not in name and "\0" not in name and "\n" not in name and len(os.fsencode(name)) <= _MOST_BYTES


def video_seed(seed: int, prompt: str, index: int) -> int:
    """Seed of one video's noise: a hash, so that no two videos share their noise and none can be picked."""
    key = f"{seed}:{index}:{prompt}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=_SEED_BYTES).digest(), "little")


def plan_videos(
    prompts: Sequence[BenchPrompt], *, seed: int, per_prompt: int = 5, per_flickering_prompt: int | None = None
) -> tuple[PlannedVideo, ...]:
    """All videos, prompt after prompt. `per_flickering_prompt`: of prompts for temporal_flickering, for VBench's static filter to choose from."""
    planned = [
        PlannedVideo(
            file=video_name(prompt.text, index),
            prompt=prompt.text,
            index=index,
            seed=video_seed(seed, prompt.text, index),
            dimensions=prompt.dimensions,
        )
        for prompt in prompts
        for index in range(
            max(per_prompt, per_flickering_prompt or 0) if FLICKERING in prompt.dimensions else per_prompt
        )
    ]
    shared = [name for name, count in Counter(video.file for video in planned).items() if count > 1]
    if shared:
        raise UsageError(f"two prompts would have the video {shared[0]!r}; take one of them out of the list")
    return tuple(planned)


def make_videos(
    planned: Sequence[PlannedVideo],
    output: Path,
    generate: Generate,
    settings: VideoSettings,
    *,
    mine: Sequence[PlannedVideo] | None = None,
    on_video: Callable[[int, int], None] | None = None,
) -> MadeVideos:
    """Make those of `mine` (all by default) that are not there; `planned` are written down.

    Raises:
        UsageError: when the folder has videos of other settings, or cannot keep two names apart.
    """
    folder, making = output / "videos", output / "making"
    for path in (folder, making):
        path.mkdir(parents=True, exist_ok=True)
    _refuse_folded_names(planned, making)
    _write_down(planned, output, settings)
    made = kept = remade = 0
    chosen = planned if mine is None else mine
    for number, video in enumerate(chosen):
        target = folder / video.file
        there = target.is_file()
        if there and _is_whole(target, settings):
            kept += 1
        else:
            frames_THWC = generate(video.prompt, video.seed)
            aside = making / f"{os.getpid()}.mp4"
            write_mp4(aside, frames_THWC, settings.fps)
            os.replace(aside, target)
            made, remade = made + 1, remade + there
        if on_video is not None:
            on_video(number + 1, len(chosen))
    if not any(making.iterdir()):
        making.rmdir()
    return MadeVideos(made=made, kept=kept, remade=remade)


def _write_down(planned: Sequence[PlannedVideo], output: Path, settings: VideoSettings) -> None:
    """`videos.json` and `prompts.json`, with what earlier calls wrote of other prompts."""
    path = output / "videos.json"
    now = asdict(settings)
    by_file: dict[str, Any] = {}
    if path.is_file():
        before = read_yaml(path)
        if not isinstance(before.get("settings"), dict) or not isinstance(before.get("videos"), list):
            raise DataError(f"{path} is not a list of videos; give another --output")
        _refuse_other_settings(before["settings"], now, output)
        by_file = {video["file"]: video for video in before["videos"]}
    by_file |= {video.file: {**asdict(video), "dimensions": list(video.dimensions)} for video in planned}
    write_json(path, {"settings": now, "videos": [by_file[name] for name in sorted(by_file)]})
    write_json(output / "prompts.json", {name: video["prompt"] for name, video in by_file.items()})


def _refuse_other_settings(before: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    differences = [
        f"{key}: was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if differences:
        listed = "\n  ".join(differences)
        raise UsageError(
            f"{output} has videos of other settings, a mixture would mean nothing:\n  {listed}\ngive another --output, or the same settings"
        )


def _refuse_folded_names(planned: Sequence[PlannedVideo], folder: Path) -> None:
    """VBench has two prompts that differ in a capital; some file systems do not tell them apart."""
    folded = Counter(video.file.casefold() for video in planned)
    alike = sorted(video.file for video in planned if folded[video.file.casefold()] > 1)
    if not alike:
        return
    probe = folder / f"{TEMPORARY_PREFIX}{os.getpid()}-probe-A"
    probe.touch()
    same = probe.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-probe-a").exists()
    probe.unlink()
    if same:
        raise UsageError(
            f"--output {folder.parent} lies on a file system that does not tell {alike[0]!r} from {alike[1]!r}; give a folder on another one"
        )


def _is_whole(path: Path, settings: VideoSettings) -> bool:
    """Whether the file plays with the right number and size of frames, by its header."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            return (stream.frames, stream.height, stream.width) == (settings.frames, settings.height, settings.width)
    except (av.FFmpegError, OSError, IndexError):
        return False
