"""How a video changes with its frame number: statistics of pictures, and how unusual each latent frame is beside those of a known length.

A prompt asks for one scene throughout, so a slow change of its light, contrast, sharpness or colour is drift, not content; cuts and
motion are content.

    brightness   mean luma (0.2126 R + 0.7152 G + 0.0722 B), 0 to 255
    contrast     standard deviation of the luma
    sharpness    mean length of the luma's gradient
    colour       mean distance of R, G and B from the luma
    change       mean absolute difference of the luma to the frame before; falls to 0 where a video freezes

Latent distance: each latent frame is described by the mean and the deviation of every channel; its distance is the root mean square, over
these numbers, of their distance from the reference's mean in units of the reference's own deviation. A frame of the reference length is at
about 1 by construction, so 3 means three times as far from the usual as a frame of that length is. Price: it sees the statistics of a
frame, not what is on it.

Legend: T frames, H/W/C as usual; latents T C Y X; S statistics of a latent frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["MEASURES", "LatentReference", "frame_measures", "head_and_tail", "latent_statistics"]

MEASURES = ("brightness", "contrast", "sharpness", "colour", "change")
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
_LEAST_DEVIATION = 1e-3
"""Of a statistic in the reference, in units of a latent's deviation; below that a difference means nothing."""


def frame_measures(frames_THWC: np.ndarray) -> dict[str, np.ndarray]:
    """Each of `MEASURES` for every frame, float64; `change` of frame 0 is nan."""
    found = {name: np.empty(len(frames_THWC)) for name in MEASURES}
    before: np.ndarray | None = None
    for index, frame in enumerate(frames_THWC):
        pixels = frame.astype(np.float32)
        luma = pixels @ _LUMA
        across, down = np.diff(luma, axis=1)[:-1], np.diff(luma, axis=0)[:, :-1]
        found["brightness"][index] = luma.mean()
        found["contrast"][index] = luma.std()
        found["sharpness"][index] = np.hypot(across, down).mean()
        found["colour"][index] = np.abs(pixels - luma[..., None]).mean()
        found["change"][index] = np.nan if before is None else np.abs(luma - before).mean()
        before = luma
    return found


def latent_statistics(latent_TCYX: np.ndarray) -> np.ndarray:
    """Mean and deviation of every channel of each latent frame: (T, 2 C), float64."""
    flat = latent_TCYX.astype(np.float64).reshape(*latent_TCYX.shape[:2], -1)
    return np.concatenate([flat.mean(axis=2), flat.std(axis=2)], axis=1)


@dataclass(frozen=True)
class LatentReference:
    """What frames of a known length are like."""

    mean_S: np.ndarray
    deviation_S: np.ndarray

    @classmethod
    def of(cls, latents: Sequence[np.ndarray]) -> LatentReference:
        """From latents T C Y X of that length. Frame 0 is left out of longer ones: codecs encode it alone, and its statistics are its own."""
        statistics = np.concatenate([latent_statistics(latent)[1 if len(latent) > 1 else 0 :] for latent in latents])
        return cls(statistics.mean(axis=0), np.maximum(statistics.std(axis=0), _LEAST_DEVIATION))

    def distances(self, latent_TCYX: np.ndarray) -> np.ndarray:
        """Of each latent frame."""
        scaled = (latent_statistics(latent_TCYX) - self.mean_S) / self.deviation_S
        return np.sqrt(np.square(scaled).mean(axis=1))


def head_and_tail(values_T: np.ndarray, window: int) -> tuple[float, float]:
    """Means of the first and of the last `window` values; nan is left out."""
    window = max(1, min(window, len(values_T)))
    head, tail = values_T[:window], values_T[-window:]
    return _mean(head), _mean(tail)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
