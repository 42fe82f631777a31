"""Long rows of numbers to pictures of a bounded width, and pictures to text: pure arithmetic.

A bin is a run of neighbouring rows; bins differ by at most one in length, and where there are no more rows than bins each row is its own. Values of a
bin are summed, averaged or maximised by what they mean; a picture of categories takes one row of each bin at a seeded random place,
so that no rhythm of the plan falls in step with the bins.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["bin_edges", "bin_max", "bin_mean", "bin_sum", "json_block", "pack", "sampled_rows"]

_CODES = {"uint8": "u1", "uint16": "u2", "int32": "i4", "float32": "f4", "float64": "f8"}


def bin_edges(num_rows: int, most: int) -> np.ndarray:
    """First row of each of min(num_rows, most) bins, and num_rows at the end: `bin_edges(5, 2)` is [0, 2, 5]."""
    bins = max(1, min(num_rows, most))
    return np.arange(bins + 1, dtype=np.int64) * num_rows // bins


def bin_sum(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Sum of each bin over the first axis."""
    return np.add.reduceat(values, edges[:-1], axis=0)


def bin_mean(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Mean of each bin over the first axis."""
    length = np.diff(edges).reshape(-1, *([1] * (values.ndim - 1)))
    return bin_sum(values.astype(np.float64), edges) / length


def bin_max(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Largest of each bin over the first axis."""
    return np.maximum.reduceat(values, edges[:-1], axis=0)


def sampled_rows(edges: np.ndarray, seed: int) -> np.ndarray:
    """One row of each bin, by a seeded draw; the row itself where a bin is one row."""
    rng = np.random.default_rng([seed, len(edges)])
    return edges[:-1] + np.floor(rng.random(len(edges) - 1) * np.diff(edges)).astype(np.int64)


def pack(values: np.ndarray) -> dict[str, Any]:
    """An array as base64 of its little-endian bytes, with type and shape, as the page's script unpacks it.

    Types: uint8, uint16, int32, float32, float64.
    """
    code = _CODES[values.dtype.name]
    data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    return {"type": code, "shape": list(values.shape), "data": base64.b64encode(data).decode("ascii")}


def json_block(name: str, values: Mapping[str, Any]) -> str:
    """A block of data that no markup inside it can end. `name` is of the page, not of the data."""
    text = json.dumps(values, sort_keys=True, allow_nan=False, separators=(",", ":"))
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return f'<script type="application/json" id="{name}">{text}</script>\n'
