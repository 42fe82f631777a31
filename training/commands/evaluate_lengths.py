"""`reelyard-train evaluate lengths`: sampling at lengths that training never saw."""

from __future__ import annotations

__all__ = ["lengths"]


def lengths() -> None:
    """Sample at several lengths, and measure time, memory and drift."""
