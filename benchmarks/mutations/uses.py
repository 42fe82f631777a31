"""Damage to what the steps use."""

from __future__ import annotations

import numpy as np

from mutations.opened import SIDES, NoPlaceError, OpenPlan, Place
from mutations.places import (
    bucket_of,
    clip_at,
    damage,
    pick,
    place_of,
    rows_alike,
    shuffled,
    sides_of,
)

__all__ = [
    "add_clip",
    "against_a_rule",
    "drop_clip",
    "duplicate_across_lanes",
    "duplicate_clip",
    "duplicate_in_batch",
    "longer_bucket",
    "not_admitted",
    "step_over_two_epochs",
    "swap_between_lanes",
    "swap_sizes",
    "unknown_clip",
    "use_a_left_over_clip",
    "wrong_bucket",
]


@damage
def drop_clip(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A micro-batch loses a clip."""
    lane, row, index = pick(rng, plan.clips())
    plan.lane(lane)[row]["clips"].pop(index)
    return "batch_sizes"


@damage
def add_clip(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A micro-batch gets a clip more."""
    lane, row, index = pick(rng, plan.clips())
    plan.lane(lane)[row]["clips"].append(dict(plan.lane(lane)[row]["clips"][index]))
    return "batch_sizes"


@damage
def duplicate_clip(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A clip takes the place of another one of its bucket in a later step."""
    rows, first, later = rows_alike(plan, rng)
    clips = rows[later]["clips"]
    clips[int(rng.integers(len(clips)))] = dict(pick(rng, rows[first]["clips"]))
    return "once_per_epoch"


@damage
def duplicate_in_batch(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A clip takes the place of its neighbour."""
    lane, row, index = pick(rng, (use for use in plan.clips() if len(plan.lane(use[0])[use[1]]["clips"]) > 1))
    clips = plan.lane(lane)[row]["clips"]
    clips[index] = dict(clips[index - 1])
    return "once_per_step"


@damage
def duplicate_across_lanes(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Two lanes use one clip in one step."""
    lane, row, index = pick(rng, plan.clips())
    step, bucket = plan.lane(lane)[row]["step"], sides_of(plan.lane(lane)[row])
    other = pick(
        rng,
        (
            use
            for use in plan.clips()
            if use[0] != lane
            and plan.lane(use[0])[use[1]]["step"] == step
            and sides_of(plan.lane(use[0])[use[1]]) == bucket
        ),
    )
    plan.lane(other[0])[other[1]]["clips"][other[2]] = dict(plan.lane(lane)[row]["clips"][index])
    return "once_per_step"


@damage
def step_over_two_epochs(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The first row of an epoch joins the last step of the one before, and a clip of that step comes again."""
    for lane in shuffled(rng, range(plan.num_lanes)):
        rows = plan.lane(lane)
        for index in range(1, len(rows)):
            if rows[index]["epoch"] == rows[index - 1]["epoch"]:
                continue
            step = rows[index - 1]["step"]
            for earlier in range(index):
                if rows[earlier]["step"] == step and sides_of(rows[earlier]) == sides_of(rows[index]):
                    for name in ("rows", *(f"lane-{number:04d}" for number in range(plan.num_lanes))):
                        plan.tables[name][index]["step"] = step
                    rows[index]["clips"][0] = dict(rows[earlier]["clips"][0])
                    return "once_per_step"
    raise NoPlaceError("no bucket is in a last step and in the row after it")


@damage
def use_a_left_over_clip(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A clip gives way to one that the ledger says is left over."""
    for epoch in shuffled(rng, plan.epochs()):
        for place in shuffled(rng, plan.left_over(epoch)):
            for lane, row, index in plan.clips():
                content = plan.lane(lane)[row]
                if content["epoch"] == epoch and sides_of(content) == sides_of(plan.facts[place]):
                    content["clips"][index] = clip_at(place)
                    return "ledger"
    raise NoPlaceError("nothing of a used bucket is left over")


@damage
def swap_between_lanes(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Two lanes exchange clips of a row, though each has read only its own."""
    lane, row, index = pick(rng, plan.clips())
    mine = plan.lane(lane)[row]
    other = pick(
        rng,
        (
            number
            for number in range(plan.num_lanes)
            if number != lane and sides_of(plan.lane(number)[row]) == sides_of(mine)
        ),
    )
    theirs = plan.lane(other)[row]
    at = int(rng.integers(len(theirs["clips"])))
    mine["clips"][index], theirs["clips"][at] = theirs["clips"][at], mine["clips"][index]
    return "read_before_use"


@damage
def wrong_bucket(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A lane says another bucket (under tiers: of another tier) than the row's."""
    tier = {entry["bucket"]: entry["tier"] for entry in plan.meta["batches"]}
    lane, row, _ = pick(rng, plan.clips())
    content = plan.lane(lane)[row]
    own = bucket_of(content)
    others = [name for name in tier if name != own and (plan.meta["policy"] != "tiers" or tier[name] != tier[own])]
    content |= dict(zip(SIDES, map(int, pick(rng, others).split("x")), strict=True))
    return "row_policy"


@damage
def longer_bucket(plan: OpenPlan, rng: np.random.Generator) -> str:
    """All lanes of a row say a bucket that is longer than a clip in it."""
    buckets = [tuple(map(int, entry["bucket"].split("x"))) for entry in plan.meta["batches"]]
    for lane, row, index in shuffled(rng, plan.clips()):
        content = plan.lane(lane)[row]
        own = sides_of(plan.facts[place_of(content["clips"][index])])
        longer = [bucket for bucket in buckets if bucket[0] > own[0] and bucket[1:] == own[1:]]
        if longer:
            for number in range(plan.num_lanes):
                plan.lane(number)[row] |= dict(zip(SIDES, pick(rng, longer), strict=True))
            return "one_shape"
    raise NoPlaceError("every clip is of the longest bucket")


@damage
def swap_sizes(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Two rows of a lane exchange clips of different size."""
    lane, row, index = pick(rng, plan.clips())
    mine = plan.lane(lane)[row]
    other = pick(
        rng,
        (
            number
            for number, content in enumerate(plan.lane(lane))
            if content["epoch"] == mine["epoch"] and sides_of(content)[1:] != sides_of(mine)[1:]
        ),
    )
    theirs = plan.lane(lane)[other]
    mine["clips"][index], theirs["clips"][0] = theirs["clips"][0], mine["clips"][index]
    return "one_shape"


@damage
def unknown_clip(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A clip that no sample has."""
    lane, row, index = pick(rng, plan.clips())
    shard = plan.lane(lane)[row]["clips"][index]["shard"]
    plan.lane(lane)[row]["clips"][index] = pick(
        rng, [{"shard": shard, "ordinal": 100_000}, {"shard": 9_999, "ordinal": 0}, {"shard": shard, "ordinal": -1}]
    )
    return "clips_known"


@damage
def not_admitted(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A clip of another admission level."""
    level = plan.meta["admission"]
    _replace_by(plan, rng, [place for place, fact in plan.facts.items() if level not in fact["admissions"]])
    return "clips_admitted"


@damage
def against_a_rule(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A clip of the level that a rule keeps out: neither used nor in the ledger."""
    if not plan.meta["rules"]:
        raise NoPlaceError("the plan has no rules")
    level = plan.meta["admission"]
    known = {place for epoch in plan.epochs() for place in (*plan.uses(epoch), *plan.left_over(epoch))}
    _replace_by(
        plan, rng, [place for place, fact in plan.facts.items() if level in fact["admissions"] and place not in known]
    )
    return "admission_rules"


def _replace_by(plan: OpenPlan, rng: np.random.Generator, places: list[Place]) -> None:
    for place in shuffled(rng, places):
        for lane, row, index in shuffled(rng, plan.clips()):
            if sides_of(plan.lane(lane)[row]) == sides_of(plan.facts[place]):
                plan.lane(lane)[row]["clips"][index] = clip_at(place)
                return
    raise NoPlaceError("no such clip fits a bucket")
