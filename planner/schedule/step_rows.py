"""Rows of a step put in order of cost: the same buckets in every step and on every lane, less waiting.

A step's mix says nothing of which of its rows holds what. If a tier has several rows in a step, the dear buckets of all lanes go into the same rows:
then only those wait for them. The least that a step's micro-batches of a tier can take is known (sort all, cut into rows of V); a lane that has
more dear ones in the step than those rows hold stands in the way, and exchanges one with another lane that gives it back in a near step:

    lane v: A in step s, B in step s'        lane v: B in s, A in s'
    lane u: B in step s, A in step s'   ->   lane u: A in s, B in s'

Counts by step and by lane stay as they are. Price: a lane's clips are needed up to `REACH` steps earlier or later than it was dealt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.schedule.kernels import kernel, new_state, random_below

__all__ = ["REACH", "StepOrder", "order_steps"]

REACH = 12
"""Steps, before and after, in which a partner for an exchange is looked for."""
_TRIES = 48
"""Exchanges tried for a lane that stands in the way."""
_ROUNDS = 4


@dataclass(frozen=True)
class StepOrder:
    """Sums of row maxima, in seconds."""

    before: float
    after: float
    bound: float
    """No order within the steps and tiers is below it, whatever the lanes."""


def order_steps(
    rows: np.ndarray, group_of_line: np.ndarray, step_of_row: np.ndarray, seconds: np.ndarray, seed: Sequence[int]
) -> StepOrder:
    """Exchange and sort in place; `rows` is (lanes, rows) of lines, every row of one group, `seconds` by line.

    The lines of a (lane, group) and of a (step, group) are the same multisets as before. Never worse than before.
    """
    num_rows = rows.shape[1]
    if not num_rows:
        return StepOrder(0.0, 0.0, 0.0)
    before = float(seconds[rows].max(axis=0).sum())
    groups = group_of_line[rows[0]]
    order = np.lexsort((np.arange(num_rows), step_of_row, groups))
    new_cell = np.diff(groups[order]) != 0
    new_cell |= np.diff(step_of_row[order]) != 0
    starts = np.concatenate([[0], np.flatnonzero(new_cell) + 1, [num_rows]]).astype(np.int64)
    group_of_cell = groups[order][starts[:-1]].astype(np.int64)
    step_of_cell = step_of_row[order][starts[:-1]].astype(np.int64)
    most = _cell_maxima(rows, order, starts, seconds)
    taken = rows[:, order]
    _exchange(taken, starts, group_of_cell, step_of_cell, seconds, most, new_state(*seed, 12))
    _sort_cells(taken, starts, seconds)
    after = float(seconds[taken].max(axis=0).sum())
    if after < before:
        rows[:, order] = taken
    return StepOrder(before, min(before, after), float(most.sum()))


@kernel
def _cell_maxima(rows: np.ndarray, order: np.ndarray, starts: np.ndarray, seconds: np.ndarray) -> Any:
    """By place in `order`: the dearest micro-batch of the m-th row of its cell, were all of the cell's sorted and cut into rows."""
    lanes = rows.shape[0]
    most = np.empty(len(order))
    for cell in range(len(starts) - 1):
        first, last = starts[cell], starts[cell + 1]
        costs = np.empty(lanes * (last - first))
        at = 0
        for place in range(first, last):
            for lane in range(lanes):
                costs[at] = seconds[rows[lane, order[place]]]
                at += 1
        costs = np.sort(costs)
        for number in range(last - first):
            most[first + number] = costs[len(costs) - 1 - number * lanes]
    return most


@kernel
def _excess(taken: np.ndarray, lane: int, first: int, last: int, seconds: np.ndarray, most: np.ndarray) -> Any:
    """Seconds by which a lane's sorted micro-batches stand above the rows they would go to."""
    total = 0.0
    for place in range(first, last):
        cost = seconds[taken[lane, place]]
        rank = 0
        for other in range(first, last):
            dearer = seconds[taken[lane, other]]
            if dearer > cost or (dearer == cost and other < place):
                rank += 1
        total += max(0.0, cost - most[first + rank])
    return total


