"""The report's charts: curves over one axis of steps, with the places where the run was continued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from training.pages.markup import either, legend, panel
from training.pages.svg import HUES, Curve, Mark, curves
from training.report.column_facts import finite, moment_words
from training.report.run_data import RunData
from training.report.thinning import raw_and_smoothed, thinned

__all__ = [
    "as_dots",
    "chart",
    "cut_high",
    "legend_of",
    "linear_or_log",
    "pair",
    "resume_marks",
    "smooth_curve",
    "start_words",
    "step_range",
    "thin_curve",
]


def pair(*parts: tuple[str, str]) -> str:
    """(plain title, HTML) side by side where there is room."""
    inner = "".join(f"<div><h3>{escape(title)}</h3>{html}</div>" for title, html in parts)
    return f"<div class='pair'>{inner}</div>"


def chart(
    lines: Sequence[Curve],
    run: RunData,
    y_name: str,
    *,
    width: int = 620,
    height: int = 240,
    from_zero: bool = False,
    log_y: bool = False,
) -> str:
    """Curves over the run's steps."""
    return panel(
        curves(
            lines,
            x_name="step",
            y_name=y_name,
            width=width,
            height=height,
            from_zero=from_zero,
            log_y=log_y,
            x_range=step_range(run),
            marks=resume_marks(run),
        )
    )


def linear_or_log(
    name: str,
    lines: Sequence[Curve],
    run: RunData,
    *,
    y_name: str,
    width: int = 620,
    height: int = 240,
    from_zero: bool = False,
) -> str:
    """The same chart twice, to be switched; `name` is unique on the page."""
    linear = chart(lines, run, y_name, width=width, height=height, from_zero=from_zero)
    return either(name, ("linear", linear), ("log", chart(lines, run, y_name, width=width, height=height, log_y=True)))


def smooth_curve(steps_N: np.ndarray, values_N: np.ndarray, name: str, colour: str) -> Curve:
    """The smoothed mean alone."""
    return raw_and_smoothed(steps_N, values_N, name=name, colour=colour, with_raw=False)[-1]


def thin_curve(steps_N: np.ndarray, values_N: np.ndarray, name: str, colour: str) -> Curve:
    """The values as they are, of many the means of equal shares."""
    x, mean, _, _ = thinned(steps_N, values_N)
    return Curve(name=name, colour=colour, points=tuple(zip(x.tolist(), mean.tolist(), strict=True)))


def as_dots(curve: Curve) -> Curve:
    """The same as single points."""
    return Curve(name=curve.name, colour=curve.colour, points=curve.points, dots=True, faint=True)


def legend_of(runs: Sequence[RunData]) -> str:
    """Of pictures that several runs share."""
    entries = [(HUES[index + 1], f"{run.name}, smoothed") for index, run in enumerate(runs)]
    dashed = [("var(--warn)", "dashed: the run was continued there")] if len(runs[0].starts) > 1 else []
    return legend([*entries, *dashed])


def resume_marks(run: RunData) -> list[Mark]:
    """Where the run was continued."""
    return [Mark(x=float(line["steps_done"]), title=start_words(line)) for line in run.starts[1:]]


def start_words(line: Mapping[str, Any]) -> str:
    """A start of the history."""
    return f"started at step {line['steps_done']} on {line['environment'].get('world_size', '?')} ranks, {moment_words(line['unix_s'])}"


def step_range(run: RunData) -> tuple[float, float]:
    """Of the axis: first step to steps done."""
    return float(run.step_numbers[0]), float(run.step_numbers[-1]) + 1


def cut_high(values_N: np.ndarray) -> np.ndarray:
    """What lies far above nearly all (a first step that compiles, a stalled disk) brought down to the top of the picture."""
    values = finite(values_N)
    if not len(values):
        return values_N
    return np.minimum(values_N, 1.4 * float(np.quantile(values, 0.95)))
