"""One lane's micro-batch, ready for the network: latents, noise, times, text, route and teacher features as tensors.

Every random choice is a function of (seed, step, clip id) (`training.randomness`), so a micro-batch is the same on any rank and world size. It is
made in the loader's thread, on the CPU; only `to` touches the device. Texts are padded to the longest of the micro-batch, which is the same
for every world size because a micro-batch is never split.

Legend: B clips, C channels, T latent frames, Y/X latent rows and columns, E text tokens, D text width, L video tokens, F teacher channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from schemas.buckets import Bucket
from training import randomness
from training.clip_arrays import ClipArrays
from training.config import TrainConfig
from training.flow import sample_sigma
from training.loader import LaneBatch
from training.routing import Route

__all__ = ["BatchMaker", "TrainingBatch", "pad_texts"]


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """What one forward pass takes. Latents and noise are float32, text and teacher features float16 as stored."""

    step: int
    lane: int
    bucket: Bucket
    clip_ids: tuple[str, ...]
    clean_BCTYX: Tensor
    noise_BCTYX: Tensor
    sigma_B: Tensor
    """float64 in [0, 1]."""
    text_BED: Tensor
    text_mask_BE: Tensor
    first_frame_given_B: Tensor
    teacher_BLF: Tensor | None
    """Zeros for clips without a teacher; None when alignment is off."""
    has_teacher_B: Tensor
    route: Route | None
    forward_flops: int
    """Analytic, of the whole micro-batch."""

    @property
    def num_clips(self) -> int:
        """B."""
        return len(self.clip_ids)

    @property
    def num_teachers(self) -> int:
        """Clips that have teacher features."""
        return int(self.has_teacher_B.sum())

    def to(self, device: torch.device) -> TrainingBatch:
        """The same on a device; the bookkeeping tensors (`has_teacher_B`) stay on the CPU, so that counting them never waits for it."""
        if device.type == "cpu":
            return self
        route = self.route and replace(self.route, kept_BK=self.route.kept_BK.to(device))
        moved = {
            name: getattr(self, name).to(device)
            for name in ("clean_BCTYX", "noise_BCTYX", "sigma_B", "text_BED", "text_mask_BE", "first_frame_given_B")
        }
        teacher = None if self.teacher_BLF is None else self.teacher_BLF.to(device)
        return replace(self, **moved, teacher_BLF=teacher, route=route)


class BatchMaker:
    """Turns lane batches into training batches; the loader's `prepare`."""

    def __init__(self, config: TrainConfig, null_text_ED: np.ndarray, teacher_width: int | None) -> None:
        self._config = config
        self._null_text_ED = null_text_ED
        self._teacher_width = teacher_width if config.repa is not None else None

    def __call__(self, batch: LaneBatch) -> TrainingBatch:
        config, step, bucket = self._config, batch.step, batch.bucket
        ids = [clip.clip_id for clip in batch.clips]
        latents_BTCYX = np.stack([clip.latent_TCHW for clip in batch.clips])
        clean = torch.from_numpy(latents_BTCYX.swapaxes(1, 2).astype(np.float32, order="C"))
        channels = clean.shape[1]
        text_BED, mask_BE = pad_texts(self._texts(step, batch.clips))
        sigma_B = sample_sigma(
            randomness.uniform(config.seed, step, ids, "timestep"),
            density=config.flow.time_density,
            mean=config.flow.logit_mean,
            std=config.flow.logit_std,
            shift=config.flow.shift_of(bucket.video_tokens),
        )
        route = None
        if config.tread is not None:
            route = config.tread.spec().for_clips(
                seed=config.seed, step=step, clip_ids=ids, num_tokens=bucket.video_tokens
            )
        return TrainingBatch(
            step=step,
            lane=batch.lane,
            bucket=bucket,
            clip_ids=tuple(ids),
            clean_BCTYX=clean,
            noise_BCTYX=randomness.noise(config.seed, step, ids, (channels, *bucket.latent_shape)),
            sigma_B=sigma_B,
            text_BED=text_BED,
            text_mask_BE=mask_BE,
            first_frame_given_B=randomness.chance(config.seed, step, ids, "image_to_video", config.i2v_probability),
            teacher_BLF=self._teachers(batch),
            has_teacher_B=torch.tensor([clip.teacher_TYXC is not None for clip in batch.clips]),
            route=route,
            forward_flops=len(ids) * config.forward_flops(bucket, text_BED.shape[1]),
        )

    def _texts(self, step: int, clips: Sequence[ClipArrays]) -> list[np.ndarray]:
        """The chosen caption of each clip, or the null text."""
        config = self._config
        ids = [clip.clip_id for clip in clips]
        dropped = randomness.chance(config.seed, step, ids, "text_dropout", config.text.dropout_probability)
        return [
            self._null_text_ED
            if drop
            else clip.text_by_kind[randomness.caption_kind(config.seed, step, clip.clip_id, shares=config.text.shares)]
            for clip, drop in zip(clips, dropped.tolist(), strict=True)
        ]

    def _teachers(self, batch: LaneBatch) -> Tensor | None:
        """(B, L, F) in the order of the video tokens, zeros where a clip has none."""
        if self._teacher_width is None:
            return None
        features = np.zeros((len(batch.clips), batch.bucket.video_tokens, self._teacher_width), np.float16)
        for index, clip in enumerate(batch.clips):
            if clip.teacher_TYXC is not None:
                features[index] = clip.teacher_TYXC.reshape(-1, self._teacher_width)
        return torch.from_numpy(features)


def pad_texts(texts: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """(tokens, width) arrays to (B, E, D) float16, zero-padded to the longest, and the mask of real tokens (B, E)."""
    longest = max(len(text) for text in texts)
    padded = np.zeros((len(texts), longest, texts[0].shape[1]), np.float16)
    mask = np.zeros((len(texts), longest), bool)
    for index, text in enumerate(texts):
        padded[index, : len(text)] = text
        mask[index, : len(text)] = True
    return torch.from_numpy(padded), torch.from_numpy(mask)
