"""Frames to files that people look at: an MP4 and a contact sheet."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np

from schemas.files import atomic_path

__all__ = ["write_contact_sheet", "write_mp4"]

_SHEET_FRAMES = 12
_SHEET_COLUMNS = 4


def write_mp4(path: Path, frames_THWC: np.ndarray, fps: float) -> str:
    """Write uint8 RGB frames as H.264, or MPEG-4 part 2 where PyAV has no x264; returns the encoder's name. Sides must be even."""
    import av

    encoder = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    rate = Fraction(fps).limit_denominator(1001)
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream(encoder, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "16"} if encoder == "libx264" else {"qscale": "2"}
        for frame in frames_THWC:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return encoder


def write_contact_sheet(path: Path, frames_THWC: np.ndarray) -> None:
    """Write up to 12 evenly spaced frames, first and last among them, as one PNG of four columns, in reading order."""
    from PIL import Image

    count = min(_SHEET_FRAMES, len(frames_THWC))
    chosen = np.linspace(0, len(frames_THWC) - 1, count).round().astype(int)
    height, width = frames_THWC.shape[1:3]
    columns = min(_SHEET_COLUMNS, count)
    sheet = np.zeros((math.ceil(count / columns) * height, columns * width, 3), np.uint8)
    for place, index in enumerate(chosen):
        row, column = divmod(place, columns)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = frames_THWC[index]
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
