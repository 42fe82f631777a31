"""The report phase of the engine: the funnel with its identities checked, and the pages to look at, from the tables on disk.

Sets are counted only when they were packed from the decisions that are on disk now, so a changed threshold can be looked at before anything is
packed again.
"""

from __future__ import annotations

from curation import funnel, report
from curation.collect import table_path
from curation.config import admission_of
from curation.pack_phase import packed_decisions
from curation.session import Session
from schemas.command import say
from schemas.hashing import table_hash
from schemas.shards import samples_path
from schemas.tables import OUTCOMES, SAMPLES, read_table

__all__ = ["report_phase"]

_TABLES = ("sources", "clips", "thumbnails", "pairs", "decisions")


def report_phase(session: Session) -> None:
    """Write OUT/report/.

    Raises:
        DataError: the tables do not add up.
    """
    with session.watch.phase("report") as counts:
        counts["done"] = 1
        tables = {name: session.table(name) for name in _TABLES}
        if table_path(session.output, "labels").is_file():
            tables["labels"] = session.table("labels")
        tables["outcomes"] = OUTCOMES.empty_table()
        samples = {}
        if packed_decisions(session) == table_hash(tables["decisions"]):
            tables["outcomes"] = session.table("outcomes")
            sets = session.output / "sets"
            samples = {name: read_table(samples_path(sets / name), SAMPLES) for name in session.config.encode.sets}
        else:
            say("report: the sets were not packed from these decisions; run all phases to pack them")
        counted = funnel.build(tables, samples, {name: admission_of(name) for name in samples})
        folder = session.output / "report"
        funnel.write(folder, counted)
        report.write(folder, tables=tables, funnel=counted, settings=session.config.decide)
        print(funnel.render(counted), end="", flush=True)
        funnel.check(counted)
