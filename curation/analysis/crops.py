"""One rectangle per clip that leaves out black borders and persistent overlays; geometry and luma statistics, no models.

Boxes are (top, left, bottom, right) in pixels of the picture as displayed, bottom and right excluded. Borders come first, with the overlays
painted black, because a subtitle inside a black bar is no picture. Then the largest rectangle that meets no overlay is looked for, but only
by cutting within a band at each side; overlays that cannot be cut away stay in, and the clip is flagged.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curation.analysis.settings import CropSettings

__all__ = ["Box", "CropChoice", "border_box", "choose_crop", "covered_area", "scale_box"]

_BORDER_QUANTILE = 0.98
_MOST_BOXES = 12
"""More overlays than this are not cut around one by one: the smaller ones are taken as one box with their neighbours."""


@dataclass(frozen=True, order=True)
class Box:
    """A rectangle; empty if bottom <= top or right <= left."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        return max(0, self.bottom - self.top) * max(0, self.right - self.left)

    def meet(self, other: Box) -> Box:
        """The part in both."""
        return Box(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def join(self, other: Box) -> Box:
        """The smallest box around both."""
        return Box(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    def iou(self, other: Box) -> float:
        """Intersection over union."""
        shared = self.meet(other).area
        return shared / max(1, self.area + other.area - shared)

    def to_row(self) -> dict[str, int]:
        """As the tables hold it."""
        return {"top": self.top, "left": self.left, "bottom": self.bottom, "right": self.right}


@dataclass(frozen=True)
class CropChoice:
    """The rectangle, and what it could not do."""

    crop: Box
    flags: tuple[str, ...]
    overlay_area_ratio: float
    border_area_ratio: float


def scale_box(box: Box, ratio_y: float, ratio_x: float, bounds: Box) -> Box:
    """A box in another scale, rounded outwards and kept within `bounds`."""
    return Box(
        int(np.floor(box.top * ratio_y)),
        int(np.floor(box.left * ratio_x)),
        int(np.ceil(box.bottom * ratio_y)),
        int(np.ceil(box.right * ratio_x)),
    ).meet(bounds)


def border_box(lightest: NDArray[np.uint8], settings: CropSettings) -> Box:
    """The picture inside black borders.

    `lightest`: per pixel the highest luma over the clip's frames. A row is border while 98 % of it stays below the limit; columns
    are judged inside the rows that are left, since the bars above would hide them.
    """
    height, width = lightest.shape
    whole = Box(0, 0, height, width)
    rows = np.flatnonzero(np.quantile(lightest, _BORDER_QUANTILE, axis=1) > settings.border_luma)
    if not len(rows):
        return whole
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(np.quantile(lightest[top:bottom], _BORDER_QUANTILE, axis=0) > settings.border_luma)
    if not len(columns):
        return whole
    found = Box(top, int(columns[0]), bottom, int(columns[-1]) + 1)
    return found if found.area >= settings.min_picture_ratio * whole.area else whole


def covered_area(boxes: Sequence[Box], within: Box) -> int:
    """Area of the union of `boxes` inside `within`."""
    if within.area == 0:
        return 0
    parts = [part for part in (box.meet(within) for box in boxes) if part.area]
    xs = sorted({edge for part in parts for edge in (part.left, part.right)})
    total = 0
    for left, right in itertools.pairwise(xs):
        reach = within.top
        for part in sorted(part for part in parts if part.left <= left and part.right >= right):
            total += max(0, part.bottom - max(reach, part.top)) * (right - left)
            reach = max(reach, part.bottom)
    return total


def choose_crop(whole: Box, picture: Box, overlays: Sequence[Box], settings: CropSettings) -> CropChoice:
    """The rectangle inside `picture` (the borders cut off) that avoids `overlays`, if enough is left of it."""
    flags = ["borders"] if picture != whole else []
    border_ratio = 1.0 - picture.area / whole.area
    inside = [part for part in (box.meet(picture) for box in overlays) if part.area]
    if not inside:
        return CropChoice(picture, tuple(flags), 0.0, border_ratio)
    flags.append("overlay")
    crop = _largest_free(picture, _merged(inside), settings)
    if crop is None:
        flags.append("no_good_crop")
        within_reach = [box for box in inside if _largest_free(picture, [box], settings) is not None]
        crop = _largest_free(picture, _merged(within_reach), settings) or picture
    return CropChoice(crop, tuple(flags), covered_area(inside, crop) / crop.area, border_ratio)


def _merged(boxes: Sequence[Box]) -> list[Box]:
    """At most `_MOST_BOXES` boxes that cover the same: the pair whose join adds least area is joined until few enough are left."""
    merged = sorted(set(boxes))
    while len(merged) > _MOST_BOXES:
        pairs = itertools.combinations(range(len(merged)), 2)
        first, second = min(
            pairs,
            key=lambda pair: merged[pair[0]].join(merged[pair[1]]).area - merged[pair[0]].area - merged[pair[1]].area,
        )
        merged = sorted(
            [*(merged[i] for i in range(len(merged)) if i not in (first, second)), merged[first].join(merged[second])]
        )
    return merged


def _largest_free(picture: Box, overlays: Sequence[Box], settings: CropSettings) -> Box | None:
    """Largest rectangle without overlays whose edges are the picture's or an overlay's; ties go to the one that cuts top and bottom."""
    deepest_y = settings.max_cut_ratio * (picture.bottom - picture.top)
    deepest_x = settings.max_cut_ratio * (picture.right - picture.left)
    tops = {picture.top, *(box.bottom for box in overlays if box.bottom - picture.top <= deepest_y)}
    bottoms = {picture.bottom, *(box.top for box in overlays if picture.bottom - box.top <= deepest_y)}
    lefts = {picture.left, *(box.right for box in overlays if box.right - picture.left <= deepest_x)}
    rights = {picture.right, *(box.left for box in overlays if picture.right - box.left <= deepest_x)}
    edges = np.array(list(itertools.product(sorted(tops), sorted(lefts), sorted(bottoms), sorted(rights))))
    free = np.ones(len(edges), dtype=bool)
    for box in overlays:
        apart = (edges[:, 0] >= box.bottom) | (edges[:, 2] <= box.top)
        free &= apart | (edges[:, 1] >= box.right) | (edges[:, 3] <= box.left)
    areas = np.where(free, (edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1]), -1)
    widths = edges[:, 3] - edges[:, 1]
    best = max(range(len(edges)), key=lambda place: (areas[place], widths[place]))
    if areas[best] < settings.min_area_ratio * picture.area:
        return None
    top, left, bottom, right = (int(edge) for edge in edges[best])
    return Box(top, left, bottom, right)
