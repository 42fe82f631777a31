"""Pictures as inline SVG: stacked bars, heat maps and curves, sized in pixels, with every text escaped.

A heat map puts its cells into one path per shade, so that a page with hundreds of maps stays small. Price: shades are `LEVELS` steps, not a
continuum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

__all__ = [
    "HUES",
    "LEVELS",
    "Bar",
    "Curve",
    "Mark",
    "curves",
    "heat_map",
    "shade",
    "shade_scale",
    "stacked_bars",
    "svg",
    "ticks",
]

LEVELS = 32
HUES = (
    "var(--ink)", "#4477aa", "#ee8866", "#44aa77", "#aa4488", "#ddbb44", "#77bbdd", "#994433", "#7766cc", "#99aa33", "#777777",
)  # fmt: skip
"""Of curves, told apart with weak colour vision; the first is for what the others are compared with."""
_STOPS = (
    (0.0, (247, 249, 250)),
    (0.25, (178, 205, 222)),
    (0.55, (74, 132, 173)),
    (0.8, (33, 78, 118)),
    (1.0, (12, 32, 56)),
)
_ROW = 20
_BAR = 13


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One row of `stacked_bars`."""

    label: str
    parts: tuple[tuple[str, float], ...]
    """(colour, length), lengths as shares of the whole width."""
    marks: tuple[float, ...] = ()
    """Small circles."""
    line: float | None = None
    """A short upright line: what to compare with."""
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of `curves`."""

    name: str
    colour: str
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float, float], ...] = field(default=())
    """(x, low, high) of a band in the line's colour."""
    faint: bool = False
    """Thin and pale: what another line is the mean of."""
    dots: bool = False
    """Each point a dot as well, or dots alone when faint: few, and measured one by one."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """An upright dashed line across `curves`: something happened at this x."""

    x: float
    title: str


def stacked_bars(bars: Sequence[Bar], *, width: int = 404, label_width: int = 84, title: str = "") -> str:
    """Rows of bars over a common axis from 0 to 100 %."""
    inner, top = width - label_width - 26, 22
    height = top + _ROW * len(bars) + 4
    pieces = [f"<text x='{label_width}' y='12' font-weight='600'>{escape(title)}</text>" if title else ""]
    for tick in (0, 25, 50, 75, 100):
        x = label_width + inner * tick / 100
        pieces.append(f"<line class='grid' x1='{x:.1f}' x2='{x:.1f}' y1='{top - 2}' y2='{height - 2}'/>")
        if not title or tick == 100:
            pieces.append(f"<text class='dim middle' x='{x:.1f}' y='14'>{tick} %</text>")
    for row, bar in enumerate(bars):
        y = top + _ROW * row
        middle, left = y + _BAR / 2, float(label_width)
        pieces.append(f"<g><title>{escape(bar.title or bar.label)}</title>")
        pieces.append(f"<text class='end' x='{label_width - 8}' y='{y + 11}'>{escape(bar.label)}</text>")
        for colour, share in bar.parts:
            pieces.append(f"<rect x='{left:.2f}' y='{y}' width='{inner * share:.2f}' height='{_BAR}' fill='{colour}'/>")
            left += inner * share
        if bar.line is not None:
            x = label_width + inner * bar.line
            pieces.append(f"<line class='even' x1='{x:.1f}' x2='{x:.1f}' y1='{y - 2}' y2='{y + _BAR + 2}'/>")
        pieces += [
            f"<circle class='head' cx='{label_width + inner * mark:.1f}' cy='{middle}' r='2.6'/>" for mark in bar.marks
        ]
        pieces.append("</g>")
    return svg(width, height, title or "bars", pieces)


def heat_map(values: Sequence[Sequence[float]], *, size: int = 112, title: str = "") -> str:
    """A square picture of values in 0 to 1, rows downwards; the scale is that of `shade`, the same for all maps."""
    rows, columns = len(values), max(len(row) for row in values)
    cell_x, cell_y = size / columns, size / rows
    cells: dict[int, list[str]] = {}
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            place = f"M{column * cell_x:.4g} {row * cell_y:.4g}h{cell_x:.4g}v{cell_y:.4g}h-{cell_x:.4g}z"
            cells.setdefault(_level(value), []).append(place)
    paths = [f"<path fill='{_colour(level)}' d='{''.join(cells[level])}'/>" for level in sorted(cells)]
    frame = f"<rect class='frame' x='0.5' y='0.5' width='{size - 1}' height='{size - 1}'/>"
    return svg(size, size, title, [f"<g shape-rendering='crispEdges'>{''.join(paths)}</g>", frame])


def shade(value: float) -> str:
    """Colour of a value in 0 to 1; the square root spreads the small ones."""
    return _colour(_level(value))


def shade_scale(*, width: int = 260) -> str:
    """The legend of heat maps."""
    step = (width - 40) / LEVELS
    pieces = [
        f"<rect x='{20 + level * step:.2f}' y='0' width='{step + 0.5:.2f}' height='12' fill='{_colour(level)}'/>"
        for level in range(LEVELS)
    ]
    for value in (0.0, 0.05, 0.2, 0.5, 1.0):
        x = 20 + (width - 40) * math.sqrt(value)
        pieces.append(f"<text class='dim middle' x='{x:.1f}' y='26'>{100 * value:g} %</text>")
    return svg(width, 30, "shades of the maps", pieces)


def curves(
    lines: Sequence[Curve],
    *,
    x_name: str,
    y_name: str,
    width: int = 900,
    height: int = 340,
    log_y: bool = False,
    from_zero: bool = False,
    x_range: tuple[float, float] | None = None,
    marks: Sequence[Mark] = (),
) -> str:
    """Lines over common axes; nothing is drawn where no line has a point. A log axis leaves out what is not above 0."""

    def shown(y: float) -> bool:
        return math.isfinite(y) and (y > 0 or not log_y)

    points = [point for line in lines for point in line.points if shown(point[1])]
    if not points:
        return "<p class='dim'>no points</p>"
    left, right, top, bottom = 62, 14, 24, 36
    bands = [(low, high) for line in lines for _, low, high in line.band if shown(low) and shown(high)]
    heights = [y for _, y in points] + [y for pair in bands for y in pair] + ([0.0] if from_zero and not log_y else [])
    x_span = _span([x for x, _ in points] if x_range is None else list(x_range), log=False)
    y_span = _span(heights, log=log_y)
    if from_zero and not log_y and min(heights) == 0:
        y_span = (0.0, y_span[1])

    def place(x: float, y: float) -> str:
        scaled = math.log10(y) if log_y else y
        across = left + (width - left - right) * (x - x_span[0]) / (x_span[1] - x_span[0])
        return f"{across:.1f},{top + (height - top - bottom) * (y_span[1] - scaled) / (y_span[1] - y_span[0]):.1f}"

    pieces = [*_y_axis(y_span, left, width - right, top, height - bottom, log=log_y)]
    pieces += _x_axis(x_span, left, width - right, height - bottom)
    pieces.append(
        f"<text class='dim middle' x='{(left + width - right) / 2:.0f}' y='{height - 4}'>{escape(x_name)}</text>"
    )
    pieces.append(f"<text class='dim' x='8' y='13'>{escape(y_name)}</text>")
    for mark in marks:
        if x_span[0] <= mark.x <= x_span[1]:
            x = left + (width - left - right) * (mark.x - x_span[0]) / (x_span[1] - x_span[0])
            pieces.append(
                f"<line class='mark' x1='{x:.1f}' x2='{x:.1f}' y1='{top}' y2='{height - bottom}'><title>{escape(mark.title)}</title></line>"
            )
    for line in lines:
        title = f"<title>{escape(line.name)}</title>"
        band = [(x, low, high) for x, low, high in line.band if shown(low) and shown(high)]
        if band:
            edge = [place(x, high) for x, _, high in band] + [place(x, low) for x, low, _ in reversed(band)]
            pieces.append(f"<polygon class='band' fill='{line.colour}' points='{' '.join(edge)}'>{title}</polygon>")
        path = [place(x, y) for x, y in line.points if shown(y)]
        kind = "curve faint" if line.faint else "curve"
        if not (line.faint and line.dots):
            pieces.append(
                f"<polyline class='{kind}' stroke='{line.colour}' points='{' '.join(path)}'>{title}</polyline>"
            )
        if line.dots or len(path) == 1:
            places = [point.split(",") for point in path]
            pieces += [f"<circle fill='{line.colour}' cx='{x}' cy='{y}' r='2.6'>{title}</circle>" for x, y in places]
    return svg(width, height, f"{y_name} against {x_name}", pieces)


def _y_axis(span: tuple[float, float], left: float, right: float, top: float, bottom: float, *, log: bool) -> list[str]:
    pieces = []
    for value in _log_ticks(*span) if log else ticks(*span):
        y = top + (bottom - top) * (span[1] - (math.log10(value) if log else value)) / (span[1] - span[0])
        pieces.append(f"<line class='grid' x1='{left}' x2='{right}' y1='{y:.1f}' y2='{y:.1f}'/>")
        pieces.append(f"<text class='dim end' x='{left - 6}' y='{y + 4:.1f}'>{value:.4g}</text>")
    return pieces


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two powers of ten: evenly spread within a decade or so, else 1, 2 and 5, or 1 alone, of each decade."""
    if high - low < 1.2:
        return [value for value in ticks(10**low, 10**high) if value > 0]
    factors = (1, 2, 5) if high - low < 4 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [factor * 10.0**power for power in powers for factor in factors if low <= math.log10(factor) + power <= high]


