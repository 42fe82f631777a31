"""Connected groups of a graph given as two columns of end points.

Union-find done on whole arrays: every root that has a neighbour with a smaller root is hooked under it, then all paths are compressed, until no
edge joins two roots. The root of a group is its smallest index, so the answer does not depend on the order of the edges. Price: a few passes
over the edges (they halve fast) instead of one; on 10 million edges that is still far quicker than a loop in Python.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["group_roots"]


def group_roots(num_items: int, first: ArrayLike, second: ArrayLike) -> NDArray[np.int64]:
    """Root of each item, int64 (num_items,): the smallest index in its group. Edge k joins `first[k]` and `second[k]`.

    >>> group_roots(5, [3, 4], [4, 1]).tolist()
    [0, 1, 2, 1, 1]

    Raises:
        ValueError: if the columns differ in length, or an end point is not in [0, num_items).
    """
    ends_a = np.asarray(first, dtype=np.int64).reshape(-1)
    ends_b = np.asarray(second, dtype=np.int64).reshape(-1)
    if ends_a.shape != ends_b.shape:
        raise ValueError(f"edge columns have {len(ends_a)} and {len(ends_b)} entries, expected the same number")
    for ends in (ends_a, ends_b):
        if len(ends) and not (ends.min() >= 0 and ends.max() < num_items):
            raise ValueError(f"edge end points span [{ends.min()}, {ends.max()}], expected [0, {num_items})")
    parent = np.arange(num_items, dtype=np.int64)
    while True:
        roots_a, roots_b = parent[ends_a], parent[ends_b]
        open_edges = roots_a != roots_b
        if not open_edges.any():
            return parent
        ends_a, ends_b = roots_a[open_edges], roots_b[open_edges]
        np.minimum.at(parent, np.maximum(ends_a, ends_b), np.minimum(ends_a, ends_b))
        parent = _compressed(parent)


def _compressed(parent: NDArray[np.int64]) -> NDArray[np.int64]:
    while not np.array_equal(shorter := parent[parent], parent):
        parent = shorter
    return parent
