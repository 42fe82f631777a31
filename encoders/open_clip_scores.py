"""Scores of frames from open_clip embeddings: aesthetic quality by a head, NSFW by a head or by words alone.

Zero-shot: how much nearer a frame is to sentences about nudity and gore than to sentences about ordinary pictures, as the network's own
softmax would have it. Price: a score means what its weights were trained for, so limits must be chosen anew for each model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from encoders.linear_head import LinearHead
from encoders.open_clip_image import OpenClipImages
from schemas.errors import DataError
from schemas.ids import fingerprint

__all__ = ["SAFE_TEXTS", "UNSAFE_TEXTS", "AestheticScorer", "LinearNsfw", "ZeroShotNsfw"]

SAFE_TEXTS = (
    "an ordinary photo",
    "a photo of people with their clothes on",
    "a photo of a landscape or a city",
    "a photo of an animal, a plant or a thing",
    "a drawing or an animated picture for everyone",
)
UNSAFE_TEXTS = (
    "a pornographic picture",
    "a photo of naked people",
    "a photo of a sexual act",
    "a drawing of naked people",
    "a picture of gore and mutilation",
)

Frames = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]


class AestheticScorer:
    """In the unit of the head: LAION's and V2.5's run from about 1 to 10."""

    def __init__(self, clip: OpenClipImages, head: LinearHead) -> None:
        _expect_outputs(head, (1,))
        self._clip, self._head = clip, head
        self.name = f"{clip.name}+{head.name}"
        self.fingerprint = fingerprint([clip.fingerprint, head.fingerprint])

    def scores(self, frames: Frames) -> NDArray[np.float32]:
        """One value per frame."""
        return self._head.apply(self._clip.embed(frames))[:, 0].astype(np.float32)


class LinearNsfw:
    """Logistic head with one output, or a softmax head with two: safe, unsafe."""

    def __init__(self, clip: OpenClipImages, head: LinearHead) -> None:
        _expect_outputs(head, (1, 2))
        self._clip, self._head = clip, head
        self.name = f"{clip.name}+{head.name}"
        self.fingerprint = fingerprint([clip.fingerprint, head.fingerprint])

    def scores(self, frames: Frames) -> NDArray[np.float32]:
        """One probability per frame."""
        logits = self._head.apply(self._clip.embed(frames))
        margin = logits[:, -1] - (logits[:, 0] if self._head.outputs == 2 else 0.0)
        return (1 / (1 + np.exp(-np.clip(margin, -80, 80)))).astype(np.float32)


class ZeroShotNsfw:
    """Softmax over the sentences; the share of the unsafe ones."""

    def __init__(self, clip: OpenClipImages) -> None:
        self._clip = clip
        self._texts = clip.embed_text([*SAFE_TEXTS, *UNSAFE_TEXTS]).astype(np.float64)
        self.name = f"{clip.name}+zero-shot"
        self.fingerprint = fingerprint([clip.fingerprint, SAFE_TEXTS, UNSAFE_TEXTS])

    def scores(self, frames: Frames) -> NDArray[np.float32]:
        """One probability per frame."""
        logits = self._clip.logit_scale * (self._clip.embed(frames).astype(np.float64) @ self._texts.T)
        weights = np.exp(logits - logits.max(axis=1, initial=-np.inf, keepdims=True))
        return (weights[:, len(SAFE_TEXTS) :].sum(axis=1) / weights.sum(axis=1)).astype(np.float32)


def _expect_outputs(head: LinearHead, counts: tuple[int, ...]) -> None:
    if head.outputs not in counts:
        wanted = " or ".join(str(count) for count in counts)
        raise DataError(f"head {head.name} gives {head.outputs} values; expected {wanted}")
