"""What happened to the run: starts, saves, evaluations, replaced clips, and its settings."""

from __future__ import annotations

import json
from html import escape

from training.pages.bars import event_strip
from training.pages.markup import details, note, panel, table
from training.pages.svg import HUES
from training.report.charts import start_words, step_range
from training.report.column_facts import moment_words
from training.report.run_data import RunData

__all__ = ["replaced", "settings", "timeline"]

_MOST_REPLACED = 200


def timeline(run: RunData) -> str:
    """Starts, saves and evaluations over the steps."""
    starts = [(float(line["steps_done"]), start_words(line)) for line in run.starts]
    saves = [
        (float(line["steps_done"]), f"checkpoint of step {line['steps_done']}, {line['save_ms']:.0f} ms")
        for line in run.events("save")
    ]
    ends = [
        (
            float(line["steps_done"]),
            f"{line['state']} after {line['steps_done']} steps at {moment_words(line['unix_s'])}",
        )
        for line in run.events("end")
    ]
    measured = [
        (float(line["steps_done"]), f"validation loss {line['loss']} ({line['weights']})") for line in run.validation
    ]
    videos = [(float(one.steps_done), f"{len(one.videos)} videos") for one in run.samples]
    rows = [
        ("started", "var(--warn)", starts),
        ("saved", HUES[1], _at_most(saves)),
        ("validated", HUES[3], _at_most(measured)),
        ("sampled", HUES[4], _at_most(videos)),
        ("ended", "var(--ink)", ends),
    ]
    return panel(event_strip([row for row in rows if row[2]], step_range(run))) if any(row[2] for row in rows) else ""


def replaced(run: RunData) -> str:
    """Clips that could not be used, with reasons."""
    if not run.replaced:
        return note("No clip had to be replaced.")
    reasons: dict[str, int] = {}
    for line in run.replaced:
        kind = str(line["reason"]).split(":")[-1].strip()
        reasons[kind] = reasons.get(kind, 0) + 1
    rows = [
        [str(line[key]) for key in ("step", "lane", "bucket", "clip_id", "replaced_by", "replacement", "reason")]
        for line in run.replaced[:_MOST_REPLACED]
    ]
    head = ["step", "lane", "bucket", "clip", "replaced by", "kind", "reason"]
    more = len(run.replaced) - len(rows)
    counted = sorted(reasons.items(), key=lambda item: -item[1])[:20]
    return (
        table(["reason", "clips"], [[words, str(count)] for words, count in counted])
        + details(f"{len(rows)} of {len(run.replaced)} clips", table(head, rows, text=7))
        + (note(f"{more} more are in the ledger folder of the run.") if more else "")
    )


def settings(run: RunData) -> str:
    """Environment of each start, and the configuration."""
    keys = sorted({key for line in run.starts for key in line["environment"]} | set(run.environment))
    starts = run.starts or [{"steps_done": "-", "unix_s": None, "environment": run.environment}]
    head = ["started at step", *(str(line["steps_done"]) for line in starts[-6:])]
    rows = [["when", *(moment_words(line["unix_s"]) for line in starts[-6:])]]
    rows += [[key, *(str(line["environment"].get(key, "")) for line in starts[-6:])] for key in keys]
    text = json.dumps(run.config, indent=2, ensure_ascii=False)
    return table(head, rows, text=len(head)) + details("Configuration", f"<pre>{escape(text)}</pre>")


def _at_most(events: list[tuple[float, str]], most: int = 400) -> list[tuple[float, str]]:
    """Evenly chosen, where a strip has no room for all."""
    stride = -(-len(events) // most) if events else 1
    return events[::stride]
