"""Inputs that a crawl brings in and a decoder may choke on, each with the fate it must have: one literal table, made into files by tests.

`status` is what the sources table must say, `reason` a pattern that its reason must match, `clips` whether clips come of it. Files are made from real
media with ffmpeg and Pillow, single-threaded, so a case has the same bytes each time.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import ffmpeg
from PIL import Image

__all__ = ["CASES", "Case", "Material", "make_all"]


@dataclass(frozen=True)
class Material:
    """What cases are made from."""

    video: Path
    """2.5 s, 426x240, H.264, index in front."""
    long_video: Path
    """6 s of two shots, index in front."""
    picture: Path
    """A photograph, JPEG."""
    cases: ModuleType
    """`tests/media_cases.py`."""


@dataclass(frozen=True)
class Case:
    """One hostile input and what must become of it."""

    name: str | bytes
    make: Callable[[Path, Material], None]
    status: str = "ok"
    reason: str = ""
    clips: bool | None = None
    """Whether clips come of it; None: either."""
    kind: str = "video"

    @property
    def file_name(self) -> bytes:
        return self.name if isinstance(self.name, bytes) else self.name.encode()


def _bytes(data: bytes) -> Callable[[Path, Material], None]:
    return lambda path, material: path.write_bytes(data) and None


def _cut(share: float) -> Callable[[Path, Material], None]:
    def make(path: Path, material: Material) -> None:
        data = material.long_video.read_bytes()
        path.write_bytes(data[: round(len(data) * share)])

    return make


def _flipped(seed: int, count: int, low: float, high: float) -> Callable[[Path, Material], None]:
    """`count` bits turned over between these shares of the file."""

    def make(path: Path, material: Material) -> None:
        data = bytearray(material.long_video.read_bytes())
        generator = random.Random(seed)
        for _ in range(count):
            place = generator.randrange(round(low * len(data)), round(high * len(data)))
            data[place] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(data))

    return make


def _encoded(change: Callable[[Any], Any] = lambda video: video, **options: Any) -> Callable[[Path, Material], None]:
    """The video encoded again, after filters; the container is that of the file's name unless `f` says otherwise."""

    def make(path: Path, material: Material) -> None:
        material.cases.encode(change(ffmpeg.input(f"file:{material.video}").video), path, **options)

    return make


def _stored(change: Callable[[Any], Any] = lambda video: video, **options: Any) -> Callable[[Path, Material], None]:
    """The same with another codec: no option of H.264."""

    def make(path: Path, material: Material) -> None:
        video = change(ffmpeg.input(f"file:{material.video}").video)
        settings = {"threads": 1, "fflags": "+bitexact", "map_metadata": -1} | options
        ffmpeg.output(video, f"file:{path}", **settings).overwrite_output().run(cmd=_ffmpeg(), quiet=True)

    return make


def _copied(path: Path, material: Material) -> None:
    shutil.copyfile(material.video, path)


def _case_of(name: str, **options: Any) -> Callable[[Path, Material], None]:
    return lambda path, material: getattr(material.cases, name)(material.video, path, **options) and None


def _audio(path: Path, material: Material) -> None:
    material.cases.audio_only(path)


def _cover_only(path: Path, material: Material) -> None:
    """A tone with a cover picture, as music files have: the picture is no video."""
    tone = ffmpeg.input("sine=frequency=440:duration=1", f="lavfi")
    cover = ffmpeg.input(f"file:{material.picture}").filter("scale", 64, 64)
    options = {"acodec": "aac", "vcodec": "mjpeg", "disposition:v:0": "attached_pic", "f": "mp4"}
    command = ffmpeg.output(tone, cover, f"file:{path}", **options).overwrite_output()
    command.run(cmd=_ffmpeg(), quiet=True)


def _subtitles_only(path: Path, material: Material) -> None:
    text = path.with_suffix(".srt")
    text.write_text("1\n00:00:00,000 --> 00:00:02,000\nhello\n")
    ffmpeg.output(ffmpeg.input(f"file:{text}"), f"file:{path}", f="matroska").overwrite_output().run(
        cmd=_ffmpeg(), quiet=True
    )
    text.unlink()


def _no_frames(path: Path, material: Material) -> None:
    """A valid MP4 with a video track and not one sample."""
    video = ffmpeg.input(f"file:{material.video}").video
    material.cases.encode(video, path, frames=0, movflags="+faststart")


def _ffmpeg() -> str:
    import imageio_ffmpeg

    return str(imageio_ffmpeg.get_ffmpeg_exe())


def _huge_gif(path: Path, material: Material) -> None:
    """Claims 65535 x 65535 pixels, 17 GB as RGBA, in 50 bytes."""
    header = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF7, 0, 0) + bytes(768)
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x08\x02\x00\x01\x00"
    path.write_bytes(header + frame + b"\x3b")


def _huge_mp4(path: Path, material: Material) -> None:
    """The sample description claims 65535 x 65535; the stream itself knows better."""
    data = bytearray(material.video.read_bytes())
    place = data.index(b"avc1") + 4 + 24
    data[place : place + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(data))


