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
from curation.analysis.scores import (
    BORDERS_MODEL,
    LUMA_MODEL,
    SHARPNESS_MODEL,
    Score,
    mean_luma,
    sharpness,
    text_area,
)
from curation.analysis.shots import Span
from schemas.tables import SCORES

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
) -> dict[str, Score]:
    """`frames`: the sampled frames cut to the crop; `text`: their boxes before it, and `inner` the crop, in sample pixels."""
    detector, nsfw, off = models.text_detector, models.nsfw, Score.none(SWITCHED_OFF)
    scores = {
        "nsfw": off if nsfw is None else Score(float(nsfw.scores(frames).max()), nsfw.name),
        "luma": Score(mean_luma(frames), LUMA_MODEL),
        "sharpness": Score(sharpness(frames), SHARPNESS_MODEL),
        "aesthetic": Score.none("no weights given"),
        "text_area_ratio": off if detector is None else Score(text_area(text, inner), detector.name),
        "border_area_ratio": Score(choice.border_area_ratio, BORDERS_MODEL),
    }
    if pictures.is_image:
        scores |= dict.fromkeys(_VIDEO_ONLY, _IMAGE)
    else:
        found_by = MARKS_MODEL if detector is None else f"{detector.name}+{MARKS_MODEL}"
        scores["overlay_area_ratio"] = Score(choice.overlay_area_ratio, found_by)
        scores |= _motion_scores(span, choice, pictures)
    return scores | {name: Score.none("not measured") for name in SCORES if name not in scores}


def _motion_scores(span: Span, choice: CropChoice, pictures: SourcePictures) -> dict[str, Score]:
    timeline = pictures.timeline
    moved = clip_motion(timeline.flows, span.first, span.end, choice.crop, pictures.whole, timeline.proxy_size)
    if moved is None:
        return dict.fromkeys(
            ("motion", "motion_global", "motion_local", "shake"), Score.none("no two frames to compare")
        )
    plain = "too little contrast to tell"
    few = plain if moved.whole is None else "fewer than three frames to compare"
    return {
        "motion": Score(moved.mean, MOTION_MODEL),
        "motion_global": _or_none(moved.whole, plain),
        "motion_local": _or_none(moved.local, plain),
        "shake": _or_none(moved.shake, few),
    }


def _or_none(value: float | None, reason: str) -> Score:
    return Score.none(reason) if value is None else Score(value, MOTION_MODEL)
