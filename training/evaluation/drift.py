"""How a video changes with its frame number: statistics of pictures, and how unusual each latent frame is beside those of a known length.

A prompt asks for one scene throughout, so a slow change of its light, contrast, sharpness or colour is drift, not content; cuts and
motion are content.

    brightness   mean luma (0.2126 R + 0.7152 G + 0.0722 B), 0 to 255
    contrast     standard deviation of the luma
    sharpness    mean length of the luma's gradient
    colour       mean distance of R, G and B from the luma
    change       mean absolute difference of the luma to the frame before; falls to 0 where a video freezes

Latent distance: each latent frame is described by the mean and the deviation of every channel; its distance is the root mean square, over
these numbers, of their distance from the reference's mean in units of the reference's own deviation. Frames of the reference are judged by
its other clips (its other frames, where there is one clip), and the scale is such that they are at 1 in the mean: so a new frame of the
same kind is at about 1 too, however few the reference has, and 3 means three times as unusual. Price: it sees the statistics of a frame,
not what is on it.

Legend: T frames, H/W/C as usual; latents T C Y X; S statistics of a latent frame.
"""

from __future__ import annotations

from collections.abc import Sequence

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


class LatentReference:
    """What frames of a known length are like, from some clips of it (latents T C Y X)."""

    def __init__(self, latents: Sequence[np.ndarray]) -> None:
        self._clips = [latent_statistics(latent) for latent in latents]
        # Frame 0 is left out of longer ones: codecs encode it alone, and its statistics are its own.
        self._usual = [clip[1:] if len(clip) > 1 else clip for clip in self._clips]
        self._whole = np.concatenate(self._usual)
        judged = [self._judge(index)[-len(clip) :] for index, clip in enumerate(self._usual)]
        self._scale = float(np.sqrt(np.square(np.concatenate(judged)).mean())) or 1.0

    def distances(self, latent_TCYX: np.ndarray) -> np.ndarray:
        """Of each latent frame of a clip that is not in the reference."""
        return _distance(latent_statistics(latent_TCYX), self._whole) / self._scale

    def own_distances(self, index: int) -> np.ndarray:
        """Of each latent frame of the reference's own clip with that index."""
        return self._judge(index) / self._scale

    def _judge(self, index: int) -> np.ndarray:
        """A clip's frames by the other clips; where there is one clip, each by its other frames."""
        clip, mine = self._clips[index], self._usual[index]
        others = [found for place, found in enumerate(self._usual) if place != index]
        if others:
            return _distance(clip, np.concatenate(others))
        first = len(clip) - len(mine)
        rests = [
            mine if row < first or len(mine) == 1 else np.delete(mine, row - first, axis=0) for row in range(len(clip))
        ]
        return np.concatenate([_distance(clip[row : row + 1], rest) for row, rest in enumerate(rests)])


def _distance(statistics_TS: np.ndarray, usual_NS: np.ndarray) -> np.ndarray:
    """From N usual frames. Of normal numbers the square is (N + 1) / (N - 3) too large in the mean, since N frames do not tell the deviation well."""
    count = len(usual_NS)
    deviation_S = np.maximum(usual_NS.std(axis=0), _LEAST_DEVIATION)
    scaled = (statistics_TS - usual_NS.mean(axis=0)) / deviation_S
    excess = (count + 1) / (count - 3) if count > 3 else 1.0
    return np.sqrt(np.square(scaled).mean(axis=1) / excess)


def head_and_tail(values_T: np.ndarray, window: int) -> tuple[float, float]:
    """Means of the first and of the last `window` values; nan is left out."""
    window = max(1, min(window, len(values_T)))
    head, tail = values_T[:window], values_T[-window:]
    return _mean(head), _mean(tail)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
