"""Hard cases made with ffmpeg from real media, for tests: each function writes one file and says, where it matters, what is true of it.

Every command is built by ffmpeg-python and run by the binary that imageio-ffmpeg carries. Single-threaded and bit-exact, so a case has the same
bytes each time on the same machine.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ffmpeg
import imageio_ffmpeg
from PIL import Image, ImageDraw, ImageFont

__all__ = [
    "JOINED_CUTS_SECONDS",
    "anamorphic",
    "animated",
    "audio_only",
    "corner_logo",
    "corner_mark",
    "cut_file",
    "damaged_middle",
    "dissolved_clips",
    "encode",
    "joined_clips",
    "letterboxed",
    "long_film",
    "missing_timestamps",
    "negative_start",
    "other_rate",
    "panned",
    "plain_film",
    "recoded_copy",
    "rotated",
    "slide_show",
    "still_video",
    "trimmed",
    "variable_rate",
]

JOINED_CUTS_SECONDS = (3.0, 6.0)
"""`joined_clips`: hard cut at 3 s, and the darkest point of a fade to black at 6 s; 9 s in all."""


def encode(stream: Any, target: Path, **options: Any) -> Path:
    """Run one command; H.264 unless told otherwise. None takes an option out."""
    settings = {"vcodec": "libx264", "preset": "veryfast", "crf": 20, "pix_fmt": "yuv420p", "threads": 1, "an": None}
    settings |= {"fflags": "+bitexact", "flags:v": "+bitexact", "map_metadata": -1} | options
    if "acodec" in settings:
        settings.pop("an")
    settings = {name: value for name, value in settings.items() if value is not None or name == "an"}
    command = ffmpeg.output(stream, f"file:{target}", **settings).overwrite_output()
    command.run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), quiet=True)
    return target


def _part(source: Path, start: float, seconds: float, size: tuple[int, int]) -> Any:
    height, width = size
    video = ffmpeg.input(f"file:{source}").video.filter("trim", start=start, duration=seconds)
    video = video.filter("setpts", "PTS-STARTPTS").filter("fps", fps=24)
    return video.filter("scale", width, height).filter("setsar", 1).filter("format", "yuv420p")


def trimmed(
    source: Path, target: Path, *, start: float = 0, seconds: float = 3, size: tuple[int, int] = (240, 426)
) -> Path:
    """A part of a source, rescaled, 24 fps."""
    return encode(_part(source, start, seconds, size), target)


def joined_clips(sources: Sequence[Path], target: Path, *, starts: Sequence[float] = (0, 0, 0)) -> Path:
    """Three sources, 3 s of each: a hard cut between the first two, a fade out and in between the last two. See `JOINED_CUTS_SECONDS`."""
    parts = [_part(source, start, 3, (240, 426)) for source, start in zip(sources, starts, strict=True)]
    parts[1] = parts[1].filter("fade", type="out", start_time=2.5, duration=0.5)
    parts[2] = parts[2].filter("fade", type="in", start_time=0, duration=0.5)
    return encode(ffmpeg.concat(*parts), target)


def dissolved_clips(first: Path, second: Path, target: Path) -> Path:
    """5 s: the first source, a dissolve of one second with its middle at 2.5 s, the second source."""
    parts = [_part(source, 0, 5, (240, 426)) for source in (first, second)]
    mixed = ffmpeg.filter(parts, "blend", all_expr="A*(1-min(1,max(0,(T-2))))+B*min(1,max(0,(T-2)))")
    return encode(mixed, target)


def letterboxed(source: Path, target: Path, *, bar: float = 0.14, seconds: float = 3) -> Path:
    """Black bars over `bar` of the height above and below."""
    video = _part(source, 0, seconds, (240, 426))
    inner = round(240 * (1 - 2 * bar) / 2) * 2
    return encode(
        video.filter("scale", 426, inner).filter("setsar", 1).filter("pad", 426, 240, 0, (240 - inner) // 2), target
    )


def corner_logo(source: Path, target: Path, *, text: str = "CHANNEL 7", seconds: float = 5, start: float = 0) -> Path:
    """A white badge with dark text in the top left corner, burnt in throughout."""
    logo = target.with_suffix(".logo.png")
    badge = Image.new("RGB", (110, 28), "white")
    ImageDraw.Draw(badge).text((6, 3), text, font=ImageFont.load_default(size=18), fill="black")
    badge.save(logo)
    return encode(_part(source, start, seconds, (240, 426)).overlay(ffmpeg.input(f"file:{logo}"), x=8, y=6), target)


def corner_mark(source: Path, target: Path, *, seconds: float = 12, start: float = 0) -> Path:
    """A drawn figure without letters in the bottom right corner, burnt in throughout."""
    mark = target.with_suffix(".mark.png")
    badge = Image.new("RGB", (44, 36), "white")
    draw = ImageDraw.Draw(badge)
    draw.polygon([(22, 3), (40, 32), (4, 32)], fill="black")
    draw.ellipse((16, 15, 28, 27), fill="white")
    badge.save(mark)
    return encode(_part(source, start, seconds, (240, 426)).overlay(ffmpeg.input(f"file:{mark}"), x=374, y=198), target)


def panned(picture: Path, target: Path, *, pixels_per_frame: int = 2, seconds: float = 3) -> Path:
    """A camera that moves over a photograph: 256x144, that many pixels a frame."""
    video = ffmpeg.input(f"file:{picture}", loop=1, t=seconds, framerate=24).filter("scale", 512, -2)
    video = video.filter(
        "format", "yuv444p"
    )  # else the crop moves by whole chroma samples: two pixels every other frame
    return encode(video.filter("crop", 256, 144, f"n*{pixels_per_frame}", 60).filter("setsar", 1), target, crf=12)


def other_rate(source: Path, target: Path, *, fps: int, seconds: float = 2) -> Path:
    """The same content at another constant rate."""
    return encode(_part(source, 0, seconds, (240, 426)).filter("fps", fps=fps), target)


def anamorphic(source: Path, target: Path) -> Path:
    """240 rows of 320 pixels that are a third wider than high: shown as 427x240."""
    return encode(_part(source, 0, 1, (240, 320)).filter("setsar", "4/3"), target)


def still_video(picture: Path, target: Path, *, seconds: float = 5, size: tuple[int, int] = (240, 426)) -> Path:
    """A photograph shown for some seconds."""
    height, width = size
    video = ffmpeg.input(f"file:{picture}", loop=1, t=seconds, framerate=24)
    return encode(video.filter("scale", width, height).filter("setsar", 1), target)


def recoded_copy(source: Path, target: Path, *, seconds: float = 5) -> Path:
    """Cropped by a tenth on each side, rescaled, recompressed: a copy that byte hashes miss."""
    video = (
        _part(source, 0, seconds, (240, 426))
        .filter("crop", "iw*0.8", "ih*0.8")
        .filter("scale", 320, 180)
        .filter("setsar", 1)
    )
    return encode(video, target, crf=28)


def cut_file(source: Path, target: Path, *, index_first: bool, keep: float = 0.6, seconds: float = 9) -> Path:
    """An MP4 that breaks off: with its index in front (frames up to the break can be had) or at the end (nothing can)."""
    whole = target.with_suffix(".whole.mp4")
    flags = {"movflags": "+faststart"} if index_first else {}
    encode(ffmpeg.input(f"file:{source}", t=seconds).video, whole, g=24, **flags)
    data = whole.read_bytes()
    target.write_bytes(data[: round(len(data) * keep)])
    return target


def variable_rate(source: Path, target: Path) -> Path:
    """4 s: 24 fps in the first two seconds, 6 fps in the last two, with the timestamps to match."""
    video = _part(source, 0, 4, (240, 426)).filter("select", r"lt(t,2)+not(mod(n,4))")
    return encode(video, target, fps_mode="vfr")


def slide_show(source: Path, target: Path) -> Path:
    """Eight frames of one take, each with the next timestamp 1.9 s later."""
    video = _part(source, 0, 1, (240, 426)).filter("select", "not(mod(n,3))").filter("setpts", "1.9*N/TB")
    return encode(video, target, fps_mode="passthrough")


def rotated(source: Path, target: Path, *, degrees: int = 90) -> Path:
    """Stored upright, marked to be shown turned: the display matrix in the MP4's track header is rewritten."""
    trimmed(source, target, seconds=2)
    data = bytearray(target.read_bytes())
    one = 1 << 16
    matrices = {
        90: (0, one, 0, -one, 0, 0),
        180: (-one, 0, 0, 0, -one, 0),
        270: (0, -one, 0, one, 0, 0),
    }
    place = data.index(b"tkhd") + 4 + 40
    data[place : place + 24] = struct.pack(">6i", *matrices[degrees])
    target.write_bytes(bytes(data))
    return target


