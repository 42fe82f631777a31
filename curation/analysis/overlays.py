"""What was burnt into the picture, per clip of a source: lines of text and graphic marks, each where it must be cut away.

Overlays are told from the scene by what other shots show at the same place, so they are looked for over chapters of up to 16 shots and not clip
by clip; a logo that comes or goes with the programme is found in its chapter. What holds for a chapter holds for all of its clips. Price: a clip
without the logo in a chapter with it is cropped as well; and a source of one shot from a tripod shows nothing apart, so its steady text is named,
and stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curation.analysis.crops import Box, border_box, covered_area
from curation.analysis.marks import Agreement, ShotEdges, agreement_of, find_marks, setups_of, shot_edges
from curation.analysis.samples import SampleStore, evenly
from curation.analysis.scores import luma_plane
from curation.analysis.settings import AnalyzeSettings
from curation.analysis.shots import Span
from curation.analysis.text_overlays import persistent_boxes, stays_while_scene_moves, subtitle_lines

if TYPE_CHECKING:
    from encoders.text_detection import TextDetector

__all__ = ["ClipOverlays", "chapters", "find_overlays"]

CHAPTER_SHOTS = 16
_FRAMES_PER_SHOT = 4
_SAME_LETTERS = 0.5
"""Agreement of the setups inside a text box from which they show the same letters; different scenes have 0.0 to 0.3."""
_TEXT_RATIO = 0.3
"""A mark is text when text boxes cover this share of it in a quarter of the frames."""
_TEXT_FRAMES_RATIO = 0.25
_ONE_OVERLAY = 0.4
"""Boxes that share this much of the smaller one are the same overlay, found twice."""


@dataclass(frozen=True)
class ClipOverlays:
    """Of one clip, sample pixels."""

    text: tuple[tuple[Box, ...], ...]
    """Text boxes of each frame that the models look at, in the scene or not."""
    boxes: tuple[Box, ...] = ()
    kinds: tuple[str, ...] = ()
    """`text` or `mark`, one per box."""
    has_steady_text: bool = False
    """Text stays in its place, but nothing tells it from a sign before a fixed camera."""


@dataclass(frozen=True)
class _Clip:
    shot: int
    text: tuple[tuple[Box, ...], ...]


def chapters(num_shots: int, most: int = CHAPTER_SHOTS) -> list[range]:
    """Neighbouring shots in equal parts of at most `most`: `chapters(5, 3) == [range(0, 3), range(3, 5)]`."""
    count = -(-num_shots // most)
    bounds = [-(-part * num_shots // count) for part in range(count + 1)] if count else [0]
    return [range(first, end) for first, end in itertools.pairwise(bounds)]


def find_overlays(
    store: SampleStore,
    shots: Sequence[Span],
    clips: Sequence[tuple[int, Span]],
    detector: TextDetector | None,
    sample_size: tuple[int, int],
    settings: AnalyzeSettings,
) -> list[ClipOverlays]:
    """Overlays of each of `clips` (index of its shot, span), which come in the order of their shots."""
    if not settings.overlays:
        return [ClipOverlays(())] * len(clips)
    found: list[ClipOverlays] = []
    for chapter in chapters(len(shots)):
        own = [_Clip(shot, _text_of(span, store, detector, settings)) for shot, span in clips if shot in chapter]
        if own:
            found += _of_chapter(own, {shot: shots[shot] for shot in chapter}, store, sample_size, settings)
    return found


def _text_of(
    span: Span, store: SampleStore, detector: TextDetector | None, settings: AnalyzeSettings
) -> tuple[tuple[Box, ...], ...]:
    ticks = evenly(store.between(span.first, span.end), settings.sampling.model_frames)
    if detector is None:
        return ((),) * len(ticks)
    return tuple(text_boxes(store.frame(tick), detector, settings) for tick in ticks)


def text_boxes(frame: NDArray[np.uint8], detector: TextDetector, settings: AnalyzeSettings) -> tuple[Box, ...]:
    """Believable text boxes of a frame, sample pixels."""
    widest = settings.text_side_ratio * min(frame.shape[:2])
    found = detector.boxes(frame, settings.text_long_side)
    return tuple(
        Box(box.top, box.left, box.bottom, box.right)
        for box in found
        if box.score >= settings.text_score and min(box.bottom - box.top, box.right - box.left) <= widest
    )


def _of_chapter(
    clips: Sequence[_Clip],
    shots: dict[int, Span],
    store: SampleStore,
    sample_size: tuple[int, int],
    settings: AnalyzeSettings,
) -> list[ClipOverlays]:
    whole = Box(0, 0, *sample_size)
    steady = [persistent_boxes(clip.text, whole, settings.crop) for clip in clips]
    if len(shots) < 2 and not any(steady):
        return [_with_subtitles(clip, whole, clips, settings) for clip in clips]
    edges, picture = _edges(shots, store, sample_size, settings)
    agreement = _agreement(edges)
    marks = [] if agreement is None else find_marks(agreement, picture)
    lines = subtitle_lines([clip.text for clip in clips], picture, settings.crop)
    kinds = ["text" if _is_text(mark, clips) else "mark" for mark in marks]
    found = []
    for clip, candidates in zip(clips, steady, strict=True):
        told = [box for box in candidates if _is_overlay(box, clip, edges, agreement, marks)]
        own_lines = [line for line in lines if _shows(clip, line)]
        text = [(box, "text") for box in (*told, *own_lines)]
        boxes = _joined([*text, *zip(marks, kinds, strict=True)])
        left = [box for box in candidates if not any(_overlap(box, other) for other, _ in boxes)]
        found.append(ClipOverlays(clip.text, tuple(b for b, _ in boxes), tuple(k for _, k in boxes), bool(left)))
    return found


def _with_subtitles(clip: _Clip, picture: Box, clips: Sequence[_Clip], settings: AnalyzeSettings) -> ClipOverlays:
    lines = subtitle_lines([other.text for other in clips], picture, settings.crop)
    own = tuple(line for line in lines if _shows(clip, line))
    return ClipOverlays(clip.text, own, ("text",) * len(own))


def _edges(
    shots: dict[int, Span], store: SampleStore, sample_size: tuple[int, int], settings: AnalyzeSettings
) -> tuple[dict[int, ShotEdges], Box]:
    """Edges of the shots that have samples, and the picture of the chapter inside its borders."""
    lightest = np.zeros(sample_size, dtype=np.uint8)
    edges = {}
    for shot, span in shots.items():
        ticks = evenly(store.between(span.first, span.end), _FRAMES_PER_SHOT)
        if len(ticks) < 2:
            continue
        frames = [store.frame(tick) for tick in ticks]
        edges[shot] = shot_edges(frames)
        for frame in frames:
            np.maximum(lightest, luma_plane(frame).astype(np.uint8), out=lightest)
    return edges, border_box(lightest, settings.crop)


def _agreement(edges: dict[int, ShotEdges]) -> Agreement | None:
    if len(edges) < 2:
        return None
    shots = list(edges.values())
    setups = setups_of(shots)
    return agreement_of(shots, setups) if len(set(setups)) > 1 else None


def _is_overlay(
    box: Box, clip: _Clip, edges: dict[int, ShotEdges], agreement: Agreement | None, marks: Sequence[Box]
) -> bool:
    """Whether steady text of a clip was burnt in: it meets a mark, other setups show the same letters, or the scene moves around it."""
    if any(box.meet(mark).area >= 0.3 * box.area for mark in marks):
        return True
    if agreement is not None and agreement.in_box(box) >= _SAME_LETTERS:
        return True
    return clip.shot in edges and stays_while_scene_moves(edges[clip.shot], box)


def _is_text(mark: Box, clips: Sequence[_Clip]) -> bool:
    frames = [frame for clip in clips for frame in clip.text]
    covered = [covered_area(frame, mark) >= _TEXT_RATIO * mark.area for frame in frames]
    return sum(covered) >= max(1.0, _TEXT_FRAMES_RATIO * len(frames))


def _shows(clip: _Clip, line: Box) -> bool:
    return any(box.meet(line).area >= 0.8 * box.area for frame in clip.text for box in frame)


def _joined(boxes: Sequence[tuple[Box, str]]) -> list[tuple[Box, str]]:
    """Boxes that lie on each other as one, of text if any of them is."""
    joined: list[tuple[Box, str]] = []
    for box, kind in boxes:
        meets = [other for other in joined if _overlap(box, other[0])]
        for other, other_kind in meets:
            box, kind = box.join(other), "text" if "text" in (kind, other_kind) else kind
        joined = [other for other in joined if other not in meets] + [(box, kind)]
    return sorted(joined, key=lambda pair: (pair[1] == "mark", pair[0]))


def _overlap(box: Box, other: Box) -> bool:
    return box.meet(other).area >= _ONE_OVERLAY * min(box.area, other.area)
