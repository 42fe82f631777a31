"""The sentences of the tag captioner: every word of them stands for a number that was measured or a class that a network gave.

Pure functions from facts to text, so a caption can be checked against its facts. Nothing is guessed: what was not measured is not mentioned, an
improbable class is not named, and a class is said to be what the picture probably shows. Price: captions of one style, and no verbs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curation.picture_facts import PictureFacts

__all__ = ["TagCaption", "motion_word", "subject_of", "write_captions"]

_MOTION_WORDS = ((0.05, "static"), (0.5, "slight"), (2.0, "gentle"), (6.0, "lively"))
"""Displacement in pixels per frame at a long side of 256 below which the word holds; above all: fast."""
_MOTION_SENTENCES = {
    "static": "Nothing moves",
    "slight": "There is only slight movement",
    "gentle": "The movement is gentle",
    "lively": "The movement is lively",
    "fast": "The movement is fast",
}
_LUMA_WORDS = ((40.0, "very dark"), (80.0, "dark"), (150.0, "of medium brightness"), (200.0, "bright"))
_TEXT_SEEN = 0.002
"""Share of the picture under text boxes from which text is mentioned."""

_SUBJECT_ENDS = ((398, "animal"), (924, "object"), (970, "food"), (981, "landscape"), (984, "people"), (998, "plant"))
"""ImageNet's classes stand in this order; the two after the plants are an ear of corn and toilet tissue."""


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.replace("\n", " ").split(",") if name.strip())


_VEHICLES = _names(
    """
aircraft carrier, airliner, airship, ambulance, amphibian, beach wagon, bicycle-built-for-two, bobsled,
bullet train, cab, canoe, catamaran, container ship, convertible, dogsled, electric locomotive, fire engine,
fireboat, forklift, freight car, garbage truck, go-kart, golfcart, gondola, half track, horse cart, jeep,
jinrikisha, lifeboat, limousine, liner, minibus, minivan, Model T, moped, motor scooter, mountain bike,
moving van, oxcart, passenger car, pickup, police van, racer, recreational vehicle, school bus, schooner,
snowmobile, snowplow, space shuttle, speedboat, sports car, steam locomotive, streetcar, submarine, tank,
tow truck, tractor, trailer truck, tricycle, trimaran, trolleybus, unicycle, warplane, yawl
"""
)
_BUILDINGS = _names(
    """
altar, apiary, bakery, barbershop, barn, beacon, bell cote, boathouse, bookshop, butcher shop, castle, church,
cinema, cliff dwelling, confectionery, dam, dock, dome, fountain, greenhouse, grocery store, home theater,
lumbermill, megalith, mobile home, monastery, mosque, obelisk, palace, patio, pier, planetarium, prison,
restaurant, shoe shop, stage, steel arch bridge, stone wall, stupa, suspension bridge, thatch, theater curtain,
tile roof, tobacco shop, totem pole, toyshop, triumphal arch, vault, viaduct, water tower, yurt
"""
)


@dataclass(frozen=True)
class TagCaption:
    """Captions and labels of one clip."""

    caption_long: str
    caption_short: str
    caption_first: str
    subject: str
    style: str
    action: str
    camera_move: str


def subject_of(label: str, index: int) -> str:
    """Coarse subject of an ImageNet class: animal, vehicle, building, food, landscape, people, plant or object."""
    if label in _VEHICLES:
        return "vehicle"
    if label in _BUILDINGS:
        return "building"
    return next((name for end, name in _SUBJECT_ENDS if index < end), "object")


def motion_word(motion: float) -> str:
    """static, slight, gentle, lively or fast."""
    return next((word for limit, word in _MOTION_WORDS if motion < limit), "fast")


