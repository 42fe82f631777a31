"""Analysis of one source, from its bytes to four tables; what a worker's child process runs.

One decode; then shots, stitching, clips, crops and scores from what that pass kept. A long film is done piece by piece, so memory and temporary disk
do not grow with it; the engine may run the pieces on several workers. A source that gives no picture is a row with a reason, not an
exception; crashes of native code are the sandbox's business. The tables depend on the bytes, the settings and the models only.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from curation.analysis.clips import SourcePictures, analyze_clip
from curation.analysis.damage import around_damage
from curation.analysis.models import AnalyzeModels, analysis_fingerprint, load_models
from curation.analysis.overlays import find_overlays
from curation.analysis.pieces import (
    lead_ticks,
    merge_pieces,
    num_pieces,
    own_shots,
    piece_range,
    tail_ticks,
    write_piece,
)
from curation.analysis.rows import ClipRows, hash_of, source_row
from curation.analysis.samples import SampleStore
from curation.analysis.settings import AnalyzeSettings
from curation.analysis.shots import Span, clip_spans, find_shots
from curation.analysis.stitching import join_alike
from curation.analysis.timeline import Timeline, read_timeline
from curation.decode import Ending, SourceFacts, SourceReader, TickRange, UnreadableSourceError, open_source
from curation.requests import SourceRequest
from schemas.files import TEMPORARY_PREFIX

__all__ = ["AnalyzeModels", "analysis_fingerprint", "analyze_piece", "analyze_source", "count_pieces", "load_models"]


def analyze_source(request: SourceRequest, settings: AnalyzeSettings, models: AnalyzeModels, folder: Path) -> None:
    """Write `folder`/{sources,clips,descriptors,thumbnails}.parquet: one sources row, and the clips of that source, by start."""
    count = count_pieces(request, settings)
    if count == 1:
        _analyze(request, settings, models, folder, TickRange())
        return
    parts = [folder / f"{TEMPORARY_PREFIX}piece-{index}" for index in range(count)]
    for index, part in enumerate(parts):
        part.mkdir()
        analyze_piece(request, settings, models, part, index=index, count=count)
    merge_pieces(request, parts, settings, folder)
    for part in parts:
        shutil.rmtree(part)


def count_pieces(request: SourceRequest, settings: AnalyzeSettings) -> int:
    """Into how many pieces a source is cut; 1 for most, and for one that cannot be opened."""
    if request.kind == "image" or settings.piece_minutes is None:
        return 1
    try:
        reader = open_source(request.path, kind=request.kind, fps=settings.clip_fps)
    except UnreadableSourceError:
        return 1
    reader.close()
    return num_pieces(reader.expected_seconds, settings)


def analyze_piece(
    request: SourceRequest, settings: AnalyzeSettings, models: AnalyzeModels, folder: Path, *, index: int, count: int
) -> None:
    """Write what `merge_pieces` takes: the tables of one piece, and what is known of the source from it."""
    _analyze(request, settings, models, folder, piece_range(index, count, settings), in_pieces=True)


def _analyze(
    request: SourceRequest,
    settings: AnalyzeSettings,
    models: AnalyzeModels,
    folder: Path,
    own: TickRange,
    *,
    in_pieces: bool = False,
) -> None:
    sha256 = hash_of(request)
    rows = ClipRows(request, sha256 or "", settings)
    facts: SourceFacts | None = None
    ending: Ending | None = None
    reason, num_shots = None, 0
    try:
        reader = open_source(request.path, kind=request.kind, fps=settings.clip_fps)
        with SampleStore(folder) as store:
            try:
                timeline = _read(reader, settings, models, store, own)
                ending, facts = reader.ending(), reader.facts
            finally:
                reader.close()
            num_shots = _add_clips(rows, request, facts, ending, timeline, store, settings, models, own)
    except UnreadableSourceError as error:
        facts, reason = None, str(error)
    rows.write(folder, source_row(request, sha256, facts, ending, reason))
    if in_pieces:
        write_piece(folder, facts, ending, num_shots, reason)


def _read(
    reader: SourceReader, settings: AnalyzeSettings, models: AnalyzeModels, store: SampleStore, own: TickRange
) -> Timeline:
    frames = reader.frames(own, lead=lead_ticks(settings), tail=tail_ticks(settings), changes=True)
    return read_timeline(frames, reader.facts, settings, store, models.scenes)


def _add_clips(
    rows: ClipRows,
    request: SourceRequest,
    facts: SourceFacts,
    ending: Ending,
    timeline: Timeline,
    store: SampleStore,
    settings: AnalyzeSettings,
    models: AnalyzeModels,
    own: TickRange,
) -> int:
    """Shots, overlays and clips from what the pass kept; how many shots are this piece's own."""
    is_image = request.kind == "image"
    shots = [Span(0, 1)] if is_image else _shots(timeline, ending, store, models, settings)
    pictures = SourcePictures(store, timeline, facts.height, facts.width, is_image)
    least = round(settings.shots.min_shot_seconds * settings.clip_fps)
    mine = own_shots(shots, own, settings)
    clips = [
        (index, span)
        for index, shot in enumerate(mine)
        for span in ([shot] if is_image else clip_spans(shot, settings.clip_frames, least))
    ]
    overlays = find_overlays(store, mine, clips, models.text_detector, timeline.sample_size, settings)
    for (index, span), found in zip(clips, overlays, strict=True):
        rows.add(index, span, analyze_clip(span, found, pictures, models, settings), facts, ending.fps)
    return len(mine)


def _shots(
    timeline: Timeline, ending: Ending, store: SampleStore, models: AnalyzeModels, settings: AnalyzeSettings
) -> list[Span]:
    fps = settings.clip_fps
    shots = find_shots(timeline.frames, settings.shots, fps)
    joined = join_alike(shots, store, models.describe_shots, settings.shots)
    breaks = [(damage.at_tick, damage.resumes_tick) for damage in ending.damages]
    return around_damage(joined, breaks, round(settings.shots.break_guard_seconds * fps))
