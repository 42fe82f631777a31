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
"""While a ramp lasts, the next frame away from the blank has a luma range larger by at least this."""


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
    outside = _blank_frames(frames, settings, fps)
    middles = _dissolve_frames(frames, fps)
    half = round(fps / 2)
    shots: list[Span] = []
    start: int | None = None
    joinable = False
    for index, frame in enumerate(frames):
        gap = index > 0 and frame.first_tick > frames[index - 1].end_tick
        if start is not None and (gap or outside[index] or frame.cut_before or index in middles):
            end = frames[index - 1].end_tick
            shots.append(Span(start, end, joinable))
            joinable = not gap and not outside[index]
            start = None
        if outside[index]:
            joinable = False
        elif start is None:
            start = frame.first_tick
    if start is not None:
        shots.append(Span(start, frames[-1].end_tick, joinable))
    return _trim_dissolves(shots, [frames[index].first_tick for index in sorted(middles)], half)


def _blank_frames(frames: Sequence[FrameFacts], settings: ShotSettings, fps: float) -> list[bool]:
    """True for blank frames and for the ramps that lead into and out of them."""
    blank = [frame.luma_range < settings.blank_range for frame in frames]
    outside = list(blank)
    for step in (1, -1):
        left = 0
        for index in range(len(frames))[::step]:
            after = index + step
            left = round(_RAMP_SECONDS * fps) if blank[index] else left - 1
            if blank[index] or left <= 0 or not 0 <= after < len(frames):
                continue
            cut = frames[max(index, after)].cut_before
            if cut or frames[after].luma_range - frames[index].luma_range < _RAMP_STEP:
                left = 0
            else:
                outside[index] = True
    return outside


def _dissolve_frames(frames: Sequence[FrameFacts], fps: float) -> set[int]:
    """The strongest frame of each run of dissolve candidates."""
    found: set[int] = set()
    best: int | None = None
    for index, frame in enumerate(frames):
        if not frame.dissolve_change:
            continue
        if best is not None and frame.first_tick - frames[best].first_tick <= fps:
            if frame.dissolve_change > frames[best].dissolve_change:
                found.discard(best)
                found.add(index)
                best = index
            continue
        best = index
        found.add(index)
    return found


def _trim_dissolves(shots: list[Span], middles: Sequence[int], half: int) -> list[Span]:
    """Take half a dissolve off both shots around each middle; a joined pair gets it back."""
    if not middles:
        return shots
    at = set(middles)
    trimmed = []
    for place, shot in enumerate(shots):
        first = shot.first + half if shot.first in at else shot.first
        following = shots[place + 1].first if place + 1 < len(shots) else None
        end = shot.end - half if following in at and following == shot.end else shot.end
        if end > first:
            trimmed.append(Span(first, end, shot.joinable))
    return trimmed


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
