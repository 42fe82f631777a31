"""Text that is part of no scene: lines that stay where they are, told from signs in the scene by what happens around them.

A text detector says where letters are, never whether they were burnt in. A line that keeps its place in half of a clip's frames is a candidate. It is
an overlay if other camera positions show the same letters there, or if the picture around it moves while it does not; lines that change in place,
centred in the lower part of the picture, are subtitles. What is left is a sign before a fixed camera, for all that can be known, and stays.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from curation.analysis.crops import Box
from curation.analysis.marks import ShotEdges
from curation.analysis.settings import CropSettings

__all__ = ["persistent_boxes", "stays_while_scene_moves", "subtitle_lines"]

_EDGE = 0.2
"""Mean bounded gradient from which a pixel is an edge in most frames."""
_RING_RATIO = 1.5
"""The surroundings of a line of text reach this many of its heights (at least a tenth of the picture's) outwards."""
_LEAST_EDGES = 40
_STILL_TEXT, _STILL_SCENE = 0.65, 0.55
"""Length of the mean of an edge's bounded gradients over the mean of their lengths: near 1 if it stays, 0.2 to 0.5 if it moves."""
_SUBTITLE_TOP = 0.6
_SUBTITLE_CENTRED = 0.06
_SUBTITLE_JITTER = 0.35
_SUBTITLE_ASPECT = 1.5


def persistent_boxes(frames: Sequence[Sequence[Box]], picture: Box, settings: CropSettings) -> list[Box]:
    """Boxes that stay: clusters by overlap over frames, kept when seen in enough of them and in one place, each as the box around its members.

    Burnt-in text keeps its line (or, written downwards, its column) to the pixel; text in the scene moves with things or with the camera.
    One frame shows nothing about persistence, and gives none.
    """
    if len(frames) < 2:
        return []
    clusters: list[list[tuple[int, Box]]] = []
    for index, boxes in enumerate(frames):
        for box in sorted(boxes):
            place = max(range(len(clusters)), key=lambda i: _around(clusters[i]).iou(box), default=None)
            if place is not None and _around(clusters[place]).iou(box) >= settings.match_iou:
                clusters[place].append((index, box))
            else:
                clusters.append([(index, box)])
    least = max(2.0, settings.persistence_ratio * len(frames))
    seen_often = [cluster for cluster in clusters if len({index for index, _ in cluster}) >= least]
    return sorted(_around(cluster) for cluster in seen_often if _is_steady(cluster, picture, settings))


def _around(cluster: Sequence[tuple[int, Box]]) -> Box:
    return functools.reduce(Box.join, (box for _, box in cluster))


def _is_steady(cluster: Sequence[tuple[int, Box]], picture: Box, settings: CropSettings) -> bool:
    edges = np.array([(box.top, box.bottom, box.left, box.right) for _, box in cluster])
    top, bottom, left, right = (int(reach) for reach in np.ptp(edges, axis=0))
    around = _around(cluster)
    if around.bottom - around.top > around.right - around.left:
        return max(left, right) <= max(3.0, settings.steady_ratio * picture.right)
    return max(top, bottom) <= max(3.0, settings.steady_ratio * picture.bottom)


def stays_while_scene_moves(edges: ShotEdges, box: Box) -> bool:
    """Whether, within one shot, the edges in the box stay and those around it do not. A smooth surrounding shows nothing, and gives False."""
    height, width = edges.strength.shape
    reach = max(round(_RING_RATIO * min(box.bottom - box.top, box.right - box.left)), round(0.1 * height))
    wide = Box(box.top - reach, box.left - reach, box.bottom + reach, box.right + reach).meet(Box(0, 0, height, width))
    strength = edges.strength[wide.top : wide.bottom, wide.left : wide.right].astype(np.float32)
    mean = edges.mean[:2, wide.top : wide.bottom, wide.left : wide.right].astype(np.float32)
    inside = np.zeros(strength.shape, dtype=bool)
    inside[box.top - wide.top : box.bottom - wide.top, box.left - wide.left : box.right - wide.left] = True
    text, scene = (_stillness(mean, strength, place) for place in (inside, ~inside))
    return text is not None and scene is not None and text >= _STILL_TEXT and scene <= _STILL_SCENE


def _stillness(mean: NDArray[np.float32], strength: NDArray[np.float32], place: NDArray[np.bool_]) -> float | None:
    edges = place & (strength >= _EDGE)
    if int(edges.sum()) < _LEAST_EDGES:
        return None
    return float(np.hypot(mean[0], mean[1])[edges].sum() / strength[edges].sum())


def subtitle_lines(clips: Sequence[Sequence[Sequence[Box]]], picture: Box, settings: CropSettings) -> list[Box]:
    """Lines where burnt-in subtitles come and go: centred text of changing length at one height, low in the picture.

    `clips`: text boxes per frame per clip. A line counts when it is there in enough of the frames of the clips that show it at all, with at least
    two lengths over three frames. Returned as the boxes around all that was seen on each line.
    """
    lines: list[list[tuple[int, int, Box]]] = []
    for clip, frames in enumerate(clips):
        for frame, boxes in enumerate(frames):
            for box in sorted(boxes):
                if not _like_subtitle(box, picture):
                    continue
                line = next((line for line in lines if _same_line(line[0][2], box)), None)
                if line is None:
                    lines.append([(clip, frame, box)])
                else:
                    line.append((clip, frame, box))
    return sorted(_line_box(line) for line in lines if _is_subtitle(line, clips, settings))


def _like_subtitle(box: Box, picture: Box) -> bool:
    height, width = picture.bottom - picture.top, picture.right - picture.left
    off_centre = abs((box.left + box.right) / 2 - (picture.left + picture.right) / 2)
    is_line = box.right - box.left >= _SUBTITLE_ASPECT * (box.bottom - box.top)
    return is_line and box.top >= picture.top + _SUBTITLE_TOP * height and off_centre <= _SUBTITLE_CENTRED * width


def _same_line(first: Box, other: Box) -> bool:
    jitter = _SUBTITLE_JITTER * (first.bottom - first.top)
    return abs(first.top - other.top) <= jitter and abs(first.bottom - other.bottom) <= jitter


def _is_subtitle(
    line: Sequence[tuple[int, int, Box]], clips: Sequence[Sequence[Sequence[Box]]], settings: CropSettings
) -> bool:
    seen = {(clip, frame) for clip, frame, _ in line}
    shown = sum(len(clips[clip]) for clip in {clip for clip, _ in seen})
    height = line[0][2].bottom - line[0][2].top
    lengths = sorted(box.right - box.left for _, _, box in line)
    changes = lengths[-1] - lengths[0] >= height
    return len(seen) >= 3 and changes and len(seen) >= settings.persistence_ratio * shown


def _line_box(line: Sequence[tuple[int, int, Box]]) -> Box:
    return functools.reduce(Box.join, (box for _, _, box in line))
