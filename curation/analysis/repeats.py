"""How many pictures a second a clip really has: a file may show each drawing twice, or a 24 fps film at 60.

A frame repeats the one before when it changed far less than the frames around it. Around, because there is no fixed amount: a codec
adds noise to a repeated picture, and a quiet scene changes little with every new one. Where nothing moves, nothing can be told. Price: a
codec as coarse as the motion hides repeats, and then the rate of the file is reported.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from curation.changes import Change

__all__ = ["REPEATS_MODEL", "effective_fps"]

REPEATS_MODEL = "repeats-1"
_AROUND_SECONDS = 0.3
_REPEAT_RATIO = 0.3
"""Of the second largest change around it: the largest may be a flash."""
_REPEAT_LEVELS = 4.0
"""A frame that changed by more is new, whatever is around it."""
_STILL_LEVELS = 1.0
"""Where no frame around changes by more, nothing moves."""
_LEAST_TOLD = 0.5
"""Share of the frames of a clip that must have motion around them."""


def effective_fps(changes: Sequence[Change], first_tick: int, end_tick: int, clip_fps: float) -> float | None:
    """New pictures per second in the clip's ticks; None where hardly anything moves."""
    inside = [change for change in changes if first_tick <= change.tick < end_tick]
    if not inside:
        return None
    ticks = np.array([change.tick for change in inside])
    levels = np.array([change.levels for change in inside])
    reach = _AROUND_SECONDS * clip_fps
    lows = np.searchsorted(ticks, ticks - reach, side="left")
    highs = np.searchsorted(ticks, ticks + reach, side="right")
    around = np.array([np.sort(levels[low:high])[-2:][0] for low, high in zip(lows, highs, strict=True)])
    told = around >= _STILL_LEVELS
    if told.mean() < _LEAST_TOLD:
        return None
    new = levels >= np.minimum(_REPEAT_RATIO * around, _REPEAT_LEVELS)
    frames_per_second = len(inside) * clip_fps / (end_tick - first_tick)
    return float(new[told].mean() * frames_per_second)
