"""A run as one self-contained HTML page, without scripts and with nothing to fetch; everything that comes from data is escaped.

Curves of long runs are thinned before they are drawn (`thinning`), pictures and videos embedded as far as they are small (`pictures`), so the page
stays below about 2 MB whatever the run's length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.pages.markup import page
from training.report.events import replaced, settings, timeline
from training.report.headline import comparison, headline
from training.report.learning import losses, losses_apart, optimizer, validation
from training.report.pictures import sample_figures
from training.report.run_data import RunData
from training.report.speed import costs, speed

__all__ = ["render_report"]


def render_report(run: RunData, output: Path, other: RunData | None = None) -> str:
    """The page, as it will lie at `output`; `other` is drawn beside the run where that makes sense."""
    runs = [run] if other is None else [run, other]
    parts: list[tuple[str, str]] = [
        ("", headline(run)),
        ("Loss", losses(runs)),
        ("Time line", timeline(run)),
        ("Against the other run" if other is not None else "", "" if other is None else comparison(run, other)),
        ("Loss on held-out clips", validation(runs)),
        ("Samples", sample_figures(run.samples, output)),
        ("Loss by bucket and time", losses_apart(run)),
        ("Speed and waiting", speed(run)),
        ("Predicted against measured", costs(run)),
        ("Gradient norm and learning rate", optimizer(run)),
        ("Replaced clips", replaced(run)),
        ("Environment and configuration", settings(run)),
    ]
    title = f"Training run: {run.name}" + ("" if other is None else f", beside {other.name}")
    return page(title, str(run.folder), _titled(parts), dark=True, media=True)


def _titled(parts: Sequence[tuple[str, str]]) -> list[str]:
    """Sections with their headings; empty ones are left out."""
    return [f"<h2>{title}</h2>{html}" if title else html for title, html in parts if html]
