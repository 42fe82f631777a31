"""Blocks and detail of pictures whose history is known: coarse JPEG, and pictures made smaller and enlarged again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from curation.analysis.pixel_facts import PixelFacts, blockiness, effective_resolution, measure_pixels

PHOTOS = ("china", "chelsea", "coffee", "rocket")
ENLARGERS = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4}


@pytest.fixture(scope="module")
def luma(media) -> Callable[[str], NDArray[np.uint8]]:
    return lambda name: np.array(Image.open(media(name)).convert("L"))


def detail(picture: NDArray[np.uint8]) -> float:
    found = effective_resolution([measure_pixels(0, picture)])
    assert found is not None
    return found


def enlarged(picture: NDArray[np.uint8], ratio: float, method: str) -> NDArray[np.uint8]:
    height, width = picture.shape
    small = cv2.resize(picture, (round(width * ratio), round(height * ratio)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=ENLARGERS[method]), dtype=np.uint8)


@pytest.mark.parametrize("method", ENLARGERS)
@pytest.mark.parametrize("name", PHOTOS)
def test_enlarging_is_seen_and_roughly_by_how_much(name: str, method: str, luma) -> None:
    picture = luma(name)
    found = [detail(picture), *(detail(enlarged(picture, ratio, method)) for ratio in (0.5, 0.33, 0.25))]
    # Linear interpolation leaves images of the low frequencies above the end, so a third and a quarter may read alike.
    assert all(after < before + 0.03 for before, after in pairwise(found))
    assert found[0] > 0.8
    for value, ratio in zip(found[1:], (0.5, 0.33, 0.25), strict=True):
        assert ratio * 0.8 < value < ratio * 1.6, (name, method, ratio)


def jpeg(picture: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), dtype=np.uint8)


@pytest.mark.parametrize("name", PHOTOS)
def test_blocks_grow_with_compression(name: str, luma) -> None:
    picture = luma(name)
    found = [blockiness([measure_pixels(0, picture)])]
    found += [blockiness([measure_pixels(0, jpeg(picture, quality))]) for quality in (60, 25, 8)]
    assert all(value is not None for value in found) and found == sorted(found)
    assert found[0] < 1.25 and found[-1] > 1.7


def test_blocks_are_found_wherever_the_grid_lies(luma) -> None:
    """A cut that moved the grid changes the place, not the ratio."""
    coded = jpeg(luma("coffee"), 12)
    whole = blockiness([measure_pixels(0, coded)])
    moved = blockiness([measure_pixels(0, coded[3:, 5:])])
    assert whole is not None and moved == pytest.approx(whole, rel=0.08) and whole > 1.4


@given(st.lists(st.sampled_from([0.3, 0.5, 0.9, None]), max_size=6))
def test_frames_without_an_edge_say_nothing(details: list[float | None]) -> None:
    facts = [PixelFacts(tick, np.ones((2, 8), np.float32), value) for tick, value in enumerate(details)]
    told = [value for value in details if value is not None]
    found = effective_resolution(facts)
    assert (found is None) == (not told)
    assert found is None or min(told) <= found <= max(told)
    assert blockiness(facts) == (1.0 if facts else None)


@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (40, 40), (87, 1000)])
def test_blank_and_tiny_pictures_have_no_value(shape: tuple[int, int]) -> None:
    facts = [measure_pixels(0, np.full(shape, 90, np.uint8))]
    assert blockiness(facts) is None and effective_resolution(facts) is None


def test_an_enlarged_film_is_told_from_its_original(media, cases, analyse, write_video, tmp_path: Path) -> None:
    """Through H.264 and the whole analysis: the same take at its own size, and made from a third of it."""
    picture = np.array(Image.open(media("china")).convert("RGB"))[: 426 // 2 * 2]

    def take(ratio: float) -> list[NDArray[np.uint8]]:
        frames = [np.ascontiguousarray(picture[40 + n : 280 + n, 2 * n : 416 + 2 * n]) for n in range(49)]
        if ratio == 1:
            return frames
        small = [cv2.resize(frame, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA) for frame in frames]
        return [np.asarray(cv2.resize(frame, (416, 240), interpolation=cv2.INTER_CUBIC), np.uint8) for frame in small]

    (sharp,) = analyse(write_video(tmp_path / "own.mp4", take(1), crf=23)).clips
    (soft,) = analyse(write_video(tmp_path / "third.mp4", take(1 / 3), crf=23)).clips
    assert sharp["effective_resolution_ratio"] > 0.75
    assert 0.25 < soft["effective_resolution_ratio"] < 0.5
    assert sharp["effective_resolution_ratio_model"] == sharp["blockiness_model"] == "native-luma-1"