def negative_start(source: Path, target: Path) -> Path:
    """3 s in an MPEG transport stream whose timestamps begin 1.5 s before zero."""
    return encode(
        _part(source, 0, 3, (240, 426)),
        target,
        f="mpegts",
        avoid_negative_ts="disabled",
        output_ts_offset=-1.5,
        muxdelay=0,
        muxpreload=0,
    )


def missing_timestamps(source: Path, target: Path) -> Path:
    """3 s in a Matroska file whose first frames have no timestamp at all (they would lie before zero)."""
    return encode(
        _part(source, 0, 3, (240, 426)),
        target,
        f="matroska",
        bf=0,
        avoid_negative_ts="disabled",
        output_ts_offset=-1.5,
    )


def audio_only(target: Path) -> Path:
    """A tone, no picture."""
    tone = ffmpeg.input("sine=frequency=440:duration=1", f="lavfi")
    ffmpeg.output(tone, f"file:{target}", acodec="aac").overwrite_output().run(
        cmd=imageio_ffmpeg.get_ffmpeg_exe(), quiet=True
    )
    return target


def long_film(sources: Sequence[Path], photograph: Path, target: Path) -> Path:
    """150 s of 112x64 at 12 fps: shots of 3 s up to 48 s, one take over the photograph up to 124 s, shots again."""
    size = (64, 112)
    pan = ffmpeg.input(f"file:{photograph}", loop=1, t=76, framerate=24).filter("scale", 512, -2)
    pan = pan.filter("format", "yuv444p").filter("crop", 256, 144, "n*0.1", 60).filter("scale", size[1], size[0])
    # Each starts a frame later than the one before, since ffmpeg-python takes equal parts for one.
    shots = [_part(sources[place % len(sources)], round(place / 24, 3), 3, size) for place in range(16)]
    after = [_part(sources[place % len(sources)], round(place / 24, 3), 3, size) for place in range(16, 24)]
    after.append(_part(sources[0], 1.5, 2, size))
    film = ffmpeg.concat(*shots, pan.filter("setsar", 1).filter("format", "yuv420p"), *after)
    return encode(film.filter("fps", fps=12), target, g=36)


