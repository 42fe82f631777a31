"""One clip of a source: which samples are looked at, its crop, its scores, its descriptors and its thumbnail strip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.analysis.clip_scores import clip_scores
from curation.analysis.crops import Box, CropChoice, border_box, choose_crop, scale_box
from curation.analysis.models import AnalyzeModels
from curation.analysis.overlays import ClipOverlays
from curation.analysis.samples import SampleStore, evenly, scaled_size
from curation.analysis.scores import luma_plane, score_columns
from curation.analysis.settings import AnalyzeSettings
from curation.analysis.shots import Span
from curation.analysis.timeline import Timeline

__all__ = ["ClipFacts", "SourcePictures", "analyze_clip", "clip_crop"]

_THUMBNAIL_LONG_SIDE = 256
_THUMBNAIL_QUALITY = 80


@dataclass(frozen=True)
class SourcePictures:
    """What the pass over a source left behind, as the clips need it."""

    store: SampleStore
    timeline: Timeline
    height: int
    width: int
    is_image: bool

    @property
    def whole(self) -> Box:
        return Box(0, 0, self.height, self.width)

    def to_source(self, box: Box) -> Box:
        """Sample pixels to source pixels, outwards."""
        rows, columns = self.timeline.sample_size
        return scale_box(box, self.height / rows, self.width / columns, self.whole)

    def to_sample(self, box: Box) -> Box:
        """Source pixels to sample pixels, inwards, at least one pixel."""
        rows, columns = self.timeline.sample_size
        ratio_y, ratio_x = rows / self.height, columns / self.width
        top, left = int(np.ceil(box.top * ratio_y)), int(np.ceil(box.left * ratio_x))
        top, left = min(top, rows - 1), min(left, columns - 1)
        bottom, right = int(box.bottom * ratio_y), int(box.right * ratio_x)
        return Box(top, left, max(bottom, top + 1), max(right, left + 1))


@dataclass(frozen=True)
class ClipFacts:
    """The measured part of a clip's rows."""

    columns: dict[str, Any]
    """crop, crop_flags, overlays, model_frames and the score columns of the clips table."""
    descriptor_ticks: tuple[int, ...]
    """From the clip's start."""
    descriptors: NDArray[np.float16]
    thumbnail_frames: int
    thumbnail_jpeg: bytes


def analyze_clip(
    span: Span, overlays: ClipOverlays, pictures: SourcePictures, models: AnalyzeModels, settings: AnalyzeSettings
) -> ClipFacts:
    """Everything that is measured of the clip [span.first, span.end), whose overlays are known."""
    store, sampling = pictures.store, settings.sampling
    ticks = store.between(span.first, span.end)
    assert ticks, "clips are cut where samples are"
    model_ticks = evenly(ticks, sampling.model_frames)
    model_frames = [store.frame(tick) for tick in model_ticks]
    choice = clip_crop(ticks, overlays.boxes, pictures, settings)
    inner = pictures.to_sample(choice.crop)
    cut = [_cut(frame, inner) for frame in model_frames]
    scores = clip_scores(span, cut, overlays.text, inner, choice, pictures, models, settings)
    described, descriptors = _descriptors(span, ticks, inner, store, models, settings)
    shown = evenly(ticks, sampling.thumbnail_frames)
    columns = {
        "crop": choice.crop.to_row(),
        "crop_flags": [*choice.flags, *(["steady_text"] if overlays.has_steady_text else [])],
        "overlays": [pictures.to_source(box).to_row() for box in overlays.boxes],
        "overlay_kinds": list(overlays.kinds),
        "model_frames": len(model_frames),
        **score_columns(scores),
    }
    strip = _strip([_cut(store.frame(tick), inner) for tick in shown])
    return ClipFacts(columns, tuple(tick - span.first for tick in described), descriptors, len(shown), strip)


def clip_crop(
    ticks: Sequence[int], overlays: Sequence[Box], pictures: SourcePictures, settings: AnalyzeSettings
) -> CropChoice:
    """Borders from every sample of the clip with the overlays painted black, then the rectangle that avoids the overlays."""
    lightest = np.zeros(pictures.timeline.sample_size, dtype=np.uint8)
    for tick in ticks:
        np.maximum(lightest, luma_plane(pictures.store.frame(tick)).astype(np.uint8), out=lightest)
    for box in overlays:
        lightest[box.top : box.bottom, box.left : box.right] = 0
    found = border_box(lightest, settings.crop)
    picture = _inwards(found, pictures)
    return choose_crop(pictures.whole, picture, [pictures.to_source(box) for box in overlays], settings.crop)


def _inwards(found: Box, pictures: SourcePictures) -> Box:
    """A border box in source pixels. Sides that were cut move in by one more sample pixel, which may hold a blend of bar and picture."""
    rows, columns = pictures.timeline.sample_size
    inner = Box(
        found.top + (found.top > 0),
        found.left + (found.left > 0),
        found.bottom - (found.bottom < rows),
        found.right - (found.right < columns),
    )
    ratio_y, ratio_x = pictures.height / rows, pictures.width / columns
    return Box(
        int(np.ceil(inner.top * ratio_y)),
        int(np.ceil(inner.left * ratio_x)),
        int(inner.bottom * ratio_y),
        int(inner.right * ratio_x),
    )


def _cut(frame: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    return np.ascontiguousarray(frame[box.top : box.bottom, box.left : box.right])


def _descriptors(
    span: Span,
    ticks: Sequence[int],
    inner: Box,
    store: SampleStore,
    models: AnalyzeModels,
    settings: AnalyzeSettings,
) -> tuple[list[int], NDArray[np.float16]]:
    """Ticks and copy descriptors of some samples of the clip; none when the descriptor is switched off."""
    if models.descriptor is None:
        return [], np.zeros((0, 0), dtype=np.float16)
    described = evenly(ticks, _descriptor_count(span, settings))
    return described, models.descriptor.describe([_cut(store.frame(tick), inner) for tick in described])


def _descriptor_count(span: Span, settings: AnalyzeSettings) -> int:
    seconds = round(span.ticks / settings.clip_fps)
    return max(1, min(settings.sampling.descriptor_frames, max(2, seconds)))


def _strip(frames: Sequence[NDArray[np.uint8]]) -> bytes:
    """Frames side by side in one JPEG."""
    import cv2

    height, width = scaled_size(frames[0].shape[0], frames[0].shape[1], _THUMBNAIL_LONG_SIDE)
    small = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames]
    strip = cv2.cvtColor(np.hstack(small), cv2.COLOR_RGB2BGR)
    written, data = cv2.imencode(".jpg", strip, [cv2.IMWRITE_JPEG_QUALITY, _THUMBNAIL_QUALITY])
    assert written, "OpenCV encodes every uint8 picture"
    return bytes(data.tobytes())
