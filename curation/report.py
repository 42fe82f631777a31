"""The report of a run, to be looked at: one HTML page and one PNG, both self-contained.

The page holds the funnel, a histogram of each score with the thresholds drawn in, and contact sheets: kept clips, rejected ones by reason, copies
beside the clip that was kept in their stead, sources that gave nothing. No script and no link to anything outside; every text that comes from data
is escaped. Price: at most 24 clips per section, chosen evenly by clip id; the tables have them all.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.contact_sheet import write_contact_sheet
from curation.decide import KEEP
from curation.funnel import render
from curation.histograms import score_histograms
from curation.thresholds import DecideSettings
from schemas.files import write_bytes
from schemas.tables import ADMISSIONS

__all__ = ["write"]

_PER_SECTION = 24
_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1240px; color: #1d2329; background: #fbfbfa; }
h1 { font-size: 22px; } h2 { font-size: 17px; margin: 2.2em 0 .6em; border-bottom: 1px solid #d8dbde; padding-bottom: .2em; }
pre { background: #fff; border: 1px solid #e2e4e6; border-radius: 6px; padding: 1em; overflow-x: auto; font-size: 12px; }
.sheet { display: flex; flex-wrap: wrap; gap: 12px; align-items: flex-start; }
figure { margin: 0; width: 394px; background: #fff; border: 1px solid #e2e4e6; border-radius: 6px; padding: 8px; box-sizing: border-box; }
figure.strip { width: 800px; max-width: 100%; } figure img { width: 100%; display: block; border-radius: 3px; background: #000; }
figcaption { font-size: 12px; margin-top: 6px; overflow-wrap: anywhere; }
.why { font-weight: 600; } .dim { color: #68727b; }
.group { display: flex; flex-wrap: wrap; gap: 12px; align-items: flex-start; padding: 8px 0 14px; border-bottom: 1px dashed #d8dbde; }
.kept { border-color: #3c8d5a; } .histograms { display: flex; flex-wrap: wrap; gap: 12px; }
table { border-collapse: collapse; } td, th { padding: 2px 12px 2px 0; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
nav a { margin-right: 12px; }
"""


def write(
    folder: Path,
    *,
    tables: Mapping[str, pa.Table],
    funnel: Mapping[str, Any],
    settings: DecideSettings,
    admission: str = ADMISSIONS[0],
) -> list[Path]:
    """Write index.html and contact_sheet.png; returns their paths.

    Args:
        tables: sources, clips, thumbnails, decisions, and labels if there are any.
        admission: the level whose decisions the sheets show.
    """
    page = _Page(tables, funnel, settings, admission)
    html = folder / "index.html"
    write_bytes(html, page.html().encode())
    picture = folder / "contact_sheet.png"
    write_contact_sheet(picture, page.sections(), page.thumbnails)
    return [html, picture]


