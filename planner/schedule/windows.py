"""The fine annealing: which clip of a lane is used in which step, window by window, in compiled code.

Rows, buckets and reads stand; two clips of one bucket on one lane change places. The energy has the terms of the coarse one where they are felt:
pairs of clips of one source in a step, domains of a step against the whole's, and bytes kept waiting longer. A clip moves to an earlier row only if
it is read by then, and a lane's buffer may grow in a window by no more than its headroom there, so no cap can break. Windows touch disjoint uses and
have random numbers of their own: they run on threads and give the same plan on any number of them. Each starts from the constructive order (reading
order) and is put back to it if its energy ends higher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.schedule.kernels import kernel, new_state, on_threads, random_below, random_unit

__all__ = ["WindowGain", "WindowProblem", "anneal_windows"]

_HOTTEST, _COLDEST = 1.0, 0.02
"""Temperatures; one pair of a source in a step counts 1."""
_DOMAIN_WEIGHT = 0.5
"""Of a step's chi-square over domains."""
_BUFFER_WEIGHT = 0.05
"""Of the bytes that wait longer, in mean clips x mean rows between swapped clips."""
_REACH = 64
"""Uses of the same bucket and lane, in order of rows, among which a partner is drawn."""


@dataclass(frozen=True)
class WindowProblem:
    """An epoch's uses, flat: lane by lane, row by row. `clip` is changed in place."""

    clip: np.ndarray
    """Number of the clip (int64), an index into `source`, `domain`, `size` and `read_row`."""
    lane_start: np.ndarray
    """First use of each lane; lanes + 1 entries."""
    row: np.ndarray
    """Row of each use, int32."""
    line: np.ndarray
    """Line of each use, int16."""
    step_of_row: np.ndarray
    source: np.ndarray
    domain: np.ndarray
    domain_mix: np.ndarray
    size: np.ndarray
    read_row: np.ndarray
    movable: np.ndarray
    """By clip: False for those that are used more than once."""
    held: np.ndarray
    """Bytes that each lane holds in each row, (lanes, rows)."""
    max_bytes: int


@dataclass(frozen=True)
class WindowGain:
    """Sums over all windows."""

    energy_before: float
    energy_after: float
    shared_before: int
    """Pairs of clips of one source in a step."""
    shared_after: int


def anneal_windows(
    problem: WindowProblem, window_steps: int, moves_per_clip: float, seed: tuple[int, ...]
) -> WindowGain:
    """Anneal each window; O(moves). The pairs of sources are counted also with no moves."""
    steps = problem.step_of_row - problem.step_of_row[0]
    num_windows = int(steps[-1]) // window_steps + 1
    lanes = len(problem.lane_start) - 1
    edges = np.searchsorted(steps, np.arange(num_windows + 1) * window_steps)
    first_use = np.empty((lanes, num_windows + 1), dtype=np.int64)
    for lane in range(lanes):
        own = slice(int(problem.lane_start[lane]), int(problem.lane_start[lane + 1]))
        first_use[lane] = own.start + np.searchsorted(problem.row[own], edges)

    def run(window: int) -> tuple[float, float, int, int]:
        begin, end = int(edges[window]), int(edges[window + 1])
        headroom = np.maximum(0, problem.max_bytes - problem.held[:, begin:end].max(axis=1, initial=0))
        uses = int((first_use[:, window + 1] - first_use[:, window]).sum())
        result: tuple[float, float, int, int] = _anneal(
            problem.clip,
            first_use[:, window].copy(),
            first_use[:, window + 1].copy(),
            problem.row,
            problem.line,
            problem.step_of_row,
            problem.source,
            problem.domain,
            problem.domain_mix,
            problem.size,
            problem.read_row,
            problem.movable,
            headroom,
            int(moves_per_clip * uses),
            new_state(*seed, window),
        )
        return result

    results = np.array(on_threads(run, range(num_windows)))
    before, after, shared_before, shared_after = results.sum(axis=0).tolist()
    return WindowGain(before, after, int(shared_before), int(shared_after))


@kernel
def _slot(keys: np.ndarray, key: int) -> Any:
    """Place of `key` in an open hash table (free places hold -1), or of the free place where it would stand."""
    mask = np.uint64(len(keys) - 1)
    bits = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    at = (bits ^ (bits >> np.uint64(29))) & mask
    while keys[at] != -1 and keys[at] != key:
        at = (at + np.uint64(1)) & mask
    return at


