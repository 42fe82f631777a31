"""Captions: the tag captioner says what was measured and what an ImageNet classifier takes the picture for, and claims no more."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.config import StrictConfig

__all__ = ["CaptionSettings"]


class CaptionSettings(StrictConfig):
    """Settings of the caption phase."""

    captioner: Literal["tags"] = "tags"
    """`tags`: EfficientNet-Lite0 tags, text seen, measured motion, light and colour."""
    num_tags: int = Field(default=3, ge=1, le=10)
    """At most this many tags are named."""
    min_probability: float = Field(default=0.1, ge=0, le=1)
    """Tags below it are not named."""
