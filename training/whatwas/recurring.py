"""What the steps that stand out have in common: clips and sources that come back in them more often than chance would have it.

Expected by chance: a clip that is in m of the T trained steps is in K m / T of any K of them. Sources are told when several of their clips share in
it, without such a number. Price: every lane's table is gone through once for the m.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from training.whatwas.clip_uses import uses_of_clips
from training.whatwas.records import StepRecord
from training.whatwas.run_folder import RunFolder

__all__ = ["Recurring", "recurring"]


@dataclass(frozen=True, kw_only=True)
class Recurring:
    """A clip or a source that several of the steps have."""

    kind: Literal["clip", "source"]
    name: str
    """Clip id, or the source's content hash."""
    steps: tuple[int, ...]
    """Those of the steps asked about that have it."""
    steps_in_run: int | None
    """All trained steps that have it; None for sources."""
    expected: float | None
    """Number of the steps that would have it by chance; None for sources."""


def recurring(run: RunFolder, records: Sequence[StepRecord], trained: Collection[int]) -> list[Recurring]:
    """Clips, then sources of several clips, that stand in two of the records or more; first those that are in most, then those least expected."""
    clips = _steps_by(records, "clip_id")
    uses = uses_of_clips(run, clips) if clips else {}
    found = []
    for name, steps in clips.items():
        count = len({use.step for use in uses[name] if use.was_there and use.step in trained} | set(steps))
        expected = len(records) * count / max(1, len(trained))
        found.append(Recurring(kind="clip", name=name, steps=steps, steps_in_run=count, expected=expected))
    found.sort(key=lambda one: (-len(one.steps), one.expected, one.name))
    sources = [
        Recurring(kind="source", name=name, steps=steps, steps_in_run=None, expected=None)
        for name, steps in sorted(_steps_by(records, "source").items(), key=lambda item: (-len(item[1]), item[0]))
        if len({clip.clip_id for record in records for clip in record.clips if clip.source == name}) > 1
    ]
    return found + sources


def _steps_by(records: Sequence[StepRecord], field: Literal["clip_id", "source"]) -> dict[str, tuple[int, ...]]:
    """Each value that two records or more have, with their steps."""
    found: dict[str, set[int]] = {}
    for record in records:
        for clip in record.clips:
            found.setdefault(clip.clip_id if field == "clip_id" else clip.source, set()).add(record.step)
    return {name: tuple(sorted(steps)) for name, steps in found.items() if len(steps) > 1}
