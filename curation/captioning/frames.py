"""The pictures that the model sees: frames in the middle of equal parts of each clip, cut to its crop, as JPEG.

Thumbnails are too small to read text, so the source is decoded once more, for its captioned clips only, up to the last frame that is wanted. Only
wanted frames are converted. Price: one decode of every source with a kept clip; encoding pays it again.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.captioning.settings import ServerSettings
from curation.decode import UnreadableSourceError, open_source
from curation.encoding.pixels import ClipRequest

__all__ = ["ClipFrames", "clip_frames", "frame_ticks"]

_JPEG_QUALITY = 90


@dataclass(frozen=True)
class ClipFrames:
    """What is shown of one clip; `reason` says why it cannot be shown."""

    clip_id: str
    kind: str
    seconds: float
    jpegs: tuple[bytes, ...]
    reason: str | None = None


def frame_ticks(first_tick: int, frames: int, wanted: int) -> list[int]:
    """Ticks in the middle of `wanted` equal parts; fewer when the clip has fewer frames.

    >>> frame_ticks(0, 121, 4)
    [15, 45, 75, 105]
    """
    count = min(frames, wanted)
    return [first_tick + (2 * index + 1) * frames // (2 * count) for index in range(count)]


def clip_frames(path: str, clips: Sequence[Mapping[str, Any]], settings: ServerSettings) -> Iterator[ClipFrames]:
    """The frames of every clips row of one source, in order of time; a clip that cannot be decoded has a reason instead."""
    rows = sorted(clips, key=lambda row: (row["start_us"], str(row["clip_id"])))
    given: set[str] = set()
    try:
        for shown in _decoded(path, rows, settings):
            given.add(shown.clip_id)
            yield shown
    except UnreadableSourceError as error:
        for row in rows:
            if row["clip_id"] not in given:
                yield _shown(row, [], f"source {error}")


def _decoded(path: str, rows: Sequence[Mapping[str, Any]], settings: ServerSettings) -> Iterator[ClipFrames]:
    if not rows:
        return
    reader = open_source(path, kind=rows[0]["kind"], fps=float(rows[0]["clip_fps"]))
    try:
        frames = reader.frames()
        frame = next(frames, None)
        for row in rows:
            clip = ClipRequest.from_row(row, ())
            jpegs: list[bytes] = []
            ticks = frame_ticks(clip.first_tick, clip.frames, settings.num_frames)
            for tick in ticks:
                while frame is not None and frame.end_tick <= tick:
                    frame = next(frames, None)
                if frame is None or frame.first_tick > tick:
                    break
                rgb = frame.picture.rgb(reader.facts.height, reader.facts.width)
                jpegs.append(_jpeg(rgb, clip, settings.frame_long_side))
            missing = f"{len(jpegs)} of {len(ticks)} frames for the captioner could be decoded"
            yield _shown(row, jpegs, None if len(jpegs) == len(ticks) else missing)
    finally:
        reader.close()


def _shown(row: Mapping[str, Any], jpegs: Sequence[bytes], reason: str | None) -> ClipFrames:
    return ClipFrames(row["clip_id"], row["kind"], row["frames"] / row["clip_fps"], tuple(jpegs), reason)


def _jpeg(rgb: NDArray[np.uint8], clip: ClipRequest, long_side: int) -> bytes:
    import cv2
    from PIL import Image

    part = rgb[clip.top : clip.bottom, clip.left : clip.right]
    height, width = part.shape[:2]
    scale = min(1.0, long_side / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        part = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(part)).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