def write_captions(
    clip: Mapping[str, Any], facts: PictureFacts, tags: Sequence[tuple[str, float]], subject: str
) -> TagCaption:
    """Captions of a CLIPS row. `tags` are those probable enough to be named, most probable first."""
    image = clip["kind"] == "image"
    what = _what(tags)
    opening = (
        f"A photograph that {what}"
        if image
        else f"A video of {clip['frames'] / clip['clip_fps']:.1f} seconds that {what}"
    )
    sentences = [f"{opening}.", _look(clip, facts), _colours(facts)]
    motion = clip["motion"]
    if not image and motion is not None:
        unit = f", about {motion:.1f} pixels a frame at a long side of 256" if motion_word(motion) != "static" else ""
        sentences.append(f"{_MOTION_SENTENCES[motion_word(motion)]}{unit}.")
    if not image:
        sentences.append(f"The light {facts.light_word}.")
    if clip["text_area_ratio"] is not None:
        sentences.append(_text(clip["text_area_ratio"]))
    return TagCaption(
        caption_long=" ".join(sentences),
        caption_short=_short(clip, facts, tags, image),
        caption_first=sentences[0],
        subject=subject,
        style="black and white" if facts.colourless else "colour",
        action="none" if image else "unknown" if motion is None else motion_word(motion),
        camera_move="none" if image else "unknown",
    )


def _what(tags: Sequence[tuple[str, float]]) -> str:
    if not tags:
        return "shows a subject without a sure name"
    names = [_with_article(label) for label, _ in tags]
    certainty = "shows" if tags[0][1] >= 0.6 else "probably shows" if tags[0][1] >= 0.3 else "may show"
    if len(names) == 1:
        return f"{certainty} {names[0]}"
    return f"{certainty} {names[0]}, possibly {' or '.join(names[1:])}"


def _with_article(label: str) -> str:
    return f"{'an' if label[:1].lower() in 'aeiou' else 'a'} {label}"


def _look(clip: Mapping[str, Any], facts: PictureFacts) -> str:
    crop = clip["crop"]
    aspect = (crop["right"] - crop["left"]) / max(crop["bottom"] - crop["top"], 1)
    shape = "tall" if aspect < 0.85 else "nearly square" if aspect < 1.2 else "wide" if aspect < 2 else "very wide"
    contrast = "low" if facts.contrast < 30 else "medium" if facts.contrast < 60 else "strong"
    light = ""
    if clip["luma"] is not None:
        light = next((word for limit, word in _LUMA_WORDS if clip["luma"] < limit), "very bright")
    return f"The picture is {', '.join(part for part in (shape, light) if part)}, with {contrast} contrast."


def _colours(facts: PictureFacts) -> str:
    if facts.colourless:
        return f"It is black and white, mostly {_joined(facts.colours)}."
    where = f", {facts.upper} above and {facts.lower} below" if facts.upper != facts.lower else ""
    plural = "colours are" if len(facts.colours) > 1 else "colour is"
    return f"The main {plural} {_joined(facts.colours)}{where}."


def _text(ratio: float) -> str:
    if ratio < _TEXT_SEEN:
        return "No text is visible."
    percent = max(round(100 * ratio), 1)
    return f"Text is visible on about {percent} percent of the picture."


def _short(clip: Mapping[str, Any], facts: PictureFacts, tags: Sequence[tuple[str, float]], image: bool) -> str:
    tone = "Black-and-white" if facts.colourless else f"Mostly {facts.colours[0]}"
    medium = "photograph" if image else "video"
    subject = _with_article(tags[0][0]) if tags else "a subject without a sure name"
    certainty = "" if not tags or tags[0][1] >= 0.6 else "what is probably " if tags[0][1] >= 0.3 else "what may be "
    motion = clip["motion"]
    moving = "" if image or motion is None else f", with {_motion_noun(motion)}"
    text = ", and visible text" if (clip["text_area_ratio"] or 0) >= _TEXT_SEEN else ""
    return f"{tone} {medium} of {certainty}{subject}{moving}{text}."


def _motion_noun(motion: float) -> str:
    word = motion_word(motion)
    return "no movement" if word == "static" else f"{word} movement"


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