def plain_film(target: Path, *, hours: float, fps: int = 1) -> Path:
    """A test picture that counts, 64x48, for as long as wanted; made in seconds."""
    film = ffmpeg.input(f"testsrc2=size=64x48:rate={fps}:duration={hours * 3600}", f="lavfi")
    return encode(film, target, preset="ultrafast", crf=40, g=60)


def damaged_middle(source: Path, target: Path, *, keep: float = 0.3, resume: float = 0.4) -> Path:
    """9 s with a keyframe a second and the index in front, whose bytes between two shares of the file are noise."""
    whole = target.with_suffix(".whole.mp4")
    encode(_part(source, 0, 9, (240, 426)), whole, g=24, movflags="+faststart")
    data = bytearray(whole.read_bytes())
    first, end = round(len(data) * keep), round(len(data) * resume)
    data[first:end] = bytes((index * 197 + 13) % 251 for index in range(end - first))
    target.write_bytes(bytes(data))
    return target


def animated(source: Path, target: Path, *, fps: int, seconds: float = 3, loop: bool = True) -> Path:
    """An animated GIF (or WebP, by the name) of a source."""
    video = _part(source, 0, seconds, (120, 214)).filter("fps", fps=fps)
    codec = {".gif": "gif", ".webp": "libwebp_anim"}[target.suffix]
    formats = {".gif": "rgb8", ".webp": "yuv420p"}[target.suffix]
    return encode(video, target, vcodec=codec, pix_fmt=formats, preset=None, crf=None, loop=0 if loop else -1)
