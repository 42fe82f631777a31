"""The report of a plan as one HTML page.

Tabs: the headline with certificate, annealing and batch table; the run over time; mixing against random draws; buffers; reads; the ledger; what one
rank reads; every number with its definition. All data is in the page, packed in blocks of JSON; one inline script draws it, nothing is fetched, and
the page's policy allows nothing else. Every text from data is escaped. Price: pictures are binned (see planner.report.tally), so that a page stays
below some 20 MB, and without the script only tables are seen.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from planner.report import overview, sections
from planner.report.binning import json_block
from planner.report.charts import chart_data, num_shards
from planner.report.figures import shard_opens, window_mixes
from planner.report.sample_facts import load_facts
from planner.report.tally import tally_plan
from schemas.errors import UsageError
from schemas.files import write_bytes
from schemas.plan import LEDGER, ROWS, SPARES, read_plan_meta, read_plan_table

__all__ = ["render_report", "write_report"]

_TABS = {
    "overview": "Overview",
    "time": "Time",
    "mixing": "Mixing",
    "buffer": "Buffer",
    "reads": "Reads",
    "ledger": "Ledger",
    "ranks": "Ranks",
    "numbers": "Numbers",
}


def write_report(plan: Path, samples: Sequence[Path], output: Path, *, overwrite: bool = False) -> int:
    """Write the page to `output`; returns its bytes.

    Raises:
        UsageError: if `output` exists and may not be replaced, or is no HTML file's name.
        PlanError: if the plan was changed after it was built, or the samples are not its own.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--output {output} must end in .html; give for example {output.with_suffix('.html')}")
    if output.exists() and not overwrite:
        raise UsageError(f"--output {output} exists already; give another file, or --overwrite to replace it")
    page = render_report(plan, samples).encode()
    write_bytes(output, page)
    return len(page)


def render_report(plan: Path, samples: Sequence[Path] = ()) -> str:
    """The page of a plan folder; `samples` (all of the plan's sets, in its order) add buffers over time and domains.

    Raises:
        PlanError: if the plan was changed after it was built, or the samples are not its own.
    """
    meta = read_plan_meta(plan)
    rows, ledger, spares = (
        read_plan_table(plan, name, schema, meta)
        for name, schema in (("rows", ROWS), ("ledger", LEDGER), ("spares", SPARES))
    )
    tally = tally_plan(plan, meta, rows, load_facts(meta, samples) if samples else None)
    certificate = _certificate(plan)
    bucket_mix = window_mixes(tally.counts_SxB())
    domain_mix = [] if tally.domain_SxD is None else window_mixes(tally.domain_SxD)
    opens = shard_opens(tally.visits, num_shards(meta), max(1, meta.num_epochs), meta.first_epoch)
    data = chart_data(meta, tally, bucket_mix, domain_mix)
    bodies = {
        "overview": overview.headline(meta, tally, bucket_mix, opens, certificate)
        + overview.batch_table(meta, tally, ledger, spares),
        "time": sections.time(meta, tally),
        "mixing": sections.mixing(meta, bucket_mix, domain_mix, tally),
        "buffer": sections.buffer(meta, tally),
        "reads": sections.reads(meta, opens, data["shards"]),
        "ledger": sections.ledger(ledger, meta.num_epochs),
        "ranks": sections.ranks(meta),
        "numbers": sections.numbers(meta, certificate),
    }
    return _page(meta.plan_hash[:12], bodies, data)


def _certificate(plan: Path) -> dict[str, Any] | None:
    """What the verifier wrote, if it did; anything that is not a JSON object counts as none."""
    path = plan / "certificate.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    parts = ("rules_that_hold", "rules_not_checked", "bounds", "counts", "formulas")
    whole = isinstance(found, dict) and all(isinstance(found.get(part, {}), dict) for part in parts)
    return found if whole else None


def _page(name: str, bodies: dict[str, str], data: dict[str, Any]) -> str:
    style = _asset("page.css")
    script = "\n".join(_asset(part) for part in ("draw.js", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    tabs = "".join(f"<button data-tab='{tab}'>{words}</button>" for tab, words in _TABS.items())
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f"<title>Plan {escape(name)}</title>"
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            f"<style>{style}</style></head><body>",
            f"<header><h1>Plan {escape(name)}</h1><nav>{tabs}</nav></header><main>",
            *(f"<section class='tab' data-tab='{tab}'>{body}</section>" for tab, body in bodies.items()),
            "</main><div id='tip'></div>",
            json_block("data", data),
            f"<script>{script}</script></body></html>\n",
        ]
    )


def _asset(name: str) -> str:
    return resources.files("planner.report").joinpath(name).read_text(encoding="utf-8")
