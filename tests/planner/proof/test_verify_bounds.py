"""The bounds of the certificate against brute force: no schedule does better, and one does as well."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.proof.bounds import largest_use, sort_bound


def best_by_trying(batches: list[tuple[int, int]]) -> int:
    """Every number of micro-batches per bucket, longest first, of which the first ones never take more than fits."""
    best = 0
    for counts in itertools.product(*(range(fits // batch + 1) for batch, fits in batches)):
        sums = list(itertools.accumulate(count * batch for count, (batch, _) in zip(counts, batches, strict=True)))
        if all(total <= fits for total, (_, fits) in zip(sums, batches, strict=True)):
            best = max(best, sums[-1])
    return best


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 7), st.integers(0, 12)), min_size=1, max_size=3))
def test_the_clips_that_integer_batches_can_use_are_exact(lines: list[tuple[int, int]]) -> None:
    batches = [(batch, sum(more for _, more in lines[: index + 1])) for index, (batch, _) in enumerate(lines)]
    assert largest_use(batches) == best_by_trying(batches)


def test_longer_clips_that_are_left_over_fill_shorter_batches() -> None:
    assert largest_use([(4, 6), (5, 14)]) == 14, "4 of the long clips, then two batches of 5"
    assert largest_use([(4, 3), (5, 4)]) == 0
    assert largest_use([]) == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=3), st.integers(1, 3))
def test_no_order_of_the_micro_batches_is_faster_than_the_sort_bound(lines: list[tuple[int, int]], lanes: int) -> None:
    jobs = [float(seconds) for count, seconds in lines for _ in range(count)]
    counts, seconds = (np.array(column) for column in zip(*lines, strict=True))
    bound = sort_bound(counts, seconds.astype(float), lanes)
    rows = -(-len(jobs) // lanes)
    padded = jobs + [0.0] * (rows * lanes - len(jobs))
    orders = itertools.islice(itertools.permutations(padded), 800)
    times = [sum(max(order[row * lanes : (row + 1) * lanes]) for row in range(rows)) for order in orders]
    assert bound <= min(times) + 1e-9
    best = sorted(padded, reverse=True)
    assert bound == sum(max(best[row * lanes : (row + 1) * lanes]) for row in range(rows)), "and sorting reaches it"
