"""Long series for small pictures: at most `MOST_POINTS` points, with the range of what was left out as a band."""

from __future__ import annotations

import numpy as np

from training.pages.svg import Curve

__all__ = ["MOST_POINTS", "raw_and_smoothed", "smoothed", "thinned"]

MOST_POINTS = 500


def smoothed(values_N: np.ndarray, span: float) -> np.ndarray:
    """Exponential mean of the values up to each, corrected for its start, over about `span` of them; NaN is passed over, and stays NaN.

    >>> smoothed(np.array([2.0, np.nan, 2.0]), 10).tolist()
    [2.0, nan, 2.0]
    """
    keep = 1.0 - 1.0 / max(1.0, span)
    found = np.full(len(values_N), np.nan)
    total = weight = 0.0
    for index, value in enumerate(values_N.tolist()):
        if np.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
            found[index] = total / weight
    return found


def thinned(steps_N: np.ndarray, values_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(step, mean, least, most) of equal shares of the finite values; each value for itself where they are few."""
    known = np.isfinite(values_N)
    steps, values = steps_N[known], values_N[known]
    if len(values) <= MOST_POINTS:
        return steps, values, values, values
    edges = np.linspace(0, len(values), MOST_POINTS + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(values)))
    return (
        np.add.reduceat(steps, edges) / counts,
        np.add.reduceat(values, edges) / counts,
        np.minimum.reduceat(values, edges),
        np.maximum.reduceat(values, edges),
    )


def raw_and_smoothed(
    steps_N: np.ndarray, values_N: np.ndarray, *, name: str, colour: str, with_raw: bool = True
) -> list[Curve]:
    """The values pale (of many the range), and their smoothed mean over them."""
    known = np.isfinite(values_N)
    steps, values = steps_N[known], values_N[known]
    curves: list[Curve] = []
    x, mean, least, most = thinned(steps, values)
    if with_raw and len(values) > MOST_POINTS:
        band = tuple(zip(x.tolist(), least.tolist(), most.tolist(), strict=True))
        curves.append(Curve(name=f"{name}, range", colour=colour, points=(), band=band))
    elif with_raw:
        points = tuple(zip(x.tolist(), mean.tolist(), strict=True))
        curves.append(Curve(name=name, colour=colour, points=points, faint=True))
    x, mean, _, _ = thinned(steps, smoothed(values, max(5.0, len(values) / 50)))
    points = tuple(zip(x.tolist(), mean.tolist(), strict=True))
    return [*curves, Curve(name=f"{name}, smoothed", colour=colour, points=points)]
