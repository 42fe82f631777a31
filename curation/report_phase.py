"""The report phase of the engine: the funnel with its identities checked, and the pages to look at, from the tables on disk.

Sets are counted only when they were packed from the decisions that are on disk now, so a changed threshold can be looked at before anything is
packed again.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from curation import funnel
from curation.config import admission_of
from curation.pack_phase import packed_decisions
from curation.report.page import render_report
from curation.session import Session
from curation.timings import TIMINGS
from schemas.command import say
from schemas.files import write_bytes
from schemas.hashing import table_hash
from schemas.shards import samples_path
from schemas.tables import OUTCOMES, SAMPLES, read_table

__all__ = ["report_phase", "run_tables"]

_TABLES = ("sources", "clips", "thumbnails", "pairs", "decisions")


def run_tables(session: Session) -> tuple[dict[str, pa.Table], dict[str, pa.Table]]:
    """The tables of the run as they lie on disk, and the samples of the sets that were packed from the decisions among them."""
    tables = {name: session.table(name) for name in _TABLES}
    if session.has_table("labels"):
        labels = session.table("labels")
        tables["labels"] = labels.filter(pc.is_in(labels["clip_id"], tables["clips"]["clip_id"].combine_chunks()))
    tables["outcomes"] = OUTCOMES.empty_table()
    samples: dict[str, pa.Table] = {}
    if packed_decisions(session) == table_hash(tables["decisions"]):
        tables["outcomes"] = session.table("outcomes")
        for name in session.config.encode.sets:
            file = samples_path(session.output / "sets" / name).name
            samples[name] = read_table(session.place.near(f"sets/{name}/{file}"), SAMPLES)
    return tables, samples


def report_phase(session: Session) -> None:
    """Write OUT/report/.

    Raises:
        DataError: the tables do not add up.
    """
    with session.watch.phase("report") as counts:
        counts["done"] = 1
        tables, samples = run_tables(session)
        if not samples:
            say("report: the sets were not packed from these decisions; run all phases to pack them")
        counted = funnel.build(tables, samples, {name: admission_of(name) for name in samples})
        folder = session.output / "report"
        funnel.write(folder, counted)
        files = render_report(
            tables=tables,
            samples=samples,
            funnel=counted,
            settings=session.config.decide,
            timings=_timings(session),
        )
        for name, content in files.items():
            write_bytes(folder / name, content)
        session.place.publish("report")
        print(funnel.render(counted), end="", flush=True)
        funnel.check(counted)


def _timings(session: Session) -> pa.Table:
    """Those of earlier commands and of this one so far."""
    path = session.place.near("timings.parquet")
    now = session.watch.table()
    return pa.concat_tables([read_table(path, TIMINGS), now]) if path.is_file() else now
