"""Captions of several sources at once: their clips are decoded one after the other while many requests are in flight.

A source is finished when each of its clips has a row or a reason; its files are then written, whatever becomes of the others, so that a worker
that dies or a server that goes away costs only what was under way. Price: the frames of `max_in_flight` clips in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curation.captioning.answer import label_row
from curation.captioning.client import CaptionClient, UncaptionedError
from curation.captioning.frames import ClipFrames, clip_frames
from curation.captioning.settings import ServerSettings
from schemas.errors import ServiceError
from schemas.files import write_json
from schemas.tables import LABELS, table_from_rows, write_table

__all__ = ["FINISHED", "CaptionSource", "caption_sources", "write_captions_of"]

FINISHED = "finished.json"
"""Written last into the folder of a source: reasons of the clips without a caption, notes on those with one."""


@dataclass
class CaptionSource:
    """One source and its clips to caption."""

    unit: str
    """Key of its caption unit, and the name of its folder."""
    path: str
    rows: Sequence[Mapping[str, Any]]
    """CLIPS rows."""
    labels: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Clip id to the reason why it has no caption."""
    notes: dict[str, str] = field(default_factory=dict)
    """Clip id to what is to be said of its caption."""

    @property
    def is_finished(self) -> bool:
        return len(self.labels) + len(self.failed) == len(self.rows)


def write_captions_of(source: CaptionSource, folder: Path) -> None:
    """labels.parquet and `FINISHED` into `folder/<unit>`."""
    target = folder / source.unit
    target.mkdir(parents=True, exist_ok=True)
    rows = sorted(source.labels, key=lambda row: str(row["clip_id"]))
    write_table(target / "labels.parquet", table_from_rows(LABELS, rows), LABELS)
    write_json(target / FINISHED, {"failed": source.failed, "notes": source.notes})


def caption_sources(sources: Sequence[CaptionSource], settings: ServerSettings, key: str, folder: Path) -> None:
    """Ask the server for every clip; each finished source is written at once.

    Raises:
        ServiceError: the server is gone; the sources that are finished by then are written.
    """
    asyncio.run(_Batch(sources, settings, folder).run(key))


class _Batch:
    def __init__(self, sources: Sequence[CaptionSource], settings: ServerSettings, folder: Path) -> None:
        self._sources = sources
        self._settings = settings
        self._folder = folder
        self._free = asyncio.Semaphore(settings.max_in_flight)

    async def run(self, key: str) -> None:
        raised: list[Exception] = []
        try:
            async with CaptionClient(self._settings, key) as client, asyncio.TaskGroup() as group:
                shown = self._shown()
                while True:
                    await self._free.acquire()
                    following = await asyncio.to_thread(next, shown, None)  # decoding must not hold up the answers
                    if following is None:
                        break
                    group.create_task(self._one(client, *following))
        except* Exception as errors:
            raised += errors.exceptions
        if raised:
            raise next((error for error in raised if isinstance(error, ServiceError)), raised[0])

    def _shown(self) -> Iterator[tuple[CaptionSource, ClipFrames]]:
        for source in self._sources:
            for shown in clip_frames(source.path, source.rows, self._settings):
                yield source, shown

    async def _one(self, client: CaptionClient, source: CaptionSource, shown: ClipFrames) -> None:
        try:
            if shown.reason is not None:
                raise UncaptionedError(shown.reason)
            parsed = await client.caption(shown)
        except UncaptionedError as reason:
            source.failed[shown.clip_id] = str(reason)
        else:
            assert parsed.answer.clip_id == shown.clip_id
            source.labels.append(label_row(parsed.answer, str(self._settings.model)))
            if parsed.note is not None:
                source.notes[shown.clip_id] = parsed.note
        finally:
            self._free.release()
        if source.is_finished:
            await asyncio.to_thread(write_captions_of, source, self._folder)
