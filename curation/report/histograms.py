"""Histograms of the scores as inline SVG, with the limits of one admission level drawn in.

Drawn by hand rather than with a plotting library: a bar is one rectangle, and the page stays self-contained. Price: fixed size, 40 bins.
"""

from __future__ import annotations

from html import escape

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation.decide import limits_by_measure
from curation.thresholds import Thresholds
from schemas.tables import SCORES

__all__ = ["score_histograms"]

_BINS = 40
_WIDTH, _HEIGHT, _HEAD, _FOOT = 380, 132, 34, 18


def score_histograms(clips: pa.Table, level: Thresholds) -> str:
    """One SVG per score that has a value; says how many clips have none."""
    limits = limits_by_measure(level)
    parts = []
    for score, facts in SCORES.items():
        column = clips.column(score)
        values = np.asarray(column.drop_null().to_numpy(zero_copy_only=False), dtype=np.float64)
        if len(values):
            parts.append(
                _svg(score, f"{facts.meaning}, {facts.unit}", values, limits.get(score, []), column.null_count)
            )
    return "".join(parts)


def _svg(score: str, meaning: str, values: NDArray[np.float64], limits: list[float], num_missing: int) -> str:
    low, high = float(min(values.min(), 0.0)), float(np.quantile(values, 0.995))
    near = [limit for limit in limits if limit <= 2 * high + 1e-9]
    high = max([high, low + 1e-6, *near])
    counts, _ = np.histogram(np.clip(values, low, high), bins=_BINS, range=(low, high))
    room = _HEIGHT - _FOOT - _HEAD
    bars = []
    for place, count in enumerate(counts):
        height = room * count / counts.max()
        x = place * _WIDTH / _BINS
        bars.append(
            f"<rect x='{x:.1f}' y='{_HEAD + room - height:.1f}' width='{_WIDTH / _BINS - 1:.1f}' height='{height:.1f}'/>"
        )
    lines = []
    for limit in near:
        x = (limit - low) / (high - low) * _WIDTH
        anchor = "end" if x > _WIDTH / 2 else "start"
        lines.append(
            f"<line x1='{x:.1f}' x2='{x:.1f}' y1='29' y2='{_HEAD + room}' stroke='#b3261e' stroke-width='1.5'/>"
            f"<text x='{x:.1f}' y='27' font-size='10' fill='#b3261e' text-anchor='{anchor}'>{limit:.4g}</text>"
        )
    missing = f", {num_missing} without a value" if num_missing else ""
    foot = f"{low:.3g} to {high:.3g}{missing}"
    return (
        f"<svg width='{_WIDTH}' height='{_HEIGHT}' role='img'><title>{escape(meaning)}</title>"
        f"<text x='0' y='11' font-size='12' font-weight='600'>{escape(score)}</text>"
        f"<g fill='#4a7ab0'>{''.join(bars)}</g>{''.join(lines)}"
        f"<text x='0' y='{_HEIGHT - 4}' font-size='10' fill='#68727b'>{escape(foot)}</text></svg>"
    )
