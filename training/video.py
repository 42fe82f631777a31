"""Frames to files that people look at: an MP4 and a contact sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from schemas.files import atomic_path

__all__ = ["thumbnails", "write_contact_sheet", "write_mp4", "write_rows_sheet"]

_OPTIONS: dict[str, dict[str, object]] = {
    "libx264": {"crf": "16", "x264-params": "threads=1:lookahead-threads=1"},
    "mpeg4": {"qscale": "2"},
}
_SHEET_FRAMES = 12
_SHEET_COLUMNS = 4
_ROW_FRAMES = 8
_THUMBNAIL_SIDE = 256


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
        # With more threads, or frames converted on the way, the bytes change with how busy the machine is; now and then they still do.
        stream.codec_context.thread_count = 1
        stream.options = _OPTIONS[encoder]
        for frame in frames_THWC:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(format="yuv420p")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return encoder


def write_contact_sheet(path: Path, frames_THWC: np.ndarray) -> None:
    """Write up to 12 evenly spaced frames, first and last among them, as one PNG of four columns, in reading order."""
    from PIL import Image

    chosen = _evenly_spaced(len(frames_THWC), _SHEET_FRAMES)
    count = len(chosen)
    height, width = frames_THWC.shape[1:3]
    columns = min(_SHEET_COLUMNS, count)
    sheet = np.zeros((math.ceil(count / columns) * height, columns * width, 3), np.uint8)
    for place, index in enumerate(chosen):
        row, column = divmod(place, columns)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = frames_THWC[index]
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")


def thumbnails(frames_THWC: np.ndarray) -> np.ndarray:
    """Up to 8 evenly spaced frames, first and last among them, with the longer side at most 256: one row of a sheet."""
    from PIL import Image

    chosen = frames_THWC[_evenly_spaced(len(frames_THWC), _ROW_FRAMES)]
    height, width = chosen.shape[1:3]
    scale = _THUMBNAIL_SIDE / max(height, width)
    if scale >= 1.0:
        return np.ascontiguousarray(chosen)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in chosen])


def write_rows_sheet(path: Path, rows: Sequence[np.ndarray]) -> None:
    """Write one PNG with a row for each clip, in order; all rows are `thumbnails` of clips of one size."""
    from PIL import Image

    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")


def _evenly_spaced(count: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `count` frames, the first and the last among them."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int)
