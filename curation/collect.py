"""From committed units to tables: rows of every unit of a phase, in one order, as if a single process had written them.

Tables depend on what is committed and on the source list, never on the order in which units ended. A unit's own rows name the file that was read;
uri, branch, domain and licence are taken from the present list, so a moved file keeps its analysis. Price: each table passes through memory once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.commits import DONE, CommitStore
from curation.content_hashes import Unreadable
from curation.requests import SourceRequest
from schemas.tables import CLIPS, DESCRIPTORS, LABELS, SOURCES, TABLES, THUMBNAILS, read_table, table_from_rows

__all__ = ["analysis_tables", "concatenated", "label_table"]

_LISTED = ("uri", "kind", "branch", "domain", "licence")


def concatenated(folders: Iterable[Path], name: str, sort_by: Sequence[str]) -> pa.Table:
    """One table from the files `name`.parquet of committed units, sorted."""
    schema = TABLES[name]
    parts = [read_table(folder / f"{name}.parquet", schema) for folder in folders]
    return pa.concat_tables([schema.empty_table(), *parts]).sort_by([(column, "ascending") for column in sort_by])


def analysis_tables(
    store: CommitStore,
    group: str,
    requests: Sequence[SourceRequest],
    unreadable: Sequence[Unreadable],
    key_of: Mapping[str, str],
    first_uri: Mapping[str, str],
) -> dict[str, pa.Table]:
    """sources, clips, descriptors and thumbnails of the present source list.

    Args:
        key_of: uri to the key of its analysis.
        first_uri: uri to the uri that was analysed for those bytes; itself for most.
    """
    analysed = [request for request in requests if first_uri[request.uri] == request.uri]
    done: list[tuple[SourceRequest, Path]] = []
    rows: dict[str, dict[str, Any]] = {}
    store.bring(group, (key_of[request.uri] for request in analysed))
    for request in analysed:
        key = key_of[request.uri]
        record = store.record(group, key)
        if record["status"] == DONE:
            folder = store.folder(group, key)
            done.append((request, folder))
            rows[request.uri] = read_table(folder / "sources.parquet", SOURCES).to_pylist()[0]
        else:
            rows[request.uri] = _bare_row(request, "quarantined", record["reason"])
    sources = [_bare_row(bad.request, "failed", bad.reason) for bad in unreadable]
    for request in requests:
        first = first_uri[request.uri]
        listed = {name: getattr(request, name) for name in _LISTED}
        sources.append({**rows[first], **listed, "same_content_as": None if first == request.uri else first})
    clips = [_relisted(read_table(folder / "clips.parquet", CLIPS), request) for request, folder in done]
    folders = [folder for _, folder in done]
    return {
        "sources": table_from_rows(SOURCES, sorted(sources, key=lambda row: str(row["uri"]))),
        "clips": pa.concat_tables([CLIPS.empty_table(), *clips]).sort_by("clip_id"),
        "descriptors": concatenated(folders, "descriptors", ["clip_id", "time_us"]).cast(DESCRIPTORS),
        "thumbnails": concatenated(folders, "thumbnails", ["clip_id"]).cast(THUMBNAILS),
    }


def _bare_row(request: SourceRequest, status: str, reason: str) -> dict[str, Any]:
    """A sources row for a file that gave no facts."""
    known = {name: getattr(request, name) for name in (*_LISTED, "content_hash", "size_bytes")}
    return {**dict.fromkeys(SOURCES.names), **known, "status": status, "reason": reason}


def _relisted(clips: pa.Table, request: SourceRequest) -> pa.Table:
    for name in _LISTED:
        position = clips.schema.get_field_index(name)
        column = pa.array([getattr(request, name)] * clips.num_rows, pa.string())
        clips = clips.set_column(position, CLIPS.field(name), column)
    return clips


def label_table(folders: Iterable[Path]) -> pa.Table:
    """labels of the committed caption units."""
    return concatenated(folders, "labels", ["clip_id"]).cast(LABELS)