class _Page:
    """Rows by clip id, and the sections of the page."""

    def __init__(
        self, tables: Mapping[str, pa.Table], funnel: Mapping[str, Any], settings: DecideSettings, admission: str
    ) -> None:
        self._funnel, self._settings, self._admission = funnel, settings, admission
        self._clip_table = tables["clips"]
        self._count, self._chosen = _chosen(tables["decisions"], admission)
        shown = {row["clip_id"] for rows in self._chosen.values() for row in rows}
        shown |= {row["duplicate_of"] for row in self._chosen.get("duplicate", ())}
        decisions = _rows_of(tables["decisions"], shown)
        self._decisions = {row["clip_id"]: row for row in decisions if row["admission"] == admission}
        self._clips = {row["clip_id"]: row for row in _rows_of(tables["clips"], shown)}
        self.thumbnails = {
            row["clip_id"]: (row["num_frames"], row["jpeg"]) for row in _rows_of(tables["thumbnails"], shown)
        }
        labels = _rows_of(tables["labels"], shown) if "labels" in tables else []
        self._captions = {row["clip_id"]: row["caption_short"] for row in labels}
        self._sources = tables["sources"].filter(pc.not_equal(tables["sources"]["status"], "ok")).to_pylist()

    def sections(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """(heading, [(clip id, why)]) for the contact sheet picture."""
        return [
            (f"{name} ({self._count[name]})", [(row["clip_id"], _why(row)) for row in rows])
            for name, rows in self._chosen.items()
        ]

    def html(self) -> str:
        anchors = "".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in self._chosen)
        parts = [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Curation report</title>",
            f"<style>{_STYLE}</style></head><body><h1>Curation report</h1><nav>{anchors}</nav>",
            f"<h2>Funnel</h2><pre>{escape(render(self._funnel))}</pre>",
            f"<h2>Scores, with the limits of level {escape(self._admission)}</h2>",
            f"<div class='histograms'>{score_histograms(self._clip_table, self._settings.levels[self._admission])}</div>",
            *(self._section(name, rows) for name, rows in self._chosen.items()),
            self._source_section(),
            "</body></html>\n",
        ]
        return "\n".join(part for part in parts if part)

    def _section(self, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
        total = self._count[name]
        note = f", {len(rows)} shown" if len(rows) < total else ""
        heading = f"<h2 id='{escape(name)}'>{escape(name)}: {total} clips at level {escape(self._admission)}{note}</h2>"
        if name == "duplicate":
            return heading + self._copies(rows)
        return heading + f"<div class='sheet'>{''.join(self._figure(row) for row in rows)}</div>"

    def _copies(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Each kept clip beside the copies that it stands for."""
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            groups.setdefault(row["duplicate_of"], []).append(row)
        parts = []
        for keeper, copies in groups.items():
            figures = self._figure(self._decisions[keeper], kept=True) + "".join(map(self._figure, copies))
            parts.append(f"<div class='group'>{figures}</div>")
        return "".join(parts)

    def _figure(self, decision: Mapping[str, Any], *, kept: bool = False) -> str:
        clip_id = decision["clip_id"]
        clip = self._clips[clip_id]
        data = base64.b64encode(self.thumbnails[clip_id][1]).decode("ascii") if clip_id in self.thumbnails else ""
        picture = f"<img alt='' src='data:image/jpeg;base64,{data}'>" if data else "<p class='dim'>no thumbnail</p>"
        crop = clip["crop"]
        size = f"{crop['right'] - crop['left']}x{crop['bottom'] - crop['top']} of {clip['source_width']}x{clip['source_height']}"
        span = f"{clip['start_us'] / 1e6:.2f} to {clip['end_us'] / 1e6:.2f} s" if clip["kind"] == "video" else "image"
        caption = self._captions.get(clip_id, "")
        frames = self.thumbnails[clip_id][0] if clip_id in self.thumbnails else 1
        classes = [*(["kept"] if kept else []), *(["strip"] if frames > 2 else [])]
        return (
            f"<figure class='{' '.join(classes)}'>{picture}<figcaption>"
            f"<div class='why'>{escape(_why(decision))}</div><div>{escape(str(caption))}</div>"
            f"<div class='dim'>{escape(clip['uri'].rsplit('/', 1)[-1])} · {span} · {size} · {escape(clip_id)}</div>"
            "</figcaption></figure>"
        )

    def _source_section(self) -> str:
        if not self._sources:
            return ""
        rows = "".join(
            f"<tr><td>{escape(row['status'])}</td><td>{escape(row['uri'])}</td><td>{escape(row['reason'] or '')}</td></tr>"
            for row in _evenly(self._sources, 200)
        )
        head = f"<h2>Sources that were not read to the end: {len(self._sources)}</h2>"
        return f"{head}<table><tr><th>status</th><th>source</th><th>reason</th></tr>{rows}</table>"


def _chosen(decisions: pa.Table, admission: str) -> tuple[dict[str, int], dict[str, list[dict[str, Any]]]]:
    """Decision to its number of clips, and to the rows that are shown; `keep` first, then by frequency."""
    level = decisions.filter(pc.equal(decisions["admission"], admission)).sort_by("clip_id")
    counts = {entry["values"]: entry["counts"] for entry in level["decision"].value_counts().to_pylist()}
    order = sorted(counts, key=lambda name: (name != KEEP, -counts[name], name))
    shown = {}
    for name in order:
        rows = level.filter(pc.equal(level["decision"], name))
        shown[name] = rows.take(_evenly(range(rows.num_rows), _PER_SECTION)).to_pylist()
    return counts, shown


def _rows_of(table: pa.Table, clip_ids: Iterable[str]) -> list[dict[str, Any]]:
    wanted = pa.array(sorted(clip_ids), pa.string())
    return table.filter(pc.is_in(table["clip_id"], wanted)).to_pylist()


def _why(decision: Mapping[str, Any]) -> str:
    """`keep`, or the reason with measure, value and limit: `static (motion 0.004, limit 0.05)`."""
    if decision["measure"] is None or decision["value"] is None:
        return str(decision["decision"])
    limit = f", limit {_number(decision['limit'])}" if decision["limit"] is not None else ""
    return f"{decision['decision']} ({decision['measure']} {_number(decision['value'])}{limit})"


def _number(value: float) -> str:
    """Three significant digits, and no exponent for whole pixels."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _evenly(rows: Iterable[Any], most: int) -> list[Any]:
    """At most `most` of the rows, at even distances, first and last included."""
    rows = list(rows)
    if len(rows) <= most:
        return rows
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]