def _x_axis(span: tuple[float, float], left: float, right: float, bottom: float) -> list[str]:
    return [
        f"<text class='dim middle' x='{left + (right - left) * (tick - span[0]) / (span[1] - span[0]):.1f}' y='{bottom + 15:.0f}'>{tick:g}</text>"
        for tick in ticks(*span)
    ]


def _span(values: Sequence[float], *, log: bool) -> tuple[float, float]:
    """Lowest and highest, apart at least a little."""
    scaled = [math.log10(value) for value in values] if log else list(values)
    low, high = min(scaled), max(scaled)
    room = 0.0 if low == high else 0.03 * (high - low)
    return (low - room, high + room) if high > low else (low - 0.5, high + 0.5)


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _level(value: float) -> int:
    return min(LEVELS - 1, int(math.sqrt(min(1.0, max(0.0, value))) * LEVELS))


def _colour(level: int) -> str:
    share = level / (LEVELS - 1)
    (low, from_rgb), (high, to_rgb) = next(pair for pair in pairwise(_STOPS) if share <= pair[1][0])
    mix = (share - low) / (high - low)
    red, green, blue = (round(a + (b - a) * mix) for a, b in zip(from_rgb, to_rgb, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"


def svg(width: int, height: int, title: str, pieces: Sequence[str]) -> str:
    """A picture of these elements; the title is plain text."""
    return (
        f"<svg width='{width}' height='{height}' viewBox='0 0 {width} {height}' role='img' aria-label='{escape(title)}'>"
        f"<title>{escape(title)}</title>{''.join(pieces)}</svg>"
    )
