"""Phases of the run as the mix of one epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.schedule.mixes import epoch_mix
from planner.settings import MixPhase


def phases(*items: tuple[float, float | None, dict[str, float]]) -> list[MixPhase]:
    return [MixPhase(until=until, images_per_video=ratio, domain_weights=weights) for until, ratio, weights in items]


def test_an_epoch_within_a_phase_has_its_mix() -> None:
    run = phases((0.5, 1.0, {"cats": 0.5}), (1.0, 0.5, {}))
    first = epoch_mix(run, 0.0, 0.25)
    assert first.images_per_video == pytest.approx(1.0) and first.domain_weights == {"cats": 0.5}
    assert first.image_density.edges.tolist() == [0.0, 1.0]
    last = epoch_mix(run, 0.75, 1.0)
    assert last.images_per_video == pytest.approx(0.5) and last.domain_weights == {}
    beyond = epoch_mix(run, 1.2, 1.4)
    assert beyond.images_per_video == pytest.approx(0.5), "a run that goes on stays in its last phase"


def test_an_epoch_over_two_phases_has_both_in_their_places() -> None:
    """One row in two is an image in a quarter of the epoch, then one in four: 5 in 16 over all."""
    mix = epoch_mix(phases((0.25, 1.0, {"cats": 0.5}), (1.0, 1 / 3, {"dogs": 0.25})), 0.0, 1.0)
    assert mix.images_per_video == pytest.approx((5 / 16) / (11 / 16))
    assert mix.image_density.edges.tolist() == [0.0, 0.25, 1.0]
    assert mix.image_density.weights.tolist() == pytest.approx([0.5, 0.25])
    assert mix.video_density.weights.tolist() == pytest.approx([0.5, 0.75])
    assert mix.domain_weights == pytest.approx({"cats": 0.25 * 0.5 + 0.75, "dogs": 0.25 + 0.75 * 0.25})


def test_without_phases_and_without_a_ratio_the_data_decide() -> None:
    for run in ([], phases((1.0, None, {}))):
        mix = epoch_mix(run, 0.0, 1.0)
        assert mix.images_per_video is None and not mix.domain_weights
        assert len(mix.image_density.weights) == len(mix.video_density.weights) == 1


@given(
    ends=st.lists(st.integers(1, 99), min_size=0, max_size=4, unique=True),
    ratios=st.lists(st.floats(0.1, 5.0), min_size=5, max_size=5),
    start=st.floats(0, 1.2),
    length=st.floats(1e-6, 1.0),
)
def test_ratio_and_densities_are_those_of_the_parts_covered(
    ends: list[int], ratios: list[float], start: float, length: float
) -> None:
    until = [end / 100 for end in sorted(ends)] + [1.0]
    mix = epoch_mix(
        phases(*((end, ratio, {}) for end, ratio in zip(until, ratios, strict=False))), start, start + length
    )
    edges, images = mix.image_density.edges, mix.image_density.weights
    assert edges[0] == 0.0 and edges[-1] == 1.0 and (np.diff(edges) > 0).all()
    assert (images + mix.video_density.weights == pytest.approx(1.0)) and len(edges) == len(images) + 1
    share = float((np.diff(edges) * images).sum())
    assert mix.images_per_video == pytest.approx(share / (1 - share))
    assert mix.images_per_video is not None
    assert min(ratios) - 1e-9 <= mix.images_per_video <= max(ratios) + 1e-9
