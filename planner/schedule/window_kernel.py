"""The compiled annealing of one window (planner.schedule.windows says what it does and why)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from planner.schedule.kernels import kernel, random_below, random_unit

__all__ = ["anneal_window"]

HOTTEST, COLDEST = 1.0, 0.02
"""Temperatures; one pair of a source in a step counts 1."""
DOMAIN_WEIGHT = 0.5
"""Of a step's chi-square over domains."""
BUFFER_WEIGHT = 0.05
"""Of the bytes that wait longer, in mean clips x an eighth of the window's rows."""
REACH = 64
"""Uses of the same bucket and lane, in order of rows, among which a partner is drawn."""


class _Window(NamedTuple):
    clip: np.ndarray
    """Of all uses of the epoch; changed in place."""
    use: np.ndarray
    """The window's uses, those of one lane and bucket together, by rows."""
    key: np.ndarray
    """Lane and bucket of each, as one number."""
    lane: np.ndarray
    row: np.ndarray
    """Of all uses of the epoch."""
    step: np.ndarray
    """Of each of the window's uses, counted from its first one."""
    slot: np.ndarray
    """Place in the table of (source of the clip, step) of each use."""
    keys: np.ndarray
    """Open hash table: source x steps + step, or -1."""
    numbers: np.ndarray
    """Clips of that source in that step."""
    by_domain: np.ndarray
    """Clips by (step, domain)."""
    expected: np.ndarray
    """The same if every step had the mix of the whole."""


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
def anneal_window(
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
    """Energy before and after, pairs of a source before and after; changes `clip` between begin and end of each lane, and `headroom`."""
    total = (end - begin).sum()
    if total == 0:
        return 0.0, 0.0, 0.0, 0.0
    window = _gather(clip, begin, end, row, line, step_of_row, domain_mix, total)
    first_pairs = _enter_all(window, source, domain)
    first_energy = first_pairs + DOMAIN_WEIGHT * _chi_square(window)
    before = clip[window.use]
    changed, pairs = _trade(window, source, domain, size, read_row, movable, headroom, moves, state)
    if changed > 0:
        clip[window.use] = before
        changed, pairs = 0.0, 0
    return first_energy, first_energy + changed, float(first_pairs), float(first_pairs + pairs)


@kernel
def _gather(
    clip: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    row: np.ndarray,
    line: np.ndarray,
    step_of_row: np.ndarray,
    domain_mix: np.ndarray,
    total: int,
) -> Any:
    """The window's uses by lane and bucket, and empty counts."""
    lines = 0
    for lane in range(len(begin)):
        for index in range(begin[lane], end[lane]):
            lines = max(lines, line[index] + 1)
    use = np.empty(total, dtype=np.int64)
    lane_of = np.empty(total, dtype=np.int32)
    key = np.empty(total, dtype=np.int64)
    at = 0
    for lane in range(len(begin)):
        for index in range(begin[lane], end[lane]):
            use[at], lane_of[at], key[at] = index, lane, lane * lines + line[index]
            at += 1
    order = np.argsort(key, kind="mergesort")
    use = use[order]
    step = step_of_row[row[use]]
    step -= step.min()
    steps = step.max() + 1
    per_step = np.zeros(steps, dtype=np.int64)
    for index in range(total):
        per_step[step[index]] += 1
    table = 16
    while table < 3 * total:
        table *= 2
    return _Window(
        clip,
        use,
        key[order],
        lane_of[order],
        row,
        step,
        np.empty(total, dtype=np.int64),
        np.full(table, -1, dtype=np.int64),
        np.zeros(table, dtype=np.int32),
        np.zeros((steps, len(domain_mix)), dtype=np.int64),
        per_step.reshape(-1, 1) * domain_mix.reshape(1, -1),
    )


@kernel
def _enter_all(window: Any, source: np.ndarray, domain: np.ndarray) -> Any:
    """Count sources and domains of every use; returns the pairs of one source in a step."""
    steps = len(window.by_domain)
    pairs = 0
    for index in range(len(window.use)):
        item, step = window.clip[window.use[index]], window.step[index]
        window.by_domain[step, domain[item]] += 1
        key = source[item] * steps + step
        place = _slot(window.keys, key)
        window.keys[place] = key
        window.slot[index] = place
        pairs += window.numbers[place]
        window.numbers[place] += 1
    return pairs


@kernel
def _chi_square(window: Any) -> Any:
    """Sum over steps and domains of (count - expected)^2 / expected."""
    total = 0.0
    for step in range(window.by_domain.shape[0]):
        for domain in range(window.by_domain.shape[1]):
            expected = window.expected[step, domain]
            if expected > 0:
                total += (window.by_domain[step, domain] - expected) ** 2 / expected
    return total


@kernel
def _trade(
    window: Any,
    source: np.ndarray,
    domain: np.ndarray,
    size: np.ndarray,
    read_row: np.ndarray,
    movable: np.ndarray,
    headroom: np.ndarray,
    moves: int,
    state: np.ndarray,
) -> Any:
    """Change of the energy and of the pairs by `moves` tries.

    One function over local arrays: handing them to smaller ones, or taking them out of the tuple in the loop, counts references that the threads
    share, and took twice the time.
    """
    clip, use, key, lane_of, row = window.clip, window.use, window.key, window.lane, window.row
    step_of, slot, keys, numbers = window.step, window.slot, window.keys, window.numbers
    by_domain, expected = window.by_domain, window.expected
    total, steps = len(use), len(by_domain)
    filled = (keys != -1).sum()
    mean_size = 0.0
    for index in use:
        mean_size += size[clip[index]] / total
    rows_apart = max(1.0, (row[use[total - 1]] - row[use[0]] + 1) / 8.0)
    energy, pairs = 0.0, 0
    for move in range(moves):
        one = random_below(state, total)
        two = one + 1 + random_below(state, REACH)
        if two >= total or key[two] != key[one] or step_of[one] == step_of[two]:
            continue
        early, late = use[one], use[two]
        a, b = clip[early], clip[late]
        growth = size[a] - size[b]
        if read_row[b] > row[early] or not movable[a] or not movable[b] or growth > headroom[lane_of[one]]:
            continue
        here, there = step_of[one], step_of[two]
        pair_change = 0
        if source[a] != source[b]:
            pair_change = 2 - numbers[slot[one]] - numbers[slot[two]]
            b_here, a_there = _slot(keys, source[b] * steps + here), _slot(keys, source[a] * steps + there)
            pair_change += numbers[b_here] if keys[b_here] != -1 else 0
            pair_change += numbers[a_there] if keys[a_there] != -1 else 0
        domain_change = 0.0
        p, q = domain[a], domain[b]
        if p != q:
            for step, out, into in ((here, p, q), (there, q, p)):
                domain_change += (1 - 2 * (by_domain[step, out] - expected[step, out])) / expected[step, out]
                domain_change += (1 + 2 * (by_domain[step, into] - expected[step, into])) / expected[step, into]
        change = pair_change + DOMAIN_WEIGHT * domain_change
        waiting = BUFFER_WEIGHT * growth / mean_size * (row[late] - row[early]) / rows_apart
        heat = HOTTEST * (COLDEST / HOTTEST) ** (move / moves)
        if change + waiting > 0 and random_unit(state) >= np.exp(-(change + waiting) / heat):
            continue
        if filled + 2 > len(keys) * 3 // 4:
            continue
        if source[a] != source[b]:
            numbers[slot[one]] -= 1
            numbers[slot[two]] -= 1
            for index, item, step in ((one, b, here), (two, a, there)):
                place = _slot(keys, source[item] * steps + step)
                filled += keys[place] == -1
                keys[place] = source[item] * steps + step
                numbers[place] += 1
                slot[index] = place
        by_domain[here, p] -= 1
        by_domain[here, q] += 1
        by_domain[there, q] -= 1
        by_domain[there, p] += 1
        clip[early], clip[late] = b, a
        headroom[lane_of[one]] -= max(0, growth)
        energy += change
        pairs += pair_change
    return energy, pairs
