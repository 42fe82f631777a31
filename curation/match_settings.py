"""Settings of the match phase; `benchmarks/copies.py` measures what the limits find and miss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from schemas.config import StrictConfig

__all__ = ["PHASH_LIMITS", "MatchSettings"]

PHASH_LIMITS: Mapping[str, float] = {
    "candidate_cosine": 0.55,
    "frame_cosine": 0.55,
    "min_mean_cosine": 0.6,
    "single_frame_cosine": 0.75,
}
"""For `analyze.descriptor: phash`, whose cosines of unrelated pictures lie near 0; 0.75 is 32 of 256 bits that differ."""


class MatchSettings(StrictConfig):
    """Which frames are compared, and what confirms that two clips are copies."""

    method: Literal["frames", "paper"] = "frames"
    """frames: candidates from any two frames, confirmed by several in order. paper: the one frame nearest to the 10th, `paper_cosine`."""
    candidate_cosine: float = Field(default=0.6, gt=0, lt=1)
    """Two clips are a candidate pair when any two of their frames reach it."""
    frame_cosine: float = Field(default=0.6, gt=0, lt=1)
    """Two frames agree when they reach it."""
    min_agree_ratio: float = Field(default=0.75, gt=0, le=1)
    """Share of the compared frames that must agree."""
    min_mean_cosine: float = Field(default=0.65, gt=0, lt=1)
    """Mean over the compared frames at the best time offset."""
    min_overlap_ratio: float = Field(default=0.5, gt=0, le=1)
    """Frames that line up at that offset, over the frames of the clip that has fewer; at least two. Between two sources that run in step: the
    time shared, over the shorter clip's."""
    sibling_margin: float = Field(default=0.03, ge=0, lt=1)
    """A pair may fall short by this much of the best fit between either clip and the other's source; more, and a sibling is the true partner."""
    order_margin: float = Field(default=0.05, ge=0, lt=1)
    """Frames that line up may fall short of their best partners in the two clips by this much on average; more, and one take goes on in the other.
    Not asked of pairs whose mean reaches `single_frame_cosine`."""
    single_frame_cosine: float = Field(default=0.75, gt=0, lt=1)
    """Limit where one of the two has one frame only, as images have: nothing else can confirm it."""
    source_frames: int = Field(default=4, ge=2)
    """Two sources run in step when at least this many frames of them, of two clips or more, agree at one time offset."""
    paper_cosine: float = Field(default=0.9, gt=0, lt=1)
    """Limit of the method `paper`: above it."""
    index: Literal["auto", "flat", "ivf"] = "auto"
    """How frames are searched: flat compares every two, ivf those in near cells; auto: flat up to `flat_frames`."""
    flat_frames: int = Field(default=50_000, ge=0)
    """Tables (or blocks) of more frames are searched by cells."""
    search_recall: float = Field(default=0.997, gt=0.5, lt=1)
    """Share of the pairs above `candidate_cosine` that the cells must find, on a sample of the table."""
    frames_per_block: int = Field(default=262_144, ge=2)
    """More frames than this are searched in blocks of this many, on the engine; two blocks and their codes take about 1 GB of a worker."""
    against: tuple[str, ...] = ()
    """Output folders of earlier runs: what they kept is not kept again."""
    max_hits_per_frame: int = Field(default=256, ge=8)
    """A frame that is like more frames than this (a title, a test card) keeps its best."""

    def for_descriptor(self, name: str | None) -> MatchSettings:
        """With the limits that suit this descriptor, where none were given: the defaults above are SSCD's."""
        if name != "phash":
            return self
        limits: dict[str, Any] = {key: value for key, value in PHASH_LIMITS.items() if key not in self.model_fields_set}
        return self.model_copy(update=limits)
