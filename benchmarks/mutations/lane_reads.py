"""Damage to what the lanes read, to the peaks that plan.json gives, and to the caps."""

from __future__ import annotations

import numpy as np

from mutations.opened import NoPlaceError, OpenPlan
from mutations.places import (
    damage,
    pick,
    place_of,
    shuffled,
)

__all__ = [
    "cut_read",
    "never_read",
    "over_the_byte_cap",
    "over_the_clip_cap",
    "over_the_open_cap",
    "read_after_use",
    "read_for_nothing",
    "read_too_early",
    "read_twice",
    "reverse_reads",
    "split_a_tar",
    "wrong_peak_bytes",
    "wrong_peak_clips",
    "wrong_peak_open",
]


@damage
def reverse_reads(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Two reads of one shard change places."""
    for lane, row, index in shuffled(rng, plan.reads()):
        one = plan.lane(lane)[row]
        for later in range(row, len(plan.lane(lane))):
            other = plan.lane(lane)[later]
            if other["epoch"] != one["epoch"]:
                break
            for at, read in enumerate(other["reads"]):
                if (later, at) > (row, index) and read["shard"] == one["reads"][index]["shard"]:
                    one["reads"][index], other["reads"][at] = read, one["reads"][index]
                    return "reads_forward"
    raise NoPlaceError("no lane reads a shard in two pieces")


@damage
def read_after_use(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A read moves behind the first use of one of its clips."""
    for lane, row, index in shuffled(rng, plan.reads()):
        rows = plan.lane(lane)
        clips = set(plan.clips_of_read(rows[row]["reads"][index]))
        for use in range(row, len(rows) - 1):
            if rows[use + 1]["epoch"] != rows[row]["epoch"]:
                break
            if clips & {place_of(clip) for clip in rows[use]["clips"]}:
                rows[use + 1]["reads"].insert(0, rows[row]["reads"].pop(index))
                return "read_before_use"
    raise NoPlaceError("every read is for the last row")


@damage
def never_read(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A read is left out."""
    lane, row, index = pick(rng, plan.reads())
    plan.lane(lane)[row]["reads"].pop(index)
    return "read_before_use"


@damage
def read_too_early(plan: OpenPlan, rng: np.random.Generator) -> str:
    """All reads of an epoch come before its first row: legal, but for the peaks that plan.json gives."""
    for lane, epoch in shuffled(rng, [(lane, epoch) for lane in range(plan.num_lanes) for epoch in plan.epochs()]):
        rows = [row for row in plan.lane(lane) if row["epoch"] == epoch]
        rows[0]["reads"] = [read for row in rows for read in row["reads"]]
        for row in rows[1:]:
            row["reads"] = []
        if plan.peaks(lane)[0] != plan.meta["peak_buffer_bytes"][lane]:
            return "peak_buffer"
    raise NoPlaceError("every lane reads all of an epoch at its start")


@damage
def read_twice(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A read is made again by the next lane."""
    lane, row, index = pick(rng, plan.reads())
    read = dict(plan.lane(lane)[row]["reads"][index])
    plan.lane((lane + 1) % plan.num_lanes)[row]["reads"].append(read)
    return "reads_once"


@damage
def read_for_nothing(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A left-over clip is read."""
    epoch, place = pick(rng, [(epoch, place) for epoch in plan.epochs() for place in plan.left_over(epoch)])
    rows = [row for row in plan.lane(int(rng.integers(plan.num_lanes))) if row["epoch"] == epoch]
    pick(rng, rows)["reads"].insert(0, plan.runs([place])[0])
    return "reads_used"


@damage
def cut_read(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A read stops inside a sample, or begins in one."""
    lane, row, index = pick(rng, plan.reads())
    read = plan.lane(lane)[row]["reads"][index]
    read["length"] -= 512
    if rng.integers(2):
        read["offset"] += 512
    return "reads_whole"


@damage
def split_a_tar(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A plan whose lanes share tars says that it is the paper's."""
    lanes = {
        (row["epoch"], read["shard"], lane)
        for lane in range(plan.num_lanes)
        for row in plan.lane(lane)
        for read in row["reads"]
    }
    if len({item[:2] for item in lanes}) == len(lanes):
        raise NoPlaceError("no tar is shared")
    plan.meta["policy"] = "paper"
    return "whole_tars"


@damage
def over_the_byte_cap(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The cap is a byte below the peak."""
    plan.meta["max_buffer_bytes"] = max(plan.meta["peak_buffer_bytes"]) - 1
    return "buffer_cap"


@damage
def over_the_clip_cap(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The cap is a clip below the peak."""
    plan.meta["max_buffer_clips"] = max(plan.peaks(lane)[1] for lane in range(plan.num_lanes)) - 1
    return "clips_cap"


@damage
def over_the_open_cap(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The cap is a shard below the peak."""
    plan.meta["max_open_shards"] = max(plan.peaks(lane)[2] for lane in range(plan.num_lanes)) - 1
    return "open_shards_cap"


def _wrong_peak(plan: OpenPlan, rng: np.random.Generator, name: str, rule: str) -> str:
    if not plan.meta[name]:
        raise NoPlaceError(f"the plan gives no {name}")
    plan.meta[name][int(rng.integers(plan.num_lanes))] += int(pick(rng, [-1, 1]))
    return rule


@damage
def wrong_peak_bytes(plan: OpenPlan, rng: np.random.Generator) -> str:
    """One byte off."""
    return _wrong_peak(plan, rng, "peak_buffer_bytes", "peak_buffer")


@damage
def wrong_peak_clips(plan: OpenPlan, rng: np.random.Generator) -> str:
    """One clip off."""
    return _wrong_peak(plan, rng, "peak_buffer_clips", "peak_clips")


@damage
def wrong_peak_open(plan: OpenPlan, rng: np.random.Generator) -> str:
    """One shard off."""
    return _wrong_peak(plan, rng, "peak_open_shards", "peak_open_shards")
