"""Registries of changes to an opened plan, and random places to make them at. A change that has no place raises NoPlaceError."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

from mutations.opened import SIDES, NoPlaceError, OpenPlan, Place

__all__ = [
    "DAMAGES",
    "FILE_DAMAGES",
    "LEGAL_CHANGES",
    "OUT",
    "bucket_of",
    "clip_at",
    "damage",
    "file_damage",
    "legal",
    "pick",
    "place_of",
    "rows_alike",
    "shuffled",
    "sides_of",
]

T = TypeVar("T")
Change = Callable[[OpenPlan, np.random.Generator], str]
DAMAGES: dict[str, Change] = {}
"""Name to a change of the tables; it returns the rule that it breaks."""
FILE_DAMAGES: dict[str, Change] = {}
"""Name to a change of the files, made after hashes fit."""
LEGAL_CHANGES: dict[str, Callable[[OpenPlan, np.random.Generator], None]] = {}
"""Name to a change after which every rule still holds."""
OUT = ("left_over", "carried")
"""Events of the ledger of clips that are not used."""


def damage(change: Change) -> Change:
    DAMAGES[change.__name__] = change
    return change


def file_damage(change: Change) -> Change:
    FILE_DAMAGES[change.__name__] = change
    return change


def legal(change: Callable[[OpenPlan, np.random.Generator], None]) -> Callable[[OpenPlan, np.random.Generator], None]:
    LEGAL_CHANGES[change.__name__] = change
    return change


def pick(rng: np.random.Generator, items: Iterable[T]) -> T:
    listed = list(items)
    if not listed:
        raise NoPlaceError("no such place")
    return listed[int(rng.integers(len(listed)))]


def shuffled(rng: np.random.Generator, items: Iterable[T]) -> list[T]:
    listed = list(items)
    return [listed[index] for index in rng.permutation(len(listed)).tolist()]


def place_of(clip: dict[str, int]) -> Place:
    return clip["shard"], clip["ordinal"]


def clip_at(place: Place) -> dict[str, int]:
    return {"shard": int(place[0]), "ordinal": int(place[1])}


def sides_of(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(row[key] for key in SIDES)


def bucket_of(row: dict[str, Any]) -> str:
    return "x".join(map(str, sides_of(row)))


def rows_alike(
    plan: OpenPlan, rng: np.random.Generator, *, same_step: bool = False
) -> tuple[list[dict[str, Any]], int, int]:
    """Two rows of one lane and epoch, of one bucket, in different steps unless `same_step`; the earlier one first."""
    for lane, first, _ in shuffled(rng, plan.clips()):
        rows = plan.lane(lane)
        for later in range(first + 1, len(rows)):
            one, other = rows[first], rows[later]
            if (
                one["epoch"] == other["epoch"]
                and sides_of(one) == sides_of(other)
                and (same_step or one["step"] != other["step"])
            ):
                return rows, first, later
    raise NoPlaceError("no lane has two rows of one bucket in an epoch")
