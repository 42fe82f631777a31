"""Steps that stand out: against their neighbours, with the sizes and times that they happened to have taken out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from training.whatwas.spikes import excess_by_times, score_steps, step_values, top_spikes

LONG, SHORT = "65x32x48", "1x32x48"


def lines(count: int = 120, *, spikes: dict[int, float] | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """A falling loss; every third step has long videos only, whose loss is twice as high; `spikes` are added to the loss of a step."""
    generator = np.random.default_rng(seed)
    found = []
    for step in range(count):
        buckets = {LONG: 4} if step % 3 == 0 else {SHORT: 8}
        level = (2.0 if LONG in buckets else 1.0) + 3 * math.exp(-step / 10)
        loss = level + 0.02 * generator.standard_normal() + (spikes or {}).get(step, 0.0)
        found.append(
            {
                "step": step,
                "loss": loss + 0.25,
                "flow_loss": loss,
                "loss_by_bucket": dict.fromkeys(buckets, loss),
                "loss_by_time": [loss / 2, None, None, None, None, None, None, None, None, 2 * loss],
                "grad_norm": (0.5 if LONG in buckets else 0.1) * math.exp(0.05 * generator.standard_normal()),
                "buckets": buckets,
            }
        )
    return found


def found(values: list[dict[str, Any]], measure: Any, count: int) -> list[int]:
    return [one.step for one in top_spikes(score_steps(step_values(values), measure), count)]


def test_spikes_are_found_at_any_place_and_size() -> None:
    where = {40: 0.3, 61: 0.25, 119: 0.4, 90: 0.2}  # the last step too: it may be why the run is looked at
    assert set(found(lines(spikes=where), "loss", 4)) == set(where)
    scores = {one.step: one for one in score_steps(step_values(lines(spikes=where)), "loss")}
    assert all(scores[step].score > 5 for step in where)
    assert scores[40].value - scores[40].expected == pytest.approx(0.3, abs=0.08)
    assert scores[90].excess_by_bucket[LONG] == pytest.approx(0.2, abs=0.08)


def test_long_videos_and_the_start_of_training_are_no_spikes() -> None:
    scores = score_steps(step_values(lines()), "loss")
    assert abs(scores[0].score) < 1e-9, "nothing is before the first step"
    assert max(one.score for one in scores[20:]) < 6
    expected = [one.expected for one in scores[60:]]
    assert max(expected) - min(expected) == pytest.approx(1.0, abs=0.1)


def test_a_mix_of_sizes_is_expected_by_its_clips() -> None:
    values = lines(seed=1)
    values[100] |= {
        "buckets": {LONG: 1, SHORT: 3},
        "loss_by_bucket": {LONG: 2.0, SHORT: 1.0},
        "flow_loss": 1.25,
        "loss": 1.5,
    }
    scores = score_steps(step_values(values), "loss")
    assert scores[100].expected == pytest.approx(1.5, abs=0.1) and abs(scores[100].score) < 5


def test_the_gradient_is_compared_with_steps_of_the_same_sizes() -> None:
    values = lines()
    values[70] |= {"grad_norm": 0.3}  # an image step; long videos have 0.5
    assert values[70]["buckets"] == {SHORT: 8}
    assert found(values, "grad_norm", 1) == [70]


def test_equal_losses_have_no_spike_and_one_that_differs_is_it() -> None:
    values = lines(30)
    for line in values:
        line |= {"loss": 1.0, "flow_loss": 1.0, "loss_by_bucket": {SHORT: 1.0}, "buckets": {SHORT: 2}}
    assert found(values, "loss", 3) == []
    values[11] |= {"loss": 1.01, "flow_loss": 1.01, "loss_by_bucket": {SHORT: 1.01}}
    assert found(values, "loss", 3) == [11]


def test_what_times_make_of_the_loss_is_told_apart() -> None:
    values = step_values(lines(200)[100:])
    assert excess_by_times(values, 150, [0.95] * 4) == pytest.approx(1.0, abs=0.1)
    assert excess_by_times(values, 150, [0.01] * 4) == pytest.approx(-0.5, abs=0.1)
    assert excess_by_times(values, 150, [0.5]) == 0.0, "no step had a clip in that tenth"
