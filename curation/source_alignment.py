"""Two sources that run in step: copies found by where their frames fall on the sources' own clocks.

A trimmed copy is cut into clips at other places, and its descriptors fall between those of the original, so two clips alone may share too few
frames to judge. The sources share many. All alike frames of two sources vote for the difference of their times; an offset that several clips
agree on is checked on every frame that lines up there, whether it voted or not. Then a clip is a copy of the clips of the other source that it
shares time with at that offset, if the frames around agree and its own do not object. Offsets claim the time that they explain, the strongest
first, so of a quiet take, which is like itself everywhere, one offset is taken. Price: a copy played at another speed lines up nowhere; one step
of Python per pair of sources.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from curation.frame_search import Hits
from curation.match_frames import ClipFrames, Indices
from curation.match_settings import MatchSettings

__all__ = ["InStep", "sources_in_step"]

_VOTE_SECONDS = 0.5
_LINED_UP_SECONDS = 0.35
"""Frames are sampled three a second, and a clip has about one descriptor a second: half of the frames have a partner this near."""
_AROUND_SECONDS = 5.0
_MOST_OFFSETS = 8
_OWN_SLACK = 0.15
"""A clip's own few frames may lie this far below `min_mean_cosine` when the frames around agree."""


@dataclass(frozen=True)
class InStep:
    """A clip pair that its sources' common offset makes copies."""

    first: int
    second: int
    offset_s: float
    mean: float
    agree: int
    compared: int


@dataclass(frozen=True)
class _Side:
    """One of the two sources: its clips in time order, its frames in time order."""

    clips: Indices
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    frames: Indices
    time_s: NDArray[np.float64]


