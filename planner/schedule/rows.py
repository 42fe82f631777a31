"""Which bucket each lane runs in each row of an epoch.

Groups (a bucket under `uniform`, a cost tier under `tiers`) follow each other in low-discrepancy order: the i-th of n rows of a group stands where a
share (i + phase) / n of the group's weight lies behind it, so its rows are evenly spread under a weight that may change over the epoch (more
images first, say). Under `tiers` each lane deals its own buckets over the tier's rows in the same way, lanes with staggered phases, so that every
row has the tier's mix; compiled annealing then swaps rows within a lane where that brings the mix of steps nearer to that of the whole. When the
buffer cap asks for it, the order is bent towards the one in which lanes get their clips anyway (`follow`, 0 to 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.schedule.demand import Demand
from planner.schedule.kernels import kernel, new_state, random_below, random_unit
from planner.schedule.quotas import step_quotas

__all__ = ["Density", "Readiness", "lane_rows", "order_groups", "spread_buckets"]

_SWAPS_PER_MICRO_BATCH = 24
_NEAR_ROWS = 6
"""Rows of the tier over which a lane may move a micro-batch: far moves would undo the even demand of the lane."""
_HOTTEST, _COLDEST = 0.5, 0.01
"""Temperatures in units of the energy: squared deviations of counts over expected counts."""


@dataclass(frozen=True)
class Density:
    """Weight of a group over the epoch, constant between edges."""

    edges: np.ndarray
    """0, ..., 1."""
    weights: np.ndarray
    """One less than edges."""

    def places(self, count: int, phase: float) -> np.ndarray:
        """Where, in [0, 1], the shares (i + phase) / count of the weight are reached."""
        mass = np.concatenate([[0.0], np.cumsum(np.diff(self.edges) * self.weights)])
        return np.interp((np.arange(count) + phase) / count * mass[-1], mass, self.edges)


EVEN = Density(np.array([0.0, 1.0]), np.array([1.0]))


@dataclass(frozen=True)
class Readiness:
    """By lane and line: share of the lane's bytes that must be read for its first, second, ... micro-batch of the line."""

    reached: Sequence[Sequence[np.ndarray]]


def order_groups(
    demand: Demand,
    densities: Sequence[Density],
    follow: float,
    reached: Sequence[np.ndarray] | None,
    seed: Sequence[int],
) -> np.ndarray:
    """Group of each row. `reached[group]`: when the slowest lane has what the group's i-th row needs, for `follow` above 0."""
    keys, groups = [], []
    for group in np.flatnonzero(demand.rows_by_group).tolist():
        count = int(demand.rows_by_group[group])
        phase = float(np.random.default_rng([*seed, 6, group]).random())
        key = densities[group].places(count, phase)
        if follow and reached is not None:
            key = (1 - follow) * key + follow * reached[group]
        keys.append(key)
        groups.append(np.full(count, group, dtype=np.int16))
    return np.concatenate(groups)[np.argsort(np.concatenate(keys), kind="stable")]


