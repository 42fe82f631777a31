"""The tables of one source, or of one piece of it: rows collected while clips are measured, then written together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curation.analysis.clips import ClipFacts
from curation.analysis.settings import AnalyzeSettings
from curation.analysis.shots import Span
from curation.decode import Ending, SourceFacts
from curation.requests import SourceRequest
from schemas.ids import clip_id, content_hash
from schemas.tables import CLIPS, DESCRIPTORS, SOURCES, THUMBNAILS, table_from_rows, write_table

__all__ = ["ClipRows", "hash_of", "source_row"]


def hash_of(request: SourceRequest) -> str | None:
    """Content hash of the file; None when it cannot be read."""
    if request.content_hash is not None:
        return request.content_hash
    try:
        with open(request.path, "rb") as stream:
            return content_hash(stream)
    except OSError:
        return None


def source_row(
    request: SourceRequest, sha256: str | None, facts: SourceFacts | None, ending: Ending | None, reason: str | None
) -> dict[str, Any]:
    """The sources row: `failed` with the reason without facts, `truncated` where pictures are missing, else `ok`."""
    row: dict[str, Any] = {
        "uri": request.uri,
        "content_hash": sha256,
        "size_bytes": request.size_bytes,
        "kind": request.kind,
        "branch": request.branch,
        "domain": request.domain,
        "licence": request.licence,
        "same_content_as": None,
    }
    if facts is None or ending is None:
        nothing = ("codec", "height", "width", "rotation_degrees", "fps", "duration_us", "frames_decoded")
        return row | dict.fromkeys(nothing) | {"status": "failed", "reason": reason}
    return row | {
        "codec": facts.codec,
        "height": facts.height,
        "width": facts.width,
        "rotation_degrees": facts.rotation_degrees,
        "fps": ending.fps,
        "duration_us": ending.duration_us,
        "frames_decoded": ending.frames_decoded,
        "status": "ok" if ending.whole else "truncated",
        "reason": ending.what_is_missing(),
    }


class ClipRows:
    """Rows of clips, descriptors and thumbnails of one source."""

    def __init__(self, request: SourceRequest, sha256: str, settings: AnalyzeSettings) -> None:
        self._request, self._sha256, self._settings = request, sha256, settings
        self._clips: list[dict[str, Any]] = []
        self._descriptors: list[dict[str, Any]] = []
        self._thumbnails: list[dict[str, Any]] = []

    def add(self, shot: int, span: Span, measured: ClipFacts, facts: SourceFacts, source_fps: float | None) -> None:
        request = self._request
        is_image = request.kind == "image"
        start, end = (0, 0) if is_image else (self._microseconds(span.first), self._microseconds(span.end))
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
                "source_fps": source_fps or 0.0,
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

    def write(self, folder: Path, source: dict[str, Any]) -> None:
        """`folder`/{sources,clips,descriptors,thumbnails}.parquet"""
        write_table(folder / "sources.parquet", table_from_rows(SOURCES, [source]), SOURCES)
        write_table(folder / "clips.parquet", table_from_rows(CLIPS, self._clips), CLIPS)
        write_table(folder / "descriptors.parquet", table_from_rows(DESCRIPTORS, self._descriptors), DESCRIPTORS)
        write_table(folder / "thumbnails.parquet", table_from_rows(THUMBNAILS, self._thumbnails), THUMBNAILS)
