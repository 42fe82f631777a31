"""Colours of buckets, tiers and domains, the same in tables and pictures.

Up to ten groups get hues that people with weak colour vision tell apart; more buckets get a hue per size and a depth per length. No colour stands
alone: legends and tooltips name every group.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

from schemas.buckets import Bucket

__all__ = ["OTHER_COLOUR", "bucket_colours", "group_colours", "tier_colours"]

_HUES = (
    "#4477aa", "#ee8866", "#44aa77", "#ddbb44", "#aa4488", "#77bbdd", "#994433", "#7766cc", "#99aa33", "#777777",
)  # fmt: skip
OTHER_COLOUR = "#c9cdd1"


def bucket_colours(buckets: Sequence[Bucket]) -> list[str]:
    """One colour per bucket, in their order."""
    if len(buckets) <= len(_HUES):
        return list(_HUES[: len(buckets)])
    sizes = sorted({(bucket.height * bucket.width, bucket.height, bucket.width) for bucket in buckets})
    lengths = sorted({bucket.frames for bucket in buckets})
    colours = []
    for bucket in buckets:
        hue = sizes.index((bucket.height * bucket.width, bucket.height, bucket.width)) / len(sizes)
        depth = lengths.index(bucket.frames) / max(1, len(lengths) - 1)
        colours.append(_hex(hue, 0.78 - 0.46 * depth, 0.42 + 0.2 * depth))
    return colours


def group_colours(count: int) -> list[str]:
    """Colours of the first groups of an ordered list; those past the tenth share one."""
    return [_HUES[index] if index < len(_HUES) else OTHER_COLOUR for index in range(count)]


def tier_colours(count: int) -> list[str]:
    """Light for cheap tiers to dark for dear ones."""
    return [_hex(0.58, 0.8 - 0.55 * index / max(1, count - 1), 0.5) for index in range(count)]


def _hex(hue: float, lightness: float, saturation: float) -> str:
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
