"""Ways to break a plan, each at a random place and each with the rule that must name it; and legal changes, which no rule may name.

A damage changes the opened tables and returns the name of the rule that it breaks; all hashes are then made to fit. A file damage changes files after
that. Used by `benchmarks/plan_mutations.py` and by the tests.
"""

from __future__ import annotations

import numpy as np

import mutations.claims
import mutations.lane_reads
import mutations.ledgers
import mutations.legal_changes
import mutations.on_disk
import mutations.stated
import mutations.uses  # noqa: F401
from mutations.opened import NoPlaceError, OpenPlan
from mutations.places import DAMAGES, FILE_DAMAGES, LEGAL_CHANGES

__all__ = ["KINDS", "LEGAL_CHANGES", "NoPlaceError", "OpenPlan", "apply_damage"]

KINDS = (*DAMAGES, *FILE_DAMAGES)
"""Names of all damages."""


def apply_damage(name: str, plan: OpenPlan, rng: np.random.Generator) -> str:
    """Break the plan on disk by the damage of this name; returns the rule that must be named."""
    if name in DAMAGES:
        rule = DAMAGES[name](plan, rng)
        plan.save()
        return rule
    plan.save()
    return FILE_DAMAGES[name](plan, rng)
