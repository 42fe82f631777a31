"""Which steps stand out: each against the steps around it, with the sizes that it happened to have taken into account.

    expected(step) = sum over its buckets of clips x running median of that bucket's loss / clips of the step
    score(step)    = (value - expected - running median of that difference) / (1.4826 x running MAD of it)

A step of long videos only is no spike where long videos always cost more. The window reaches `window` steps to either side, as far to the left as to
the right in the first steps, where the loss falls fast, and all the way back at the end, where a spike may be what ended the run. The gradient's norm
has no parts by bucket: it is compared, as its logarithm, with steps of the same buckets where the window has eight of them, else with all.
The tenfold of usual noise is a score of 10. Price: a median per step and bucket, some 20 us each; losses that are noisier for some buckets than for
others count alike.
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
    medians = _bucket_medians(values, window)
    if measure == "loss":
        expected = np.array([_expected_flow(one, found) for one, found in zip(values, medians, strict=True)])
        difference = np.array([one.loss for one in values]) - expected
        centre = _running_medians(difference, window)
        scale = _MAD_TO_DEVIATION * _running_medians(np.abs(difference - centre), window)
        expected = expected + centre
        residual = difference - centre
    else:
        logarithm = np.array([math.log(max(one.grad_norm, 1e-30)) for one in values])
        centre = _median_of_alike(logarithm, [frozenset(one.clips_by_bucket) for one in values], window)
        scale = _MAD_TO_DEVIATION * _running_medians(np.abs(logarithm - centre), window)
        expected, residual = np.exp(centre), logarithm - centre
    # A step among equal ones has no deviation to be measured in; a millionth of its size is one.
    floor = 1e-6 * np.maximum(np.abs(expected), 1e-6)
    score = residual / np.maximum(scale, floor)
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
        medians = _running_medians(np.array([values[index].loss_by_bucket[name] for index in having]), window)
        for index, median in zip(having, medians.tolist(), strict=True):
            found[index][name] = median
    return found


def _expected_flow(one: StepValues, medians: dict[str, float]) -> float:
    clips = {name: one.clips_by_bucket.get(name, 0) for name in medians}
    total = sum(clips.values())
    return one.flow_loss if total == 0 else sum(medians[name] * count for name, count in clips.items()) / total


def _span(index: int, count: int, window: int) -> slice:
    """The steps that one is compared with, itself among them."""
    left = min(window, index)
    return slice(index - left, index + min(left, window, count - 1 - index) + 1)


def _running_medians(series: np.ndarray, window: int) -> np.ndarray:
    return np.array([np.median(series[_span(index, len(series), window)]) for index in range(len(series))])


def _median_of_alike(series: np.ndarray, kinds: Sequence[frozenset[str]], window: int) -> np.ndarray:
    """The running median over steps of the same kind; over all where there are too few."""
    names = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    kind_N = np.array([names[kind] for kind in kinds])
    found = np.empty(len(series))
    for index in range(len(series)):
        span = _span(index, len(series), window)
        alike = series[span][kind_N[span] == kind_N[index]]
        found[index] = np.median(alike if len(alike) >= _ALIKE else series[span])
    return found
