"""Small arithmetic of the report: means, quantiles and moments of columns with gaps."""

from __future__ import annotations

import datetime

import numpy as np

__all__ = ["end_window", "finite", "first_and_last", "median", "moment_words", "quantile"]

_LOSS_SHARE = 0.05
"""First and last loss are means over this share of the steps: single ones are noise."""


def finite(values_N: np.ndarray) -> np.ndarray:
    return values_N[np.isfinite(values_N)]


def median(values_N: np.ndarray) -> float:
    return quantile(values_N, 0.5)


def quantile(values_N: np.ndarray, share: float) -> float:
    values = finite(values_N)
    return float(np.quantile(values, share)) if len(values) else float("nan")


def end_window(count: int) -> int:
    return max(1, round(_LOSS_SHARE * count))


def first_and_last(values_N: np.ndarray) -> tuple[float, float]:
    """Means over the first and the last share of the steps."""
    values = finite(values_N)
    if not len(values):
        return float("nan"), float("nan")
    size = end_window(len(values_N))
    return float(values[:size].mean()), float(values[-size:].mean())


def moment_words(unix_s: float | None) -> str:
    if unix_s is None:
        return ""
    return datetime.datetime.fromtimestamp(unix_s, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
