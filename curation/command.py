"""One curation command from config to summary: preflight, the phases in order, timings, and where things are.

The output folder is locked for the command; what a killed run left half-written is removed first. Price: one command per output at a time.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from curation.caption_units import forget_failed
from curation.collect import table_path
from curation.commits import output_lock, sweep_folder
from curation.config import CurateConfig
from curation.decide import KEEP
from curation.engine import Engine
from curation.explain import explain
from curation.pack_phase import pack_phase
from curation.phases import analyze_phase, caption_phase, decide_phase, encode_phase, match_phase
from curation.preflight import preflight
from curation.report_phase import report_phase, run_tables
from curation.run_status import Board
from curation.session import Session
from curation.what_if import what_if
from schemas.command import say

__all__ = ["curate", "explain_clip", "tell_what_if"]

_GROUPS = ("analyze", "match", "caption", "pack")


def curate(
    config: CurateConfig, *, phases: Sequence[str], dry_run: bool = False, retry_quarantined: bool = False
) -> None:
    """Run phases of `PHASES` in the order given, with decisions before and after captions.

    Raises:
        PreflightError: something that the run needs is missing.
        UsageError: no sources, or another command holds the output.
    """
    for check in preflight(config, phases):
        say(f"preflight: {check.name}: {check.text}")
    if dry_run:
        say("preflight: everything is there; --dry-run stops here")
        return
    board = Board(config.output_path)
    with output_lock(config.output_path), Engine(config, board) as engine:
        session = Session(config, engine)
        _sweep(session)
        if retry_quarantined:
            say(f"units to try again: {_forget_quarantined(session)}")
        try:
            with board.command(session.watch.run, phases):
                for phase in phases:
                    board.phase(phase)
                    _run(session, phase, alone=len(phases) == 1)
        finally:
            shutil.rmtree(session.scratch, ignore_errors=True)
            session.watch.save(session.output / "timings.parquet")
        _summary(session)


def explain_clip(config: CurateConfig, wanted: str) -> str:
    """The story of a clip or a source, from the tables on disk; writes nothing and needs no lock."""
    tables, samples = run_tables(Session(config, Engine(config)))
    return explain(wanted, tables, samples, config.decide)


def tell_what_if(before: CurateConfig, after: CurateConfig) -> str:
    """How the decisions would change from one config to the other; writes nothing and needs no lock."""
    tables, _ = run_tables(Session(before, Engine(before)))
    return what_if(tables["clips"], tables["pairs"], tables.get("labels"), before.decide, after.decide)


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
    output = session.output
    count = session.commits.sweep() + session.cache.sweep()
    count += sum(sweep_folder(folder) for folder in (output, *(output / name for name in ("tables", "sets", "report"))))
    if count:
        say(f"removed {count} temporary files of an interrupted run")


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
    output = session.output
    facts: list[tuple[str, str]] = []
    if table_path(output, "sources").is_file():
        statuses = Counter(session.table("sources")["status"].to_pylist())
        facts.append(("sources", ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))))
    if table_path(output, "decisions").is_file():
        decisions = session.table("decisions").select(["admission", "decision"]).to_pylist()
        kept = Counter(row["admission"] for row in decisions if row["decision"] == KEEP)
        every = Counter(row["admission"] for row in decisions)
        levels = session.config.decide.levels
        facts.append(("kept", ", ".join(f"{level} {kept[level]} of {every[level]}" for level in levels)))
    places: list[tuple[str, Path]] = [("tables", output / "tables"), ("sets", output / "sets")]
    places += [("report", output / "report" / "index.html"), ("timings", output / "timings.parquet")]
    return facts + [(name, str(path)) for name, path in places if path.exists()]
