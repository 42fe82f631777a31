"""What damage leaves of the shots."""

from __future__ import annotations

from collections.abc import Sequence

from curation.analysis.shots import Span

__all__ = ["around_damage"]


def around_damage(shots: Sequence[Span], breaks: Sequence[tuple[int, int | None]], guard_ticks: int) -> list[Span]:
    """Shots that ended early enough before each break, and what begins after it.

    `breaks`: (tick at which whole pictures end, tick at which they go on, if they do). The shot that a break lies in loses all that comes
    before, since nothing shows where it would have ended: `around_damage([Span(0, 100)], [(40, 44)], 24)` is [44, 100).
    """
    kept = list(shots)
    for at, resumes in breaks:
        after: list[Span] = []
        for shot in kept:
            if shot.end <= at - guard_ticks:
                after.append(shot)
            elif resumes is not None and shot.end > resumes:
                after.append(shot if shot.first >= resumes else Span(resumes, shot.end))
        kept = after
    return kept
