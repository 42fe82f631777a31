"""From a source to the exact frames of its clips at a set's size: one decode for all clips and all sets.

A frame is cut to the clip's crop, then to the bucket's aspect around the middle, then scaled once: no second resampling, no padding. Clips
of one source do not overlap, so one clip is held in memory at a time, for every set.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.decode import open_source
from schemas.buckets import nearest_size

__all__ = ["ClipPixels", "ClipRequest", "clip_pixels", "cover"]


@dataclass(frozen=True)
class ClipRequest:
    """What is needed of a row of the clips table."""

    clip_id: str
    first_tick: int
    frames: int
    top: int
    left: int
    bottom: int
    right: int
    sets: tuple[str, ...]

    @classmethod
    def from_row(cls, row: Mapping[str, Any], sets: Sequence[str]) -> ClipRequest:
        """From a clips row; ticks are counted at the row's `clip_fps`."""
        crop = row["crop"]
        first = round(row["start_us"] * row["clip_fps"] / 1_000_000)
        box = (crop["top"], crop["left"], crop["bottom"], crop["right"])
        return cls(row["clip_id"], first, row["frames"], *box, tuple(sets))

    @property
    def end_tick(self) -> int:
        return self.first_tick + self.frames

    def size(self, set_name: str) -> tuple[int, int]:
        """(height, width) of the set's bucket whose aspect is nearest to the crop's."""
        return nearest_size(set_name, self.bottom - self.top, self.right - self.left)


@dataclass(frozen=True)
class ClipPixels:
    """A finished clip: per set uint8 (frames, height, width, 3); fewer frames than asked if the source ended early."""

    clip: ClipRequest
    by_set: dict[str, NDArray[np.uint8]]
    frames_found: int


def cover(rgb: NDArray[np.uint8], clip: ClipRequest, height: int, width: int) -> NDArray[np.uint8]:
    """The middle of the crop at the aspect of (height, width), scaled to it; averaged when shrunk, interpolated when enlarged."""
    import cv2

    rows, columns = clip.bottom - clip.top, clip.right - clip.left
    scale = min(rows / height, columns / width)
    kept_rows, kept_columns = min(rows, max(1, round(scale * height))), min(columns, max(1, round(scale * width)))
    top = clip.top + (rows - kept_rows) // 2
    left = clip.left + (columns - kept_columns) // 2
    part = rgb[top : top + kept_rows, left : left + kept_columns]
    method = cv2.INTER_AREA if scale >= 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(part, (width, height), interpolation=method), dtype=np.uint8)


def clip_pixels(path: str, kind: str, fps: float, clips: Sequence[ClipRequest]) -> Iterator[ClipPixels]:
    """Every clip once, in order of time; decoding stops after the last one.

    Raises:
        UnreadableSourceError: if the source cannot be opened any more.
        ValueError: if clips overlap.
    """
    import cv2

    cv2.setNumThreads(1)
    waiting = sorted(clips, key=lambda clip: clip.first_tick)
    for before, after in itertools.pairwise(waiting):
        if after.first_tick < before.end_tick:
            raise ValueError(f"clips {before.clip_id} and {after.clip_id} overlap; clips of one source never do")
    reader = open_source(path, kind=kind, fps=fps)
    try:
        frames = reader.frames()
        frame = next(frames, None)
        for clip in waiting:
            pixels = _Filling(clip)
            while frame is not None and frame.end_tick <= clip.first_tick:
                frame = next(frames, None)
            while frame is not None and frame.first_tick < clip.end_tick:
                rgb = frame.picture.rgb(reader.facts.height, reader.facts.width)
                pixels.add(rgb, max(frame.first_tick, clip.first_tick), min(frame.end_tick, clip.end_tick))
                if frame.end_tick >= clip.end_tick:
                    break
                frame = next(frames, None)
            yield pixels.finish()
    finally:
        reader.close()


class _Filling:
    def __init__(self, clip: ClipRequest) -> None:
        self._clip = clip
        self._found = 0
        self._by_set = {name: np.zeros((clip.frames, *clip.size(name), 3), dtype=np.uint8) for name in clip.sets}

    def add(self, rgb: NDArray[np.uint8], first_tick: int, end_tick: int) -> None:
        start, end = first_tick - self._clip.first_tick, end_tick - self._clip.first_tick
        for pixels in self._by_set.values():
            pixels[start:end] = cover(rgb, self._clip, *pixels.shape[1:3])
        self._found += end - start

    def finish(self) -> ClipPixels:
        return ClipPixels(self._clip, self._by_set, self._found)
