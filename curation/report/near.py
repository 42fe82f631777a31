"""Clips that lie nearest to a threshold on both sides, so that a limit can be judged by eye.

For each measure that a level limits: the clips that just pass it and those that just fail it, by distance to the limit. A clip may pass one
limit and still be rejected by another; the caption says what was decided.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curation.decide import limits_by_measure
from curation.thresholds import Thresholds
from schemas.tables import SCORES

__all__ = ["NearLimit", "near_limits"]

_PER_SIDE = 6


@dataclass(frozen=True)
class NearLimit:
    """One limit of one measure, and the clips on both sides, nearest first."""

    measure: str
    limit: float
    below: tuple[tuple[str, float], ...]
    """(clip id, value), value < limit."""
    above: tuple[tuple[str, float], ...]
    """value >= limit."""


def near_limits(clips: pa.Table, level: Thresholds) -> list[NearLimit]:
    """For every limited score with values on at least one side."""
    ids = clips.column("clip_id").to_numpy(zero_copy_only=False)
    found = []
    for measure, limits in limits_by_measure(level).items():
        if measure not in SCORES:
            continue
        values = clips.column(measure).to_numpy(zero_copy_only=False).astype(np.float64)
        known = np.flatnonzero(~np.isnan(values))
        for limit in limits:
            order = known[np.lexsort((ids[known], np.abs(values[known] - limit)))]
            below, above = order[values[order] < limit][:_PER_SIDE], order[values[order] >= limit][:_PER_SIDE]
            if len(below) or len(above):
                sides = [tuple((str(ids[row]), float(values[row])) for row in side) for side in (below, above)]
                found.append(NearLimit(measure, limit, sides[0], sides[1]))
    return found
