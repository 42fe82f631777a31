"""The demo's input: real clips and photographs that PyPI packages ship, and hard cases made from them with ffmpeg.

Each hard case is a file whose fate is known beforehand (`HARD_CASES`), so that the demo can say whether curation found it. Every ffmpeg command
is built by ffmpeg-python and run with the binary that imageio-ffmpeg ships; nothing is drawn with system fonts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ffmpeg
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image, ImageDraw, ImageFont

from encoders.registry import fetch_many
from schemas.files import atomic_path

__all__ = ["HARD_CASES", "PHOTOGRAPHS", "VIDEOS", "HardCase", "collect"]

VIDEOS = ("bikes", "bigbuckbunny", "carphone", "multi_shot")
PHOTOGRAPHS = (
    *("china", "flower", "astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "retina", "hubble_deep_field"),
    *("brick", "grass", "gravel", "camera", "moon", "coins", "ihc"),
)


@dataclass(frozen=True)
class HardCase:
    """A file made from the real ones, and what curation must make of it."""

    file: str
    make: Callable[[dict[str, Path], Path], None]
    expected: str
    """duplicate, static, overlay_handled, failed, truncated or split."""


def _run(stream: Any) -> None:
    """Run an ffmpeg-python stream with the shipped binary; its own message on failure."""
    try:
        ffmpeg.run(stream, cmd=get_ffmpeg_exe(), quiet=True, overwrite_output=True)
    except ffmpeg.Error as error:
        raise RuntimeError(
            f"ffmpeg could not make a demo file: {error.stderr.decode(errors='replace')[-500:]}"
        ) from error


def _h264(stream: Any, target: Path, **options: Any) -> Any:
    return ffmpeg.output(
        stream, str(target), vcodec="libx264", pix_fmt="yuv420p", crf=24, preset="veryfast", threads=1, **options
    )


def _copy(media: dict[str, Path], target: Path) -> None:
    """Cropped by 15 % of its area, rescaled and encoded again."""
    picture = ffmpeg.input(str(media["bigbuckbunny"])).video
    cropped = picture.filter("crop", "iw*0.92", "ih*0.92", "iw*0.05", "ih*0.03")
    _run(_h264(cropped.filter("scale", 854, 480), target))


def _logo(media: dict[str, Path], target: Path) -> None:
    """A solid corner logo with text, burnt into three shots, two of them nowhere else in the input: what other shots share is what shows it."""
    logo = Image.new("RGBA", (150, 40), (200, 30, 30, 255))
    ImageDraw.Draw(logo).text((10, 7), "REEL TV 24", fill="white", font=ImageFont.load_default(size=24))
    drawn = target.with_suffix(".logo.png")
    logo.save(drawn)
    parts = [(media["multi_shot"], 203.4), (media["bikes"], 3.1), (media["multi_shot"], 154.7)]
    shots = [
        ffmpeg.input(str(path), ss=start, t=2.3).video.filter("scale", 640, 360).filter("setsar", 1).filter("fps", 25)
        for path, start in parts
    ]
    picture = ffmpeg.concat(*shots)
    _run(_h264(ffmpeg.overlay(picture, ffmpeg.input(str(drawn)), x=104, y=12), target))
    drawn.unlink()


def _still(media: dict[str, Path], target: Path) -> None:
    """A photograph shown for five seconds."""
    picture = ffmpeg.input(str(media["coffee"]), loop=1, t=5, framerate=24).video
    _run(_h264(picture.filter("scale", 600, 400), target))


def _joined(media: dict[str, Path], target: Path) -> None:
    """Three clips: a hard cut, then a fade through black."""
    size = (640, 360)

    def part(name: str, start: float, seconds: float) -> Any:
        picture = ffmpeg.input(str(media[name]), ss=start, t=seconds).video
        return picture.filter("scale", *size).filter("setsar", 1).filter("fps", 25)

    first = part("bikes", 3.1, 2.3)  # one of its shots
    second = part("bigbuckbunny", 0.5, 4).filter("fade", type="out", start_time=3.2, duration=0.8)
    third = part("carphone", 0, 3.5).filter("fade", type="in", start_time=0, duration=0.8)
    _run(_h264(ffmpeg.concat(first, second, third), target, g=25))


def _cut_index_at_end(media: dict[str, Path], target: Path) -> None:
    """Half of a file whose index stood at its end."""
    whole = target.with_suffix(".whole.mp4")
    _joined(media, whole)
    target.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    whole.unlink()


def _cut_index_at_front(media: dict[str, Path], target: Path) -> None:
    """Two thirds of a file whose index stands at its front: its first shot, nowhere else in the input, can be saved."""
    whole = target.with_suffix(".whole.mp4")
    parts = [ffmpeg.input(str(media["multi_shot"]), ss=start, t=2.6).video for start in (165.9, 184.1, 161.6)]
    _run(_h264(ffmpeg.concat(*parts), whole, movflags="+faststart", g=25))
    target.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    whole.unlink()


def _beginning(path: Path, target: Path) -> None:
    """The first 150 seconds, packets as they are; the rest is footage for hard cases."""
    _run(ffmpeg.input(str(path), t=150).output(str(target), vcodec="copy", an=None))


HARD_CASES = (
    HardCase("copy_cropped_rescaled.mp4", _copy, "duplicate"),
    HardCase("corner_logo_with_text.mp4", _logo, "overlay_handled"),
    HardCase("still_turned_into_video.mp4", _still, "static"),
    HardCase("joined_cut_and_fade.mp4", _joined, "split"),
    HardCase("cut_in_half_index_at_end.mp4", _cut_index_at_end, "failed"),
    HardCase("cut_index_at_front.mp4", _cut_index_at_front, "truncated"),
)


def collect(folder: Path) -> list[Path]:
    """Fetch the real media and make the hard cases in `folder`; files that are there already stay.

    Returns every file, sorted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [*VIDEOS, *PHOTOGRAPHS]
    fetched = fetch_many([f"media.{name}" for name in names])
    media = {name: fetched[f"media.{name}"] for name in names}
    for name, path in media.items():
        target = folder / f"{name}{path.suffix}"
        if not target.exists():
            with atomic_path(target) as temporary:
                if name == "multi_shot":
                    _beginning(path, temporary)
                else:
                    shutil.copyfile(path, temporary)
    for case in HARD_CASES:
        if not (folder / case.file).exists():
            with atomic_path(folder / case.file) as temporary:
                case.make(media, temporary)
    return sorted(path for path in folder.iterdir() if path.is_file())
