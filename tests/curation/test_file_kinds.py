"""What a file is, by its bytes: real media of every kind that is promised, and things that are named like them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from curation.file_kinds import HEAD_BYTES, kind_of_bytes, kind_of_suffix


@pytest.mark.parametrize(
    ("format_", "kind"), [("JPEG", "image"), ("PNG", "image"), ("WEBP", "image"), ("GIF", "video")]
)
def test_pictures_are_known_by_their_bytes(tmp_path: Path, format_: str, kind: str) -> None:
    Image.new("RGB", (32, 16), "red").save(tmp_path / "picture", format=format_)
    found = kind_of_bytes((tmp_path / "picture").read_bytes()[:HEAD_BYTES])
    assert found is not None and found.kind == kind


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm", "avi", "ts", "mpg"])
def test_videos_are_known_by_their_bytes(
    tmp_path: Path, media: Callable[[str], Path], media_cases: ModuleType, suffix: str
) -> None:
    codecs = {"webm": {"vcodec": "libvpx", "preset": None, "crf": 30}, "avi": {"vcodec": "mpeg4", "preset": None}}
    codecs["mpg"] = {"vcodec": "mpeg2video", "preset": None}
    part = media_cases._part(media("bigbuckbunny"), 0, 0.5, (64, 96))
    options = {name: value for name, value in codecs.get(suffix, {}).items() if value is not None}
    drop = [name for name, value in codecs.get(suffix, {}).items() if value is None]
    path = _encoded(media_cases, part, tmp_path / f"film.{suffix}", options, drop)
    found = kind_of_bytes(path.read_bytes()[:HEAD_BYTES])
    assert found is not None and found.kind == "video" and kind_of_suffix(f".{suffix.upper()}") == "video"


def _encoded(media_cases: ModuleType, stream: object, path: Path, options: dict[str, object], drop: list[str]) -> Path:
    import ffmpeg
    import imageio_ffmpeg

    settings = {"vcodec": "libx264", "preset": "veryfast", "pix_fmt": "yuv420p", "threads": 1, "an": None} | options
    for name in drop:
        settings.pop(name)
    ffmpeg.output(stream, f"file:{path}", **settings).run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), quiet=True)
    return path


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"\n\n<!doctype HTML><html>", "an HTML or XML page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error>", "an HTML or XML page"),
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\x03\x04....", "a ZIP archive"),
    ],
)
def test_what_is_neither_is_named(head: bytes, what: str) -> None:
    found = kind_of_bytes(head)
    assert found is not None and found.kind == "other" and found.what == what


@pytest.mark.parametrize("head", [b"", b"text", b"RIFF....WAVE", b"G" * 100, b"\0" * 512])
def test_of_the_rest_nothing_is_said(head: bytes) -> None:
    assert kind_of_bytes(head) is None
