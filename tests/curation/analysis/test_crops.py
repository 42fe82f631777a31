"""The crop rectangle: geometry, borders, overlays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.analysis.crops import Box, border_box, choose_crop, covered_area
from curation.analysis.settings import CropSettings

SETTINGS = CropSettings()
WHOLE = Box(0, 0, 240, 426)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    top, left = draw(st.integers(0, 239)), draw(st.integers(0, 425))
    return Box(top, left, draw(st.integers(top + 1, 240)), draw(st.integers(left + 1, 426)))


@given(st.lists(boxes(), max_size=20))
def test_crop_is_free_of_overlays_or_says_so(overlays: list[Box]) -> None:
    choice = choose_crop(WHOLE, WHOLE, overlays, SETTINGS)
    hit = covered_area(overlays, choice.crop)
    assert choice.crop.meet(WHOLE) == choice.crop and choice.crop.area > 0
    assert ("no_good_crop" in choice.flags) == (hit > 0)
    assert choice.overlay_area_ratio == pytest.approx(hit / choice.crop.area)
    assert choice.crop.area >= SETTINGS.min_area_ratio * WHOLE.area
    assert ("overlay" in choice.flags) == bool(overlays)


@given(st.data())
def test_crop_is_the_largest_there_is(data: st.DataObject) -> None:
    """Against every rectangle of a small picture that stays in the bands and meets no overlay."""
    whole = Box(0, 0, 10, 14)
    settings = CropSettings(max_cut_ratio=0.3, min_area_ratio=0.4)
    overlays = []
    for _ in range(data.draw(st.integers(1, 4))):
        top, left = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 13))
        overlays.append(Box(top, left, data.draw(st.integers(top + 1, 10)), data.draw(st.integers(left + 1, 14))))
    areas = [
        box.area
        for edges in itertools.product(range(4), range(5), range(7, 11), range(10, 15))
        if not any((box := Box(*edges)).meet(overlay).area for overlay in overlays)
    ]
    choice = choose_crop(whole, whole, overlays, settings)
    best = max(areas, default=0)
    if best >= settings.min_area_ratio * whole.area:
        assert "no_good_crop" not in choice.flags and choice.crop.area == best
    else:
        assert "no_good_crop" in choice.flags


@given(st.lists(boxes(), max_size=6), boxes())
def test_covered_area_counts_pixels_once(found: list[Box], within: Box) -> None:
    painted = np.zeros((240, 426), dtype=bool)
    for box in found:
        painted[box.top : box.bottom, box.left : box.right] = True
    inside = painted[within.top : within.bottom, within.left : within.right]
    assert covered_area(found, within) == inside.sum()


def test_logo_in_a_corner_is_cut_off_by_the_cheaper_side() -> None:
    assert choose_crop(WHOLE, WHOLE, [Box(6, 8, 34, 118)], SETTINGS).crop == Box(34, 0, 240, 426)
    assert choose_crop(WHOLE, WHOLE, [Box(6, 8, 47, 30)], SETTINGS).crop == Box(0, 30, 240, 426)


def test_overlay_in_the_middle_stays_but_the_subtitle_goes() -> None:
    choice = choose_crop(WHOLE, WHOLE, [Box(100, 100, 140, 300), Box(210, 100, 235, 300)], SETTINGS)
    assert choice.crop == Box(0, 0, 210, 426)
    assert choice.flags == ("overlay", "no_good_crop")
    assert choice.overlay_area_ratio == pytest.approx(40 * 200 / (210 * 426))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 20))
def test_borders_are_found_to_the_pixel(top: int, bottom: int, left: int, right: int, black: int) -> None:
    lightest = np.full((240, 426), black, dtype=np.uint8)
    lightest[top : 240 - bottom, left : 426 - right] = 90
    assert border_box(lightest, SETTINGS) == Box(top, left, 240 - bottom, 426 - right)


def test_dark_clip_has_no_border() -> None:
    lightest = np.full((240, 426), 10, dtype=np.uint8)
    assert border_box(lightest, SETTINGS) == WHOLE
    lightest[100:110, 200:210] = 200
    assert border_box(lightest, SETTINGS) == WHOLE
