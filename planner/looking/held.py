"""What a lane holds: from the row that reads a clip until the end of the last row of the epoch that uses it, exactly as schemas.plan counts it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.looking.lane_arrays import LaneArrays
from planner.looking.places import SamplePlaces
from schemas.errors import PlanError

__all__ = ["Stays", "held_over_rows", "lane_stays"]


@dataclass(frozen=True)
class Stays:
    """One entry per clip and epoch of a lane, in reading order."""

    position: np.ndarray
    """Index into the samples."""
    read_row: np.ndarray
    last_row: np.ndarray
    """Last row that uses it; its bytes go at the end of it."""


def lane_stays(lane: LaneArrays, places: SamplePlaces) -> Stays:
    """When each clip of a lane comes and goes. Bytes that are read and never used do not count.

    Raises:
        PlanError: if the samples are others than the plan's, or a clip is used that was not read before.
    """
    read, brought_by = places.in_reads(lane.read_shard, lane.read_offset, lane.read_length)
    used = places.find(lane.clip_shard, lane.clip_ordinal)
    read_row = lane.read_row[brought_by]
    samples = np.int64(len(places.key))
    read_key = lane.epoch[read_row].astype(np.int64) * samples + read
    used_key = lane.epoch[lane.clip_row].astype(np.int64) * samples + used
    keys, first_use = np.unique(used_key, return_index=True)  # rows rise, so the first of its key is the first use
    last_row = lane.clip_row[::-1][np.unique(used_key[::-1], return_index=True)[1]]
    at = np.minimum(np.searchsorted(keys, read_key), max(0, len(keys) - 1))
    wanted = keys[at] == read_key if len(keys) else np.zeros(len(read_key), dtype=bool)
    late = read_row[wanted] > lane.clip_row[first_use[at[wanted]]]
    if late.any() or len(np.unique(read_key[wanted])) != len(keys):
        raise PlanError(
            f"lane {lane.lane} uses clips that it has not read before; run `reelyard-plan verify` on the plan"
        )
    return Stays(position=read[wanted], read_row=read_row[wanted], last_row=last_row[at[wanted]])


def held_over_rows(stays: Stays, weights: np.ndarray, rows: int) -> np.ndarray:
    """Sum of `weights` (bytes, or ones) of the clips held in each row; the row's own clips count."""
    come = np.bincount(stays.read_row, weights, minlength=rows)
    go = np.bincount(stays.last_row, weights, minlength=rows)
    return np.cumsum(come) - np.concatenate([[0], np.cumsum(go)[:-1]])
