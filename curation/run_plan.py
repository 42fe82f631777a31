"""What a run would do, for `--dry-run`: units that are committed and units that are to do, phase by phase; nothing is run.

A phase can be counted when what it reads is there, so on a new output only `analyze` can. Price: as every command, it hashes sources that it has
not seen before.
"""

from __future__ import annotations

from collections.abc import Sequence

from curation.encode_units import encode_units
from curation.session import Session
from curation.survivors import caption_units

__all__ = ["plan_lines"]


def plan_lines(session: Session, phases: Sequence[str]) -> list[str]:
    """A line for each phase that has units."""
    lines = []
    if "analyze" in phases:
        keys = [session.inventory.key_of[request.uri] for request in session.inventory.by_content().values()]
        analyses = _open(session, "analyze", keys)
        lines.append(_line("analyze", "sources", len(keys), analyses))
        if analyses:
            return [*lines, *_unknown(phases, "caption", "analyze")]
    if "caption" in phases or "encode" in phases:
        if not _written(session, "clips", "pairs"):
            return [*lines, *_unknown(phases, "caption", "match")]
        keys = [key for key, _ in caption_units(session).values()]
        captions = _open(session, "caption", keys)
        if "caption" in phases:
            lines.append(_line("caption", "sources with kept clips", len(keys), captions))
        if captions or not _written(session, "decisions"):
            return [*lines, *_unknown(phases, "encode", "caption")]
    if "encode" in phases:
        units = encode_units(session)
        lines.append(_line("encode", "sources with kept clips", len(units), sum(bool(unit["parts"]) for unit in units)))
    return [*lines, *_unknown(phases, "pack", "encode")]


def _written(session: Session, *names: str) -> bool:
    return all(session.has_table(name) for name in names)


def _open(session: Session, group: str, keys: Sequence[str]) -> int:
    return sum(not session.commits.is_committed(group, key) for key in keys)


def _line(phase: str, what: str, count: int, to_do: int) -> str:
    return f"{phase}: {to_do} of {count} {what} to do, {count - to_do} done before"


def _unknown(phases: Sequence[str], first: str, after: str) -> list[str]:
    """Phases from `first` on whose units are known later."""
    later = ("caption", "encode", "pack")
    names = [name for name in later[later.index(first) :] if name in phases]
    return [f"{', '.join(names)}: units are known after {after}"] if names else []
