"""A step's line as flat names and numbers, for tools that know only curves: `loss`, `loss_by_bucket/33x64x112`, `loss_by_time/0.1-0.2`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["scalars"]

_NO_CURVE = ("step", "unix_s", "loss_hex", "clips_digest")


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """All numbers of a line but the step; what is null is left out.

    >>> scalars({"step": 3, "loss": 1.5, "repa_loss": None, "loss_by_bucket": {"1x2x3": 2}, "loss_by_time": [None, 0.5]})
    {'loss': 1.5, 'loss_by_bucket/1x2x3': 2.0, 'loss_by_time/0.5-1': 0.5}
    """
    found: dict[str, float] = {}
    for key, value in line.items():
        if key in _NO_CURVE:
            continue
        parts = {key: value}
        if isinstance(value, Mapping):
            parts = {f"{key}/{name}": number for name, number in value.items()}
        elif isinstance(value, list):
            parts = {f"{key}/{n / len(value):g}-{(n + 1) / len(value):g}": number for n, number in enumerate(value)}
        found |= {name: float(number) for name, number in parts.items() if number is not None}
    return found
