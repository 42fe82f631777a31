"""From frame facts to shots, and from shots to clips; pure functions over ticks.

A shot ends at a hard cut, at a dissolve, at a blank stretch (a fade, with its ramps, is in no shot) and at a gap in the timestamps. Cuts and
dissolves may be taken back: the caller says which neighbours look alike, and they are joined. Clips are windows that do not overlap: the longest
length that fits, then the next; what is left over at a shot's end is in no clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curation.analysis.settings import ShotSettings
from curation.analysis.shot_detector import FrameFacts

__all__ = ["Span", "clip_spans", "find_shots", "stitch"]

_RAMP_SECONDS = 2.0
"""The longest ramp of a fade that is cut off."""
_RAMP_STEP = 0.5
"""While a ramp lasts, the next frame away from the blank has a luma range larger by at least this ..."""
_RAMP_EVEN = 0.3
"""... and by at least this share of the mean step so far: after a ramp, a shot may go on growing lighter, but more slowly."""


@dataclass(frozen=True)
class Span:
    """Ticks [first, end). `joinable`: it may be joined with the span before, if the two look alike."""

    first: int
    end: int
    joinable: bool = False

    @property
    def ticks(self) -> int:
        return self.end - self.first


def find_shots(frames: Sequence[FrameFacts], settings: ShotSettings, fps: float) -> list[Span]:
    """Shots of any length, in order, before stitching."""
    blank = _blank_frames(frames, settings, fps)
    shots: list[Span] = []
    start: int | None = None
    joinable = False
    for index, frame in enumerate(frames):
        gap = index > 0 and frame.first_tick > frames[index - 1].end_tick
        outside = blank[index] or frame.in_dissolve
        if start is not None and (gap or outside or frame.cut_before):
            shots.append(Span(start, frames[index - 1].end_tick, joinable))
            start, joinable = None, True
        if gap or blank[index]:
            joinable = False
        if start is None and not outside:
            start = frame.first_tick
    if start is not None:
        shots.append(Span(start, frames[-1].end_tick, joinable))
    return shots


def _blank_frames(frames: Sequence[FrameFacts], settings: ShotSettings, fps: float) -> list[bool]:
    """True for blank frames and for the ramps that lead into and out of them."""
    blank = [frame.luma_range < settings.blank_range for frame in frames]
    outside = list(blank)
    longest = round(_RAMP_SECONDS * fps)
    for step in (1, -1):
        away = longest
        for index in range(len(frames))[::step]:
            after = index + step
            away = 0 if blank[index] else away + 1
            if not 0 < away < longest or not 0 <= after < len(frames):
                continue
            mean_step = (frames[index].luma_range - settings.blank_range) / away
            rise = frames[after].luma_range - frames[index].luma_range
            if frames[max(index, after)].cut_before or rise < max(_RAMP_STEP, _RAMP_EVEN * mean_step):
                away = longest
            else:
                outside[index] = True
    return outside


def stitch(shots: Sequence[Span], alike: Callable[[Span, Span], bool]) -> list[Span]:
    """Join each joinable shot to the one before if `alike(before, shot)`; the ticks between them are taken in."""
    joined: list[Span] = []
    for shot in shots:
        if joined and shot.joinable and alike(joined[-1], shot):
            joined[-1] = Span(joined[-1].first, shot.end, joined[-1].joinable)
        else:
            joined.append(shot)
    return joined


def clip_spans(shot: Span, lengths: Sequence[int], min_ticks: int) -> list[Span]:
    """Windows of the shot: `clip_spans(Span(0, 200), (121, 65, 33), 48)` is [0, 121), [121, 186)."""
    spans: list[Span] = []
    if shot.ticks < min_ticks:
        return spans
    first = shot.first
    while True:
        length = next((count for count in lengths if first + count <= shot.end), None)
        if length is None:
            return spans
        spans.append(Span(first, first + length))
        first += length
