"""Which neighbouring shots are joined again, by real embeddings of real pictures."""

from __future__ import annotations

import cv2
import pytest
from pydantic import ValidationError

from curation.analysis.models import analysis_fingerprint
from curation.analysis.samples import SampleStore
from curation.analysis.settings import AnalyzeSettings, ShotSettings
from curation.analysis.shots import Span
from curation.analysis.stitching import join_alike
from encoders.open_clip_image import OpenClipImages

SHOTS = [Span(0, 8), Span(8, 16, joinable=True), Span(16, 24, joinable=True)]


def test_open_clip_joins_what_looks_alike(media, tiny_clip, tmp_path) -> None:
    """The middle shot repeats the first; the last shows something else. Random weights tell equal from different."""
    clip = OpenClipImages(tiny_clip())
    settings = ShotSettings(stitch_model="open_clip", stitch_weights=str(tiny_clip()), stitch_cosine=0.9999)
    with SampleStore(tmp_path) as store:
        for tick, name in ((0, "china"), (8, "china"), (16, "coffee")):
            store.add([tick], cv2.imread(str(media(name))))
        assert join_alike(SHOTS, store, clip.embed, settings) == [Span(0, 16), Span(16, 24, joinable=True)]
        assert join_alike(SHOTS, store, None, settings) == SHOTS


def test_weights_are_part_of_the_fingerprint(tiny_clip) -> None:
    def of(seed: int) -> str:
        shots = ShotSettings(stitch_model="open_clip", stitch_weights=str(tiny_clip(seed=seed)))
        return analysis_fingerprint(AnalyzeSettings(shots=shots))

    assert of(0) != of(1)
    assert of(0) == of(0)


def test_weights_only_where_they_are_used() -> None:
    with pytest.raises(ValidationError, match="needs stitch_weights"):
        ShotSettings(stitch_model="open_clip")
    with pytest.raises(ValidationError, match="takes no stitch_weights"):
        ShotSettings(stitch_weights="/models/clip")
