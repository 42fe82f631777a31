"""Scorers whose weights come by path through `open_clip`: each checkpoint is loaded once, whoever needs it, and hashed without being loaded.

Price: weights are hashed once per command, a second for each gigabyte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from curation.analysis.settings import AnalyzeSettings, OpenClipSettings
from curation.model_identity import code_identity

if TYPE_CHECKING:
    from encoders.open_clip_image import OpenClipImages

__all__ = ["FrameScorer", "OpenClipModels", "load_open_clip", "open_clip_identity"]

_OPEN_CLIP_CODE = tuple(f"encoders.{name}" for name in ("linear_head", "open_clip_image", "open_clip_scores"))


class FrameScorer(Protocol):
    """One number per frame."""

    name: str
    fingerprint: str

    def scores(self, frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class OpenClipModels:
    """None: not asked for, or done by another model."""

    nsfw: FrameScorer | None
    aesthetic: FrameScorer | None


def load_open_clip(settings: AnalyzeSettings) -> OpenClipModels:
    """What the settings name by path; imports torch only where there is something to load.

    Raises:
        ModelMissingError, DataError: a path that is not there, or does not hold what it should.
    """
    loaded: dict[OpenClipSettings, OpenClipImages] = {}
    return OpenClipModels(_nsfw(settings, loaded), _aesthetic(settings, loaded))


def _clip(settings: OpenClipSettings, loaded: dict[OpenClipSettings, OpenClipImages]) -> OpenClipImages:
    """Each model once, whoever needs it."""
    import torch

    from encoders.open_clip_image import OpenClipImages

    torch.set_num_threads(1)
    if settings not in loaded:
        loaded[settings] = OpenClipImages(settings.path, settings.model, device=settings.device)
    return loaded[settings]


def _nsfw(settings: AnalyzeSettings, loaded: dict[OpenClipSettings, OpenClipImages]) -> FrameScorer | None:
    if settings.nsfw_clip is None:
        return None
    from encoders.linear_head import LinearHead
    from encoders.open_clip_scores import LinearNsfw, ZeroShotNsfw

    clip = _clip(settings.nsfw_clip, loaded)
    return ZeroShotNsfw(clip) if settings.nsfw_head is None else LinearNsfw(clip, LinearHead(settings.nsfw_head))


def _aesthetic(settings: AnalyzeSettings, loaded: dict[OpenClipSettings, OpenClipImages]) -> FrameScorer | None:
    if settings.aesthetic is None:
        return None
    from encoders.linear_head import LinearHead
    from encoders.open_clip_scores import AestheticScorer

    return AestheticScorer(_clip(settings.aesthetic.clip, loaded), LinearHead(settings.aesthetic.head))


def open_clip_identity(settings: AnalyzeSettings) -> list[object]:
    """Hashes of the weights given by path, and of the code that runs them; empty without any."""
    from encoders.linear_head import head_hash
    from encoders.open_clip_image import OpenClipWeights

    aesthetic = settings.aesthetic
    clips = [settings.nsfw_clip, None if aesthetic is None else aesthetic.clip]
    heads = [settings.nsfw_head, None if aesthetic is None else aesthetic.head]
    found: list[object] = [
        OpenClipWeights.at(clip.path, clip.model).weights_hash() for clip in clips if clip is not None
    ]
    found += [head_hash(head) for head in heads if head is not None]
    return [*found, code_identity(_OPEN_CLIP_CODE)] if found else []
