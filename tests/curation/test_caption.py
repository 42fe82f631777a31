"""Captions: the real tagger on real pictures, and sentences that follow from the measured facts."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from curation.caption import (
    CaptionModels,
    CaptionSettings,
    caption_clips,
    caption_fingerprint,
    load_models,
    model_names,
)
from curation.picture_facts import COLOURS, colour_shares, frames_of_strip, picture_facts
from curation.tag_captions import motion_word, subject_of, write_captions
from schemas.errors import DataError
from schemas.tables import LABELS

Row = dict[str, Any]
ClipRow = Callable[..., Row]
Strip = tuple[int, bytes]


@pytest.fixture(scope="module")
def models() -> CaptionModels:
    from encoders.registry import fetch_many

    fetch_many(model_names(CaptionSettings()))
    return load_models(CaptionSettings())


def strip_of(frames: list[NDArray[np.uint8]]) -> Strip:
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(frames, axis=1)).save(buffer, format="JPEG", quality=90)
    return len(frames), buffer.getvalue()


def photograph(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((256, 192)))


def plain(colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.full((40, 60, 3), colour, dtype=np.uint8)


def test_real_photographs_are_named_and_described(
    clip_row: ClipRow, media: Callable[[str], Path], models: CaptionModels
) -> None:
    names = ("chelsea", "china", "coffee", "flower")
    clips = [clip_row(number, branch="image_real", motion=None) for number in range(len(names))]
    thumbnails = {clip["clip_id"]: strip_of([photograph(media(name))]) for clip, name in zip(clips, names, strict=True)}
    table = caption_clips(clips, thumbnails, CaptionSettings(), models)
    assert table.schema.equals(LABELS)
    rows = table.to_pylist()
    assert [row["clip_id"] for row in rows] == [clip["clip_id"] for clip in clips]
    cat, temple, cup, flower = rows
    assert "cat" in cat["caption_long"]
    assert (cat["subject"], temple["subject"], cup["subject"]) == ("animal", "building", "food")
    assert "orange" in flower["caption_long"]
    for row in rows:
        assert row["caption_long"].startswith(row["caption_first"])
        assert row["caption_first"].startswith("A photograph")
        assert (row["action"], row["camera_move"]) == ("none", "none")
        judged = ("quality", "watermark", "nsfw", "padded", "multi_scene", "timelapse")
        assert all(row[name] is None for name in judged)
    for kind in ("long", "short", "first"):
        assert len({row[f"caption_{kind}"] for row in rows}) == len(rows), "different pictures, different captions"


def test_captions_are_of_the_clip_whatever_the_order(
    clip_row: ClipRow, media: Callable[[str], Path], models: CaptionModels
) -> None:
    clips = [clip_row(number, branch="image_real") for number in range(2)]
    thumbnails = {
        clips[0]["clip_id"]: strip_of([photograph(media("chelsea"))]),
        clips[1]["clip_id"]: strip_of([photograph(media("coffee"))]),
    }
    forward = {row["clip_id"]: row for row in caption_clips(clips, thumbnails, CaptionSettings(), models).to_pylist()}
    backward = caption_clips(clips[::-1], dict(reversed(thumbnails.items())), CaptionSettings(), models).to_pylist()
    assert {row["clip_id"]: row for row in backward} == forward


def test_an_unsure_tagger_names_nothing(clip_row: ClipRow, models: CaptionModels) -> None:
    clip = clip_row(1)
    settings = CaptionSettings(min_probability=0.999)
    row = caption_clips([clip], {clip["clip_id"]: strip_of([plain((90, 90, 90))])}, settings, models).to_pylist()[0]
    assert row["tags"] == []
    assert row["subject"] == "unknown"
    assert "without a sure name" in row["caption_long"]


def test_damaged_or_missing_thumbnails_are_refused(clip_row: ClipRow, models: CaptionModels) -> None:
    clip = clip_row(1)
    with pytest.raises(DataError, match="no thumbnail"):
        caption_clips([clip], {}, CaptionSettings(), models)
    with pytest.raises(DataError, match=clip["clip_id"]):
        caption_clips([clip], {clip["clip_id"]: (1, b"no jpeg")}, CaptionSettings(), models)
    with pytest.raises(DataError, match="60 pixels wide"):
        caption_clips([clip], {clip["clip_id"]: (7, strip_of([plain((1, 2, 3))])[1])}, CaptionSettings(), models)


def test_fingerprint_follows_the_settings() -> None:
    assert caption_fingerprint(CaptionSettings()) == caption_fingerprint(CaptionSettings())
    assert caption_fingerprint(CaptionSettings()) != caption_fingerprint(CaptionSettings(num_tags=1))


def captions(clip: Row, frames: list[NDArray[np.uint8]], tags: list[tuple[str, float]] | None = None) -> Any:
    return write_captions(clip, picture_facts(frames), tags or [("tabby", 0.9)], "animal")


def test_measured_facts_are_told(clip_row: ClipRow) -> None:
    clip = clip_row(1, motion=1.26, text_area_ratio=0.031, luma=30.0, frames=65)
    written = captions(clip, [plain((20, 20, 120)), plain((40, 40, 220))])
    for told in ("2.7 seconds", "gentle", "1.3 pixels", "3 percent", "very dark", "blue", "grows brighter", "a tabby"):
        assert told in written.caption_long
    assert written.action == "gentle"
    assert "visible text" in written.caption_short


def test_what_was_not_measured_is_not_told(clip_row: ClipRow) -> None:
    written = captions(clip_row(1, motion=None, text_area_ratio=None, luma=None), [plain((10, 200, 30))])
    for word in ("mov", "ext", "dark", "bright,"):
        assert word not in written.caption_long.replace("brighter", "")
    assert written.action == "unknown"


def test_certainty_follows_the_probability(clip_row: ClipRow) -> None:
    frames = [plain((10, 200, 30))]
    for probability, told in ((0.9, "shows a"), (0.4, "probably shows a"), (0.2, "may show a")):
        assert f"that {told} tabby" in captions(clip_row(1), frames, [("tabby", probability)]).caption_first
    assert (
        "an albatross or a tabby"
        in captions(clip_row(1), frames, [("pug", 0.4), ("albatross", 0.2), ("tabby", 0.2)]).caption_first
    )


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((5, 5, 5), "black"),
        ((128, 128, 128), "grey"),
        ((250, 250, 250), "white"),
        ((220, 20, 20), "red"),
        ((220, 20, 50), "red"),
        ((100, 60, 20), "brown"),
        ((240, 140, 20), "orange"),
        ((240, 230, 40), "yellow"),
        ((30, 180, 40), "green"),
        ((40, 200, 210), "turquoise"),
        ((30, 60, 220), "blue"),
        ((130, 40, 220), "purple"),
        ((240, 100, 200), "pink"),
    ],
)
def test_colours_have_their_names(rgb: tuple[int, int, int], name: str) -> None:
    assert colour_shares(plain(rgb))[name] == 1.0
    assert picture_facts([plain(rgb)]).colours == (name,)


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_every_colour_has_exactly_one_name(rgb: tuple[int, int, int]) -> None:
    shares = colour_shares(plain(rgb))
    assert tuple(shares) == COLOURS
    assert sorted(shares.values())[-2:] == [0.0, 1.0]


def test_black_and_white_pictures_are_called_so(clip_row: ClipRow, media: Callable[[str], Path]) -> None:
    written = captions(clip_row(1), [photograph(media("camera"))])
    assert written.style == "black and white"
    assert "black and white" in written.caption_long
    assert captions(clip_row(1), [photograph(media("chelsea"))]).style == "colour"


def test_a_strip_gives_back_its_frames() -> None:
    num_frames, jpeg = strip_of([plain((200, 0, 0)), plain((0, 0, 200))])
    first, second = frames_of_strip(jpeg, num_frames)
    assert first.shape == second.shape == (40, 60, 3)
    assert first[..., 0].mean() > 150 > second[..., 0].mean()


def test_words_of_motion_and_subjects() -> None:
    assert [motion_word(value) for value in (0.0, 0.2, 1.0, 4.0, 20.0)] == [
        "static",
        "slight",
        "gentle",
        "lively",
        "fast",
    ]
    assert subject_of("tabby", 281) == "animal"
    assert subject_of("streetcar", 829) == "vehicle"
    assert subject_of("palace", 698) == "building"
    assert subject_of("toilet tissue", 999) == "object"
