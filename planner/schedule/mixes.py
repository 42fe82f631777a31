"""What the settings' mix over the run means for one epoch: its ratio of images to videos, where in it they stand, and its domain weights.

Phases are given over the run and epochs are parts of it; an epoch that several phases reach into gets their ratio over the parts that they cover,
rows placed accordingly, and domain weights averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.schedule.rows import EVEN, Density
from planner.settings import MixPhase

__all__ = ["EpochMix", "epoch_mix"]


@dataclass(frozen=True)
class EpochMix:
    """The mix of one epoch."""

    images_per_video: float | None
    """Rows of images per row of videos; None: as the data has it."""
    image_density: Density
    video_density: Density
    domain_weights: dict[str, float]


def epoch_mix(phases: Sequence[MixPhase], start: float, end: float) -> EpochMix:
    """Mix of the epoch that is the part [start, end) of the run, in shares of its rows."""
    if not phases:
        return EpochMix(None, EVEN, EVEN, {})
    start, end = min(start, 1.0 - 1e-9), max(min(end, 1.0), min(start, 1.0 - 1e-9) + 1e-9)
    edges, reached = [0.0], []
    before = 0.0
    for phase in phases:
        low, high = max(start, before), min(end, phase.until)
        before = phase.until
        if high > low:
            reached.append(phase)
            edges.append((high - start) / (end - start))
    edges[-1] = 1.0
    parts = np.diff(edges)
    names = sorted({name for phase in reached for name in phase.domain_weights})
    weights = {
        name: float(sum(part * phase.domain_weights.get(name, 1.0) for part, phase in zip(parts, reached, strict=True)))
        for name in names
    }
    ratios = [phase.images_per_video for phase in reached]
    if any(ratio is None for ratio in ratios):
        return EpochMix(None, EVEN, EVEN, weights)
    share = np.array([ratio / (1 + ratio) for ratio in ratios if ratio is not None])
    images = float((parts * share).sum())
    at = np.array(edges)
    return EpochMix(images / (1 - images), Density(at, share), Density(at, 1 - share), weights)
