"""Analysis of one source, from its bytes to four tables; what a worker's child process runs.

One decode; then shots, stitching, clips, crops and scores from what that pass kept. A source that gives no picture is a row with a reason, not
an exception; crashes of native code are the sandbox's business. The tables depend on the bytes, the settings and the models only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from curation.analysis.clips import ClipFacts, SourcePictures, analyze_clip
from curation.analysis.crops import Box, border_box
from curation.analysis.marks import find_marks
from curation.analysis.models import AnalyzeModels, analysis_fingerprint, load_models
from curation.analysis.samples import SampleStore
from curation.analysis.scores import luma_plane
from curation.analysis.settings import AnalyzeSettings
from curation.analysis.shots import Span, clip_spans, drop_after_break, find_shots, stitch
from curation.analysis.timeline import Timeline, read_timeline
from curation.decode import Ending, SourceFacts, UnreadableSourceError, open_source
from curation.requests import SourceRequest
from schemas.ids import clip_id, content_hash
from schemas.tables import CLIPS, DESCRIPTORS, SOURCES, THUMBNAILS, table_from_rows, write_table

__all__ = ["AnalyzeModels", "analysis_fingerprint", "analyze_source", "load_models"]

_MARK_BORDER_SAMPLES = 64


def analyze_source(request: SourceRequest, settings: AnalyzeSettings, models: AnalyzeModels, folder: Path) -> None:
    """Write `folder`/{sources,clips,descriptors,thumbnails}.parquet: one sources row, and the clips of that source, by start."""
    rows = _Rows(request, _hash_of(request), settings)
    try:
        reader = open_source(request.path, kind=request.kind, fps=settings.clip_fps)
        with SampleStore(folder) as store:
            try:
                timeline = read_timeline(reader, settings, store)
                ending = reader.ending()
            finally:
                reader.close()
            _add_clips(rows, reader.facts, ending, timeline, store, settings, models)
    except UnreadableSourceError as error:
        rows.failed(str(error))
    rows.write(folder)


def _add_clips(
    rows: _Rows,
    facts: SourceFacts,
    ending: Ending,
    timeline: Timeline,
    store: SampleStore,
    settings: AnalyzeSettings,
    models: AnalyzeModels,
) -> None:
    """Shots, marks and clips from what the pass kept."""
    rows.decoded(facts, ending)
    shots = _shots(timeline, ending, store, rows.is_image, models, settings)
    marks = () if rows.is_image else _marks(store, shots, timeline, settings)
    pictures = SourcePictures(store, timeline, facts.height, facts.width, rows.is_image, marks)
    least = round(settings.shots.min_shot_seconds * settings.clip_fps)
    for index, shot in enumerate(shots):
        spans = [shot] if rows.is_image else clip_spans(shot, settings.clip_frames, least)
        for span in spans:
            rows.clip(index, span, analyze_clip(span, pictures, models, settings), facts, ending)


def _hash_of(request: SourceRequest) -> str | None:
    if request.content_hash is not None:
        return request.content_hash
    try:
        with open(request.path, "rb") as stream:
            return content_hash(stream)
    except OSError:
        return None


def _shots(
    timeline: Timeline,
    ending: Ending,
    store: SampleStore,
    is_image: bool,
    models: AnalyzeModels,
    settings: AnalyzeSettings,
) -> list[Span]:
    if is_image:
        return [Span(0, 1)]
    fps = settings.clip_fps
    shots = find_shots(timeline.frames, settings.shots, fps)
    descriptor = models.descriptor
    known: dict[int, Any] = {}

    def describe(tick: int) -> Any:
        if tick not in known:
            assert descriptor is not None, "asked only when there is one"
            known[tick] = descriptor.describe([store.frame(tick)])[0].astype(np.float32)
        return known[tick]

    def alike(before: Span, after: Span) -> bool:
        last, first = store.between(before.first, before.end), store.between(after.first, after.end)
        if not last or not first:
            return False
        limit = settings.shots.stitch_cosine if before.end == after.first else settings.shots.dissolve_stitch_cosine
        return float(describe(last[-1]) @ describe(first[0])) >= limit

    joined = shots if descriptor is None else stitch(shots, alike)
    if ending.broken is None:
        return joined
    return drop_after_break(joined, timeline.end_tick, settings.shots, fps)


def _marks(store: SampleStore, shots: list[Span], timeline: Timeline, settings: AnalyzeSettings) -> tuple[Box, ...]:
    """Marks that are not text, looked for inside the borders of the whole source."""
    if not shots or not store.ticks:
        return ()
    lightest = np.zeros(timeline.sample_size, dtype=np.uint8)
    for tick in store.ticks[:: max(1, len(store.ticks) // _MARK_BORDER_SAMPLES)]:
        np.maximum(lightest, luma_plane(store.frame(tick)).astype(np.uint8), out=lightest)
    return tuple(find_marks(store, shots, border_box(lightest, settings.crop), timeline.sample_size))


class _Rows:
    """The rows of one source, collected and then written together."""

    def __init__(self, request: SourceRequest, sha256: str | None, settings: AnalyzeSettings) -> None:
        self._request, self._sha256, self._settings = request, sha256, settings
        self._source: dict[str, Any] = {
            "uri": request.uri,
            "content_hash": sha256,
            "size_bytes": request.size_bytes,
            "kind": request.kind,
            "branch": request.branch,
            "domain": request.domain,
            "licence": request.licence,
            "same_content_as": None,
        }
        nothing = ("codec", "height", "width", "rotation_degrees", "fps", "duration_us", "frames_decoded")
        self._source |= dict.fromkeys(nothing) | {"status": "failed", "reason": None}
        self.is_image = request.kind == "image"
        self._clips: list[dict[str, Any]] = []
        self._descriptors: list[dict[str, Any]] = []
        self._thumbnails: list[dict[str, Any]] = []

    def failed(self, reason: str) -> None:
        self._source |= {"status": "failed", "reason": reason}

    def decoded(self, facts: SourceFacts, ending: Ending) -> None:
        self._source |= {
            "codec": facts.codec,
            "height": facts.height,
            "width": facts.width,
            "rotation_degrees": facts.rotation_degrees,
            "fps": ending.fps,
            "duration_us": ending.duration_us,
            "frames_decoded": ending.frames_decoded,
            "status": "ok",
        }
        if ending.broken is not None:
            seconds = ending.duration_us / 1e6
            self._source |= {"status": "truncated", "reason": f"breaks off at {seconds:.2f} s: {ending.broken}"}

    def clip(self, shot: int, span: Span, measured: ClipFacts, facts: SourceFacts, ending: Ending) -> None:
        assert self._sha256 is not None, "a source with pictures was readable"
        request = self._request
        start, end = (0, 0) if self.is_image else (self._microseconds(span.first), self._microseconds(span.end))
        identity = clip_id(self._sha256, start, end)
        self._clips.append(
            {
                "clip_id": identity,
                "content_hash": self._sha256,
                **{name: getattr(request, name) for name in ("uri", "kind", "branch", "domain", "licence")},
                "shot": shot,
                "start_us": start,
                "end_us": end,
                "frames": span.ticks,
                "clip_fps": self._settings.clip_fps,
                "source_fps": ending.fps or 0.0,
                "source_height": facts.height,
                "source_width": facts.width,
                "source_bytes": request.size_bytes,
                **measured.columns,
            }
        )
        model = self._settings.descriptor
        for tick, vector in zip(measured.descriptor_ticks, measured.descriptors, strict=True):
            row = {"clip_id": identity, "time_us": self._microseconds(tick), "descriptor": vector, "model": model}
            self._descriptors.append(row)
        strip = {"num_frames": measured.thumbnail_frames, "jpeg": measured.thumbnail_jpeg}
        self._thumbnails.append({"clip_id": identity, **strip})

    def _microseconds(self, tick: int) -> int:
        return round(tick * 1_000_000 / self._settings.clip_fps)

    def write(self, folder: Path) -> None:
        write_table(folder / "sources.parquet", table_from_rows(SOURCES, [self._source]), SOURCES)
        write_table(folder / "clips.parquet", table_from_rows(CLIPS, self._clips), CLIPS)
        write_table(folder / "descriptors.parquet", table_from_rows(DESCRIPTORS, self._descriptors), DESCRIPTORS)
        write_table(folder / "thumbnails.parquet", table_from_rows(THUMBNAILS, self._thumbnails), THUMBNAILS)