def sources_in_step(data: ClipFrames, hits: Hits, settings: MatchSettings) -> Iterator[InStep]:
    """Clip pairs of different video sources, each at most once."""
    times = data.source_time_s()
    by_source = np.argsort(data.source, kind="stable")
    bounds = np.searchsorted(data.source[by_source], np.arange(data.source.max(initial=0) + 2))

    def side(source: int) -> _Side:
        clips = by_source[bounds[source] : bounds[source + 1]]
        clips = clips[np.argsort(data.start_us[clips], kind="stable")]
        counts = data.count[clips]
        frames = np.repeat(data.first[clips] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        return _Side(clips, data.start_us[clips] / 1e6, data.end_us[clips] / 1e6, frames, times[frames])

    for own, other, first, second, cosine in _source_pairs(data, hits, settings):
        shifts = times[second] - times[first]
        yield from _align(data, side(own), side(other), shifts, cosine, settings)


def _source_pairs(
    data: ClipFrames, hits: Hits, settings: MatchSettings
) -> Iterator[tuple[int, int, Indices, Indices, NDArray[np.float32]]]:
    """Two sources, the smaller number first, with their hits in that direction; only those with hits enough."""
    video = data.kind[data.clip[hits.first]] == 1
    first, second, cosine = hits.first[video], hits.second[video], hits.cosine[video]
    source_a, source_b = data.source[data.clip[first]], data.source[data.clip[second]]
    swap = source_a > source_b
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    key = np.minimum(source_a, source_b) * (data.source.max(initial=0) + 1) + np.maximum(source_a, source_b)
    order = np.argsort(key, kind="stable")
    edges = (
        np.flatnonzero(np.concatenate([[True], np.diff(key[order]) != 0, [True]]))
        if len(key)
        else np.zeros(0, np.int64)
    )
    for start, end in pairwise(edges.tolist()):
        rows = order[start:end]
        own, other = (int(data.source[data.clip[side[rows[0]]]]) for side in (first, second))
        if own != other and end - start >= settings.source_frames:
            yield own, other, first[rows], second[rows], cosine[rows]


def _align(
    data: ClipFrames,
    one: _Side,
    two: _Side,
    shifts: NDArray[np.float64],
    cosine: NDArray[np.float32],
    settings: MatchSettings,
) -> Iterator[InStep]:
    """Offsets by their strength; each gives the clip pairs whose time nothing stronger has claimed."""
    judged = [_judge(data, one, two, offset, settings) for offset in _offsets(shifts, cosine)]
    claimed: set[int] = set()
    for strength, pairs in sorted(judged, key=lambda entry: -entry[0]):
        fresh = [pair for pair in pairs if not claimed & {pair.first, pair.second}]
        if strength > 0:
            yield from fresh
        claimed |= {clip for pair in fresh for clip in (pair.first, pair.second)}


def _offsets(shifts: NDArray[np.float64], cosine: NDArray[np.float32]) -> list[float]:
    """Differences of time with the most votes within half a second, strongest first, none within another's half second."""
    order = np.argsort(shifts, kind="stable")
    shifts, votes = shifts[order], (cosine[order].astype(np.float64) - 0.5) ** 2
    sums = np.concatenate([[0.0], np.cumsum(votes)])
    last = np.searchsorted(shifts, shifts + _VOTE_SECONDS, side="right")
    strength = sums[last] - sums[: len(shifts)]
    found: list[float] = []
    for _ in range(_MOST_OFFSETS):
        start = int(strength.argmax())
        if strength[start] <= 0:
            break
        inside = slice(start, int(last[start]))
        sharp = votes[inside] ** 2  # frames taken at nearly one time are the most alike
        centre = float((shifts[inside] * sharp).sum() / sharp.sum())
        found.append(centre)
        strength[(shifts > centre - 2 * _VOTE_SECONDS) & (shifts < centre + _VOTE_SECONDS)] = 0
    return found


def _judge(
    data: ClipFrames, one: _Side, two: _Side, offset: float, settings: MatchSettings
) -> tuple[float, list[InStep]]:
    """Strength of an offset, and the clip pairs that it makes copies."""
    wanted = one.time_s + offset
    right = np.clip(np.searchsorted(two.time_s, wanted), 1, max(len(two.time_s) - 1, 1))
    right = np.minimum(right, len(two.time_s) - 1)
    left = np.maximum(right - 1, 0)
    nearest = np.where(np.abs(two.time_s[left] - wanted) <= np.abs(two.time_s[right] - wanted), left, right)
    lined_up = np.abs(two.time_s[nearest] - wanted) <= _LINED_UP_SECONDS
    rows, partners, at = one.frames[lined_up], two.frames[nearest[lined_up]], one.time_s[lined_up]
    cosine = data.cosines(rows, partners).astype(np.float64)
    agrees = cosine >= settings.frame_cosine
    many = len({*zip(data.clip[rows[agrees]].tolist(), data.clip[partners[agrees]].tolist(), strict=True)}) >= 2
    if agrees.sum() < settings.source_frames or not many:
        return 0.0, []
    pairs = []
    for clip_a, clip_b, start, end in _sharing(one, two, offset, settings):
        around = (at >= start - _AROUND_SECONDS) & (at <= end + _AROUND_SECONDS)
        own = (data.clip[rows] == clip_a) & (data.clip[partners] == clip_b)
        if around.sum() < settings.source_frames or agrees[around].mean() < settings.min_agree_ratio:
            continue
        if cosine[around].mean() < settings.min_mean_cosine:
            continue
        if own.any() and cosine[own].mean() < settings.min_mean_cosine - _OWN_SLACK:
            continue
        told = own if own.any() else around
        between = offset + (data.start_us[clip_a] - data.start_us[clip_b]) / 1e6
        pairs.append(
            InStep(clip_a, clip_b, between, float(cosine[told].mean()), int(agrees[told].sum()), int(told.sum()))
        )
    return float((cosine - 0.5).sum()), pairs


def _sharing(one: _Side, two: _Side, offset: float, settings: MatchSettings) -> Iterator[tuple[int, int, float, float]]:
    """Clip pairs that share enough time at this offset: clips, and the span shared on the first source's clock."""
    for clip, start, end in zip(one.clips.tolist(), one.start_s, one.end_s, strict=True):
        low = int(np.searchsorted(two.end_s, start + offset, side="right"))
        high = int(np.searchsorted(two.start_s, end + offset, side="left"))
        for place in range(low, high):
            shared_from = max(start, two.start_s[place] - offset)
            shared_to = min(end, two.end_s[place] - offset)
            shorter = min(end - start, two.end_s[place] - two.start_s[place])
            if shared_to - shared_from >= settings.min_overlap_ratio * shorter:
                yield clip, int(two.clips[place]), shared_from, shared_to
