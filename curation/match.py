"""Copies: pairs of clips whose frames look alike, and which of them several frames confirm."""

from __future__ import annotations

from pydantic import Field

from schemas.config import StrictConfig

__all__ = ["MatchSettings"]


class MatchSettings(StrictConfig):
    """Settings of the match phase; docs/curation-decisions.md says what each limit was measured on."""

    candidate_cosine: float = Field(default=0.6, gt=0, lt=1)
    """Two clips are a candidate pair when any two of their frames reach it."""
