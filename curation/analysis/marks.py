"""Overlays found by their edges: a logo, a frame, a line of letters, opaque or faint, because its edges stay while the shots change.

Per shot the gradient of luma is averaged over frames, each pixel's vector bounded, so that weak and strong edges count alike: motion blurs the
scene out, an overlay stays. Shots from the same camera position are one setup. The mean over setups is long where edges agree between scenes that
have nothing else in common, and noise in it falls with the root of their number, which is what shows an overlay of 30 % opacity. Each group
of such pixels must then agree with most setups one by one. Price: an overlay is told from the scene by other scenes only, so two setups are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curation.analysis.crops import Box

__all__ = ["MARKS_MODEL", "ShotEdges", "agreement", "find_marks", "setups_of", "shot_edges"]

MARKS_MODEL = "temporal-edges-2"
_BOUND = 24.0
"""Sobel length, luma levels, to which longer gradients are cut: a step of 6 levels counts as much as one of 200."""
_SAME_SETUP = 0.35
"""Correlation of the inner edges of two shots from which they are one setup: other shots stay below 0.15, a tripod's own are above 0.6."""
_INNER = 0.6
_WINDOW_RATIO = 0.04
"""Side of the window in which setups are compared, share of the height: the smallest overlay looked for."""
_LEAST_LIMIT, _LIMIT_FALL, _MOST_LIMIT = 0.22, 1.6, 0.88
"""Agreement from which a window holds an overlay: 0.22 + 1.6 / setups, at most 0.88. The highest of a clean film is 0.73 with three setups,
0.45 with four, 0.28 with eight; an overlay of 30 % opacity has 0.7 to 0.95."""
_LEAST_ENERGY = 0.02
_LEAST_CORE = 9
_JOIN_RATIO = 0.035
"""Groups nearer than this share of the height are one overlay: letters of a word."""
_RIM = 4
_LINE_LENGTH = 0.5
_LINE_RATIO = 0.25
_PAD = 2
"""Pixels around what was found: the foot of an edge is below every limit."""


@dataclass(frozen=True)
class ShotEdges:
    """Mean bounded gradient of a shot's frames, float32 (2, rows, columns), length at most 1, and the mean of the lengths."""

    mean: NDArray[np.float32]
    strength: NDArray[np.float32]


def shot_edges(frames: Iterable[NDArray[np.uint8]]) -> ShotEdges:
    """Of grey frames of one size, at least one."""
    import cv2

    total: NDArray[np.float32] | None = None
    for count, grey in enumerate(frames, start=1):
        soft = cv2.GaussianBlur(grey, (3, 3), 0)
        across, down = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
        length = cv2.magnitude(across, down)
        scale = 1.0 / np.maximum(length, np.float32(_BOUND))
        sample = np.stack([across * scale, down * scale, length * scale])
        total = sample if total is None else total + sample
        num_frames = count
    assert total is not None, "a shot has frames"
    total /= np.float32(num_frames)
    return ShotEdges(total[:2], total[2])


def setups_of(shots: Sequence[ShotEdges]) -> list[int]:
    """A number per shot; shots of one camera position share it, the lowest index of its members."""
    inner = np.stack([_inner(shot.mean) for shot in shots])
    lengths = np.maximum(np.linalg.norm(inner, axis=1), 1e-6)
    alike = (inner @ inner.T) / np.outer(lengths, lengths) >= _SAME_SETUP
    number = list(range(len(shots)))
    for later in range(len(shots)):
        for earlier in range(later):
            if alike[later, earlier] and number[later] != number[earlier]:
                joined, other = sorted((number[later], number[earlier]))
                number = [joined if value == other else value for value in number]
    return number


def _inner(mean: NDArray[np.float32]) -> NDArray[np.float32]:
    rows, columns = mean.shape[1:]
    skip_y, skip_x = round(rows * (1 - _INNER) / 2), round(columns * (1 - _INNER) / 2)
    return np.ascontiguousarray(mean[:, skip_y : rows - skip_y : 2, skip_x : columns - skip_x : 2]).ravel()


def by_setup(shots: Sequence[ShotEdges], setups: Sequence[int]) -> NDArray[np.float32]:
    """Mean gradient per setup, (setups, 2, rows, columns)."""
    return np.stack(
        [
            np.mean([shot.mean for shot, number in zip(shots, setups, strict=True) if number == setup], axis=0)
            for setup in sorted(set(setups))
        ]
    )


