"""Tars to a set folder: what changed is read, what did not keeps its rows, and a set is written whole or not at all.

The result is a function of the tars and the rules: indexing in one go or in ten runs gives the same tables. Shards are in the order of their names,
so a tar that comes in between gives those behind it another shard_index, and no other change. set.json is removed first and written last: whoever
sees it sees the tables that belong to it. Price: after a crash within that second everything is read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from planner.indexing.places import TarPlace, common_location, find_tars
from planner.indexing.report import ERRORS, REPORT, IndexReport, TarReport, read_report, write_errors
from planner.indexing.rows import INDEX, index_path, with_shard_numbers
from planner.indexing.rules import IndexRules
from planner.indexing.scanning import TarScan
from planner.indexing.workers import scan_tars
from planner.stamps import same_stamp
from schemas.errors import DataError, UsageError
from schemas.files import write_json
from schemas.shards import SetInfo, ShardInfo, read_set_info, samples_path, write_set_info
from schemas.tables import SAMPLES, read_table, write_table

__all__ = ["IndexOutcome", "index_set"]

_MOST_NAMED = 5


@dataclass(frozen=True)
class IndexOutcome:
    """What a run did."""

    info: SetInfo
    report: IndexReport
    tars_read: int
    tars_unchanged: int
    tars_gone: int
    requests: int
    """Ranges that were read."""
    bytes_read: int
    reread_because: str | None
    """Why tars that did not change were read again, if they were."""


@dataclass(frozen=True)
class _Piece:
    """One tar of the set to be: its shard without a number, its rows, its report."""

    shard: ShardInfo
    samples: pa.Table
    index: pa.Table
    report: TarReport


def index_set(
    inputs: Sequence[str],
    output: Path,
    rules: IndexRules,
    *,
    workers: int | None = None,
    skip_damaged: bool = False,
    keys_per_tar: bool = False,
) -> IndexOutcome:
    """Make or renew the set in `output`.

    Args:
        inputs: tars, folders, globs, as paths or URLs; together they are the whole set.
        workers: tars that are read at once; null: as many as there are cores, or 32 from an object store.
        skip_damaged: keep the whole samples of damaged tars, instead of refusing the set.
        keys_per_tar: a key may stand in several tars.

    Raises:
        UsageError: no tars, or `output` holds another kind of set.
        DataError: damaged tars, keys that stand twice, or no sample that could be planned.
    """
    _refuse_curated(output)
    places = find_tars(inputs)
    location, names = common_location(places)
    order = sorted(range(len(places)), key=lambda at: names[at])
    places, names = [places[at] for at in order], [names[at] for at in order]
    own = location == str(output.resolve())
    old, why = _old_pieces(output, rules, None if own else location)
    pieces = {name: old[name] for name, place in zip(names, places, strict=True) if _unchanged(old.get(name), place)}
    to_read = [(name, place) for name, place in zip(names, places, strict=True) if name not in pieces]
    errors: list[dict[str, Any]] = []
    requests = bytes_read = 0
    for (name, place), scan in zip(to_read, scan_tars(to_read, rules, workers), strict=True):
        requests, bytes_read = requests + scan.requests, bytes_read + scan.bytes_read
        errors.extend(_duplicate_rows(name, scan))
        pieces[name] = _Piece(_shard_info(name, place, scan), scan.samples, scan.index, TarReport.of(name, scan))
    ordered = [pieces[name] for name in names]
    if not skip_damaged:
        errors.extend(_damage_rows(ordered))
    samples, index = _tables(ordered)
    if not keys_per_tar:
        errors.extend(_keys_in_two_tars(index, names))
    if errors:
        raise DataError(_refusal(errors, write_errors(output, errors), skip_damaged=skip_damaged))
    report = IndexReport.of(rules, [piece.report for piece in ordered])
    if not report.kept:
        raise DataError(_nothing_kept(report, places))
    info = _set_info(rules, None if own else location, [piece.shard for piece in ordered])
    gone = len(set(old) - set(names))
    if to_read or gone or not old:
        _write(output, info, samples, index, report)
    (output / ERRORS).unlink(missing_ok=True)
    return IndexOutcome(info, report, len(to_read), len(names) - len(to_read), gone, requests, bytes_read, why)


def _refuse_curated(output: Path) -> None:
    if (output / "set.json").is_file() and read_set_info(output).origin != "indexed":
        raise UsageError(
            f"--output {output} holds a set that reelyard-curate packed, which has its samples.parquet already; give another folder"
        )


def _old_pieces(output: Path, rules: IndexRules, location: str | None) -> tuple[dict[str, _Piece], str | None]:
    """The tars of the last run by name, or none and the reason why they are of no use."""
    report = read_report(output)
    if not (output / "set.json").is_file():
        return {}, None
    info = read_set_info(output)
    if report is None or not index_path(output).is_file():
        return {}, f"{REPORT} or index.parquet is missing"
    if report.rules != rules:
        return {}, "the rules are others than those of the last run"
    if info.location != location:
        return {}, f"the tars lay at {info.location or 'the set itself'} in the last run"
    tables = [read_table(samples_path(output), SAMPLES), read_table(index_path(output), INDEX)]
    starts = [
        np.searchsorted(table.column("shard_index").to_numpy(), np.arange(len(info.shards) + 1)) for table in tables
    ]
    pieces = {}
    for number, (shard, tar) in enumerate(zip(info.shards, report.tars, strict=True)):
        samples, index = (
            table.slice(at[number], at[number + 1] - at[number]) for table, at in zip(tables, starts, strict=True)
        )
        pieces[shard.name] = _Piece(shard, samples, index, tar)
    return pieces, None


def _unchanged(piece: _Piece | None, place: TarPlace) -> bool:
    return piece is not None and same_stamp(piece.shard, place) is True


def _shard_info(name: str, place: TarPlace, scan: TarScan) -> ShardInfo:
    return ShardInfo(
        name=name,
        size_bytes=place.size_bytes,
        sha256="",
        num_samples=scan.samples.num_rows,
        modified_ns=place.modified_ns,
        etag=place.etag,
    )


def _tables(pieces: Sequence[_Piece]) -> tuple[pa.Table, pa.Table]:
    """All rows, with the shards numbered as they stand."""
    numbered = []
    for schema, parts in ((SAMPLES, [piece.samples for piece in pieces]), (INDEX, [piece.index for piece in pieces])):
        # from another process, a table comes without the nullability of its list items
        alike = [part if part.schema.equals(schema) else part.cast(schema) for part in parts]
        numbered.append(with_shard_numbers(pa.concat_tables(alike), range(len(parts)), [len(part) for part in parts]))
    return numbered[0], numbered[1]


def _set_info(rules: IndexRules, location: str | None, shards: Sequence[ShardInfo]) -> SetInfo:
    return SetInfo(
        origin="indexed",
        location=location,
        set_name=rules.set_name,
        fps=rules.fps,
        codec="",
        codec_fingerprint="",
        latent_channels=0,
        text_encoder="",
        text_encoder_fingerprint="",
        text_width=0,
        teacher_by_branch={},
        teacher_width=None,
        null_text="",
        seed=0,
        shards=tuple(shards),
    )


def _write(output: Path, info: SetInfo, samples: pa.Table, index: pa.Table, report: IndexReport) -> None:
    (output / "set.json").unlink(missing_ok=True)
    write_table(samples_path(output), samples, SAMPLES)
    write_table(index_path(output), index, INDEX)
    write_json(output / REPORT, report.model_dump(mode="json"))
    write_set_info(output, info)


def _duplicate_rows(name: str, scan: TarScan) -> Iterator[dict[str, Any]]:
    for double in scan.duplicates:
        yield {
            "tar": name,
            "offset": double.again,
            "reason": f"key {double.key!r} stands at byte {double.first} and again, apart, at byte {double.again}",
        }


def _damage_rows(pieces: Sequence[_Piece]) -> Iterator[dict[str, Any]]:
    for piece in pieces:
        damaged = piece.report.damaged
        if damaged is not None:
            yield {"tar": piece.report.name, "offset": damaged.offset, "reason": damaged.reason}


def _keys_in_two_tars(index: pa.Table, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    frame = pl.from_arrow(index.select(["shard_index", "offset", "key"]))
    assert isinstance(frame, pl.DataFrame)
    places = (
        frame.filter(pl.col("key").is_duplicated()).group_by("key", maintain_order=True).agg("shard_index", "offset")
    )
    for key, shards, offsets in places.iter_rows():
        if len(set(shards)) > 1:
            where = ", ".join(f"{names[shard]} (byte {offset})" for shard, offset in zip(shards, offsets, strict=True))
            yield {
                "tar": names[shards[1]],
                "offset": offsets[1],
                "reason": f"key {key!r} stands in {len(set(shards))} tars: {where}",
            }


def _refusal(errors: Sequence[dict[str, Any]], path: Path, *, skip_damaged: bool) -> str:
    lines = [f"{error['tar']}, byte {error['offset']}: {error['reason']}" for error in errors[:_MOST_NAMED]]
    more = [] if len(errors) <= _MOST_NAMED else [f"... and {len(errors) - _MOST_NAMED} more"]
    advice = "repair or leave out these tars"
    if not skip_damaged and any("key " not in error["reason"][:4] for error in errors):
        advice += "; --skip-damaged keeps the whole samples of damaged ones"
    if any("tars: " in error["reason"] for error in errors):
        advice += "; --keys-per-tar takes keys as names within their tar"
    return "\n  ".join(
        [
            f"{len(errors)} errors in the tars, no set was written:",
            *lines,
            *more,
            f"all of them are in {path}; {advice}",
        ]
    )


def _nothing_kept(report: IndexReport, places: Sequence[TarPlace]) -> str:
    reasons = (
        "; ".join(f"{count} because {reason}" for reason, count in report.left_out.items()) or "they hold no samples"
    )
    first = next((item.first for tar in report.tars for item in tar.left_out), "")
    example = f" (the first: {first})" if first else ""
    return (
        f"none of {report.samples} samples in {len(places)} tars ({places[0].address}, ...) can be planned: {reasons}{example}; say where their size "
        "stands: --frames-key, --height-key, --width-key, --npy MEMBER, --regex, or --default-frames 1 for images"
    )