def _huge_png(path: Path, material: Material) -> None:
    """65535 x 65535 pixels of black, declared; the data is a few bytes."""
    path.write_bytes(_png(65535, 65535, zlib.compress(b"\0" * 4096)))


def _bomb_png(path: Path, material: Material) -> None:
    """20,000 x 20,000 real pixels in 50 kB."""
    path.write_bytes(_png(20000, 20000, zlib.compress(b"\0" * (20000 * 2501), 9), depth=1))


def _png(width: int, height: int, data: bytes, *, depth: int = 8) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _image(change: Callable[[Image.Image], Image.Image], **options: Any) -> Callable[[Path, Material], None]:
    def make(path: Path, material: Material) -> None:
        with Image.open(material.picture) as picture:
            change(picture).save(os.fsencode(path).decode("utf-8", "surrogateescape"), **options)

    return make


def _cut_image(path: Path, material: Material) -> None:
    data = material.picture.read_bytes()
    path.write_bytes(data[: len(data) // 3])


def _animated(path: Path, material: Material) -> None:
    with Image.open(material.picture) as picture:
        frames = [picture.convert("RGB").resize((96, 64)).rotate(angle) for angle in (0, 10, 20)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def _deep(path: Path, material: Material) -> None:
    import numpy as np

    values = np.linspace(0, 65535, 128 * 192).reshape(128, 192).astype(np.uint16)
    Image.fromarray(values).save(path)


def _loop(path: Path, material: Material) -> None:
    path.symlink_to(path.name)


def _dangling(path: Path, material: Material) -> None:
    path.symlink_to("nobody.mp4")


def _fifo(path: Path, material: Material) -> None:
    os.mkfifo(path)


_HTML = b"<!doctype html><html><body>403 Forbidden</body></html>\n" * 40
_NO_MEDIA = r"cannot be opened: .*\(no media, a playlist, or the index is missing\)"

CASES = (
    # containers with nothing, or something else, inside
    Case("empty.mp4", _bytes(b""), "failed", "the file is empty"),
    Case("zeros.mp4", _bytes(bytes(20_000)), "failed", _NO_MEDIA),
    Case("web page.mp4", _bytes(_HTML), "failed", "is an HTML or XML page, not a video or image"),
    Case("random.mkv", _bytes(random.Random(3).randbytes(20_000)), "failed", "cannot be opened"),
    Case("tone.mp4", _audio, "failed", "there is no video stream"),
    Case("tone with cover.mp4", _cover_only, "failed", "there is no video stream"),
    Case("subtitles.mkv", _subtitles_only, "failed", "there is no video stream"),
    Case("no frames.mp4", _no_frames, "failed", "there is no video stream"),
    # cut at ten places; the index stands in front
    Case("cut 01.mp4", _cut(0.01), "failed", "no picture in it", False),
    Case("cut 05.mp4", _cut(0.05), "failed", "no picture in it", False),
    Case("cut 10.mp4", _cut(0.10), "truncated", r"breaks off at 0\.\d+ s", False),
    Case("cut 20.mp4", _cut(0.20), "truncated", "breaks off at", False),
    Case("cut 35.mp4", _cut(0.35), "truncated", "breaks off at", False),
    Case("cut 50.mp4", _cut(0.50), "truncated", r"breaks off at 3\.\d+ s", False),
    Case("cut 65.mp4", _cut(0.65), "truncated", r"breaks off at 5\.\d+ s", True),
    Case("cut 80.mp4", _cut(0.80), "truncated", "breaks off at", True),
    Case("cut 90.mp4", _cut(0.90), "truncated", "breaks off at", True),
    Case("cut 99.mp4", _cut(0.99), "truncated", "breaks off at", True),
    # flipped bits
    Case("flips in the header.mp4", _flipped(1, 6, 0.0, 0.002), "ok", "", True),
    Case(
        "flips in the index.mp4", _flipped(2, 12, 0.002, 0.02), "truncated", "breaks off at .*cannot be decoded", True
    ),
    Case(
        "flips in the pictures.mp4",
        _flipped(4, 8, 0.4, 0.9),
        "truncated",
        r"a damaged picture at 2\.\d+ s, and 4 more",
        False,
    ),
    Case(
        "flips everywhere.mp4",
        _flipped(5, 400, 0.02, 1.0),
        "truncated",
        "a damaged picture .* more; breaks off at",
        False,
    ),
    # unusual, and fine
    Case("one frame.mp4", _encoded(frames=1), "ok", "", False),
    Case(
        "odd size.mp4",
        _encoded(lambda v: v.filter("scale", 427, 241).filter("setsar", 1), pix_fmt="yuv444p"),
        "ok",
        "",
        True,
    ),
    Case("tiny.mp4", _encoded(lambda v: v.filter("scale", 16, 16).filter("setsar", 1)), "ok", "", True),
    Case("ribbon.mp4", _encoded(lambda v: v.filter("scale", 1600, 18).filter("setsar", 1)), "ok", "", True),
    Case("strip.mp4", _encoded(lambda v: v.filter("scale", 1280, 140).filter("setsar", 1)), "ok", "", True),
    Case(
        "10 bit.mkv",
        _encoded(vcodec="libx265", pix_fmt="yuv420p10le", **{"x265-params": "log-level=none"}),
        "ok",
        "",
        True,
    ),
    Case("grey.mkv", _stored(vcodec="ffv1", pix_fmt="gray16le"), "ok", "", True),
    Case("alpha.mov", _stored(vcodec="qtrle", pix_fmt="argb"), "ok", "", True),
    Case(
        "alpha.webm",
        _stored(vcodec="libvpx", pix_fmt="yuva420p", deadline="realtime", **{"auto-alt-ref": 0}),
        "ok",
        "",
        True,
    ),
    Case("interlaced.mp4", _encoded(flags="+ildct+ilme", x264opts="tff=1"), "ok", "", True),
    Case("variable rate.mp4", _case_of("variable_rate"), "ok", "", True),
    Case("rotated.mp4", _case_of("rotated"), "ok", "", True),
    Case("starts before zero.ts", _case_of("negative_start"), "ok", "", True),
    Case("without timestamps.mkv", _case_of("missing_timestamps"), "ok", "", True),
    Case("anamorphic.mp4", _case_of("anamorphic"), "ok", "", False),
    Case("old.avi", _stored(vcodec="mpeg4"), "ok", "", True),
    Case("raw.avi", _stored(lambda v: v.filter("scale", 96, 64), vcodec="rawvideo"), "ok", "", True),
    Case("animation.gif", _stored(lambda v: v.filter("scale", 128, 72), vcodec="gif", pix_fmt="rgb8"), "ok", "", True),
    Case("fragments.mp4", _encoded(movflags="+frag_keyframe+empty_moov", g=12), "ok", "", True),
    Case("SHOUTED.MP4", _copied, "ok", "", True),
    # claims of size
    Case("claims 65535.mp4", _huge_mp4, "ok", "", True),
    Case("claims 65535.gif", _huge_gif, "failed", "no picture in it"),
    Case("claims 65535.png", _huge_png, "failed", "too many pixels", False, "image"),
    Case("bomb.png", _bomb_png, "failed", "too many pixels", False, "image"),
    # playlists that would make the decoder read other files or the network
    Case(
        "playlist.mp4",
        _bytes(b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n"),
        "failed",
        "cannot be opened",
    ),
    Case("local list.mp4", _bytes(b"ffconcat version 1.0\nfile 'SHOUTED.MP4'\n"), "failed", "cannot be opened"),
    Case("itself.mp4", _bytes(b"ffconcat version 1.0\nfile 'itself.mp4'\n"), "failed", "cannot be opened"),
    Case("pattern.mp4", _bytes(b"#EXTM3U\n#EXTINF:9,\nSHOUTED.MP4\n#EXT-X-ENDLIST\n"), "failed", "cannot be opened"),
    # names
    Case(b"new\nline.mp4", _copied, "ok", "", None),
    Case("quote'\".mp4", _copied, "ok", "", None),
    Case("semi;colon && true.mp4", _copied, "ok", "", None),
    Case("-dash.mp4", _copied, "ok", "", None),
    Case("100%41 %s.mp4", _copied, "ok", "", None),
    Case("a:b?c#d.mp4", _copied, "ok", "", None),
    Case(b"not utf-8 \xff\xfe.mp4", _copied, "ok", "", None),
    Case("<b>markup<script>.mp4", _copied, "ok", "", None),
    Case("x" * 250 + ".mp4", _copied, "ok", "", None),
    # things in a folder that are no files
    Case("loop.mp4", _loop, "failed", "cannot be read: Too many levels"),
    Case("dangling.mp4", _dangling, "failed", "cannot be read: No such file"),
    Case("pipe.mp4", _fifo, "failed", "not a regular file"),
    # images
    Case("web page.jpg", _bytes(_HTML), "failed", "is an HTML or XML page", False, "image"),
    Case("drawing.png", _bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "failed", "not an image", False, "image"),
    Case("empty.png", _bytes(b""), "failed", "the file is empty", False, "image"),
    Case("cut.jpg", _cut_image, "failed", "cannot be decoded", False, "image"),
    Case("one pixel.png", _image(lambda p: p.resize((1, 1))), "ok", "", True, "image"),
    Case("cmyk.jpg", _image(lambda p: p.convert("CMYK").resize((320, 213))), "ok", "", True, "image"),
    Case("16 bit.png", _deep, "ok", "", True, "image"),
    Case("alpha.png", _image(lambda p: p.convert("RGBA").resize((320, 213))), "ok", "", True, "image"),
    Case("still.webp", _image(lambda p: p.resize((300, 200)), quality=80), "ok", "", True, "image"),
    Case("moving.webp", _animated, "ok", "", True, "image"),
    Case("a video.png", _copied, "ok", "", True),
)
"""Every case; names are the file names in one folder."""


def make_all(folder: Path, material: Material) -> None:
    """Write every case below `folder`, and a link that leads back to the folder itself."""
    for case in CASES:
        case.make(Path(os.fsdecode(os.path.join(os.fsencode(folder), case.file_name))), material)
    (folder / "back").symlink_to(folder, target_is_directory=True)
