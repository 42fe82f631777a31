"""Long films in pieces: which ticks a piece answers for, which shots are its own, and one set of tables out of all.

Pieces have equal lengths in ticks, so they follow from the length of the film alone, whoever computes them. A piece decodes some seconds before and
after its own ticks. A shot belongs to the piece in which it starts, if it ends within the part that both neighbours see; a longer one is
cut at the boundary's tick, and both neighbours know. So no clip crosses a cut, none is there twice, and pieces need nothing of each other.
Price: a take that runs on for half a minute over a boundary has its windows counted anew from there, and the margins are decoded twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.analysis.rows import hash_of, source_row
from curation.analysis.settings import AnalyzeSettings
from curation.analysis.shots import Span
from curation.decode import Damage, Ending, SourceFacts, TickRange
from curation.requests import SourceRequest
from schemas.files import write_json
from schemas.tables import CLIPS, DESCRIPTORS, SOURCES, THUMBNAILS, read_table, table_from_rows, write_table

__all__ = ["lead_ticks", "merge_pieces", "num_pieces", "own_shots", "piece_range", "tail_ticks", "write_piece"]

_LEAD_SECONDS = 10.0
"""Decoded before a piece: what detectors look back on, several times over."""
_TAIL_SECONDS = 30.0
"""Decoded after a piece: shots that end there are its own."""
_UNSURE_SECONDS = 5.0
"""At the end of what is decoded, where detectors lack the frames after."""
_FACTS = "piece.json"


def num_pieces(expected_seconds: Fraction | None, settings: AnalyzeSettings) -> int:
    """Pieces of a film of that length: the whole number nearest to length / `piece_minutes`, at least one."""
    if settings.piece_minutes is None or expected_seconds is None:
        return 1
    return max(1, math.floor(expected_seconds / Fraction(settings.piece_minutes * 60) + Fraction(1, 2)))


def piece_range(index: int, count: int, settings: AnalyzeSettings) -> TickRange:
    """The ticks that piece `index` of `count` answers for; the last one goes on to the end, wherever that is."""
    assert settings.piece_minutes is not None or count == 1, "only long films are cut"
    each = round((settings.piece_minutes or 0) * 60 * settings.clip_fps)
    return TickRange(index * each, None if index == count - 1 else (index + 1) * each)


def lead_ticks(settings: AnalyzeSettings) -> int:
    return round(_LEAD_SECONDS * settings.clip_fps)


def tail_ticks(settings: AnalyzeSettings) -> int:
    return round(_TAIL_SECONDS * settings.clip_fps)


def own_shots(shots: Sequence[Span], own: TickRange, settings: AnalyzeSettings) -> list[Span]:
    """Those that this piece answers for, cut at its boundaries where they are long on both sides."""
    reach = round((_TAIL_SECONDS - _UNSURE_SECONDS) * settings.clip_fps)
    found = []
    for shot in shots:
        first, end = shot.first, shot.end
        if first < own.first:
            if end <= own.first + reach:
                continue
            first = own.first
        if own.end is not None:
            if first >= own.end:
                continue
            end = own.end if end > own.end + reach else end
        found.append(Span(first, end, shot.joinable))
    return found


def write_piece(
    folder: Path, facts: SourceFacts | None, ending: Ending | None, num_shots: int, reason: str | None
) -> None:
    """What the merge needs beside the tables."""
    values = {"facts": None if facts is None else asdict(facts), "num_shots": num_shots, "reason": reason}
    write_json(folder / _FACTS, values | {"ending": None if ending is None else ending.to_json()})


def merge_pieces(request: SourceRequest, pieces: Sequence[Path | str], settings: AnalyzeSettings, folder: Path) -> None:
    """Write the tables of the whole source into `folder`, as `analyze_source` does.

    `pieces`: in order, the folder of each, or the reason why it could not be analysed: then its part counts as damaged, and the rest is kept.
    """
    parts = [None if isinstance(piece, str) else _read(piece) for piece in pieces]
    known = [part for part in parts if part is not None and part["facts"] is not None]
    if not known:
        reasons = [
            piece if isinstance(piece, str) else str(part and part["reason"])
            for piece, part in zip(pieces, parts, strict=True)
        ]
        source = source_row(request, hash_of(request), None, None, reasons[0])
    else:
        ending = _joined(pieces, parts, settings)
        source = source_row(request, hash_of(request), SourceFacts(**known[0]["facts"]), ending, None)
    write_table(folder / "sources.parquet", table_from_rows(SOURCES, [source]), SOURCES)
    clips = _clips(pieces, parts, source["fps"] or 0.0)
    write_table(folder / "clips.parquet", clips, CLIPS)
    for name, schema in (("descriptors", DESCRIPTORS), ("thumbnails", THUMBNAILS)):
        tables = [read_table(piece / f"{name}.parquet", schema) for piece in pieces if isinstance(piece, Path)]
        table = pa.concat_tables([schema.empty_table(), *tables])
        kept = table.filter(pc.is_in(table["clip_id"], clips["clip_id"].combine_chunks()))
        write_table(folder / f"{name}.parquet", kept.combine_chunks(), schema)


def _read(piece: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((piece / _FACTS).read_text(encoding="utf-8"))
    return values | {"ending": None if values["ending"] is None else Ending.from_json(values["ending"])}


def _joined(
    pieces: Sequence[Path | str], parts: Sequence[Mapping[str, Any] | None], settings: AnalyzeSettings
) -> Ending:
    """Frames of all pieces, the end of the last one that has any, and all damage, each in the piece that it lies in."""
    damages: list[Damage] = []
    endings: list[Ending] = []
    for index, (piece, part) in enumerate(zip(pieces, parts, strict=True)):
        own = piece_range(index, len(pieces), settings)
        if isinstance(piece, str):
            seconds = own.first / settings.clip_fps
            damages.append(Damage(own.first, own.end, f"the piece from {seconds:.0f} s on: {piece}"))
        elif part is not None and part["ending"] is not None:
            endings.append(part["ending"])
            seen = part["ending"].damages
            damages += [damage for damage in seen if _lies_in(damage, own) and damage not in damages]
    last = max(
        (ending for ending in endings if ending.frames_decoded), key=lambda ending: ending.last, default=endings[0]
    )
    frames = sum(ending.frames_decoded for ending in endings)
    return Ending(frames, last.last, last.shown, tuple(damages))


def _lies_in(damage: Damage, own: TickRange) -> bool:
    """A break-off at the very end of a piece is its own too: the next piece has no picture to notice it by."""
    return damage.at_tick in own or (damage.resumes_tick is None and damage.at_tick == own.end)


def _clips(pieces: Sequence[Path | str], parts: Sequence[Mapping[str, Any] | None], source_fps: float) -> pa.Table:
    """Clips of all pieces with shots counted through; one that overlaps a clip of an earlier piece is left out, should neighbours disagree."""
    tables, shots, reached = [CLIPS.empty_table()], 0, 0
    for piece, part in zip(pieces, parts, strict=True):
        if isinstance(piece, str) or part is None:
            continue
        table = read_table(piece / "clips.parquet", CLIPS)
        table = table.filter(pc.greater_equal(table["start_us"], reached))
        for name, values in (
            ("shot", pc.add(table["shot"], pa.scalar(shots, table["shot"].type))),
            ("source_fps", pa.array([source_fps] * table.num_rows, CLIPS.field("source_fps").type)),
        ):
            table = table.set_column(table.schema.get_field_index(name), CLIPS.field(name), values)
        shots += part["num_shots"]
        reached = max([reached, *table["end_us"].to_pylist()])
        tables.append(table)
    return pa.concat_tables(tables).combine_chunks()
