"""Connected groups against a breadth-first search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.union_find import group_roots

Graph = tuple[int, list[tuple[int, int]]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    num_items = draw(st.integers(1, 40))
    ends = st.integers(0, num_items - 1)
    return num_items, draw(st.lists(st.tuples(ends, ends), max_size=60))


def searched(num_items: int, edges: list[tuple[int, int]]) -> list[int]:
    """Smallest index that each item reaches."""
    neighbours: dict[int, set[int]] = {item: set() for item in range(num_items)}
    for first, second in edges:
        neighbours[first].add(second)
        neighbours[second].add(first)
    roots = []
    for item in range(num_items):
        reached, open_items = {item}, [item]
        while open_items:
            for other in neighbours[open_items.pop()] - reached:
                reached.add(other)
                open_items.append(other)
        roots.append(min(reached))
    return roots


@given(graphs())
def test_equals_breadth_first_search(graph: Graph) -> None:
    num_items, edges = graph
    first, second = [edge[0] for edge in edges], [edge[1] for edge in edges]
    assert group_roots(num_items, first, second).tolist() == searched(num_items, edges)


@given(graphs(), st.randoms())
def test_order_and_direction_of_edges_do_not_matter(graph: Graph, random: np.random.Generator) -> None:
    num_items, edges = graph
    expected = group_roots(num_items, [edge[0] for edge in edges], [edge[1] for edge in edges])
    random.shuffle(edges)
    turned = group_roots(num_items, [edge[1] for edge in edges], [edge[0] for edge in edges])
    assert np.array_equal(expected, turned)


def test_a_long_chain_in_the_worst_order_is_one_group() -> None:
    items = np.random.default_rng(0).permutation(100_000)
    assert not group_roots(100_000, items[:-1], items[1:]).any()


@pytest.mark.parametrize(("first", "second"), [([0], [5]), ([-1], [0]), ([0, 1], [1])])
def test_refuses_edges_that_are_none(first: list[int], second: list[int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        group_roots(5, first, second)
