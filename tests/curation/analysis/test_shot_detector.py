"""What ends a shot and what does not: flashes, strobes, fast pans, lone black frames, over pictures from real photographs."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from curation.analysis.settings import AnalyzeSettings
from curation.analysis.shot_detector import ShotDetector
from curation.analysis.shots import Span, find_shots

Frames = list[NDArray[np.uint8]]


@pytest.fixture(scope="module")
def photo(media):
    """`photo("china")`: RGB, 640 wide."""

    def load(name: str) -> NDArray[np.uint8]:
        picture = cv2.cvtColor(cv2.imread(str(media(name))), cv2.COLOR_BGR2RGB)
        return np.asarray(cv2.resize(picture, (640, 427), interpolation=cv2.INTER_AREA), dtype=np.uint8)

    return load


def panned(picture: NDArray[np.uint8], frames: int, pixels: float = 1) -> Frames:
    """256x144, the camera moving to the right."""
    starts = [min(round(number * pixels), picture.shape[1] - 256) for number in range(frames)]
    return [np.ascontiguousarray(picture[100:244, start : start + 256]) for start in starts]


def shots_of(frames: Frames) -> list[Span]:
    settings = AnalyzeSettings()
    detector = ShotDetector(settings)
    for tick, frame in enumerate(frames):
        detector.add(tick, tick + 1, frame, np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), dtype=np.uint8))
    return find_shots(detector.finish(), settings.shots, 24.0)


def lit(frame: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    return (frame + (255.0 - frame) * share).astype(np.uint8)


def test_two_pictures_are_two_shots(photo) -> None:
    assert shots_of(panned(photo("china"), 60) + panned(photo("coffee"), 60)) == [
        Span(0, 60),
        Span(60, 120, joinable=True),
    ]


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("length", [1, 3])
def test_a_flash_is_no_cut(photo, share: float, length: int) -> None:
    frames = panned(photo("china"), 90)
    frames[40 : 40 + length] = [lit(frame, share) for frame in frames[40 : 40 + length]]
    assert shots_of(frames) == [Span(0, 90)]


def test_a_strobe_is_no_cut(photo) -> None:
    frames = panned(photo("coffee"), 90)
    for tick in range(30, 60, 4):
        frames[tick] = lit(frames[tick], 0.8)
    assert shots_of(frames) == [Span(0, 90)]


def test_a_lone_black_frame_is_no_cut(photo) -> None:
    frames = panned(photo("astronaut"), 90)
    frames[50] = np.zeros_like(frames[50])
    assert shots_of(frames) == [Span(0, 90)]


def test_a_black_frame_between_two_pictures_is_one(photo) -> None:
    frames = [*panned(photo("astronaut"), 50), np.zeros((144, 256, 3), dtype=np.uint8), *panned(photo("coffee"), 50)]
    assert shots_of(frames) == [Span(0, 50), Span(51, 101)]


def test_a_whip_pan_is_no_cut(photo) -> None:
    slow, fast = panned(photo("china"), 30), panned(photo("china"), 10, pixels=38)
    assert shots_of([*slow[:1] * 30, *fast, *fast[-1:] * 30]) == [Span(0, 70)]


def test_a_dissolve_is_cut_out(photo) -> None:
    before, after = panned(photo("china"), 100), panned(photo("coffee"), 100)
    frames = before[:60]
    for step in range(24):
        share = (step + 0.5) / 24
        frames.append(cv2.addWeighted(before[60 + step], 1 - share, after[step], share, 0).astype(np.uint8))
    frames += after[24:84]
    first, second = shots_of(frames)
    assert first.first == 0 and 52 <= first.end <= 66
    assert 78 <= second.first <= 90 and second.end == len(frames) and second.joinable


def test_light_that_is_turned_up_is_no_dissolve(photo) -> None:
    frames = [
        (frame * (0.4 + 0.6 * min(1.0, max(0.0, (tick - 30) / 24)))).astype(np.uint8)
        for tick, frame in enumerate(panned(photo("chelsea"), 90))
    ]
    assert shots_of(frames) == [Span(0, 90)]


def test_a_fade_through_white_is_in_no_shot(photo) -> None:
    before, after = panned(photo("china"), 58), panned(photo("coffee"), 58)
    frames = [lit(frame, max(0, tick - 47) / 10) for tick, frame in enumerate(before)]
    frames += [lit(frame, max(0, 9 - tick) / 10) for tick, frame in enumerate(after)]
    first, second = shots_of(frames)
    assert 46 <= first.end <= 52 and 64 <= second.first <= 70
    assert not second.joinable
