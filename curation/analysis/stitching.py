"""Shots that were split by mistake are joined again: neighbours whose frames at the cut look alike to a network.

A missed cut spoils a clip and a false one only shortens it, so detectors may find too much. Two frames are compared per cut: the last sample of the
shot before and the first of the shot after. Shots on both sides of a blank stretch or a gap are never joined.
Price: two takes of one view, cut together, become one shot again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.analysis.samples import SampleStore
from curation.analysis.settings import ShotSettings
from curation.analysis.shots import Span, stitch

__all__ = ["Describe", "join_alike"]

Describe = Callable[[Sequence[NDArray[np.uint8]]], NDArray[Any]]
"""Frames -> one row of length 1 per frame."""


def join_alike(
    shots: Sequence[Span], store: SampleStore, describe: Describe | None, settings: ShotSettings
) -> list[Span]:
    """`shots` with those joined that look alike; without `describe`, as they are."""
    if describe is None:
        return list(shots)
    known: dict[int, NDArray[np.float32]] = {}

    def row(tick: int) -> NDArray[np.float32]:
        if tick not in known:
            known[tick] = describe([store.frame(tick)])[0].astype(np.float32)
        return known[tick]

    def alike(before: Span, after: Span) -> bool:
        last, first = store.between(before.first, before.end), store.between(after.first, after.end)
        if not last or not first:
            return False
        limit = settings.stitch_cosine if before.end == after.first else settings.dissolve_stitch_cosine
        return float(row(last[-1]) @ row(first[0])) >= limit

    return stitch(shots, alike)
