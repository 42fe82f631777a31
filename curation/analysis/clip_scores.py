"""Every score of one clip, put together: which measurement gives it, which model it names, and why there is none where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curation.analysis.crops import Box, CropChoice
from curation.analysis.marks import MARKS_MODEL
from curation.analysis.models import AnalyzeModels
from curation.analysis.motion import MOTION_MODEL, clip_motion
from curation.analysis.pixel_facts import PIXELS_MODEL, blockiness, effective_resolution
from curation.analysis.repeats import REPEATS_MODEL, effective_fps
from curation.analysis.scores import (
    BORDERS_MODEL,
    LUMA_MODEL,
    SHARPNESS_MODEL,
    Score,
    agreed_nsfw,
    mean_luma,
    sharpness,
    text_area,
)
from curation.analysis.settings import AnalyzeSettings
from curation.analysis.shots import Span

if TYPE_CHECKING:
    from curation.analysis.clips import SourcePictures

__all__ = ["SWITCHED_OFF", "clip_scores"]

SWITCHED_OFF = "switched off"
"""The reason of scores whose model the settings leave out."""

_IMAGE = Score.none("image")
_VIDEO_ONLY = ("motion", "motion_global", "motion_local", "shake", "overlay_area_ratio", "effective_fps")


def clip_scores(
    span: Span,
    frames: Sequence[NDArray[np.uint8]],
    text: Sequence[Sequence[Box]],
    inner: Box,
    choice: CropChoice,
    pictures: SourcePictures,
    models: AnalyzeModels,
    settings: AnalyzeSettings,
) -> dict[str, Score]:
    """`frames`: the sampled frames cut to the crop; `text`: their boxes before it, and `inner` the crop, in sample pixels."""
    detector, nsfw, off = models.text_detector, models.nsfw, Score.none(SWITCHED_OFF)
    scores = {
        "nsfw": off if nsfw is None else Score(agreed_nsfw(nsfw.scores(frames)), nsfw.name),
        "luma": Score(mean_luma(frames), LUMA_MODEL),
        "sharpness": Score(sharpness(frames), SHARPNESS_MODEL),
        "aesthetic": _aesthetic(frames, models),
        "text_area_ratio": off
        if detector is None or not settings.overlays
        else Score(text_area(text, inner), detector.name),
        "border_area_ratio": Score(choice.border_area_ratio, BORDERS_MODEL),
    }
    if pictures.is_image:
        scores |= dict.fromkeys(_VIDEO_ONLY, _IMAGE)
    else:
        found_by = MARKS_MODEL if detector is None else f"{detector.name}+{MARKS_MODEL}"
        scores["overlay_area_ratio"] = Score(choice.overlay_area_ratio, found_by) if settings.overlays else off
        scores |= _motion_scores(span, choice, pictures)
        rate = effective_fps(pictures.timeline.changes, span.first, span.end, settings.clip_fps)
        scores["effective_fps"] = _or_none(rate, REPEATS_MODEL, "hardly anything moves")
    return scores | _pixel_scores(span, pictures)


def _aesthetic(frames: Sequence[NDArray[np.uint8]], models: AnalyzeModels) -> Score:
    if models.aesthetic is None:
        return Score.none("no weights given")
    return Score(float(models.aesthetic.scores(frames).mean(dtype=np.float64)), models.aesthetic.name)


def _motion_scores(span: Span, choice: CropChoice, pictures: SourcePictures) -> dict[str, Score]:
    timeline = pictures.timeline
    moved = clip_motion(timeline.flows, span.first, span.end, choice.crop, pictures.whole, timeline.proxy_size)
    if moved is None:
        return dict.fromkeys(
            ("motion", "motion_global", "motion_local", "shake"), Score.none("no two frames to compare")
        )
    plain = "too little contrast"
    few = plain if moved.whole is None else "fewer than three frames to compare"
    return {
        "motion": Score(moved.mean, MOTION_MODEL),
        "motion_global": _or_none(moved.whole, MOTION_MODEL, plain),
        "motion_local": _or_none(moved.local, MOTION_MODEL, plain),
        "shake": _or_none(moved.shake, MOTION_MODEL, few),
    }


def _pixel_scores(span: Span, pictures: SourcePictures) -> dict[str, Score]:
    facts = [fact for fact in pictures.timeline.pixels if span.first <= fact.tick < span.end]
    return {
        "blockiness": _or_none(blockiness(facts), PIXELS_MODEL, "too little contrast"),
        "effective_resolution_ratio": _or_none(effective_resolution(facts), PIXELS_MODEL, "no sharp edge"),
    }


def _or_none(value: float | None, model: str, reason: str) -> Score:
    return Score.none(reason) if value is None else Score(value, model)
