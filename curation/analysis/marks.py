"""Overlays found by their edges: a logo, a frame, a line of letters, opaque or faint, because its edges stay while the shots change.

Per shot the gradients of luma and of both colour differences are averaged over frames, each vector bounded, so that weak and strong edges count
alike: motion blurs the scene out, an overlay stays. Shots from one camera position are one setup. Then, in a small window around each pixel, the
setups are compared: 0 if they have nothing in common, 1 if all show the same edges. An overlay of 30 % opacity reaches 0.7; scenes stay below a limit
that falls with the number of setups. Price: an overlay is told from the scene by other scenes only, so at least two setups are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curation.analysis.crops import Box

__all__ = ["MARKS_MODEL", "Agreement", "ShotEdges", "agreement_of", "find_marks", "setups_of", "shot_edges"]

MARKS_MODEL = "temporal-edges-2"
_BOUND = 24.0
"""Sobel length, levels, to which longer gradients are cut: a step of 6 levels counts as much as one of 200."""
_SAME_SETUP = 0.35
"""Correlation of the inner edges of two shots from which they are one setup: different scenes stay below 0.15, a tripod's own are above 0.6."""
_INNER = 0.6
_WINDOW_RATIO = 0.04
"""Side of the window in which setups are compared, share of the height: the smallest overlay looked for."""
_FINE_WINDOW = 5
_FINE_RATIO = 0.75
_GROW_RATIO = 0.6
"""Windows above these shares of the limit belong to an overlay that touches them: its fainter parts."""
_BASE_LIMIT, _LIMIT_FALL, _LEAST_LIMIT, _MOST_LIMIT = 0.1, 2.0, 0.32, 0.93
"""Agreement from which a window holds an overlay: 0.1 + 2 / setups, within 0.32 and 0.93. The highest in a film without overlays was 0.79 with three
setups, 0.71 with four, 0.50 with five, 0.45 with six, 0.32 with eight."""
_LEAST_ENERGY = 0.02
"""Mean squared length of the vectors in a window below which it is flat and shows nothing."""
_LEAST_CORE = 9
_BOX_RATIO = 0.6
"""The whole box must agree by this share of the limit; horizons that meet in one window do not."""
_MOST_STRAIGHT = 0.8
"""Overlays have edges in several directions; level lines of several scenes that happen to meet have one."""
_JOIN_RATIO = 0.035
"""Parts nearer than this share of the height are one overlay: letters of a word."""
_RIM = 4
_LINE_RATIO = 0.25
_LINE_LENGTH = 0.5
"""Straight edges over a quarter of the height or width, this long in the mean, are rims of bars or of a split screen."""
_PAD = 2
"""Pixels around what was found: the foot of an edge is below every limit."""


@dataclass(frozen=True)
class ShotEdges:
    """Mean bounded gradients of a shot's frames."""

    mean: NDArray[np.float16]
    """(6, rows, columns): across and down, of luma and of the two colour differences; each pair at most 1 long."""
    strength: NDArray[np.float16]
    """Mean length of the bounded luma gradient, whatever its direction."""


@dataclass(frozen=True)
class Agreement:
    """What the setups have in common at each pixel: the sum over pairs of setups of the products of their vectors, and what it would be were
    they equal; once with the vectors, once with their angles doubled, so that a mark may be lighter than one scene and darker than the next."""

    num_setups: int
    shared: tuple[NDArray[np.float32], NDArray[np.float32]]
    possible: tuple[NDArray[np.float32], NDArray[np.float32]]
    steady: NDArray[np.bool_]
    """Where the mean luma gradient is long."""
    orientation: NDArray[np.float32]
    """(2, rows, columns): sum over the setups of the luma gradient at twice its angle."""

    def in_box(self, box: Box) -> float:
        """Agreement of the setups inside a box, 0 (nothing in common) to 1 (equal)."""
        place = np.s_[box.top : box.bottom, box.left : box.right]
        pairs = zip(self.shared, self.possible, strict=True)
        return max(float(shared[place].sum() / max(1e-6, possible[place].sum())) for shared, possible in pairs)

    def straightness(self, box: Box) -> float:
        """1 if all edges in a box run the same way, near 0 for letters and closed shapes."""
        inside = self.orientation[:, box.top : box.bottom, box.left : box.right]
        length = float(np.hypot(inside[0], inside[1]).sum())
        return float(np.hypot(*inside.sum(axis=(1, 2)))) / max(1e-6, length)


