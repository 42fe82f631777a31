"""Settings of the analyze phase: what is sampled, where shots end, how a crop is chosen, which models score.

Nothing here rejects a clip: scores are stored and the decide phase compares them with its own thresholds. Changing anything here changes the
fingerprint of the phase, so every source is analysed again.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from schemas.buckets import FPS, FRAME_COUNTS
from schemas.config import StrictConfig

__all__ = [
    "AestheticSettings",
    "AnalyzeSettings",
    "CropSettings",
    "OpenClipSettings",
    "SamplingSettings",
    "ShotSettings",
]


class SamplingSettings(StrictConfig):
    """How much of a source the models look at, and at which size."""

    proxy_long_side: int = Field(default=256, ge=64, le=512)
    """Long side, pixels, of the small picture of every frame: cuts, fades and motion are measured on it."""
    sample_long_side: int = Field(default=640, ge=256, le=1280)
    """Long side, pixels, of the sampled frames that models see; smaller pictures are not enlarged."""
    sample_every_ticks: int = Field(default=8, ge=1, le=16)
    """One sampled frame per this many ticks of the resampled timeline: 8 is three a second at 24 fps, and four in the shortest clip."""
    model_frames: int = Field(default=4, ge=1, le=16)
    """Frames per clip for NSFW, text, luma, sharpness and aesthetic; the text detector is the dearest, 0.12 s a frame on one core."""
    descriptor_frames: int = Field(default=6, ge=1, le=16)
    """Most copy descriptors per clip; one per second of clip, at least two for a video."""
    thumbnail_frames: int = Field(default=6, ge=1, le=12)
    """Most frames in the thumbnail strip of a clip."""


class ShotSettings(StrictConfig):
    """Where shots end, and which clips are cut from them."""

    detector: Literal["adaptive", "content", "transnetv2", "hybrid"] = "adaptive"
    """PySceneDetect's adaptive or content detector with a dissolve detector beside it; TransNetV2 over every frame; or `hybrid`: the adaptive and the
    dissolve detector propose and TransNetV2 judges near the doubtful proposals. Fades are found by their blank frames with each of them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where TransNetV2 runs; auto: on a GPU if the worker has one. The last digits of its answers differ between the two."""
    adaptive_threshold: float = Field(default=3.0, gt=1)
    """A frame whose content change is this many times that of its neighbours starts a shot. At 2.5 no more cuts were found, but whip pans too."""
    min_content_change: float = Field(default=15.0, ge=0, le=255)
    """... and whose change, mean absolute difference in HSV, is at least this."""
    content_threshold: float = Field(default=27.0, gt=0, le=255)
    """`content`: the change, mean absolute difference in HSV, from which a frame starts a shot."""
    network_probability: float = Field(default=0.5, gt=0, lt=1)
    """`transnetv2` and `hybrid`: least probability of a cut."""
    blank_range: float = Field(default=20.0, ge=0, le=255)
    """A frame whose luma spans less than this from its 2nd to its 98th percentile is blank (inside a fade, or a black gap) and in no shot."""
    dissolve_change: float = Field(default=34.0, gt=0, le=255)
    """The pictures at both ends of a dissolve differ by at least this, mean over colours."""
    dissolve_residual: float = Field(default=0.4, gt=0, lt=1)
    """... and the pictures between must be mixtures of the two, up to this share of that difference: what moves leaves more."""
    stitch_model: Literal["copies", "open_clip"] = "copies"
    """What shots are compared by when they are joined again: the copy descriptor, or open_clip embeddings with the weights below."""
    stitch_weights: str | None = None
    """`open_clip`: a folder with `open_clip_config.json` and one .safetensors file, or a checkpoint file. Every worker must see it."""
    stitch_architecture: str | None = None
    """`open_clip`: the architecture of a checkpoint file, for example ViT-L-14; null for a folder. CLIP finds any two pictures more alike than
    the copy descriptor does, so raise both cosines, and look at the contact sheets."""
    stitch_cosine: float = Field(default=0.75, ge=-1, le=1)
    """Shots are joined again when the copy descriptors of the frames on both sides of the cut agree by at least this."""
    dissolve_stitch_cosine: float = Field(default=0.5, ge=-1, le=1)
    """The same across a dissolve: lower, because a second lies between the two frames and the detector takes some slow scenes for one."""
    min_shot_seconds: float = Field(default=2.0, ge=0)
    """Shorter shots give no clips."""
    break_guard_seconds: float = Field(default=1.0, ge=0)
    """Shots of a broken-off file are kept when they ended at least this long before the break."""

    @model_validator(mode="after")
    def _weights_where_they_are_needed(self) -> ShotSettings:
        if (self.stitch_model == "open_clip") != (self.stitch_weights is not None):
            wanted = "needs" if self.stitch_model == "open_clip" else "takes no"
            raise ValueError(f"stitch_model {self.stitch_model!r} {wanted} stitch_weights; add or remove it")
        return self


class CropSettings(StrictConfig):
    """How one rectangle avoids black borders and persistent overlays."""

    border_luma: float = Field(default=24.0, ge=0, le=128)
    """A row or column is border when 98 % of it never gets lighter than this in the whole clip."""
    min_picture_ratio: float = Field(default=0.2, gt=0, le=1)
    """If less of the picture than this is left inside the borders, the clip is dark and not bordered: no border is cut."""
    persistence_ratio: float = Field(default=0.5, gt=0, le=1)
    """Boxes seen in at least this share of the frames are overlays."""
    steady_ratio: float = Field(default=0.03, gt=0, le=1)
    """... and whose upper and lower edges stay within this share of the height (left and right of the width, for text written downwards):
    text on a moving thing does not."""
    match_iou: float = Field(default=0.4, gt=0, le=1)
    """Boxes of two frames belong to one cluster from this intersection over union on."""
    max_cut_ratio: float = Field(default=0.2, ge=0, lt=0.5)
    """Overlays may be cut away within this share of the height (width) at each side: the top and bottom 20 % bands of the paper."""
    min_area_ratio: float = Field(default=0.55, gt=0, le=1)
    """Least share of the bordered picture that a crop must keep; else the clip is flagged `no_good_crop` and overlays are left in it."""


class OpenClipSettings(StrictConfig):
    """Weights for `open_clip`, by path; nothing is downloaded."""

    path: str
    """Folder with `open_clip_config.json` and one .safetensors file, or a checkpoint file. Every worker must see it."""
    model: str | None = None
    """Architecture of a checkpoint file, for example ViT-L-14; null for a folder."""
    device: str = "cpu"
    """As torch names it. Scores of another kind of device differ in the last digits."""


class AestheticSettings(StrictConfig):
    """How aesthetic quality is scored."""

    clip: OpenClipSettings
    """The model that the head was trained on."""
    head: str
    """File with the linear layers of the head: .safetensors, or a torch file of tensors."""


class AnalyzeSettings(StrictConfig):
    """The analyze phase."""

    clip_fps: float = Field(default=float(FPS), gt=0, le=120)
    """Frames per second that every clip is resampled to, by timestamps."""
    clip_frames: tuple[int, ...] = (121, 65, 33)
    """Lengths of video clips, tried in this order: the longest that fits, then the next."""
    piece_minutes: float | None = Field(default=10.0, ge=0.5)
    """Films of at least one and a half of this length are cut into pieces of it, which run in parallel, each in bounded memory; null: never."""
    sampling: SamplingSettings = SamplingSettings()
    shots: ShotSettings = ShotSettings()
    crop: CropSettings = CropSettings()
    nsfw: Literal["opennsfw", "open_clip_zero_shot", "open_clip_linear"] | None = "opennsfw"
    """NSFW model; null: switched off, as for the two below: no weights are asked for and the scores are null with that reason."""
    nsfw_clip: OpenClipSettings | None = None
    """Model of `open_clip_zero_shot` and `open_clip_linear`."""
    nsfw_head: str | None = None
    """File of the head of `open_clip_linear`."""
    aesthetic: AestheticSettings | None = None
    """Model of the aesthetic score; null: the score is null, with the reason "no weights given"."""
    overlays: bool = True
    """Look for burnt-in text and marks. False: crops avoid borders only, the scores of text and overlays are null with the reason `switched off`,
    and no text detector is loaded."""
    text_detector: Literal["ppocr_det"] | None = "ppocr_det"
    """Text detector; null: overlays are found by their edges alone."""
    text_long_side: int = Field(default=480, ge=160, le=1280)
    """Long side, pixels, at which text is looked for."""
    text_score: float = Field(default=0.6, ge=0, le=1)
    """Text boxes below this score of the detector are not believed."""
    text_side_ratio: float = Field(default=0.4, gt=0, le=1)
    """Nor are boxes whose shorter side is more than this share of the picture's: large blurred things, not lines of text."""
    descriptor: Literal["sscd", "sscd_distilled", "phash"] | None = "sscd"
    """Copy descriptor. The first two need their licence accepted when pulled; `phash`, a perceptual hash of 256 bits, needs no weights, and finds
    copies that were encoded again or scaled, but few that were cropped or overlaid. Null: no copies are found and no shots are stitched."""

    @property
    def text_detector_used(self) -> Literal["ppocr_det"] | None:
        """The text detector, if text is looked for."""
        return self.text_detector if self.overlays else None

    @model_validator(mode="after")
    def _nsfw_has_what_it_needs(self) -> AnalyzeSettings:
        """Paths that are missing, or given for nothing, would only be found by the workers."""
        needs_clip = self.nsfw in ("open_clip_zero_shot", "open_clip_linear")
        for key, needed in (("nsfw_clip", needs_clip), ("nsfw_head", self.nsfw == "open_clip_linear")):
            if needed != (getattr(self, key) is not None):
                raise ValueError(f"nsfw {self.nsfw!r} {'needs' if needed else 'takes no'} {key}; add or remove it")
        return self

    @model_validator(mode="after")
    def _lengths_are_buckets(self) -> AnalyzeSettings:
        """Clip lengths must be bucket lengths, longest first: a shorter one is a prefix of a longer one."""
        known = [count for count in FRAME_COUNTS if count > 1]
        if not self.clip_frames or any(count not in known for count in self.clip_frames):
            raise ValueError(f"clip_frames {self.clip_frames}: expected some of {known}")
        if list(self.clip_frames) != sorted(set(self.clip_frames), reverse=True):
            raise ValueError(f"clip_frames {self.clip_frames} must fall, each length once")
        return self
