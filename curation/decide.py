"""Decisions: every clip at every admission level is kept, or rejected for one reason."""

from __future__ import annotations

from curation.thresholds import DecideSettings

__all__ = ["DecideSettings"]
