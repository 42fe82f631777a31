"""The one way to read a source: upright frames on an even timeline, in bounded memory, with an honest ending.

Analysis and encoding read through this one function, so a tick means the same picture in both. Rotation metadata and non-square pixels are applied:
sizes are as displayed. Decoding is single-threaded, so that workers scale by processes and a damaged file gives the same pictures everywhere.
Price: a lone large file uses one core, unless it is read in pieces.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from curation.frames import (
    Damage,
    Ending,
    Picture,
    SmallPicture,
    SourceFacts,
    SourceReader,
    TickRange,
    TimedFrame,
    UnreadableSourceError,
    tick_spans,
)

__all__ = ["DECODE_CODE", "Damage", "Ending", "Picture", "SmallPicture", "SourceFacts", "SourceReader", "TickRange"]
__all__ += ["TimedFrame", "UnreadableSourceError", "open_source", "tick_spans"]

DECODE_CODE = tuple(
    f"curation.{name}" for name in ("changes", "decode", "frames", "image_reader", "pictures", "video_reader")
)
"""Modules that decide which picture a tick shows: part of the key of everything that reads one."""


def open_source(path: str, *, kind: str, fps: float) -> SourceReader:
    """Open a video or an image; `fps` is the rate of the timeline.

    Raises:
        UnreadableSourceError: if not one picture can be had from it.
    """
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        raise UnreadableSourceError(f"cannot be read: {error.strerror}") from error
    if size == 0:
        raise UnreadableSourceError("cannot be opened: the file is empty")
    if kind == "image":
        from curation.image_reader import ImageReader

        return ImageReader(path)
    from curation.video_reader import VideoReader

    return VideoReader(path, Fraction(fps).limit_denominator(1001 * 240))
