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
from schemas.tables import SCORES

__all__ = ["BORDERS_MODEL", "LUMA_MODEL", "SHARPNESS_MODEL", "Score", "luma_plane", "mean_luma"]
__all__ += ["agreed_nsfw", "score_columns", "sharpness", "text_area"]

BORDERS_MODEL = "luma-borders-1"
LUMA_MODEL = "bt709-mean-1"
SHARPNESS_MODEL = "laplacian-variance-1"
_UNIT_SIDE = 256
"""Long side, pixels, that sharpness refers to."""


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
    import cv2

    weights = np.array([[0.2126, 0.7152, 0.0722]], dtype=np.float32)
    return np.asarray(cv2.transform(rgb.astype(np.float32), weights), dtype=np.float32)


def mean_luma(frames: Sequence[NDArray[np.uint8]]) -> float:
    """Mean over frames and pixels."""
    return float(np.mean([luma_plane(frame).mean(dtype=np.float64) for frame in frames]))


def agreed_nsfw(probabilities: NDArray[np.float32]) -> float:
    """The second highest of at least three frames, else the highest.

    The network is sure of itself now and then for one blurred frame and not for its neighbours (`benchmarks/score_truth.py` counts it on harmless
    films). Price: what shows in one of four frames alone passes.

    >>> agreed_nsfw(np.array([0.1, 0.9, 0.4, 0.0], dtype=np.float32)) == np.float32(0.4)
    True
    """
    ordered = np.sort(probabilities)
    return float(ordered[-2] if len(ordered) >= 3 else ordered[-1])


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
