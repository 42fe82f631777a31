"""The pictures shown to the model: the right frames of the right clip, cut to its crop."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from curation.captioning.frames import clip_frames, frame_ticks
from curation.captioning.settings import ServerSettings
from curation.encoding.pixels import ClipRequest, clip_pixels


def _pixels(jpeg: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image.convert("RGB"))


def test_ticks_are_the_middles_of_equal_parts() -> None:
    assert frame_ticks(0, 121, 1) == [60]
    assert frame_ticks(48, 33, 4) == [48 + 4, 48 + 12, 48 + 20, 48 + 28]
    assert frame_ticks(0, 1, 8) == [0]
    assert frame_ticks(10, 3, 8) == [10, 11, 12]


def test_two_clips_of_a_film_show_their_own_frames(
    cases: Callable[..., Path], media: Callable[[str], Path], media_cases: ModuleType, clip_row: Any
) -> None:
    path = cases("frames.mp4", lambda target: media_cases.trimmed(media("bigbuckbunny"), target, seconds=4))
    crop = {"top": 16, "left": 32, "bottom": 176, "right": 288}
    common = {"content_hash": "aa" * 32, "frames": 33, "crop": crop}
    rows = [clip_row(1, start_us=start, **common) for start in (2_000_000, 0)]
    settings = ServerSettings(num_frames=4, frame_long_side=128)
    shown = list(clip_frames(str(path), rows, settings))
    assert [clip.clip_id for clip in shown] == [rows[1]["clip_id"], rows[0]["clip_id"]], "in order of time"
    requests = [ClipRequest.from_row(row, ("64p",)) for row in rows]
    for clip, pixels in zip(shown, clip_pixels(str(path), "video", 24.0, requests), strict=True):
        assert clip.reason is None and len(clip.jpegs) == 4 and round(clip.seconds, 3) == 1.375
        for jpeg, tick in zip(clip.jpegs, frame_ticks(0, 33, 4), strict=True):
            picture = _pixels(jpeg)
            assert picture.shape == (80, 128, 3), "the crop at a long side of 128"
            expected = pixels.by_set["64p"][tick].mean(axis=(0, 1))
            assert np.abs(picture.mean(axis=(0, 1)) - expected).max() < 4.0
    again = list(clip_frames(str(path), rows, settings))
    assert again == shown, "the same bytes every time"


def test_small_pictures_are_not_enlarged(tmp_path: Path, clip_row: Any) -> None:
    Image.new("RGB", (60, 40), (200, 10, 10)).save(tmp_path / "a.png")
    row = clip_row(1, branch="image_real", crop={"top": 0, "left": 10, "bottom": 40, "right": 50})
    (shown,) = clip_frames(str(tmp_path / "a.png"), [row], ServerSettings())
    assert [_pixels(jpeg).shape for jpeg in shown.jpegs] == [(40, 40, 3)]


def test_a_film_that_broke_off_says_how_many_frames_there_are(
    cases: Callable[..., Path], media: Callable[[str], Path], media_cases: ModuleType, clip_row: Any
) -> None:
    path = cases("short.mp4", lambda target: media_cases.trimmed(media("bigbuckbunny"), target, seconds=2))
    rows = [clip_row(1, content_hash="bb" * 32, start_us=start, frames=33) for start in (0, 1_375_000, 6_000_000)]
    for row in rows:
        row["crop"] = {"top": 0, "left": 0, "bottom": 90, "right": 160}
    whole, cut, gone = clip_frames(str(path), rows, ServerSettings(num_frames=4))
    assert whole.reason is None
    assert cut.reason is not None and cut.reason.endswith("of 4 frames for the captioner could be decoded")
    assert gone.reason == "0 of 4 frames for the captioner could be decoded"
