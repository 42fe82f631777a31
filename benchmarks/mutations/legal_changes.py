"""Legal changes: after each, every rule still holds."""

from __future__ import annotations

import numpy as np

from mutations.opened import SIDES, NoPlaceError, OpenPlan, Place
from mutations.places import (
    legal,
    pick,
    place_of,
    rows_alike,
    shuffled,
    sides_of,
)

__all__ = [
    "drop_a_spare",
    "read_a_row_earlier",
    "repeat_a_clip",
    "reverse_a_batch",
    "shuffle_the_ledger",
    "split_a_read",
    "swap_neighbouring_rows",
    "swap_read_clips",
]


@legal
def reverse_a_batch(plan: OpenPlan, rng: np.random.Generator) -> None:
    """The order within a micro-batch is free."""
    lane, row, _ = pick(rng, plan.clips())
    plan.lane(lane)[row]["clips"].reverse()


@legal
def shuffle_the_ledger(plan: OpenPlan, rng: np.random.Generator) -> None:
    """So is the order of the ledger."""
    plan.tables["ledger"] = shuffled(rng, plan.tables["ledger"])


@legal
def drop_a_spare(plan: OpenPlan, rng: np.random.Generator) -> None:
    """A plan may have fewer spares."""
    spares = plan.tables["spares"]
    spares.pop(pick(rng, range(len(spares))))


@legal
def swap_read_clips(plan: OpenPlan, rng: np.random.Generator) -> None:
    """Two clips of one bucket, both read before the earlier of their rows, change places."""
    for lane, row, index in shuffled(rng, plan.clips()):
        rows = plan.lane(lane)
        epoch, read = rows[row]["epoch"], set()
        for earlier in rows[: row + 1]:
            if earlier["epoch"] == epoch:
                read |= {place for item in earlier["reads"] for place in plan.clips_of_read(item)}
        mine = rows[row]["clips"][index]
        for later in range(row + 1, len(rows)):
            theirs = rows[later]
            if theirs["epoch"] != epoch or sides_of(theirs) != sides_of(rows[row]):
                continue
            uses = plan.uses(epoch)
            for at, clip in enumerate(theirs["clips"]):
                if place_of(clip) in read and uses[place_of(clip)] == uses[place_of(mine)] == 1:
                    rows[row]["clips"][index], theirs["clips"][at] = clip, mine
                    plan.refit()
                    return
    raise NoPlaceError("no two clips could change places")


@legal
def split_a_read(plan: OpenPlan, rng: np.random.Generator) -> None:
    """A read of several samples becomes two."""
    for lane, row, index in shuffled(rng, plan.reads()):
        reads = plan.lane(lane)[row]["reads"]
        places = plan.clips_of_read(reads[index])
        if len(places) > 1:
            at = int(rng.integers(1, len(places)))
            reads[index : index + 1] = plan.runs(places[:at]) + plan.runs(places[at:])
            plan.refit()
            return
    raise NoPlaceError("every read is of one sample")


@legal
def read_a_row_earlier(plan: OpenPlan, rng: np.random.Generator) -> None:
    """The reads of a row come a row earlier, if the caps allow."""
    for lane, row, _ in shuffled(rng, plan.reads()):
        rows = plan.lane(lane)
        if row and rows[row - 1]["epoch"] == rows[row]["epoch"]:
            rows[row - 1]["reads"] += rows[row]["reads"]
            rows[row]["reads"] = []
            plan.refit()
            return
    raise NoPlaceError("every lane reads all of an epoch at its start")


@legal
def swap_neighbouring_rows(plan: OpenPlan, rng: np.random.Generator) -> None:
    """Two rows change places on all lanes, their reads before both."""
    rows = plan.tables["rows"]
    row = int(rng.integers(len(rows) - 1))
    if rows[row]["epoch"] != rows[row + 1]["epoch"] or plan.meta["max_uses_per_epoch"] > 1:
        raise NoPlaceError("the rows are of two epochs, or a clip could come twice in a step")
    for key in ("tier", "predicted_seconds"):
        rows[row][key], rows[row + 1][key] = rows[row + 1][key], rows[row][key]
    for lane in range(plan.num_lanes):
        one, other = plan.lane(lane)[row : row + 2]
        for key in (*SIDES, "clips"):
            one[key], other[key] = other[key], one[key]
        one["reads"] += other["reads"]
        other["reads"] = []
    plan.refit()


@legal
def repeat_a_clip(plan: OpenPlan, rng: np.random.Generator) -> None:
    """A clip comes again in place of another one, which is left over; the ledger says both, and plan.json allows it."""
    rows, first, later = rows_alike(plan, rng)
    epoch = rows[first]["epoch"]
    uses = plan.uses(epoch)
    index = int(rng.integers(len(rows[later]["clips"])))
    again, dropped = pick(rng, rows[first]["clips"]), place_of(rows[later]["clips"][index])
    known = {(row["epoch"], row["shard"], row["ordinal"]) for row in plan.tables["ledger"]}
    if (
        uses[place_of(again)] != 1
        or uses[dropped] != 1
        or (epoch, *place_of(again)) in known
        or (epoch, *dropped) in known
    ):
        raise NoPlaceError("one of them is repeated already")
    rows[later]["clips"][index] = dict(again)
    for row in rows:
        if row["epoch"] == epoch:
            row["reads"] = [
                run for read in row["reads"] for run in _runs_without(plan, plan.clips_of_read(read), dropped)
            ]
    plan.tables["ledger"] += [
        plan.ledger_row(dropped, epoch, "left_over"),
        plan.ledger_row(place_of(again), epoch, "repeated"),
    ]
    most = max(2, plan.meta["max_uses_per_epoch"])
    plan.meta["max_uses_per_epoch"] = most
    plan.meta["config"] |= {"left_over": "repeat", "repeat_at_most": most}
    plan.refit()


def _runs_without(plan: OpenPlan, places: list[Place], dropped: Place) -> list[dict[str, int]]:
    return plan.runs([place for place in places if place != dropped])