@kernel
def _exchange(
    taken: np.ndarray,
    starts: np.ndarray,
    group_of_cell: np.ndarray,
    step_of_cell: np.ndarray,
    seconds: np.ndarray,
    most: np.ndarray,
    state: np.ndarray,
) -> None:
    lanes = taken.shape[0]
    cells = len(starts) - 1
    for _ in range(_ROUNDS):
        changed = False
        for cell in range(cells):
            first, last = starts[cell], starts[cell + 1]
            for lane in range(lanes):
                if last - first < 2 or _excess(taken, lane, first, last, seconds, most) <= 0.0:
                    continue
                for _ in range(_TRIES):
                    changed |= _try_one(taken, lane, cell, starts, group_of_cell, step_of_cell, seconds, most, state)
                    if _excess(taken, lane, first, last, seconds, most) <= 0.0:
                        break
        if not changed:
            break


@kernel
def _try_one(
    taken: np.ndarray,
    lane: int,
    cell: int,
    starts: np.ndarray,
    group_of_cell: np.ndarray,
    step_of_cell: np.ndarray,
    seconds: np.ndarray,
    most: np.ndarray,
    state: np.ndarray,
) -> Any:
    """One exchange with a random partner, if it lowers the excess of the four (lane, cell) that it touches."""
    lanes = taken.shape[0]
    first, last = starts[cell], starts[cell + 1]
    partner = random_below(state, lanes)
    here = first + random_below(state, last - first)
    there = first + random_below(state, last - first)
    dear, cheap = taken[lane, here], taken[partner, there]
    if partner == lane or seconds[dear] <= seconds[cheap]:
        return False
    local = _excess(taken, lane, first, last, seconds, most) + _excess(taken, partner, first, last, seconds, most)
    taken[lane, here], taken[partner, there] = cheap, dear
    gain = (
        local - _excess(taken, lane, first, last, seconds, most) - _excess(taken, partner, first, last, seconds, most)
    )
    if gain > 0.0:
        for side in range(2):
            other = cell
            while True:
                other += 1 - 2 * side
                if other < 0 or other >= len(starts) - 1 or group_of_cell[other] != group_of_cell[cell]:
                    break
                if abs(step_of_cell[other] - step_of_cell[cell]) > REACH:
                    break
                one, two = -1, -1
                for place in range(starts[other], starts[other + 1]):
                    if taken[lane, place] == cheap:
                        one = place
                    if taken[partner, place] == dear:
                        two = place
                if one < 0 or two < 0:
                    continue
                begin, end = starts[other], starts[other + 1]
                cost = -_excess(taken, lane, begin, end, seconds, most) - _excess(
                    taken, partner, begin, end, seconds, most
                )
                taken[lane, one], taken[partner, two] = dear, cheap
                cost += _excess(taken, lane, begin, end, seconds, most) + _excess(
                    taken, partner, begin, end, seconds, most
                )
                if cost < gain:
                    return True
                taken[lane, one], taken[partner, two] = cheap, dear
    taken[lane, here], taken[partner, there] = dear, cheap
    return False


@kernel
def _sort_cells(taken: np.ndarray, starts: np.ndarray, seconds: np.ndarray) -> None:
    """Within each cell, each lane's micro-batches from dear to cheap."""
    for cell in range(len(starts) - 1):
        for lane in range(taken.shape[0]):
            for place in range(starts[cell] + 1, starts[cell + 1]):
                line = taken[lane, place]
                at = place
                while at > starts[cell] and (
                    seconds[taken[lane, at - 1]] < seconds[line]
                    or (seconds[taken[lane, at - 1]] == seconds[line] and taken[lane, at - 1] > line)
                ):
                    taken[lane, at] = taken[lane, at - 1]
                    at -= 1
                taken[lane, at] = line
