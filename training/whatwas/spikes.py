"""Which steps stand out: each against the steps around it, with the sizes that it happened to have taken into account.

    expected(step) = sum over its buckets of clips x running median of that bucket's loss / clips of the step + running median of the difference
    score(step)    = (value - expected) / (1.4826 x running median of |value - expected|)

A step of long videos only is no spike where long videos always cost more. A running median reaches as far to the left as to the right, because the
loss falls; in the last steps, one of which may have ended the run, it reaches back a little farther. The first step has nothing before it and
never stands out. The usual distance is taken over as many steps everywhere, and is never less than 0.2 % of the value: where the loss falls in a line
there is no other. The gradient's norm has no parts by bucket: it is compared, as its logarithm, with steps of the same buckets where the run has
eight of them, else with all. Price: a median per step and bucket, some 20 us each; buckets whose losses are noisier than others' count alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

__all__ = [
    "WINDOW",
    "Measure",
    "StepScore",
    "StepValues",
    "excess_by_times",
    "score_steps",
    "step_values",
    "top_spikes",
]

Measure = Literal["loss", "grad_norm"]
WINDOW = 50
"""Steps to either side."""
_MAD_TO_DEVIATION = 1.4826
_LEAST_DEVIATION = 0.002
"""Of the value."""
_FEWEST_BEFORE = 12
"""Steps that one of the last is compared with."""
_ALIKE = 8
"""Steps of the same buckets that are enough to be compared with alone."""


@dataclass(frozen=True, kw_only=True)
class StepValues:
    """What of a step's line is used here."""

    step: int
    loss: float
    flow_loss: float
    grad_norm: float
    loss_by_bucket: dict[str, float]
    loss_by_time: tuple[float | None, ...]
    clips_by_bucket: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class StepScore:
    """How far one step stands out."""

    step: int
    measure: Measure
    value: float
    expected: float
    score: float
    """In deviations of the steps around it; above 0 it is larger than they are."""
    excess_by_bucket: dict[str, float]
    """Loss of each of its buckets above that bucket's running median."""


def step_values(lines: Iterable[dict[str, Any]]) -> list[StepValues]:
    """Lines of metrics.jsonl to what is needed of them, steps rising."""
    values = [
        StepValues(
            step=line["step"],
            loss=line["loss"],
            flow_loss=line["flow_loss"],
            grad_norm=line["grad_norm"],
            loss_by_bucket=line["loss_by_bucket"],
            loss_by_time=tuple(line["loss_by_time"]),
            clips_by_bucket=line["buckets"],
        )
        for line in lines
    ]
    return sorted(values, key=lambda one: one.step)


def score_steps(values: Sequence[StepValues], measure: Measure, *, window: int = WINDOW) -> list[StepScore]:
    """A score for each step, in their order."""
    steps = np.array([one.step for one in values])
    medians = _bucket_medians(values, window)
    if measure == "loss":
        expected = np.array([_expected_flow(one, found) for one, found in zip(values, medians, strict=True)])
        difference = np.array([one.loss for one in values]) - expected
        centre = _running_medians(steps, difference, window)
        expected, residual = expected + centre, difference - centre
    else:
        logarithm = np.array([math.log(max(one.grad_norm, 1e-30)) for one in values])
        centre = _median_of_alike(steps, logarithm, [frozenset(one.clips_by_bucket) for one in values], window)
        expected, residual = np.exp(centre), logarithm - centre
    scale = _MAD_TO_DEVIATION * _usual_distance(np.abs(residual), window)
    floor = _LEAST_DEVIATION * (np.abs(expected) if measure == "loss" else 1.0)
    score = residual / np.maximum(scale, np.maximum(floor, 1e-12))
    return [
        StepScore(
            step=one.step,
            measure=measure,
            value=one.loss if measure == "loss" else one.grad_norm,
            expected=float(expected[index]),
            score=float(score[index]),
            excess_by_bucket={name: loss - medians[index][name] for name, loss in one.loss_by_bucket.items()},
        )
        for index, one in enumerate(values)
    ]


