"""What the model is asked: the instructions, the fields of the answer, and the body of a request.

The order of the long caption and the fields follow the Motif-Video report (section 5.2); the words are our own. Images have no fields of time.
The frames of a clip are shown as one object, and the clip's id stands in the text, to be repeated in the answer: an answer is
matched by it and never by when it came. Price: about 24 characters of the answer are spent on the id.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from curation.captioning.settings import ServerSettings
from schemas.ids import fingerprint

__all__ = ["LONG_WORDS", "PROMPT_VERSION", "SHORT_WORDS", "ImageAnswer", "VideoAnswer", "answer_model", "request_body"]

PROMPT_VERSION = "server-1"
"""Goes into the labels table; raise it with any change of the texts or fields below."""
LONG_WORDS = (150, 250)
SHORT_WORDS = (15, 25)

Subject = Literal[
    "people", "animal", "vehicle", "building", "landscape", "plant", "food", "object", "sport", "graphics", "other"
]
Style = Literal["live action", "animation", "computer graphics", "screen recording", "illustration", "other"]
Action = Literal["static", "slow", "dynamic"]
CameraMove = Literal[
    "static", "pan", "tilt", "zoom", "forward", "backward", "sideways", "orbit", "follow", "handheld", "mixed"
]
Quality = Literal["low", "medium", "high"]


class ImageAnswer(BaseModel):
    """What the model answers for an image."""

    model_config = ConfigDict(strict=True, extra="ignore")

    clip_id: str
    caption_long: str
    caption_short: str
    subject: Subject
    style: Style
    quality: Quality
    watermark: bool
    nsfw: bool
    padded: bool


class VideoAnswer(ImageAnswer):
    """What the model answers for a video clip."""

    action: Action
    camera_move: CameraMove
    multi_scene: bool
    timelapse: bool


_COMMON = f"""You write captions and labels for the training of a model that makes videos. Answer with one JSON object and nothing else.

Write only what the pictures show. Do not guess names, places, reasons, sounds or what happens outside the picture. Do not speak of mood, beauty,
quality or of the pictures as pictures, and never of "the frames". Write plain English prose in the present tense.

caption_long: {LONG_WORDS[0]} to {LONG_WORDS[1]} words in one paragraph. Its first sentence can stand alone and says what is shown.
caption_short: {SHORT_WORDS[0]} to {SHORT_WORDS[1]} words in one sentence.
subject: what it is mainly about.
style: how it was made.
quality: low when it is blurred, noisy, blocky or badly exposed, high when it is sharp and clean, else medium.
watermark: true when a logo, station mark, watermark or subtitle was laid over the picture.
nsfw: true for nudity, sexual acts or gore.
padded: true when black, blurred or coloured bars fill part of the picture.
clip_id: repeat the id that you were given, letter for letter.
"""

_VIDEO = """
You see pictures of one clip in the order of time, evenly spaced. They are one continuous event: describe the whole and never picture by picture.
caption_long tells, in this order: the camera (kind of shot, angle, how it moves); the subject and how it looks; what the subject does, from beginning
to end; the surroundings; light and colour; any text on the screen, word by word in quotation marks.
action: static when nothing moves, slow for little movement, else dynamic.
camera_move: the main movement of the camera.
multi_scene: true when the pictures come from more than one scene.
timelapse: true when time runs faster or slower than in life.
"""

_IMAGE = """
You see one image. caption_long tells, in this order: composition and framing (kind of shot, angle, what stands where); the subject and how it looks;
the surroundings; light and colour; any text in the image, word by word in quotation marks. Write nothing about movement or time.
"""


def answer_model(kind: str) -> type[ImageAnswer]:
    """The fields of an answer for a `video` or an `image`."""
    return VideoAnswer if kind == "video" else ImageAnswer


def request_body(
    clip_id: str, kind: str, seconds: float, jpegs: Sequence[bytes], settings: ServerSettings, *, refused: int
) -> dict[str, Any]:
    """Body of one chat completion. `refused`: answers of this clip that were refused before; the same number gives the same body."""
    what = (
        "One image."
        if kind == "image"
        else f"{len(jpegs)} pictures of a clip of {seconds:.1f} seconds, in order of time."
    )
    pictures = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"}}
        for jpeg in jpegs
    ]
    warmest = max(settings.temperature, 1.0)
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [
            {"role": "system", "content": _COMMON + (_IMAGE if kind == "image" else _VIDEO)},
            {"role": "user", "content": [{"type": "text", "text": f"clip_id: {clip_id}\n{what}"}, *pictures]},
        ],
        "max_tokens": settings.max_tokens,
        "temperature": min(settings.temperature + refused * settings.temperature_step, warmest),
        "seed": int(fingerprint([settings.seed, clip_id, refused], length=7), 16),
        "user": clip_id,
        **settings.extra_body,
    }
    if settings.response_format == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif settings.response_format == "json_schema":
        schema = {"name": "caption", "strict": True, "schema": _json_schema(kind)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _json_schema(kind: str) -> dict[str, Any]:
    """Every field required and no other, as strict schemas want it."""
    return {**answer_model(kind).model_json_schema(), "additionalProperties": False}
