"""One curation command from config to summary: preflight, the phases in order, timings, and where things are.

The output folder is locked for the command; what a killed run left half-written is removed first. Price: one command per output at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing

from curation.caption_units import forget_failed
from curation.config import CurateConfig
from curation.decide import KEEP
from curation.engine import Engine
from curation.explain import explain
from curation.match_phase import match_phase
from curation.pack_phase import pack_phase
from curation.phases import analyze_phase, caption_phase, decide_phase, encode_phase
from curation.places import status_folder
from curation.preflight import preflight
from curation.report_phase import report_phase, run_tables
from curation.run_plan import plan_lines
from curation.run_status import Board
from curation.session import Session
from curation.what_if import what_if
from schemas.command import say

__all__ = ["curate", "explain_clip", "tell_what_if"]

_TIMINGS = "timings.parquet"
_GROUPS = ("analyze", "match", "caption", "pack")


def curate(
    config: CurateConfig, *, phases: Sequence[str], dry_run: bool = False, retry_quarantined: bool = False
) -> None:
    """Run phases of `PHASES` in the order given; with captions among them, decisions are written after the captions.

    Raises:
        PreflightError: something that the run needs is missing.
        UsageError: no sources, or another command holds the output.
    """
    for check in preflight(config, phases):
        say(f"preflight: {check.name}: {check.text}")
    if dry_run:
        session = Session(config, Engine(config))
        with closing(session.place):
            for line in plan_lines(session, phases):
                say(f"plan: {line}")
        say("preflight: everything is there; --dry-run stops here")
        return
    board = Board(status_folder(config))
    with ExitStack() as stack:
        engine = Engine(config, board)
        session = Session(config, engine)
        stack.callback(session.place.close)
        stack.enter_context(session.place.lock())
        stack.enter_context(engine)
        _sweep(session)
        if retry_quarantined:
            say(f"units to try again: {_forget_quarantined(session)}")
        try:
            with board.command(session.watch.run, phases):
                for phase in phases:
                    if phase == "decide" and "caption" in phases:
                        continue  # captions decide in memory for themselves, and the table is written after them
                    board.phase(phase)
                    _run(session, phase, alone=len(phases) == 1)
        finally:
            session.place.forget_attempts(session.run)
            session.watch.save(session.place.near(_TIMINGS))
            session.place.publish(_TIMINGS)
        _summary(session)


def explain_clip(config: CurateConfig, wanted: str) -> str:
    """The story of a clip or a source, from the tables on disk; writes nothing and needs no lock."""
    session = Session(config, Engine(config))
    with closing(session.place):
        tables, samples = run_tables(session)
    return explain(wanted, tables, samples, config.decide)


def tell_what_if(before: CurateConfig, after: CurateConfig) -> str:
    """How the decisions would change from one config to the other; writes nothing and needs no lock."""
    session = Session(before, Engine(before))
    with closing(session.place):
        tables, _ = run_tables(session)
    return what_if(
        tables["clips"], tables["pairs"], tables.get("labels"), before.decide, after.decide, session.published
    )


def _run(session: Session, phase: str, *, alone: bool) -> None:
    if phase == "analyze":
        analyze_phase(session)
    elif phase == "match":
        match_phase(session)
    elif phase == "decide":
        decide_phase(session, with_labels=True)
    elif phase == "caption":
        caption_phase(session)
        if not alone:
            decide_phase(session, with_labels=True)
    elif phase == "encode":
        encode_phase(session)
    elif phase == "pack":
        pack_phase(session)
    else:
        report_phase(session)


def _sweep(session: Session) -> None:
    """Remove what a killed run left under temporary names; the lock is ours, so nobody writes there."""
    count = session.commits.sweep() + session.cache.sweep() + session.place.sweep()
    if count:
        say(f"removed {count} temporary files of an interrupted run")
    again = session.commits.forget_marked() + session.cache.forget_marked()
    if again:
        say(f"units to try again, because their sources were gone or were being written to: {again}")


def _forget_quarantined(session: Session) -> int:
    count = sum(session.commits.forget_quarantined(group) for group in _GROUPS) + forget_failed(session.commits)
    sets = (f"latents/{name}" for name in session.config.encode.sets)
    return count + sum(session.cache.forget_quarantined(group) for group in ("text", *sets))


def _summary(session: Session) -> None:
    """What there is now, where it is, and how long each phase took."""
    for name, text in _facts(session):
        say(f"{name:10} {text}")
    for phase, seconds in session.watch.seconds_by_phase.items():
        say(f"{'seconds':10} {phase} {seconds:.1f}")


def _facts(session: Session) -> list[tuple[str, str]]:
    place = session.place
    facts: list[tuple[str, str]] = []
    if session.has_table("sources"):
        statuses = Counter(session.table("sources")["status"].to_pylist())
        facts.append(("sources", ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))))
    if session.has_table("decisions"):
        decisions = session.table("decisions").select(["admission", "decision"]).to_pylist()
        kept = Counter(row["admission"] for row in decisions if row["decision"] == KEEP)
        every = Counter(row["admission"] for row in decisions)
        levels = session.config.decide.levels
        facts.append(("kept", ", ".join(f"{level} {kept[level]} of {every[level]}" for level in levels)))
    places = (("tables", "tables"), ("sets", "sets"), ("report", "report/index.html"), ("timings", _TIMINGS))
    return facts + [(name, f"{place.address}/{path}") for name, path in places if (place.folder / path).exists()]
