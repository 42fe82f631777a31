"""From the text of an answer to a row of the labels table, or the reason why it is refused.

An answer counts when it is one JSON object with every field of its kind, repeats the id of its clip, and its captions have the asked-for lengths.
Price: a good caption with a mistyped id is asked for again.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from curation.captioning.prompt import LONG_WORDS, PROMPT_VERSION, SHORT_WORDS, ImageAnswer, VideoAnswer, answer_model
from curation.captioning.settings import ServerSettings

__all__ = ["AnswerError", "ParsedAnswer", "first_sentence", "label_row", "parse_answer"]

_FENCE = re.compile(r"^```(?:json)?\s*\n(.*)\n```$", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s+[\"'“‘(\[]?[A-Z0-9])")
_ABBREVIATIONS = frozenset(("mr.", "mrs.", "ms.", "dr.", "st.", "no.", "vs.", "e.g.", "i.e.", "approx.", "ca.", "jr."))
_SHOWN = 80
"""Characters of a bad answer that a reason shows."""


class AnswerError(Exception):
    """An answer that is refused; the text is the reason."""


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer with every field, and what is wrong with its lengths, if anything is."""

    answer: ImageAnswer
    note: str | None


def parse_answer(text: str, clip_id: str, kind: str, settings: ServerSettings) -> ParsedAnswer:
    """Check one answer.

    Raises:
        AnswerError: it is no JSON, lacks a field, or belongs to another clip.
    """
    stripped = text.strip()
    if not stripped:
        raise AnswerError("the answer is empty")
    fenced = _FENCE.match(stripped)
    try:
        value = json.loads(fenced.group(1) if fenced else stripped)
    except ValueError as error:
        raise AnswerError(f"the answer is no JSON ({error}): {_shown(stripped)}") from error
    if not isinstance(value, dict):
        raise AnswerError(f"the answer is JSON but no object: {_shown(stripped)}")
    try:
        answer = answer_model(kind).model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AnswerError(f"field {where!r} of the answer: {first['msg']}") from error
    if answer.clip_id != clip_id:
        raise AnswerError(f"the answer is for clip {_shown(answer.clip_id)}")
    for name in ("caption_long", "caption_short"):
        if not getattr(answer, name).strip():
            raise AnswerError(f"field {name!r} of the answer is empty")
    return ParsedAnswer(answer, _length_note(answer, settings.word_tolerance))


def _length_note(answer: ImageAnswer, tolerance: float) -> str | None:
    notes = []
    for name, (fewest, most) in (("caption_long", LONG_WORDS), ("caption_short", SHORT_WORDS)):
        words = len(getattr(answer, name).split())
        if not fewest * (1 - tolerance) <= words <= most * (1 + tolerance):
            notes.append(f"{name} has {words} words, asked for were {fewest} to {most}")
    return "; ".join(notes) or None


def label_row(answer: ImageAnswer, model: str) -> dict[str, Any]:
    """The LABELS row; fields of time are null or `none` for an image."""
    long = " ".join(answer.caption_long.split())
    video = answer if isinstance(answer, VideoAnswer) else None
    return {
        "clip_id": answer.clip_id,
        "caption_long": long,
        "caption_short": " ".join(answer.caption_short.split()),
        "caption_first": first_sentence(long),
        "subject": answer.subject,
        "style": answer.style,
        "action": "none" if video is None else video.action,
        "camera_move": "none" if video is None else video.camera_move,
        "quality": answer.quality,
        "watermark": answer.watermark,
        "nsfw": answer.nsfw,
        "padded": answer.padded,
        "multi_scene": None if video is None else video.multi_scene,
        "timelapse": None if video is None else video.timelapse,
        "tags": [],
        "model": f"server:{model}",
        "prompt_version": PROMPT_VERSION,
    }


def first_sentence(text: str) -> str:
    """Up to the first end of a sentence: a mark, then white space, then a capital or digit; initials and common abbreviations end none.

    >>> first_sentence('Dr. A. Lee waves. She leaves.')
    'Dr. A. Lee waves.'
    """
    for end in _SENTENCE_END.finditer(text):
        sentence = text[: end.end()]
        last = sentence.split()[-1].lower()
        if last not in _ABBREVIATIONS and not re.fullmatch(r"[a-z]\.", last):
            return sentence
    return text


def _shown(text: str) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= _SHOWN else f"{flat[:_SHOWN]}...")
