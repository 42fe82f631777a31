"""Settings of the decide phase: which control applies to which branch, and the thresholds of each admission level.

Scores are stored once and judged here, so changing a number reruns seconds of arithmetic and touches no video. Each level is written out in full
rather than derived from the one before, so that a level can be read alone; a config names only what it changes. Price: five numbers per control.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from schemas.config import StrictConfig
from schemas.tables import ADMISSIONS, BRANCHES

__all__ = ["CONTROLS", "LABEL_CONTROLS", "DecideSettings", "KeeperWeights", "Thresholds"]

LABEL_CONTROLS = ("label_nsfw", "label_watermark", "label_padded", "label_multi_scene", "label_timelapse")

CONTROLS = (
    "branch_not_admitted",
    "nsfw",
    "label_nsfw",
    "no_good_crop",
    "letterboxed",
    "overlay",
    "label_watermark",
    "too_small",
    "too_short",
    "static",
    "too_fast",
    "still_picture",
    "shaky",
    "low_fps",
    "too_dark",
    "too_bright",
    "blurred",
    "upscaled",
    "blocky",
    "text_heavy",
    "low_aesthetic",
    "label_padded",
    "label_multi_scene",
    "label_timelapse",
    "low_quality",
    "duplicate",
)
"""Every control, named by the reason it gives, in the order they are asked: the first that fails is the one reason."""

_VIDEO_ONLY = (
    "too_short",
    "static",
    "too_fast",
    "still_picture",
    "shaky",
    "low_fps",
    "label_multi_scene",
    "label_timelapse",
)
_IMAGE_CONTROLS = tuple(control for control in CONTROLS if control not in _VIDEO_ONLY)


class Thresholds(StrictConfig):
    """What a clip must satisfy at one admission level; null switches a control off there."""

    branches: tuple[str, ...] = BRANCHES
    """Branches that the level takes."""
    max_nsfw: float | None = Field(default=0.7, ge=0, le=1)
    """NSFW probability: the second highest over the sampled frames. Choose it anew for another model than opennsfw."""
    allow_no_good_crop: bool = False
    """Whether a clip stays whose borders and overlays left no rectangle worth keeping."""
    max_border_area_ratio: float | None = Field(default=0.5, ge=0, le=1)
    """Share of the source picture under black borders, which the crop has cut away: much of it means a small picture in a large file."""
    max_overlay_area_ratio: float | None = Field(default=0.002, ge=0, le=1)
    """Share of the cropped picture under persistent text and marks."""
    min_pixels: int | None = Field(default=144 * 176, ge=1)
    """Height times width of the cropped picture, source pixels."""
    min_frames: int | None = Field(default=33, ge=1)
    """Frames of the clip at the clip frame rate: one of the bucket lengths."""
    min_motion: float | None = Field(default=0.05, ge=0)
    """Mean displacement, pixels per frame at a long side of 256; below it the picture stands still."""
    max_motion: float | None = Field(default=40.0, gt=0)
    """Same unit; above it the picture is a smear."""
    min_motion_local: float | None = Field(default=None, ge=0)
    """Same unit; below it only the camera moves: a pan or zoom over a photograph."""
    max_shake: float | None = Field(default=None, gt=0)
    """Same unit; above it the camera jumps about."""
    min_effective_fps: float | None = Field(default=None, ge=0)
    """New pictures per second of the source within the clip; clips are resampled, so a low rate shows as judder."""
    min_luma: float | None = Field(default=16.0, ge=0, le=255)
    """Mean BT.709 luma."""
    max_luma: float | None = Field(default=235.0, ge=0, le=255)
    """Mean BT.709 luma."""
    min_sharpness: float | None = Field(default=8.0, ge=0)
    """Variance of the Laplacian at a long side of 256."""
    min_effective_resolution_ratio: float | None = Field(default=None, ge=0, le=1)
    """Side of the smallest picture that holds the same detail over the side of the source. Real films read 0.45 to 0.9,
    films enlarged threefold below 0.48."""
    max_blockiness: float | None = Field(default=None, gt=0)
    """Steps across the edges of compression blocks over the steps elsewhere."""
    max_text_area_ratio: float | None = Field(default=0.3, ge=0, le=1)
    """Share of the cropped picture under text of any kind."""
    min_aesthetic: float | None = None
    """In the unit of the aesthetic model; null until one is chosen."""
    labels: tuple[str, ...] = LABEL_CONTROLS
    """Captioner labels that reject at this level."""
    min_quality: Literal["low", "medium", "high"] | None = None
    """Lowest quality label; clips without one pass."""

    @field_validator("branches")
    @classmethod
    def _known_branches(cls, branches: tuple[str, ...]) -> tuple[str, ...]:
        return _all_known(branches, BRANCHES, "branch")

    @field_validator("labels")
    @classmethod
    def _known_labels(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        return _all_known(labels, LABEL_CONTROLS, "label control")

    @model_validator(mode="after")
    def _ordered(self) -> Thresholds:
        for name in ("motion", "luma"):
            low, high = {"motion": (self.min_motion, self.max_motion), "luma": (self.min_luma, self.max_luma)}[name]
            if low is not None and high is not None and low >= high:
                raise ValueError(f"min_{name} {low} must be below max_{name} {high}, else nothing passes")
        return self


def _default_levels() -> dict[str, dict[str, Any]]:
    """The five levels, loosest first: resolution, length and motion grow stricter, synthetic video enters at 720p (paper section 5.2)."""
    without_synthetic_video = tuple(branch for branch in BRANCHES if branch != "video_synthetic")
    return {
        "144p": {"branches": without_synthetic_video},
        "360p": {
            "branches": without_synthetic_video,
            "min_pixels": 640 * 360,
            "min_motion": 0.08,
            "min_motion_local": 0.03,
            "max_shake": 16.0,
            "min_effective_fps": 7.0,
            "min_effective_resolution_ratio": 0.3,
            "max_blockiness": 3.0,
            "max_text_area_ratio": 0.2,
            "min_sharpness": 12.0,
        },
        "480p": {
            "branches": without_synthetic_video,
            "min_pixels": 832 * 480,
            "min_motion": 0.1,
            "min_motion_local": 0.04,
            "max_shake": 12.0,
            "min_effective_fps": 11.0,
            "max_border_area_ratio": 0.4,
            "min_effective_resolution_ratio": 0.35,
            "max_blockiness": 2.5,
            "max_motion": 30.0,
            "max_text_area_ratio": 0.15,
            "min_sharpness": 16.0,
            "min_quality": "medium",
        },
        "720p": {
            "min_pixels": 1280 * 720,
            "min_frames": 65,
            "min_motion": 0.12,
            "min_motion_local": 0.05,
            "max_shake": 8.0,
            "min_effective_fps": 14.0,
            "max_border_area_ratio": 0.35,
            "min_effective_resolution_ratio": 0.4,
            "max_blockiness": 2.2,
            "max_motion": 30.0,
            "max_text_area_ratio": 0.1,
            "min_luma": 20.0,
            "max_luma": 225.0,
            "min_sharpness": 20.0,
            "min_quality": "medium",
        },
        "sft": {
            "min_pixels": 1280 * 720,
            "min_frames": 121,
            "max_nsfw": 0.5,
            "min_motion": 0.2,
            "min_motion_local": 0.08,
            "max_shake": 4.0,
            "min_effective_fps": 20.0,
            "max_border_area_ratio": 0.3,
            "min_effective_resolution_ratio": 0.45,
            "max_blockiness": 1.9,
            "max_motion": 20.0,
            "max_text_area_ratio": 0.05,
            "min_luma": 25.0,
            "max_luma": 215.0,
            "min_sharpness": 30.0,
            "min_quality": "high",
        },
    }


class KeeperWeights(StrictConfig):
    """How the best clip of a duplicate group is chosen: weighted sum of min-max scaled facts inside the group (paper section 5.1)."""

    resolution: float = Field(default=0.5, ge=0)
    """Weight of the pixels of the cropped picture times the square of its effective resolution, so that an enlarged copy wins nothing."""
    fps: float = Field(default=0.3, ge=0)
    """Weight of the frames per second of the source."""
    file_size: float = Field(default=0.2, ge=0)
    """Weight of the bytes of the source."""


class DecideSettings(StrictConfig):
    """Settings of the decide phase."""

    levels: dict[str, Thresholds] = Field(default_factory=_default_levels)  # type: ignore[arg-type]
    """Admission level to its thresholds; what a config leaves out keeps its default."""
    controls: dict[str, tuple[str, ...]] = Field(
        default_factory=lambda: {
            branch: CONTROLS if branch.startswith("video") else _IMAGE_CONTROLS for branch in BRANCHES
        }
    )
    """Branch to the controls that apply to it. A control that is not listed never rejects a clip of that branch."""
    keeper: KeeperWeights = KeeperWeights()
    """Who stays of a duplicate group."""

    @field_validator("levels", mode="before")
    @classmethod
    def _merge_levels(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        levels = _default_levels()
        _all_known(tuple(given), ADMISSIONS, "admission level")
        for name, changes in given.items():
            if isinstance(changes, dict):
                levels[name] = {**levels[name], **changes}
            else:
                levels[name] = changes
        return levels

    @field_validator("controls", mode="before")
    @classmethod
    def _merge_controls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        _all_known(tuple(given), BRANCHES, "branch")
        return {branch: CONTROLS if branch.startswith("video") else _IMAGE_CONTROLS for branch in BRANCHES} | given

    @field_validator("controls")
    @classmethod
    def _known_controls(cls, controls: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for branch, names in controls.items():
            _all_known(names, CONTROLS, f"control for {branch}")
        return controls


def _all_known(given: tuple[str, ...], known: tuple[str, ...], what: str) -> tuple[str, ...]:
    for name in given:
        if name not in known:
            raise ValueError(f"{what} {name!r} is unknown; known: {', '.join(known)}")
    return given