@kernel
def _anneal(
    clip: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    row: np.ndarray,
    line: np.ndarray,
    step_of_row: np.ndarray,
    source: np.ndarray,
    domain: np.ndarray,
    domain_mix: np.ndarray,
    size: np.ndarray,
    read_row: np.ndarray,
    movable: np.ndarray,
    headroom: np.ndarray,
    moves: int,
    state: np.ndarray,
) -> Any:
    lanes = len(begin)
    total = 0
    for lane in range(lanes):
        total += end[lane] - begin[lane]
    if total == 0:
        return 0.0, 0.0, 0.0, 0.0
    use = np.empty(total, dtype=np.int64)
    lane_of = np.empty(total, dtype=np.int32)
    key = np.empty(total, dtype=np.int64)
    lines = 0
    for lane in range(lanes):
        for index in range(begin[lane], end[lane]):
            lines = max(lines, line[index] + 1)
    at = 0
    for lane in range(lanes):
        for index in range(begin[lane], end[lane]):
            use[at] = index
            lane_of[at] = lane
            key[at] = lane * lines + line[index]
            at += 1
    order = np.argsort(key, kind="mergesort")
    use, lane_of, key = use[order], lane_of[order], key[order]
    first_step = step_of_row[row[use[0]]]
    last_step = first_step
    mean_size = 0.0
    for index in range(total):
        step = step_of_row[row[use[index]]]
        first_step = min(first_step, step)
        last_step = max(last_step, step)
        mean_size += size[clip[use[index]]] / total
    steps = last_step - first_step + 1
    domains = len(domain_mix)
    count = np.zeros((steps, domains), dtype=np.int64)
    clips_of_step = np.zeros(steps, dtype=np.int64)
    table = 16
    while table < 3 * total:
        table *= 2
    keys = np.full(table, -1, dtype=np.int64)
    numbers = np.zeros(table, dtype=np.int32)
    slot = np.empty(total, dtype=np.int64)  # of the clip and step of each use
    pairs = 0
    for index in range(total):
        item = clip[use[index]]
        step = step_of_row[row[use[index]]] - first_step
        clips_of_step[step] += 1
        count[step, domain[item]] += 1
        place = _slot(keys, source[item] * steps + step)
        keys[place] = source[item] * steps + step
        slot[index] = place
        pairs += numbers[place]
        numbers[place] += 1
    energy = float(pairs)
    for step in range(steps):
        for kind in range(domains):
            expected = clips_of_step[step] * domain_mix[kind]
            if expected > 0:
                energy += _DOMAIN_WEIGHT * (count[step, kind] - expected) ** 2 / expected
    first_energy, first_pairs = energy, pairs
    before = np.empty(total, dtype=np.int64)
    for index in range(total):
        before[index] = clip[use[index]]
    filled = 0
    for place in range(table):
        if keys[place] != -1:
            filled += 1
    rows_apart = max(1.0, (row[use[total - 1]] - row[use[0]] + 1) / 8.0)
    for move in range(moves):
        one = random_below(state, total)
        two = one + 1 + random_below(state, _REACH)
        if two >= total or key[two] != key[one]:
            continue
        early, late = use[one], use[two]
        if row[early] == row[late]:
            continue
        a, b = clip[early], clip[late]
        if read_row[b] > row[early] or not movable[a] or not movable[b]:
            continue
        lane = lane_of[one]
        growth = size[a] - size[b]
        if growth > headroom[lane]:
            continue
        here = step_of_row[row[early]] - first_step
        there = step_of_row[row[late]] - first_step
        if here == there:
            continue
        change = _BUFFER_WEIGHT * growth / mean_size * (row[late] - row[early]) / rows_apart
        pair_change = 0
        if source[a] != source[b]:
            pair_change -= numbers[slot[one]] - 1
            pair_change -= numbers[slot[two]] - 1
            b_here = _slot(keys, source[b] * steps + here)
            a_there = _slot(keys, source[a] * steps + there)
            pair_change += numbers[b_here] if keys[b_here] != -1 else 0
            pair_change += numbers[a_there] if keys[a_there] != -1 else 0
            change += pair_change
        domain_change = 0.0
        p, q = domain[a], domain[b]
        if p != q:
            for step, out, into in ((here, p, q), (there, q, p)):
                expected_out = clips_of_step[step] * domain_mix[out]
                expected_in = clips_of_step[step] * domain_mix[into]
                domain_change += (1 - 2 * (count[step, out] - expected_out)) / expected_out
                domain_change += (1 + 2 * (count[step, into] - expected_in)) / expected_in
            change += _DOMAIN_WEIGHT * domain_change
        heat = _HOTTEST * (_COLDEST / _HOTTEST) ** (move / moves)
        if change > 0 and random_unit(state) >= np.exp(-change / heat):
            continue
        if source[a] != source[b]:
            if filled + 2 > table * 3 // 4:
                continue
            numbers[slot[one]] -= 1
            numbers[slot[two]] -= 1
            for index, item, step in ((one, b, here), (two, a, there)):
                place = _slot(keys, source[item] * steps + step)
                if keys[place] == -1:
                    keys[place] = source[item] * steps + step
                    filled += 1
                numbers[place] += 1
                slot[index] = place
        if p != q:
            count[here, p] -= 1
            count[here, q] += 1
            count[there, q] -= 1
            count[there, p] += 1
        clip[early], clip[late] = b, a
        headroom[lane] -= max(0, growth)
        pairs += pair_change
        energy += pair_change + _DOMAIN_WEIGHT * domain_change
    if energy > first_energy:
        for index in range(total):
            clip[use[index]] = before[index]
        energy, pairs = first_energy, first_pairs
    return first_energy, energy, float(first_pairs), float(pairs)
