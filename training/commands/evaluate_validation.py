"""`reelyard-train evaluate validation`: the dense validation loss of a checkpoint on packed sets."""

from __future__ import annotations

__all__ = ["validation"]


def validation() -> None:
    """Dense loss of a checkpoint on held-out clips."""
