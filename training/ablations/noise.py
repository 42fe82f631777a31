"""How far two runs may lie apart by chance: a t interval from the base's seeds, and how often it is wrong.

Where a variant changes nothing, its loss and those of n seeds of the base are draws of one distribution, of unknown mean and deviation s. Then
(loss - mean of the seeds) / (s sqrt(1 + 1/n)) follows Student's t with n - 1 degrees of freedom; between two single runs the root is that of 2.
So a difference beyond the quantile comes by chance in 5 % of such variants, whatever n is; what more seeds buy is a shorter interval.
Price: it takes losses of seeds as normal, and every variant as noisy as the base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

__all__ = ["FALSE_ALARMS", "SEEDS_WANTED", "Noise", "measure_noise", "t_quantile"]

FALSE_ALARMS = 0.05
"""Share of variants without any effect whose difference is beyond the noise all the same."""
SEEDS_WANTED = 4
"""Fewer give an interval so wide that it hides what one looks for: 15.6 deviations with two, 5.0 with three, 3.6 with four."""
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""The 97.5 % point for 1 to 30 degrees of freedom."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Of one measure, over the base's seeds."""

    seeds: int
    mean: float
    deviation: float
    to_base: float
    """A run farther than this from the mean of the seeds is beyond the noise."""
    between_runs: float
    """The same for two single runs."""

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)


def measure_noise(values: Sequence[float]) -> Noise | None:
    """Of the base's seeds; None with fewer than two."""
    if len(values) < 2:
        return None
    deviation, quantile = stdev(values), t_quantile(len(values) - 1)
    return Noise(
        seeds=len(values),
        mean=fmean(values),
        deviation=deviation,
        to_base=quantile * deviation * math.sqrt(1 + 1 / len(values)),
        between_runs=quantile * deviation * math.sqrt(2),
    )


def t_quantile(degrees: int) -> float:
    """Student's t at 97.5 %; above 30 degrees of freedom that of 30, which is a little too large."""
    assert degrees >= 1, "a deviation has at least one degree of freedom"
    return _T[min(degrees, len(_T)) - 1]
