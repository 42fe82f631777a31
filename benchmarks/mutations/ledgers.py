"""Damage to the ledger, the spares and the link to a continued plan."""

from __future__ import annotations

from typing import Any

import numpy as np

from mutations.opened import NoPlaceError, OpenPlan
from mutations.places import (
    OUT,
    clip_at,
    damage,
    pick,
    shuffled,
    sides_of,
)

__all__ = [
    "begins_late_without_a_parent",
    "ledger_row_added",
    "ledger_row_doubled",
    "ledger_row_removed",
    "repeat_not_in_the_ledger",
    "repeats_forbidden",
    "spare_that_does_not_fit",
    "spare_that_is_always_used",
    "used_by_the_parent",
    "wrong_event",
    "wrong_ledger_facts",
    "wrong_link",
]


def _ledger_rows(plan: OpenPlan, events: tuple[str, ...]) -> list[int]:
    return [index for index, row in enumerate(plan.tables["ledger"]) if row["event"] in events]


@damage
def ledger_row_removed(plan: OpenPlan, rng: np.random.Generator) -> str:
    """An unused clip is not in the ledger."""
    plan.tables["ledger"].pop(pick(rng, _ledger_rows(plan, OUT)))
    return "ledger"


@damage
def ledger_row_added(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A used clip is in the ledger as well."""
    epoch = pick(rng, plan.epochs())
    place = pick(rng, sorted(plan.uses(epoch)))
    plan.tables["ledger"].append(plan.ledger_row(place, epoch, pick(rng, OUT)))
    return "ledger"


@damage
def ledger_row_doubled(plan: OpenPlan, rng: np.random.Generator) -> str:
    """An unused clip is in the ledger twice."""
    rows = plan.tables["ledger"]
    rows.append(dict(rows[pick(rng, _ledger_rows(plan, OUT))]))
    return "ledger"


@damage
def wrong_event(plan: OpenPlan, rng: np.random.Generator) -> str:
    """An event that is none, or a repeat that was not."""
    plan.tables["ledger"][pick(rng, _ledger_rows(plan, OUT))]["event"] = pick(rng, ["lost", "repeated"])
    return "ledger"


@damage
def wrong_ledger_facts(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A row of the ledger has a fact of another clip."""
    row = pick(rng, plan.tables["ledger"])
    key = pick(rng, ["clip_id", "frames", "ordinal", "epoch"])
    row[key] = "0" * 24 if key == "clip_id" else row[key] + 1_000
    return "ledger"


@damage
def repeat_not_in_the_ledger(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A further use is not in the ledger."""
    plan.tables["ledger"].pop(pick(rng, _ledger_rows(plan, ("repeated",))))
    return "once_per_epoch"


@damage
def repeats_forbidden(plan: OpenPlan, rng: np.random.Generator) -> str:
    """plan.json allows one use, the plan has more."""
    pick(rng, _ledger_rows(plan, ("repeated",)))
    plan.meta["max_uses_per_epoch"] = 1
    return "once_per_epoch"


@damage
def spare_that_is_always_used(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A spare that every epoch uses anyway."""
    spare = pick(rng, plan.tables["spares"])
    used = [set(plan.uses(epoch)) for epoch in plan.epochs()]
    fits = [place for place in sorted(set.intersection(*used)) if sides_of(plan.facts[place]) == sides_of(spare)]
    spare |= clip_at(pick(rng, fits))
    return "spares"


@damage
def spare_that_does_not_fit(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A spare of another size than the bucket."""
    spare = pick(rng, plan.tables["spares"])
    spare["height"], spare["width"] = spare["width"] + 16, spare["height"]
    return "spares"


def _continues(plan: OpenPlan) -> dict[str, Any]:
    if plan.meta["continues"] is None:
        raise NoPlaceError("the plan continues none")
    return dict(plan.meta["continues"])


@damage
def wrong_link(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Hash, step or lanes of the plan that is continued are off."""
    link = _continues(plan)
    key = pick(rng, ["plan_hash", "from_step", "num_lanes"])
    plan.meta["continues"] = link | {key: "f" * 64 if key == "plan_hash" else link[key] + 1}
    return "continues"


@damage
def begins_late_without_a_parent(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A plan that begins in the middle says that it continues none."""
    _continues(plan)
    plan.meta["continues"] = None
    return "continues"


@damage
def used_by_the_parent(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A clip that the continued plan used in the epoch comes again, read by this plan as it should be."""
    _continues(plan)
    parent = OpenPlan.open(plan.parents[-1], plan.samples)
    epoch, step = plan.meta["first_epoch"], plan.meta["first_step"]
    for lane, row, index in shuffled(rng, parent.clips()):
        theirs = parent.lane(lane)[row]
        if theirs["epoch"] != epoch or theirs["step"] >= step:
            continue
        for mine in plan.lane(lane):
            if mine["epoch"] == epoch and sides_of(mine) == sides_of(theirs):
                mine["clips"][0] = dict(theirs["clips"][index])
                return "once_per_epoch"
    raise NoPlaceError("the continued plan used nothing of this epoch")
