"""The funnel: what came in, what was kept, what was rejected for which reason, what was packed, and whether it all adds up.

Counts come from the tables on disk alone, so the funnel of an old run can be made again. The identities are checked clip by clip rather than by
totals, so two errors cannot cancel out. Price: ids of all clips in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from curation.decide import KEEP
from schemas.errors import DataError
from schemas.files import write_bytes, write_json
from schemas.tables import ADMISSIONS, SOURCE_STATUSES

__all__ = ["build", "check", "render", "write"]

_BAR = 24


def build(
    tables: Mapping[str, pa.Table], samples: Mapping[str, pa.Table], admission_by_set: Mapping[str, str]
) -> dict[str, Any]:
    """All counts of a run, as plain values.

    Args:
        tables: sources, clips, pairs, decisions, outcomes.
        samples: set name to its SAMPLES; sets that were not packed are missing.
        admission_by_set: set name to the level whose clips it takes.
    """
    decisions = _frame(tables["decisions"], ["clip_id", "admission", "decision"])
    clips = set(tables["clips"].column("clip_id").to_pylist())
    sources = _sources(tables["sources"])
    admissions = {name: _admission(decisions, name) for name in ADMISSIONS}
    identities = [
        _identity(
            "sources = ok + truncated + failed + quarantined", sources["total"], sum(sources["by_status"].values())
        )
    ]
    for name in ADMISSIONS:
        decided = decisions.filter(pl.col("admission") == name)["clip_id"]
        told = decided.n_unique() if set(decided.to_list()) == clips and decided.n_unique() == len(decided) else -1
        identities.append(_identity(f"clips = kept + rejected, {name}", len(clips), told))
    sets = {}
    for name, table in samples.items():
        sets[name], identity = _set(name, admission_by_set[name], decisions, tables["outcomes"], table)
        identities.append(identity)
    return {
        "sources": sources,
        "clips": {
            "total": len(clips),
            "by_branch": _counts(tables["clips"], "branch"),
            "by_frames": _counts(tables["clips"], "frames"),
        },
        "pairs": {
            "candidates": tables["pairs"].num_rows,
            "verified": sum(tables["pairs"].column("verified").to_pylist()),
        },
        "admissions": admissions,
        "sets": sets,
        "identities": identities,
    }


def check(funnel: Mapping[str, Any]) -> None:
    """Raise when something was lost or counted twice.

    Raises:
        DataError: naming every identity that does not hold, with both sides.
    """
    broken = [entry for entry in funnel["identities"] if not entry["holds"]]
    if broken:
        lines = [f"{entry['name']}: {entry['left']} against {entry['right']}" for entry in broken]
        raise DataError(
            "the tables of this run do not add up; run the phases again, and report it if that does not help\n  "
            + "\n  ".join(lines)
        )


def write(folder: Path, funnel: Mapping[str, Any]) -> None:
    """funnel.json and funnel.txt."""
    write_json(folder / "funnel.json", funnel)
    write_bytes(folder / "funnel.txt", render(funnel).encode())


def render(funnel: Mapping[str, Any]) -> str:
    """The funnel as text for a terminal."""
    sources, clips = funnel["sources"], funnel["clips"]
    lines = [f"sources {sources['total']:>8}   " + _listed(sources["by_status"])]
    if sources["same_content"]:
        lines.append(f"{'':19}{sources['same_content']} of them byte-identical to another and analysed once")
    lines += [f"{'':19}{count} x {reason}" for reason, count in sources["by_reason"].items()]
    lines.append(f"clips   {clips['total']:>8}   " + _listed(clips["by_branch"]))
    lines.append(f"{'':19}frames: " + _listed(clips["by_frames"]))
    pairs = funnel["pairs"]
    lines.append(f"pairs   {pairs['candidates']:>8}   {pairs['verified']} verified as copies")
    for name, counts in funnel["admissions"].items():
        lines.append(f"\n{name}: {counts['kept']} kept, {counts['rejected']} rejected")
        lines += [_bar(KEEP, counts["kept"], clips["total"])]
        lines += [_bar(reason, count, clips["total"]) for reason, count in counts["rejected_by_reason"].items()]
    for name, counts in funnel["sets"].items():
        lines.append(
            f"\nset {name} (level {counts['admission']}): {counts['kept']} kept = {counts['packed']} packed in "
            f"{counts['shards']} shards + {counts['failed_later']} failed later"
        )
        lines += [f"  {count} x {reason}" for reason, count in counts["failed_by_reason"].items()]
        lines += [f"  bucket {bucket:<14}{count:>7}" for bucket, count in counts["by_bucket"].items()]
    lines.append("")
    for entry in funnel["identities"]:
        verdict = "adds up" if entry["holds"] else f"DOES NOT ADD UP: {entry['left']} against {entry['right']}"
        lines.append(f"{entry['name']}: {verdict}")
    return "\n".join(lines) + "\n"


def _sources(table: pa.Table) -> dict[str, Any]:
    rows = table.select(["status", "reason", "same_content_as"]).to_pylist()
    statuses = Counter(row["status"] for row in rows)
    return {
        "total": len(rows),
        "by_status": {status: statuses[status] for status in SOURCE_STATUSES},
        "by_reason": _sorted(Counter(f"{row['status']}: {row['reason']}" for row in rows if row["status"] != "ok")),
        "same_content": sum(row["same_content_as"] is not None for row in rows),
    }


def _admission(decisions: pl.DataFrame, name: str) -> dict[str, Any]:
    counts = Counter(decisions.filter(pl.col("admission") == name)["decision"].to_list())
    kept = counts.pop(KEEP, 0)
    return {"kept": kept, "rejected": sum(counts.values()), "rejected_by_reason": _sorted(counts)}


def _set(
    name: str, admission: str, decisions: pl.DataFrame, outcomes: pa.Table, samples: pa.Table
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Counts of one set, and the identity kept = packed + outcomes, as sets of clip ids."""
    wanted = (pl.col("admission") == admission) & (pl.col("decision") == KEEP)
    kept = set(decisions.filter(wanted)["clip_id"].to_list())
    packed = samples.column("clip_id").to_pylist()
    failed = {
        row["clip_id"]: f"{row['phase']}: {row['reason']}" for row in outcomes.to_pylist() if row["set"] in (name, "")
    }
    failed = {clip: reason for clip, reason in failed.items() if clip in kept}
    adds_up = len(packed) == len(set(packed)) and not set(packed) & set(failed) and set(packed) | set(failed) == kept
    sizes = zip(*(samples.column(column).to_pylist() for column in ("frames", "height", "width")), strict=True)
    buckets = Counter("x".join(map(str, size)) for size in sizes)
    counts = {
        "admission": admission,
        "kept": len(kept),
        "packed": len(packed),
        "failed_later": len(failed),
        "failed_by_reason": _sorted(Counter(failed.values())),
        "shards": len(set(samples.column("shard_index").to_pylist())),
        "by_bucket": dict(sorted(buckets.items())),
    }
    identity = _identity(f"kept = packed + outcomes, set {name}", len(kept), len(packed) + len(failed))
    return counts, identity | {"holds": adds_up}


def _identity(name: str, left: int, right: int) -> dict[str, Any]:
    return {"name": name, "left": left, "right": right, "holds": left == right}


def _counts(table: pa.Table, column: str) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(table.column(column).to_pylist()).items())}


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    """Most frequent first, then by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _frame(table: pa.Table, columns: list[str]) -> pl.DataFrame:
    frame = pl.from_arrow(table.select(columns))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _bar(name: str, count: int, total: int) -> str:
    share = count / total if total else 0.0
    return f"  {name:<20}{count:>7}  {share:>6.1%}  {'#' * round(share * _BAR)}"
