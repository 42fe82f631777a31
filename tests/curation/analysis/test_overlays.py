"""What is burnt in, and what belongs to the scene: planted overlays over several shots, signs, titles and subtitles."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.analysis.crops import Box
from curation.analysis.marks import setups_of, shot_edges
from curation.analysis.overlays import ClipOverlays, chapters, find_overlays
from curation.analysis.samples import SampleStore
from curation.analysis.settings import AnalyzeSettings, CropSettings
from curation.analysis.shots import Span
from curation.analysis.text_overlays import persistent_boxes, subtitle_lines

SIZE = (240, 426)
WHOLE = Box(0, 0, *SIZE)
TICKS = 48
FRAMES = 6
VIDEOS = (("bikes", 3.1), ("carphone", 0.0), ("multi_shot", 12.1), ("multi_shot", 161.5))


@pytest.fixture(scope="module")
def films() -> Iterator[ModuleType]:
    """`benchmarks/overlay_films.py`: the benchmark plants what these tests plant."""
    path = Path(__file__).parents[3] / "benchmarks" / "overlay_films.py"
    spec = importlib.util.spec_from_file_location("overlay_films", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["overlay_films"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["overlay_films"]


def found_in(
    takes: Sequence[Any], tmp_path: Path, *, plant: Any = None, shown: Sequence[int] | None = None, detector: Any = None
) -> list[ClipOverlays]:
    """Overlays per take; `plant` is drawn into the takes `shown` (all by default)."""
    with SampleStore(tmp_path) as store:
        for number, take in enumerate(takes):
            drawn = plant is not None and (shown is None or number in shown)
            for index, frame in enumerate(take.frames(SIZE, FRAMES)):
                picture = plant.onto(frame) if drawn else frame
                store.add([number * TICKS + index * TICKS // FRAMES], np.ascontiguousarray(picture[..., ::-1]))
        shots = [Span(number * TICKS, (number + 1) * TICKS) for number in range(len(takes))]
        return find_overlays(store, shots, list(enumerate(shots)), detector, SIZE, AnalyzeSettings())


@pytest.mark.parametrize(
    ("style", "opacity", "corner"),
    [
        ("ring", 1.0, "top left"),
        ("star", 0.6, "bottom right"),
        ("photo", 0.3, "top right"),
        ("white", 0.3, "bottom left"),
    ],
)
def test_planted_mark_is_found_in_every_shot(films, tmp_path, style: str, opacity: float, corner: str) -> None:
    random = np.random.default_rng(5)
    plant = films.drawn(style, size=SIZE, share=0.12, opacity=opacity, corner=corner, random=random)
    found = found_in([films.Take(*part) for part in VIDEOS], tmp_path, plant=plant)
    target = Box(*plant.box)
    assert len(found) == len(VIDEOS)
    for clip in found:
        assert clip.kinds == ("mark",), clip.boxes
        assert clip.boxes[0].meet(target).area >= 0.9 * target.area
        assert clip.boxes[0].area <= 3 * target.area


def test_clean_shots_have_no_overlay(films, tmp_path) -> None:
    found = found_in([films.Take(*part) for part in VIDEOS], tmp_path)
    assert [(clip.boxes, clip.has_steady_text) for clip in found] == [((), False)] * len(VIDEOS)


def test_sign_before_a_fixed_camera_stays_also_when_the_camera_returns_to_it(films, tmp_path, analyze_models) -> None:
    sign = films.signed("coffee", "OPEN DAILY", moving=False, seed=1)
    again = films.signed("coffee", "OPEN DAILY", moving=False, seed=2)
    found = found_in([sign, films.Take("bikes", 3.1), again], tmp_path, detector=analyze_models.text_detector)
    assert [clip.boxes for clip in found] == [(), (), ()]
    assert [clip.has_steady_text for clip in found] == [True, False, True]
    assert found[0].text[0], "the detector reads the sign"


def test_sign_that_moves_with_the_scene_is_no_steady_text(films, tmp_path, analyze_models) -> None:
    (clip,) = found_in(
        [films.signed("coffee", "OPEN DAILY", moving=True)], tmp_path, detector=analyze_models.text_detector
    )
    assert any(clip.text) and clip.boxes == () and not clip.has_steady_text


def test_title_over_a_moving_camera_is_an_overlay_in_one_take(films, tmp_path, analyze_models) -> None:
    plant = films.drawn(
        "outlined", size=SIZE, share=0.12, opacity=1.0, corner="top left", random=np.random.default_rng(2)
    )
    take = films.Take("motorcycle_left", views=((0.2, 0.2, 1.4), (0.8, 0.7, 1.4)))
    (clip,) = found_in([take], tmp_path, plant=plant, detector=analyze_models.text_detector)
    assert clip.kinds == ("text",) and clip.boxes[0].iou(Box(*plant.box)) > 0.45


def test_takes_of_one_fixed_camera_are_one_setup(films) -> None:
    views = ((0.4, 0.4, 1.2), (0.4, 0.4, 1.2))
    takes = [films.Take("coffee", views=views, noise_seed=1), films.Take("chelsea", views=views)]
    takes += [films.Take("coffee", views=views, noise_seed=2), films.Take("bikes", 3.1)]
    assert setups_of([shot_edges(take.frames(SIZE, 3)) for take in takes]) == [0, 1, 0, 3]


def test_steady_line_is_an_overlay_and_moving_text_is_not() -> None:
    subtitle = [Box(210, 100 + 10 * i, 232, 300 + 5 * i) for i in range(4)]
    shirt = [Box(100 + 9 * i, 100, 130 + 9 * i, 200) for i in range(4)]
    once = Box(20, 20, 40, 80)
    frames = [[subtitle[i], shirt[i], *([once] if i == 0 else [])] for i in range(4)]
    assert persistent_boxes(frames, WHOLE, CropSettings()) == [Box(210, 100, 232, 315)]
    assert persistent_boxes(frames[:1], WHOLE, CropSettings()) == []


def test_centred_lines_of_changing_length_are_subtitles() -> None:
    def line(half: int, top: int = 205) -> Box:
        return Box(top, 213 - half, top + 20, 213 + half)

    spoken = [[[line(60)], [line(60)], [line(95)], []], [[line(40, top=207)], [], [line(80)], [line(80)]]]
    assert subtitle_lines(spoken, WHOLE, CropSettings()) == [Box(205, 118, 227, 308)]
    same_sign = [[[line(60)]] * 4] * 2
    assert subtitle_lines(same_sign, WHOLE, CropSettings()) == []
    rare = [[[line(60)], [], [], []], [[line(40)], [], [], []], [[line(90)], [], [], []]]
    assert subtitle_lines(rare, WHOLE, CropSettings()) == []
    off_centre = [[[Box(205, 10, 225, 100 + 20 * i)] for i in range(4)]]
    assert subtitle_lines(off_centre, WHOLE, CropSettings()) == []


@given(st.integers(0, 200), st.integers(1, 20))
def test_chapters_hold_every_shot_once_in_near_equal_parts(num_shots: int, most: int) -> None:
    parts = chapters(num_shots, most)
    assert [shot for part in parts for shot in part] == list(range(num_shots))
    assert all(0 < len(part) <= most for part in parts)
    assert not parts or max(map(len, parts)) - min(map(len, parts)) <= 1