def agreement(edges: NDArray[np.float32], window: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Per pixel, how much the setups share inside a square window (intraclass correlation: 1 the same edges, 0 nothing in common), and the mean energy.

    The sum over pairs of setups of the products of their vectors, over what it would be were they equal.
    """
    import cv2

    num_setups = len(edges)
    energy = np.einsum("scyx,scyx->yx", edges, edges)
    total = edges.sum(axis=0)
    shared = np.einsum("cyx,cyx->yx", total, total) - energy
    side = (window, window)
    shared, energy = cv2.boxFilter(shared, -1, side), cv2.boxFilter(energy, -1, side)
    ratio = shared / np.maximum((num_setups - 1) * energy, np.float32(1e-6))
    return np.asarray(ratio), np.asarray(energy / np.float32(num_setups))


def find_marks(edges: NDArray[np.float32], picture: Box) -> list[Box]:
    """Boxes of what stays over the setups (`by_setup`), inside `picture`; none with fewer than two setups."""
    import cv2

    if len(edges) < 2:
        return []
    height = picture.bottom - picture.top
    window = max(11, round(_WINDOW_RATIO * height)) | 1
    limit = min(_MOST_LIMIT, _LEAST_LIMIT + _LIMIT_FALL / len(edges))
    usable = _usable(edges, picture)
    core, fine = np.zeros(usable.shape, dtype=bool), np.zeros(usable.shape, dtype=bool)
    for vectors in (edges, _doubled(edges)):
        masked = vectors * usable
        near, energy = agreement(masked, window)
        close, close_energy = agreement(masked, 5)
        held = (near >= limit) & (energy >= _LEAST_ENERGY)
        reach = cv2.dilate(held.astype(np.uint8), np.ones((window, window), dtype=np.uint8)) > 0
        core |= held
        fine |= reach & (close >= 0.75 * limit) & (close_energy >= _LEAST_ENERGY)
    boxes = []
    for group in _groups(fine & usable, max(3, round(_JOIN_RATIO * height))):
        box = _around(group)
        box = Box(box.top - _PAD, box.left - _PAD, box.bottom + _PAD, box.right + _PAD).meet(picture)
        if core[box.top : box.bottom, box.left : box.right].sum() >= _LEAST_CORE:
            boxes.append(box)
    return sorted(boxes)


def _doubled(edges: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors at twice their angle: a mark that is lighter than one shot and darker than the next keeps its direction so."""
    across, down = edges[:, 0], edges[:, 1]
    length = np.maximum(np.hypot(across, down), np.float32(1e-6))
    return np.stack([(across * across - down * down) / length, 2 * across * down / length], axis=1)


def _usable(edges: NDArray[np.float32], picture: Box) -> NDArray[np.bool_]:
    """Where overlays are looked for: not at the rim of the picture, and not along straight lines over a good part of it (bars, split screens)."""
    import cv2

    mean = edges.mean(axis=0)
    steady = (np.hypot(mean[0], mean[1]) >= _LINE_LENGTH).astype(np.uint8)
    height, width = steady.shape
    lines = np.zeros_like(steady)
    for size in ((1, max(3, round(_LINE_RATIO * height))), (max(3, round(_LINE_RATIO * width)), 1)):
        kernel = cv2.getStructuringElement(cv2.MORPH_RECT, size)
        lines |= np.asarray(cv2.morphologyEx(steady, cv2.MORPH_OPEN, kernel), dtype=np.uint8)
    kept = np.zeros((height, width), dtype=bool)
    kept[picture.top + _RIM : picture.bottom - _RIM, picture.left + _RIM : picture.right - _RIM] = True
    return kept & ~np.asarray(cv2.dilate(lines, np.ones((5, 5), dtype=np.uint8)), dtype=bool)


def _groups(mask: NDArray[np.bool_], join: int) -> list[NDArray[np.bool_]]:
    """Masks of the pixels that lie within `join` of each other."""
    import cv2

    joined = cv2.dilate(mask.astype(np.uint8), np.ones((join, join), dtype=np.uint8))
    count, labels = cv2.connectedComponents(joined)
    return [mask & (labels == label) for label in range(1, count)]


def _around(mask: NDArray[np.bool_]) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