def top_spikes(scores: Iterable[StepScore], count: int) -> list[StepScore]:
    """The `count` highest scores above 0, highest first; on a tie the earlier step."""
    return sorted((one for one in scores if one.score > 0), key=lambda one: (-one.score, one.step))[:count]


def excess_by_times(values: Sequence[StepValues], step: int, sigmas: Sequence[float], *, window: int = WINDOW) -> float:
    """What the times of a step's clips make of its flow loss: the mean of their bins' running medians, less the running median of the flow loss.

    A step that drew many times at which the loss is always high is no sign of strange clips.
    """
    index = next(place for place, one in enumerate(values) if one.step == step)
    around = values[_span(index, len(values), window)]
    usual = float(np.median([one.flow_loss for one in around]))
    bins = len(values[index].loss_by_time)
    expected = []
    for sigma in sigmas:
        place = min(bins - 1, int(sigma * bins))
        seen = [loss for one in around if (loss := one.loss_by_time[place]) is not None]
        expected.append(float(np.median(seen)) if seen else usual)
    return float(np.mean(expected)) - usual if expected else 0.0


def _bucket_medians(values: Sequence[StepValues], window: int) -> list[dict[str, float]]:
    """For each step, the running median of each of its buckets, over the steps that have the bucket."""
    found: list[dict[str, float]] = [{} for _ in values]
    for name in sorted({name for one in values for name in one.loss_by_bucket}):
        having = [index for index, one in enumerate(values) if name in one.loss_by_bucket]
        steps = np.array([values[index].step for index in having])
        medians = _running_medians(steps, np.array([values[index].loss_by_bucket[name] for index in having]), window)
        for index, median in zip(having, medians.tolist(), strict=True):
            found[index][name] = median
    return found


def _expected_flow(one: StepValues, medians: dict[str, float]) -> float:
    clips = {name: one.clips_by_bucket.get(name, 0) for name in medians}
    total = sum(clips.values())
    return one.flow_loss if total == 0 else sum(medians[name] * count for name, count in clips.items()) / total


def _span(index: int, count: int, window: int) -> slice:
    """The places that one is compared with, itself among them."""
    left, right = min(window, index), min(window, count - 1 - index)
    half = min(left, right)
    return slice(index - min(left, max(half, _FEWEST_BEFORE)), index + half + 1)


def _running_medians(steps_N: np.ndarray, series_N: np.ndarray, window: int) -> np.ndarray:
    """Of a series that some steps have a value of: within `window` steps, not values, to either side."""
    found = np.empty(len(series_N))
    near = (np.searchsorted(steps_N, steps_N - window), np.searchsorted(steps_N, steps_N + window, side="right") - 1)
    for index, (first, last) in enumerate(zip(*near, strict=True)):
        reach = int(max(_FEWEST_BEFORE, index - first, last - index))
        found[index] = np.median(series_N[_span(index, len(series_N), reach)])
    return found


def _usual_distance(distance_N: np.ndarray, window: int) -> np.ndarray:
    """The median over the 2 `window` + 1 nearest steps, however many of them lie on one side."""
    count, size = len(distance_N), min(len(distance_N), 2 * window + 1)
    starts = [min(max(0, index - size // 2), count - size) for index in range(count)]
    return np.array([np.median(distance_N[start : start + size]) for start in starts])


def _median_of_alike(
    steps_N: np.ndarray, series_N: np.ndarray, kinds: Sequence[frozenset[str]], window: int
) -> np.ndarray:
    """The running median over the steps of the same kind; over all for a kind that there is too little of."""
    found_N = _running_medians(steps_N, series_N, window)
    for kind in set(kinds):
        alike = np.array([index for index, other in enumerate(kinds) if other == kind])
        if len(alike) >= _ALIKE:
            found_N[alike] = _running_medians(steps_N[alike], series_N[alike], window)
    return found_N