def _even_groups(demand: Demand, densities: Sequence[Density], micro_per_step: int, seed: Sequence[int]) -> np.ndarray:
    """Group of each row where no weight changes: whole rows in every step, as even as they can be; in a step, in the order of the even places."""
    quotas = step_quotas(demand.rows_by_group, demand.num_rows // micro_per_step)
    places = order_groups(demand, densities, 0.0, None, seed)
    rank = np.empty(len(places), dtype=np.int64)
    for group in np.unique(places).tolist():
        rank[places == group] = np.repeat(np.arange(len(quotas)), quotas[:, group])
    return places[np.argsort(rank, kind="stable")]


def lane_rows(
    demand: Demand,
    group_of_line: np.ndarray,
    densities: Sequence[Density],
    follow: float,
    readiness: Readiness | None,
    micro_per_step: int,
    seed: Sequence[int],
) -> np.ndarray:
    """Line of the batch table for each (lane, row), int16."""
    lanes = len(demand.micro)
    within = {
        group: _deal_group(demand, np.flatnonzero(group_of_line == group), follow, readiness, seed)
        for group in np.flatnonzero(demand.rows_by_group).tolist()
    }
    slowest = None
    if follow:
        slowest = [within[group][1] if group in within else np.empty(0) for group in range(len(demand.rows_by_group))]
    if follow or any(len(density.weights) > 1 for density in densities):
        groups = order_groups(demand, densities, follow, slowest, seed)
    else:
        groups = _even_groups(demand, densities, micro_per_step, seed)
    result = np.empty((lanes, len(groups)), dtype=np.int16)
    for group, (lines, _) in within.items():
        result[:, groups == group] = lines
    return result


def _deal_group(
    demand: Demand, members: np.ndarray, follow: float, readiness: Readiness | None, seed: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """(lines of the group's rows by lane, share of its bytes that the slowest lane has to have read for each row)."""
    lanes = len(demand.micro)
    count = int(demand.micro[0, members].sum())
    lines = np.empty((lanes, count), dtype=np.int16)
    slowest = np.zeros(count)
    if len(members) == 1 and not follow:
        lines[:] = members[0]
        return lines, slowest
    start = np.random.default_rng([*seed, 9]).random(len(members))
    for lane in range(lanes):
        keys, names, needs = [], [], []
        for number, line in enumerate(members.tolist()):
            micro = int(demand.micro[lane, line])
            if not micro:
                continue
            phase = (start[number] + _van_der_corput(lane)) % 1.0
            key = (np.arange(micro) + phase) / micro
            if follow and readiness is not None:
                need = readiness.reached[lane][line]
                key = (1 - follow) * key + follow * need
                needs.append(need)
            keys.append(key)
            names.append(np.full(micro, line, dtype=np.int16))
        order = np.argsort(np.concatenate(keys), kind="stable")
        lines[lane] = np.concatenate(names)[order]
        if needs:
            slowest = np.maximum(slowest, np.maximum.accumulate(np.concatenate(needs)[order]))
    return lines, slowest


def _van_der_corput(index: int) -> float:
    """Base-2 digits of `index` mirrored at the point: 0, 1/2, 1/4, 3/4, ..."""
    value, share = 0.0, 0.5
    while index:
        value += share * (index & 1)
        index >>= 1
        share /= 2
    return value


def spread_buckets(
    rows: np.ndarray, group_of_line: np.ndarray, steps: np.ndarray, seed: Sequence[int]
) -> tuple[float, float]:
    """Swap near rows of one tier within lanes so that steps have the buckets of the whole; changes `rows`.

    Returns the energy before and after: sum over steps and lines of (count - expected)^2 / expected. The rows come back no worse.
    """
    lanes, num_rows = rows.shape
    lines = len(group_of_line)
    groups = group_of_line[rows[0]]
    by_group = np.argsort(groups, kind="stable")
    start = np.searchsorted(groups[by_group], np.arange(int(group_of_line.max()) + 2))
    counts = np.bincount(rows.ravel(), minlength=lines)
    moves = _SWAPS_PER_MICRO_BATCH * lanes * num_rows
    step = (steps - steps[0]).astype(np.int64)
    before = rows.copy()
    first, last = _spread(
        rows, by_group, start, groups.astype(np.int64), step, counts / counts.sum(), moves, new_state(*seed, 10)
    )
    if last > first:
        rows[:] = before
        last = first
    return float(first), float(last)


@kernel
def _spread(
    rows: np.ndarray,
    by_group: np.ndarray,
    start: np.ndarray,
    groups: np.ndarray,
    step: np.ndarray,
    mix: np.ndarray,
    moves: int,
    state: np.ndarray,
) -> Any:
    lanes, num_rows = rows.shape
    lines = len(mix)
    steps = step[num_rows - 1] + 1
    count = np.zeros((steps, lines), dtype=np.int64)
    size = np.zeros(steps, dtype=np.int64)
    for row in range(num_rows):
        size[step[row]] += lanes
        for lane in range(lanes):
            count[step[row], rows[lane, row]] += 1
    place_of = np.empty(num_rows, dtype=np.int64)
    for place in range(num_rows):
        place_of[by_group[place]] = place
    energy = 0.0
    for at in range(steps):
        for line in range(lines):
            if mix[line] > 0:
                energy += (count[at, line] - size[at] * mix[line]) ** 2 / (size[at] * mix[line])
    first = energy
    for move in range(moves):
        lane = random_below(state, lanes)
        row = random_below(state, num_rows)
        group = groups[row]
        place = place_of[row] + 1 + random_below(state, _NEAR_ROWS)
        if place >= start[group + 1]:
            continue
        other = by_group[place]
        one, two = rows[lane, row], rows[lane, other]
        here, there = step[row], step[other]
        if one == two or here == there:
            continue
        change = 0.0
        for at, out, into in ((here, one, two), (there, two, one)):
            expected_out, expected_in = size[at] * mix[out], size[at] * mix[into]
            change += (1 - 2 * (count[at, out] - expected_out)) / expected_out
            change += (1 + 2 * (count[at, into] - expected_in)) / expected_in
        heat = _HOTTEST * (_COLDEST / _HOTTEST) ** (move / moves)
        if change <= 0 or random_unit(state) < np.exp(-change / heat):
            rows[lane, row], rows[lane, other] = two, one
            count[here, one] -= 1
            count[here, two] += 1
            count[there, two] -= 1
            count[there, one] += 1
            energy += change
    return first, energy
