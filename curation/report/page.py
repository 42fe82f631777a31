"""The report as one HTML page and one PNG.

Tabs: the funnel as a waterfall, scores with their limits, clips next to a limit, contact sheets of kept and rejected clips by reason,
groups of copies side by side, what the filters take away by group, sources that gave nothing, and the time each stage took; for every
admission level. One inline script switches between them; without it everything is shown below each other. Nothing is fetched: the content
policy of the page allows inline pictures and the one script by its hash, and every text that comes from data is escaped. Price: at most 24
clips per reason and level, chosen evenly by clip id; the tables have them all.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.decide import KEEP
from curation.explain import Stories
from curation.funnel import render
from curation.report.contact_sheet import draw_contact_sheet
from curation.report.figures import Figures, rows_of, why
from curation.report.histograms import score_histograms
from curation.report.near import NearLimit, near_limits
from curation.report.shares import kept_shares, share_tables
from curation.report.speed import speed_table
from curation.thresholds import CONTROLS, DecideSettings
from schemas.tables import ADMISSIONS

__all__ = ["render_report"]

_PER_REASON = 24
_MOST_GROUPS = 40
_MOST_SOURCES = 200
_TABS = {
    "overview": "Funnel",
    "scores": "Scores",
    "near": "Near limits",
    "clips": "Clips",
    "copies": "Copies",
    "shares": "What filters take",
    "sources": "Sources",
    "speed": "Time",
}

Row = dict[str, Any]


def render_report(
    *,
    tables: Mapping[str, pa.Table],
    samples: Mapping[str, pa.Table],
    funnel: Mapping[str, Any],
    settings: DecideSettings,
    timings: pa.Table | None = None,
) -> dict[str, bytes]:
    """File name to content: index.html and contact_sheet.png.

    Args:
        tables: sources, clips, thumbnails, pairs, decisions; labels and outcomes if there are any.
        samples: set name to its SAMPLES, of the sets that were packed.
        timings: TIMINGS of the commands so far.
    """
    page = _Page(tables, samples, funnel, settings, timings)
    return {"index.html": page.html().encode(), "contact_sheet.png": page.contact_sheet()}


class _Level:
    """The clips that the page shows for one level."""

    def __init__(self, tables: Mapping[str, pa.Table], settings: DecideSettings, admission: str) -> None:
        self.admission = admission
        table = tables["decisions"]
        level = table.filter(pc.equal(table["admission"], admission)).sort_by("clip_id")
        self.counts = {entry["values"]: entry["counts"] for entry in level["decision"].value_counts().to_pylist()}
        order = sorted(self.counts, key=lambda name: (name != KEEP, -self.counts[name], name))
        self.chosen: dict[str, list[Row]] = {}
        for name in order:
            rows = level.filter(pc.equal(level["decision"], name))
            self.chosen[name] = rows.take(_evenly(range(rows.num_rows), _PER_REASON)).to_pylist()
        self.groups = _groups(level)
        self.near = near_limits(tables["clips"], settings.levels[admission])
        self._level = level

    def clip_ids(self) -> set[str]:
        ids = {row["clip_id"] for rows in self.chosen.values() for row in rows}
        ids |= {row["clip_id"] for group in self.groups.values() for row in group} | set(self.groups)
        return ids | {clip for near in self.near for clip, _ in (*near.below, *near.above)}

    def decisions(self, shown: Iterable[str]) -> dict[str, Row]:
        return {row["clip_id"]: row for row in rows_of(self._level, shown)}


class _Page:
    def __init__(
        self,
        tables: Mapping[str, pa.Table],
        samples: Mapping[str, pa.Table],
        funnel: Mapping[str, Any],
        settings: DecideSettings,
        timings: pa.Table | None,
    ) -> None:
        self._tables, self._funnel, self._settings, self._timings = tables, funnel, settings, timings
        self._levels = [_Level(tables, settings, admission) for admission in ADMISSIONS]
        shown = set().union(*(level.clip_ids() for level in self._levels))
        self._figures = Figures(tables, Stories(tables, samples, settings, shown), shown)
        self._decisions = {level.admission: level.decisions(shown) for level in self._levels}
        self._sources = tables["sources"]

    def contact_sheet(self) -> bytes:
        first = self._levels[0]
        sections = [
            (f"{name} ({first.counts[name]})", [(row["clip_id"], why(row)) for row in rows])
            for name, rows in first.chosen.items()
        ]
        return draw_contact_sheet(sections, self._figures.thumbnails)

    def html(self) -> str:
        style, script = _asset("page.css"), _asset("page.js")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
        policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        bodies = {
            "overview": self._overview(),
            "scores": self._per_level(self._scores),
            "near": self._per_level(self._near),
            "clips": self._per_level(self._clips),
            "copies": self._per_level(self._copies),
            "shares": self._per_level(self._shares),
            "sources": self._source_table(),
            "speed": self._speed(),
        }
        tabs = "".join(f"<button data-tab='{name}'>{text}</button>" for name, text in _TABS.items())
        levels = "".join(f"<button data-level='{name}'>{name}</button>" for name in ADMISSIONS)
        return "\n".join(
            [
                f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Curation report</title>'
                f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
                f"<style>{style}</style></head><body data-level='{ADMISSIONS[0]}'>",
                f"<header><h1>Curation report</h1><nav>{tabs}</nav><nav>{levels}</nav>",
                "<input type='search' id='search' placeholder='file name, clip id or reason'></header><main>",
                *(f"<section class='tab' data-tab='{name}'>{body}</section>" for name, body in bodies.items()),
                "</main><dialog id='story'><img alt='frames'><pre></pre><button id='close'>close</button></dialog>",
                self._figures.data_blocks(),
                f"<script>{script}</script></body></html>\n",
            ]
        )

    def _per_level(self, body: Any) -> str:
        return "".join(
            f"<div class='level' data-level='{level.admission}'>{body(level)}</div>" for level in self._levels
        )

    def _overview(self) -> str:
        sources, clips = self._funnel["sources"], self._funnel["clips"]
        facts = {
            "sources": sources["total"],
            "hours of video": f"{_video_hours(self._sources):.3g}",
            "clips": clips["total"],
            "verified copies": self._funnel["pairs"]["verified"],
            **{f"kept for {name}": counts["kept"] for name, counts in self._funnel["admissions"].items()},
        }
        boxes = "".join(f"<div class='fact'><b>{value}</b>{escape(name)}</div>" for name, value in facts.items())
        text = f"<h3>Everything in numbers</h3><pre>{escape(render(self._funnel))}</pre>"
        return f"<div class='facts'>{boxes}</div>{self._per_level(self._waterfall)}{text}"

    def _waterfall(self, level: _Level) -> str:
        """Clips from all to kept: each reason in the order in which the controls are asked."""
        total = max(1, sum(level.counts.values()))
        left = total
        rows = [_bar_row("clips", total, 0.0, 1.0, "all")]
        for reason in CONTROLS:
            count = level.counts.get(reason, 0)
            if count:
                left -= count
                rows.append(_bar_row(reason, count, left / total, count / total, "cut"))
        rows.append(_bar_row(KEEP, level.counts.get(KEEP, 0), 0.0, level.counts.get(KEEP, 0) / total, "keep"))
        return f"<h2>Level {level.admission}: from all clips to those that are kept</h2><table class='waterfall'>{''.join(rows)}</table>"

    def _scores(self, level: _Level) -> str:
        drawn = score_histograms(self._tables["clips"], self._settings.levels[level.admission])
        return f"<h2>Scores of all clips, with the limits of level {level.admission}</h2><div class='histograms'>{drawn}</div>"

    def _near(self, level: _Level) -> str:
        parts = [f"<h2>Clips nearest to the limits of level {level.admission}</h2>"]
        decisions = self._decisions[level.admission]

        def side(near: NearLimit, clips: Sequence[tuple[str, float]], what: str) -> str:
            figures = "".join(
                self._figures.figure(clip, decisions[clip], f"{near.measure} {value:.4g}: ") for clip, value in clips
            )
            return f"<div><h3 class='dim'>{what} {near.limit:g}</h3>{figures or '<p class=dim>none</p>'}</div>"

        for near in level.near:
            parts.append(f"<h3>{escape(near.measure)}, limit {near.limit:g}</h3><div class='sides'>")
            parts.append(f"{side(near, near.below, 'below')}{side(near, near.above, 'from')}</div>")
        return "".join(parts)

    def _clips(self, level: _Level) -> str:
        total = sum(level.counts.values())
        chips = [f"<button data-reason=''>all ({total})</button>"]
        chips += [
            f"<button data-reason='{escape(name)}'>{escape(name)} ({level.counts[name]})</button>"
            for name in level.chosen
        ]
        parts = [f"<div class='chips'>{''.join(chips)}</div>"]
        for name, rows in level.chosen.items():
            count = level.counts[name]
            note = f", {len(rows)} shown" if len(rows) < count else ""
            figures = "".join(self._figures.figure(row["clip_id"], row) for row in rows)
            heading = f"<h2>{escape(name)}: {count} clips at level {level.admission}{note}</h2>"
            parts.append(
                f"<div class='reason' data-reason='{escape(name)}'>{heading}<div class='sheet'>{figures}</div></div>"
            )
        return "".join(parts)

    def _copies(self, level: _Level) -> str:
        """Each kept clip beside the copies that it stands for."""
        count = level.counts.get("duplicate", 0)
        parts = [
            f"<h2>{count} clips are copies of others at level {level.admission}, {len(level.groups)} groups shown</h2>"
        ]
        decisions = self._decisions[level.admission]
        for keeper, copies in level.groups.items():
            kept = decisions.get(keeper, {"decision": KEEP, "measure": None, "value": None, "limit": None})
            figures = self._figures.figure(keeper, kept) + "".join(
                self._figures.figure(row["clip_id"], row) for row in copies
            )
            parts.append(f"<div class='group'>{figures}</div>")
        return "".join(parts)

    def _shares(self, level: _Level) -> str:
        heading = f"<h2>What the filters of level {level.admission} take away, by group</h2>"
        note = "<p class='dim'>Groups that are kept less than half as often as the whole are marked. By label, only captioned clips are seen.</p>"
        return heading + note + share_tables(kept_shares(self._tables, level.admission))

    def _source_table(self) -> str:
        bad = self._sources.filter(pc.not_equal(self._sources["status"], "ok"))
        rows = "".join(
            f"<tr><td>{escape(row['status'])}</td><td>{escape(row['uri'])}</td><td>{escape(row['reason'] or '')}</td></tr>"
            for row in _evenly(bad.to_pylist(), _MOST_SOURCES)
        )
        head = f"<h2>Sources that were not read to the end: {bad.num_rows} of {self._sources.num_rows}</h2>"
        failed = self._tables["outcomes"].to_pylist() if "outcomes" in self._tables else []
        later = "".join(
            f"<tr><td>{escape(row['phase'])}</td><td>{escape(row['clip_id'])} {escape(row['set'])}</td><td>{escape(row['reason'])}</td></tr>"
            for row in _evenly(failed, _MOST_SOURCES)
        )
        table = f"<table class='sources'><tr><th>status</th><th>source</th><th>reason</th></tr>{rows}</table>"
        if not later:
            return head + table
        return (
            f"{head}{table}<h2>Kept clips that failed later: {len(failed)}</h2><table class='sources'>{later}</table>"
        )

    def _speed(self) -> str:
        if self._timings is None:
            return "<p class='dim'>no timings</p>"
        return "<h2>Where the time went</h2>" + speed_table(
            self._timings, _video_hours(self._sources), self._tables["clips"].num_rows
        )


def _groups(level: pa.Table) -> dict[str, list[Row]]:
    """Kept clip to the copies it stands for, largest groups first."""
    copies = level.filter(pc.equal(level["decision"], "duplicate")).to_pylist()
    groups: dict[str, list[Row]] = {}
    for row in copies:
        groups.setdefault(row["duplicate_of"], []).append(row)
    largest = sorted(groups, key=lambda keeper: (-len(groups[keeper]), keeper))[:_MOST_GROUPS]
    return {keeper: groups[keeper][:_PER_REASON] for keeper in largest}


def _bar_row(name: str, count: int, start: float, share: float, kind: str) -> str:
    bar = f"<div><i class='{kind}' style='left:{100 * start:.2f}%;width:{100 * share:.2f}%'></i></div>"
    return f"<tr><td>{escape(name)}</td><td>{count}</td><td>{share:.1%}</td><td class='track'>{bar}</td></tr>"


def _video_hours(sources: pa.Table) -> float:
    return float(pc.sum(sources["duration_us"]).as_py() or 0) / 3.6e9


def _asset(name: str) -> str:
    return resources.files("curation.report").joinpath(name).read_text(encoding="utf-8")


def _evenly(rows: Iterable[Any], most: int) -> list[Any]:
    """At most `most` of the rows, at even distances, first and last included."""
    rows = list(rows)
    if len(rows) <= most:
        return rows
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]
