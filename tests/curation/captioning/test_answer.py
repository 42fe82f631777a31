"""Answers: what counts, what is refused and why, and what becomes of the text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from curation.captioning.answer import AnswerError, first_sentence, label_row, parse_answer
from curation.captioning.prompt import VideoAnswer
from curation.captioning.settings import ServerSettings
from schemas.tables import LABELS, table_from_rows

CLIP = "ab" * 12


def _answer(**changes: Any) -> dict[str, Any]:
    answer: dict[str, Any] = {"clip_id": CLIP, "caption_long": "word " * 200, "caption_short": "word " * 20}
    answer |= {"subject": "people", "style": "animation", "action": "dynamic", "camera_move": "pan", "quality": "low"}
    answer |= dict.fromkeys(("watermark", "nsfw", "padded", "multi_scene", "timelapse"), False)
    return answer | changes


def _parse(kind: str = "video", **changes: Any) -> Any:
    return parse_answer(json.dumps(_answer(**changes)), CLIP, kind, ServerSettings())


def test_every_field_of_a_video_reaches_the_labels() -> None:
    parsed = _parse(caption_long="A man\n walks. " + "Word " * 190, watermark=True, timelapse=True)
    assert parsed.note is None
    row = label_row(parsed.answer, "m")
    assert table_from_rows(LABELS, [row]).to_pylist() == [row]
    assert row["caption_first"] == "A man walks."
    assert (row["subject"], row["action"], row["camera_move"], row["quality"]) == ("people", "dynamic", "pan", "low")
    assert (row["watermark"], row["nsfw"], row["timelapse"], row["multi_scene"]) == (True, False, True, False)


def test_an_image_has_no_fields_of_time() -> None:
    parsed = _parse("image", action="dynamic", timelapse=True)
    assert not isinstance(parsed.answer, VideoAnswer)
    row = label_row(parsed.answer, "m")
    assert (row["action"], row["camera_move"], row["multi_scene"], row["timelapse"]) == ("none", "none", None, None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"clip_id": "cd" * 12}, "the answer is for clip 'cdcdcd"),
        ({"quality": "superb"}, "field 'quality'"),
        ({"nsfw": "no"}, "field 'nsfw'"),
        ({"caption_short": " "}, "field 'caption_short' of the answer is empty"),
        ({"camera_move": None}, "field 'camera_move'"),
    ],
)
def test_bad_fields_are_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(AnswerError, match=reason):
        _parse(**changes)


@pytest.mark.parametrize("text", ["", "[1]", "{", "sorry", "null", '{"a": 1} and more'])
def test_what_is_no_answer_is_refused(text: str) -> None:
    with pytest.raises(AnswerError):
        parse_answer(text, CLIP, "video", ServerSettings())


def test_lengths_have_a_tolerance() -> None:
    for words, fine in ((119, False), (120, True), (300, True), (301, False)):
        assert (_parse(caption_long="word " * words).note is None) == fine
    for words, fine in ((11, False), (12, True), (30, True), (31, False)):
        assert (_parse(caption_short="word " * words).note is None) == fine
    assert _parse(caption_short="too short").note == "caption_short has 2 words, asked for were 15 to 25"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("A cat sits. It purrs.", "A cat sits."),
        ("One sentence only", "One sentence only"),
        ("Dr. Lee and Mr. B. Kay wave at 3.5 metres. They go.", "Dr. Lee and Mr. B. Kay wave at 3.5 metres."),
        ('A sign reads "STOP!" Cars wait.', 'A sign reads "STOP!"'),
        ("It costs 2.50 and more. 12 birds fly.", "It costs 2.50 and more."),
        ("What is it? Nobody knows.", "What is it?"),
    ],
)
def test_the_first_sentence(text: str, first: str) -> None:
    assert first_sentence(text) == first
