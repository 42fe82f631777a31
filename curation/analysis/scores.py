"""Scores of one clip from its cropped sampled frames: arithmetic here, networks in `encoders`.

Each score is a value with the name of the model that gave it, or null with a reason. Nothing is compared with a threshold here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.analysis.crops import Box, covered_area
from curation.analysis.samples import scaled_size
from curation.analysis.timeline import FLOW_GRID, FlowSample
from schemas.tables import SCORES

__all__ = ["BORDERS_MODEL", "LUMA_MODEL", "MOTION_MODEL", "SHARPNESS_MODEL", "Score", "luma_plane", "mean_luma"]
__all__ += ["motion", "score_columns", "sharpness", "text_area"]

BORDERS_MODEL = "luma-borders-1"
LUMA_MODEL = "bt709-mean-1"
MOTION_MODEL = "dis-flow-1"
SHARPNESS_MODEL = "laplacian-variance-1"
_UNIT_SIDE = 256
"""Long side, pixels, that motion and sharpness refer to."""


@dataclass(frozen=True)
class Score:
    """A value, or why there is none."""

    value: float | None
    model: str | None
    reason: str | None = None

    @classmethod
    def none(cls, reason: str) -> Score:
        return cls(None, None, reason)


def score_columns(scores: dict[str, Score]) -> dict[str, Any]:
    """The three columns of every score of the clips table."""
    assert set(scores) == set(SCORES), "every score is computed or has a reason"
    columns: dict[str, Any] = {}
    for name in SCORES:
        columns[name] = scores[name].value
        columns[f"{name}_model"] = scores[name].model
        columns[f"{name}_reason"] = scores[name].reason
    return columns


def luma_plane(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """0.2126 R + 0.7152 G + 0.0722 B, 0 to 255."""
    return np.asarray(rgb.astype(np.float32) @ np.array([0.2126, 0.7152, 0.0722], dtype=np.float32))


def mean_luma(frames: Sequence[NDArray[np.uint8]]) -> float:
    """Mean over frames and pixels."""
    return float(np.mean([luma_plane(frame).mean(dtype=np.float64) for frame in frames]))


def sharpness(frames: Sequence[NDArray[np.uint8]]) -> float:
    """Variance of the Laplacian of luma at a long side of 256, median over frames."""
    import cv2

    variances = []
    for frame in frames:
        height, width = scaled_size(frame.shape[0], frame.shape[1], _UNIT_SIDE, enlarge=True)
        luma = cv2.resize(luma_plane(frame), (width, height), interpolation=cv2.INTER_AREA)
        variances.append(float(cv2.Laplacian(luma, cv2.CV_32F).var(dtype=np.float64)))
    return float(np.median(variances))


def text_area(frames: Sequence[Sequence[Box]], crop: Box) -> float:
    """Area of the text boxes over the crop, mean over frames; both in the same pixels."""
    if not frames or crop.area == 0:
        return 0.0
    return float(np.mean([covered_area(boxes, crop) / crop.area for boxes in frames]))


def motion(
    flows: Sequence[FlowSample], first_tick: int, end_tick: int, crop: Box, picture: Box, proxy_size: tuple[int, int]
) -> float | None:
    """Mean displacement inside the crop, pixels per tick at a long side of 256 of the cropped picture; None without a pair in the clip."""
    rows = _cells(crop.top / picture.bottom, crop.bottom / picture.bottom, FLOW_GRID[0])
    columns = _cells(crop.left / picture.right, crop.right / picture.right, FLOW_GRID[1])
    inside = [
        flow.grid[rows, columns] for flow in flows if first_tick <= flow.first_tick and flow.second_tick < end_tick
    ]
    if not inside:
        return None
    crop_long_side = max(
        (crop.bottom - crop.top) / picture.bottom * proxy_size[0],
        (crop.right - crop.left) / picture.right * proxy_size[1],
    )
    return float(np.mean([grid.mean(dtype=np.float64) for grid in inside]) * _UNIT_SIDE / crop_long_side)


def _cells(low: float, high: float, count: int) -> slice:
    """Grid cells whose middle lies in [low, high); at least one."""
    first = int(np.ceil(low * count - 0.5))
    end = int(np.ceil(high * count - 0.5))
    first = min(max(0, first), count - 1)
    return slice(first, max(first + 1, min(end, count)))
