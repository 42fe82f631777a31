"""What earlier runs published: their kept clips, which new clips must not repeat.

`match.against` names output folders. A clip that such a run kept at some level takes part in the match with its descriptors, and a new copy of it
is rejected at the levels where the earlier one was kept. Clips that the earlier run itself rejected are not looked at. Price: its tables must be
of this version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from curation.decide import KEEP
from schemas.errors import UsageError
from schemas.tables import CLIPS, DECISIONS, DESCRIPTORS, read_table

__all__ = ["CLIP_FACTS", "EarlierClips", "earlier_clips", "published_clips", "table_path"]

CLIP_FACTS = ["clip_id", "content_hash", "kind", "start_us", "end_us"]
_PUBLISHED = pa.schema([("clip_id", pa.string()), ("admission", pa.string())])


@dataclass(frozen=True)
class EarlierClips:
    """Clips of earlier runs that are not among the present ones."""

    facts: pa.Table
    """`CLIP_FACTS`."""
    descriptors: pa.Table


def published_clips(folders: Sequence[str]) -> pa.Table:
    """clip_id and admission of what those runs kept.

    Raises:
        UsageError: a folder holds no finished run.
    """
    parts = [_PUBLISHED.empty_table()]
    for folder in folders:
        path = _table(folder, "decisions")
        decisions = read_table(path, DECISIONS, columns=["clip_id", "admission", "decision"])
        parts.append(decisions.filter(pc.equal(decisions["decision"], KEEP)).select(_PUBLISHED.names))
    return pa.concat_tables([part.cast(_PUBLISHED) for part in parts])


def earlier_clips(folders: Sequence[str], present: pa.Table) -> EarlierClips:
    """Kept clips of those runs, each once, without those that `present` (column clip_id) has."""
    facts = [CLIPS.empty_table().select(CLIP_FACTS)]
    descriptors = [DESCRIPTORS.empty_table()]
    known = present["clip_id"].combine_chunks()
    for folder in folders:
        kept = published_clips([folder])["clip_id"].combine_chunks()
        wanted = kept.filter(pc.invert(pc.is_in(kept, known))).unique()
        for name, schema, columns, parts in (
            ("clips", CLIPS, CLIP_FACTS, facts),
            ("descriptors", DESCRIPTORS, DESCRIPTORS.names, descriptors),
        ):
            table = read_table(_table(folder, name), schema, columns=columns)
            parts.append(table.filter(pc.is_in(table["clip_id"], wanted)))
        known = pa.concat_arrays([known, wanted])
    return EarlierClips(
        pa.concat_tables([part.replace_schema_metadata() for part in facts]),
        pa.concat_tables([part.replace_schema_metadata() for part in descriptors]),
    )


def table_path(output: Path, name: str) -> Path:
    """Where a table of a run lies, in a local output folder."""
    return output / "tables" / f"{name}.parquet"


def _table(folder: str, name: str) -> Path:
    path = table_path(Path(folder).expanduser().absolute(), name)
    if not path.is_file():
        raise UsageError(
            f"match.against: {folder!r} has no {path}; expected the output folder of a finished run, give one or leave it out"
        )
    return path