def shot_edges(frames: Iterable[NDArray[np.uint8]]) -> ShotEdges:
    """Of RGB frames of one size, at least one."""
    import cv2

    mean: NDArray[np.float32] | None = None
    strength: NDArray[np.float32] | None = None
    num_frames = 0
    for frame in frames:
        planes, sample = cv2.split(cv2.cvtColor(frame, cv2.COLOR_RGB2YCrCb)), []
        for number, plane in enumerate(planes):
            soft = cv2.GaussianBlur(plane, (3, 3), 0)
            across, down = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
            length = cv2.magnitude(across, down)
            scale = 1.0 / np.maximum(length, np.float32(_BOUND))
            sample += [cv2.multiply(across, scale), cv2.multiply(down, scale)]
            if number == 0:
                bounded = np.asarray(length * scale, dtype=np.float32)
        vectors = np.stack(sample).astype(np.float32, copy=False)
        mean = vectors if mean is None else mean + vectors
        strength = bounded if strength is None else strength + bounded
        num_frames += 1
    assert mean is not None and strength is not None, "a shot has frames"
    return ShotEdges((mean / num_frames).astype(np.float16), (strength / num_frames).astype(np.float16))


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


def _inner(mean: NDArray[np.float16]) -> NDArray[np.float32]:
    rows, columns = mean.shape[1:]
    skip_y, skip_x = round(rows * (1 - _INNER) / 2), round(columns * (1 - _INNER) / 2)
    return mean[:2, skip_y : rows - skip_y : 2, skip_x : columns - skip_x : 2].astype(np.float32).ravel()


def agreement_of(shots: Sequence[ShotEdges], setups: Sequence[int]) -> Agreement:
    """Compare the setups of `shots`, numbered by `setups`; at least two."""
    numbers = sorted(set(setups))
    assert len(numbers) >= 2, "one setup agrees with itself"
    shape = shots[0].mean.shape
    totals = [np.zeros(shape, dtype=np.float32) for _ in range(2)]
    energies = [np.zeros(shape[1:], dtype=np.float32) for _ in range(2)]
    for number in numbers:
        members = [shot.mean for shot, own in zip(shots, setups, strict=True) if own == number]
        vectors = np.asarray(np.mean(members, axis=0, dtype=np.float32))
        for total, energy, sample in zip(totals, energies, (vectors, _doubled(vectors)), strict=True):
            total += sample
            energy += np.einsum("cyx,cyx->yx", sample, sample)
    steady = np.hypot(totals[0][0], totals[0][1]) >= _LINE_LENGTH * len(numbers)
    shared = [np.einsum("cyx,cyx->yx", total, total) - energy for total, energy in zip(totals, energies, strict=True)]
    possible = [(len(numbers) - 1) * energy for energy in energies]
    return Agreement(len(numbers), (shared[0], shared[1]), (possible[0], possible[1]), steady, totals[1][:2])


