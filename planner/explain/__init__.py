"""`reelyard-plan explain`: what limits a plan, and what other settings would give; every suggestion carries a number that was computed for it.

Four chapters: clips left over, time, buffer, mixing. The numbers are of two kinds, and say so: exact ones from the plan's tables, and those of a
model (full rows for the used share, even steps for the waiting) whose value for the plan as it is stands beside them. Nothing is built again,
so a suggestion is a reason to try a setting, not a promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from planner.explain.buffer import buffer_lines
from planner.explain.facts import plan_facts
from planner.explain.idle import idle_lines
from planner.explain.mixing import mixing_lines
from planner.explain.share import share_lines
from schemas.plan import lanes_of_rank, read_plan_meta

__all__ = ["explain_lines"]


def explain_lines(plan: Path, samples: Sequence[Path], *, ranks: int | None = None) -> Iterator[str]:
    """All chapters, an empty line between them. `ranks` (null: one per lane) is for the chapter on time.

    Raises:
        PlanError: if the plan was changed, `ranks` does not divide its lanes, or the samples are not its own.
    """
    meta = read_plan_meta(plan)
    ranks = meta.num_lanes if ranks is None else ranks
    lanes_of_rank(0, ranks, meta.num_lanes)
    facts = plan_facts(plan, meta)
    yield f"plan {meta.plan_hash[:12]}: {meta.num_steps} steps x {meta.micro_per_step} rows on {meta.num_lanes} lanes, policy {meta.policy}"
    yield ""
    yield from share_lines(facts)
    yield ""
    yield from idle_lines(facts, ranks)
    yield ""
    yield from buffer_lines(facts, plan, samples)
    yield ""
    yield from mixing_lines(facts)
