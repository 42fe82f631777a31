"""Bars as inline SVG: a histogram over a log axis, pairs of bars, and a strip of what happened when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from training.pages.svg import svg, ticks

__all__ = ["event_strip", "log_histogram", "paired_bars"]

_BINS_PER_DECADE = 8
_ROW = 22


def log_histogram(
    values: np.ndarray, *, x_name: str, marks: Sequence[tuple[float, str]] = (), width: int = 620, height: int = 240
) -> str:
    """How often values of each size came; what is below a thousandth counts as that. `marks`: (value, name) of upright lines."""
    if not len(values):
        return "<p class='dim'>no values</p>"
    logs = np.log10(np.maximum(values, 1e-3))
    low = math.floor(float(logs.min()))
    high = max(low + 1, math.ceil(float(logs.max()) + 1e-9))
    counts, edges = np.histogram(logs, bins=(high - low) * _BINS_PER_DECADE, range=(low, high))
    left, right, top, bottom = 52, 14, 22, 36
    inner, tall, most = width - left - right, height - top - bottom, int(counts.max())

    def across(log: float) -> float:
        return left + inner * (log - low) / (high - low)

    pieces = []
    for tick in ticks(0, most):
        y = top + tall * (1 - tick / most)
        pieces.append(f"<line class='grid' x1='{left}' x2='{width - right}' y1='{y:.1f}' y2='{y:.1f}'/>")
        pieces.append(f"<text class='dim end' x='{left - 6}' y='{y + 4:.1f}'>{tick:g}</text>")
    for count, begin, end in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if count:
            size = tall * count / most
            hint = f"{10**begin:.3g} to {10**end:.3g}: {count}"
            pieces.append(
                f"<rect class='bar' x='{across(begin):.1f}' y='{top + tall - size:.1f}' width='{across(end) - across(begin) - 1:.1f}' "
                f"height='{size:.1f}'><title>{escape(hint)}</title></rect>"
            )
    pieces += [
        f"<text class='dim middle' x='{across(power):.1f}' y='{top + tall + 15}'>{10**power:g}</text>"
        for power in range(low, high + 1)
    ]
    for index, (value, name) in enumerate(marks):
        x = across(math.log10(max(value, 1e-3)))
        pieces.append(f"<line class='mark' x1='{x:.1f}' x2='{x:.1f}' y1='{top - 4}' y2='{top + tall}'/>")
        side = "end" if index == 0 and len(marks) > 1 else ""
        pieces.append(f"<text class='dim {side}' x='{x + (-4 if side else 4):.1f}' y='{top - 8}'>{escape(name)}</text>")
    pieces.append(f"<text class='dim middle' x='{left + inner / 2:.0f}' y='{height - 4}'>{escape(x_name)}</text>")
    return svg(width, height, f"histogram of {x_name}", pieces)


def paired_bars(
    rows: Sequence[tuple[str, float, float, str]], *, names: tuple[str, str], width: int = 620, label_width: int = 110
) -> str:
    """(label, first, second, words behind) as two bars a row on one axis from 0."""
    most = max((max(first, second) for _, first, second, _ in rows), default=0.0)
    if most <= 0:
        return "<p class='dim'>no values</p>"
    inner = width - label_width - 150
    pieces, height = [], _ROW * len(rows) + 8
    for index, (label, first, second, words) in enumerate(rows):
        y = 4 + _ROW * index
        hint = f"{label}: {names[0]} {first:.4g}, {names[1]} {second:.4g}"
        pieces.append(f"<g><title>{escape(hint)}</title>")
        pieces.append(f"<text class='end' x='{label_width - 8}' y='{y + 13}'>{escape(label)}</text>")
        for offset, value, kind in ((1, first, "bar second"), (10, second, "bar")):
            pieces.append(
                f"<rect class='{kind}' x='{label_width}' y='{y + offset}' width='{inner * value / most:.1f}' height='8'/>"
            )
        pieces.append(
            f"<text class='dim' x='{label_width + inner * max(first, second) / most + 6:.1f}' y='{y + 13}'>{escape(words)}</text></g>"
        )
    return svg(width, height, f"{names[0]} and {names[1]}", pieces)


def event_strip(
    rows: Sequence[tuple[str, str, Sequence[tuple[float, str]]]],
    x_range: tuple[float, float],
    *,
    width: int = 1260,
    label_width: int = 90,
) -> str:
    """Rows of (label, colour, [(x, title)]): a tick for each event over a common axis."""
    low, high = x_range if x_range[1] > x_range[0] else (x_range[0], x_range[0] + 1)
    inner, height = width - label_width - 14, _ROW * len(rows) + 24
    pieces = []
    for index, (label, colour, events) in enumerate(rows):
        y = 4 + _ROW * index
        pieces.append(f"<text class='end' x='{label_width - 8}' y='{y + 12}'>{escape(label)}</text>")
        pieces.append(f"<line class='grid' x1='{label_width}' x2='{width - 14}' y1='{y + 8}' y2='{y + 8}'/>")
        for x, title in events:
            place = label_width + inner * (x - low) / (high - low)
            pieces.append(
                f"<rect x='{place - 1.5:.1f}' y='{y}' width='3' height='16' fill='{colour}'><title>{escape(title)}</title></rect>"
            )
    for tick in ticks(low, high):
        place = label_width + inner * (tick - low) / (high - low)
        pieces.append(f"<text class='dim middle' x='{place:.1f}' y='{height - 4}'>{tick:g}</text>")
    return svg(width, height, "what happened when", pieces)