def _doubled(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of the same lengths at twice their angles."""
    across, down = vectors[0::2], vectors[1::2]
    length = np.maximum(np.hypot(across, down), np.float32(1e-6))
    doubled = np.empty_like(vectors)
    doubled[0::2] = (across * across - down * down) / length
    doubled[1::2] = 2 * across * down / length
    return doubled


def find_marks(agreement: Agreement, picture: Box) -> list[Box]:
    """Boxes of what stays over the setups, inside `picture` (the frame without its borders)."""
    height = picture.bottom - picture.top
    window = max(11, round(_WINDOW_RATIO * height)) | 1
    limit = min(_MOST_LIMIT, max(_LEAST_LIMIT, _BASE_LIMIT + _LIMIT_FALL / agreement.num_setups))
    usable = _usable(agreement, picture)
    core, fine = np.zeros(usable.shape, dtype=bool), np.zeros(usable.shape, dtype=bool)
    for shared, possible in zip(agreement.shared, agreement.possible, strict=True):
        near = _windowed(shared * usable, possible * usable, window, agreement.num_setups)
        close = _windowed(shared * usable, possible * usable, _FINE_WINDOW, agreement.num_setups)
        held = near >= limit
        core |= held
        fine |= _spread(_touching(near >= _GROW_RATIO * limit, held), window) & (close >= _FINE_RATIO * limit)
    boxes = []
    for group in _groups(fine & usable, max(3, round(_JOIN_RATIO * height))):
        box = _around(group)
        box = Box(box.top - _PAD, box.left - _PAD, box.bottom + _PAD, box.right + _PAD).meet(picture)
        if core[box.top : box.bottom, box.left : box.right].sum() < _LEAST_CORE:
            continue
        if agreement.in_box(box) >= _BOX_RATIO * limit and agreement.straightness(box) <= _MOST_STRAIGHT:
            boxes.append(box)
    return sorted(boxes)


def _windowed(
    shared: NDArray[np.float32], possible: NDArray[np.float32], window: int, num_setups: int
) -> NDArray[np.float32]:
    """Agreement in a square window around each pixel; 0 where the window is flat."""
    import cv2

    top, bottom = cv2.boxFilter(shared, -1, (window, window)), cv2.boxFilter(possible, -1, (window, window))
    energy = bottom / np.float32(num_setups * (num_setups - 1))
    ratio = np.where(energy >= _LEAST_ENERGY, top / np.maximum(bottom, np.float32(1e-6)), np.float32(0))
    return np.asarray(ratio, dtype=np.float32)


def _usable(agreement: Agreement, picture: Box) -> NDArray[np.bool_]:
    """Where overlays are looked for: not at the rim of the picture, and not along long straight edges."""
    import cv2

    steady = agreement.steady.astype(np.uint8)
    height, width = steady.shape
    lines = np.zeros_like(steady)
    for size in ((1, max(3, round(_LINE_RATIO * height))), (max(3, round(_LINE_RATIO * width)), 1)):
        kernel = cv2.getStructuringElement(cv2.MORPH_RECT, size)
        lines |= np.asarray(cv2.morphologyEx(steady, cv2.MORPH_OPEN, kernel), dtype=np.uint8)
    kept = np.zeros((height, width), dtype=bool)
    kept[picture.top + _RIM : picture.bottom - _RIM, picture.left + _RIM : picture.right - _RIM] = True
    return kept & ~_spread(lines > 0, 5)


def _spread(mask: NDArray[np.bool_], window: int) -> NDArray[np.bool_]:
    import cv2

    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((window, window), dtype=np.uint8)), dtype=bool)


def _touching(mask: NDArray[np.bool_], seeds: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Connected parts of `mask` that hold a seed."""
    import cv2

    count, labels = cv2.connectedComponents(mask.astype(np.uint8))
    held = np.zeros(count, dtype=bool)
    held[np.unique(labels[seeds])] = True
    held[0] = False
    return held[labels]


def _groups(mask: NDArray[np.bool_], join: int) -> list[NDArray[np.bool_]]:
    """Masks of the pixels that lie within `join` of each other."""
    import cv2

    count, labels = cv2.connectedComponents(_spread(mask, join).astype(np.uint8))
    return [mask & (labels == label) for label in range(1, count)]


def _around(mask: NDArray[np.bool_]) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
