"""`index_report.json`: what every tar gave and what was left out, and by which rules; the next run compares itself with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planner.indexing.rules import IndexRules
from planner.indexing.scanning import TarScan
from schemas.config import StrictConfig, build_config, read_yaml
from schemas.files import write_json

__all__ = ["ERRORS", "REPORT", "IndexReport", "LeftOutCount", "TarDamage", "TarReport", "read_report", "write_errors"]

REPORT = "index_report.json"
ERRORS = "index_errors.json"
REPORT_VERSION = 1


class LeftOutCount(StrictConfig):
    """Samples of a tar that were left out for one reason."""

    reason: str
    count: int
    first: str
    """The first of them, with what was wrong about it."""


class TarDamage(StrictConfig):
    """Where a tar breaks off; samples in front of that are whole."""

    offset: int
    reason: str


class TarReport(StrictConfig):
    """What one tar gave."""

    name: str
    samples: int
    """In the tar."""
    kept: int
    shortened: int
    """Kept at fewer frames than they have, because no bucket has as many."""
    members: int
    """Of the kept samples."""
    ignored: int
    """Folders, links, hidden files and the like, which belong to no sample."""
    left_out: tuple[LeftOutCount, ...]
    damaged: TarDamage | None
    appended: bool
    """Behind the end of the archive stands more than zeros, which no reader of tars sees."""

    @classmethod
    def of(cls, name: str, scan: TarScan) -> TarReport:
        """The report of a scan."""
        return cls(
            name=name,
            samples=scan.index.num_rows,
            kept=scan.samples.num_rows,
            shortened=scan.num_shortened,
            members=scan.num_members,
            ignored=scan.num_ignored,
            left_out=tuple(
                LeftOutCount(reason=reason, count=count, first=_printable(scan.examples[reason]))
                for reason, count in sorted(scan.left_out.items())
            ),
            damaged=None
            if scan.damage is None
            else TarDamage(offset=scan.damage.offset, reason=_printable(scan.damage.reason)),
            appended=scan.appended,
        )


class IndexReport(StrictConfig):
    """The whole report."""

    report_version: int = REPORT_VERSION
    rules: IndexRules
    samples: int
    kept: int
    left_out: dict[str, int]
    """Reason to count, over all tars."""
    tars: tuple[TarReport, ...]

    @classmethod
    def of(cls, rules: IndexRules, tars: Sequence[TarReport]) -> IndexReport:
        """Sums over the tars."""
        reasons: Counter[str] = Counter()
        for tar in tars:
            for item in tar.left_out:
                reasons[item.reason] += item.count
        return cls(
            rules=rules,
            samples=sum(tar.samples for tar in tars),
            kept=sum(tar.kept for tar in tars),
            left_out=dict(sorted(reasons.items())),
            tars=tuple(tars),
        )


def read_report(set_folder: Path) -> IndexReport | None:
    """The report of the last run, or None where there is none of this version."""
    path = set_folder / REPORT
    if not path.is_file():
        return None
    values = read_yaml(path)
    if values.get("report_version") != REPORT_VERSION:
        return None
    return build_config(IndexReport, values, source=str(path))


def write_errors(set_folder: Path, errors: Sequence[dict[str, Any]]) -> Path:
    """Write the list of tars that keep the set from being made."""
    path = set_folder / ERRORS
    write_json(path, {"errors": list(errors)})
    return path


def _printable(text: str) -> str:
    """Lone surrogates, which stand for bytes that are no UTF-8, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
