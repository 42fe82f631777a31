"""What a file is, by its first bytes: a video, an image, or something that is neither and is named; never by its suffix alone.

Only marks that cannot be mistaken are known here; of everything else nothing is said, and the decoder judges it. Price: formats without a mark
at their start (old MPEG audio, raw streams) stay what their suffix says.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["HEAD_BYTES", "IMAGE_EXTENSIONS", "VIDEO_EXTENSIONS", "FileKind", "kind_of_bytes", "kind_of_suffix"]

VIDEO_EXTENSIONS = frozenset(
    [
        ".mp4",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".gif",
        ".m4v",
        ".mpg",
        ".mpeg",
        ".ts",
        ".m2ts",
        ".mts",
        ".flv",
        ".wmv",
        ".ogv",
        ".3gp",
    ]
)
IMAGE_EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"])
HEAD_BYTES = 512
"""How much of a file `kind_of_bytes` wants to see."""
_MPEG_PACKET = 188
_IMAGE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1")


class FileKind(NamedTuple):
    """What the first bytes say."""

    kind: Literal["video", "image", "other"]
    what: str
    """For a message: `a JPEG image`."""


_STARTS: tuple[tuple[bytes, FileKind], ...] = (
    (b"\xff\xd8\xff", FileKind("image", "a JPEG image")),
    (b"\x89PNG\r\n\x1a\n", FileKind("image", "a PNG image")),
    (b"II*\0", FileKind("image", "a TIFF image")),
    (b"MM\0*", FileKind("image", "a TIFF image")),
    (b"GIF87a", FileKind("video", "a GIF")),
    (b"GIF89a", FileKind("video", "a GIF")),
    (b"\x1aE\xdf\xa3", FileKind("video", "a Matroska or WebM video")),
    (b"FLV\x01", FileKind("video", "a Flash video")),
    (b"OggS", FileKind("video", "an Ogg file")),
    (b"\x00\x00\x01\xba", FileKind("video", "an MPEG program stream")),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", FileKind("video", "a Windows Media file")),
    (b"%PDF-", FileKind("other", "a PDF document")),
    (b"PK\x03\x04", FileKind("other", "a ZIP archive")),
    (b"\x1f\x8b\x08", FileKind("other", "a gzip file")),
)
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error>")


def kind_of_suffix(suffix: str) -> Literal["video", "image"] | None:
    """Kind by a file name's ending, in any case; None when it is not a known one.

    >>> kind_of_suffix(".MP4"), kind_of_suffix(".txt")
    ('video', None)
    """
    lower = suffix.lower()
    return "video" if lower in VIDEO_EXTENSIONS else "image" if lower in IMAGE_EXTENSIONS else None


def kind_of_bytes(head: bytes) -> FileKind | None:
    """Kind by the first `HEAD_BYTES`; None when they carry no known mark.

    >>> kind_of_bytes(b"<!DOCTYPE html><title>404</title>").what
    'an HTML or XML page'
    """
    for start, found in _STARTS:
        if head.startswith(start):
            return found
    if head[:4] == b"RIFF":
        if head[8:12] == b"WEBP":
            return FileKind("image", "a WebP image")
        return FileKind("video", "an AVI video") if head[8:12] == b"AVI " else None
    if head[4:8] == b"ftyp":
        return FileKind("image", "a HEIF image") if head[8:12] in _IMAGE_BRANDS else FileKind("video", "an MP4 or MOV")
    if head[:1] == b"G" and len(head) > _MPEG_PACKET and head[_MPEG_PACKET : _MPEG_PACKET + 1] == b"G":
        return FileKind("video", "an MPEG transport stream")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return FileKind("other", "an HTML or XML page") if text.startswith(_PAGES) else None
