"""What the loader hands over of one lane: a micro-batch with its latents in one array, and the clips that could not be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from schemas.buckets import Bucket
from training.loading.clip_arrays import ClipArrays

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LaneBatch", "LoadedStep", "Substitution"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Substitution:
    """A clip that could not be used, and the one that took its place; a line of the run's ledger."""

    step: int
    micro: int
    lane: int
    bucket: str
    clip_id: str
    shard: int
    ordinal: int
    reason: str
    replaced_by: str
    """Clip id."""
    replacement: str
    """spare or earlier."""


@dataclass(frozen=True, kw_only=True)
class LaneBatch:
    """One micro-batch of one lane."""

    step: int
    micro: int
    lane: int
    bucket: Bucket
    latent_BTCHW: np.ndarray
    """float16, contiguous; the clips' `latent_TCHW` are views of it."""
    clips: tuple[ClipArrays, ...]
    pinned_BTCHW: Any = None
    """The page-locked tensor whose memory `latent_BTCHW` is, where the loader reads for a CUDA device."""

    @property
    def clip_ids(self) -> tuple[str, ...]:
        """Of the clips, in their order."""
        return tuple(clip.clip_id for clip in self.clips)

    @property
    def num_bytes(self) -> int:
        """Of the latents, texts and features."""
        arrays = [self.latent_BTCHW]
        for clip in self.clips:
            arrays += clip.text_by_kind.values()
            arrays += [array for array in (clip.teacher_TYXC, clip.image_ID) if array is not None]
        return sum(array.nbytes for array in arrays)

    def latents(self) -> Tensor:
        """The latents as a tensor that shares their memory, page-locked where the loader reads for a CUDA device."""
        import torch

        return torch.from_numpy(self.latent_BTCHW) if self.pinned_BTCHW is None else self.pinned_BTCHW

    @classmethod
    def of_clips(cls, clips: Sequence[ClipArrays], *, step: int, micro: int, lane: int, bucket: Bucket) -> LaneBatch:
        """A micro-batch of clips from elsewhere; their latents are copied together."""
        latent_BTCHW = np.stack([clip.latent_TCHW for clip in clips])
        return cls(step=step, micro=micro, lane=lane, bucket=bucket, latent_BTCHW=latent_BTCHW, clips=tuple(clips))


@dataclass(frozen=True, kw_only=True)
class LoadedStep(Generic[T]):
    """A rank's share of one optimizer step: its micro-batches by row, then by lane, each passed through `prepare`."""

    step: int
    batches: tuple[T, ...]
    substitutions: tuple[Substitution, ...]
    wait_ms: float
    """How long the trainer waited for it."""
