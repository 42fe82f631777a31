"""One lane's micro-batch, ready for the network: latents, noise, times, text, first-frame condition, route and teacher features as tensors.

Every random choice is a function of (seed, step, clip id) (`training.randomness`), so a micro-batch is the same on any rank and world size. It is
made in the loader's thread, on the CPU; only `to` touches the device. For a CUDA device everything lies in page-locked memory, latents as they were
read (float16, T before C), so that `to` waits for nothing and the device widens them; on a CPU they are widened here, once. Texts are padded to the
longest of the micro-batch, which is the same for every world size because a micro-batch is never split.

Legend: B clips, N clips of one teacher, C channels, T latent frames, Y/X latent rows and columns, E text tokens, I image tokens, D width of
text states or image tokens, L video tokens, F teacher channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemas.buckets import Bucket
from schemas.errors import DataError
from training import randomness
from training.alignment import TeacherFeatures
from training.config import TrainConfig
from training.dit.routing import Route
from training.flow import sample_sigma
from training.loading.clip_arrays import ClipArrays
from training.loading.lane_batch import LaneBatch
from training.low_pass import low_pass
from training.teachers import ClipFeatures, Teachers

__all__ = ["BatchMaker", "TrainingBatch", "pad_texts"]


_HALF, _SINGLE, _INDEX = 2, 4, 8
"""Bytes of a float16, a float32 and an index."""
_TENSORS = (
    "clean_BCTYX",
    "noise_BCTYX",
    "sigma_B",
    "text_BED",
    "condition_BCTYX",
    "first_frame_given_B",
    "image_BID",
)
"""What goes to the device. Masks that the host reads (`text_mask_BE`, `image_given_B`) stay with it, so that nobody waits for them."""


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """What one forward pass takes. Latents and noise are float32, text and teacher features float16 as stored.

    Before `to` a CUDA device, latents are float16 and a view of (B, T, C, Y, X).
    """

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
    condition_BCTYX: Tensor
    """The first latent frame as it is given to the network (one frame, T = 1), blurred where the configuration says so."""
    first_frame_given_B: Tensor
    image_BID: Tensor | None
    """Zeros for clips without; None when no clip of the micro-batch is given image tokens."""
    image_given_B: Tensor | None
    teachers: Mapping[str, TeacherFeatures]
    """One entry for every teacher of the run, with the clips that have it; empty without alignment."""
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
        return sum(features.num_clips for features in self.teachers.values())

    def to(self, device: torch.device) -> TrainingBatch:
        """The same on a device."""
        if device.type == "cpu":
            return self
        route = self.route and replace(self.route, kept_BK=self.route.kept_BK.to(device, non_blocking=True))
        moved: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name).to(device, non_blocking=True)
            for name in _TENSORS
        }
        moved["clean_BCTYX"] = _widened(moved["clean_BCTYX"])
        teachers = {name: features.to(device) for name, features in self.teachers.items()}
        return replace(self, **moved, teachers=teachers, route=route)


class BatchMaker:
    """Turns lane batches into training batches; the loader's `prepare`. `teachers` as `teachers.open_teachers` gives them.

    `largest_members` are bytes of the largest text and image members of the sets, for `prepared_bytes`.
    """

    def __init__(
        self,
        config: TrainConfig,
        null_text_ED: np.ndarray,
        teachers: Teachers | None,
        *,
        device: torch.device | None = None,
        largest_members: tuple[int, int] = (0, 0),
    ) -> None:
        self._config = config
        self._null_text_ED = null_text_ED
        self._teachers = teachers if config.repa is not None else None
        self._pinned = device is not None and device.type == "cuda"
        self._largest_members = largest_members

    def prepared_bytes(self, bucket: Bucket, clips: int) -> int:
        """The most that a training batch of so many clips takes."""
        config = self._config
        frames, rows, columns = bucket.latent_shape
        latent = frames * rows * columns * config.model.out_channels
        text, image = self._largest_members
        padded = text + config.text.length_multiple * config.model.text_width * _HALF
        widest = max(self._teachers.widths.values(), default=0) if self._teachers is not None else 0
        features = bucket.video_tokens * widest * _HALF
        kept = bucket.video_tokens * _INDEX if config.tread is not None else 0
        first = latent // frames * _SINGLE
        rounding = 2 if self._pinned else 1  # page-locked memory comes in powers of two
        return (
            rounding
            * clips
            * (2 * latent * _SINGLE + first + max(padded, self._null_text_ED.nbytes) + image + features + kept)
        )

    def __call__(self, batch: LaneBatch) -> TrainingBatch:
        config, step, bucket = self._config, batch.step, batch.bucket
        ids = [clip.clip_id for clip in batch.clips]
        clean, first = self._latents(batch)
        channels = clean.shape[1]
        text_BED, mask_BE = pad_texts(self._texts(step, batch.clips), config.text.length_multiple)
        sigma_B = sample_sigma(
            randomness.uniform(config.seed, step, ids, "timestep"),
            density=config.flow.time_density,
            mean=config.flow.logit_mean,
            std=config.flow.logit_std,
            shift=config.flow.shift_of(bucket.video_tokens),
        )
        given_B = randomness.chance(config.seed, step, ids, "image_to_video", config.i2v.probability)
        given_B &= bucket.frames > 1
        image_BID, image_given_B = self._image_tokens(batch.clips, given_B)
        route = self._route(step, ids, bucket)
        made = TrainingBatch(
            step=step,
            lane=batch.lane,
            bucket=bucket,
            clip_ids=tuple(ids),
            clean_BCTYX=clean,
            noise_BCTYX=randomness.noise(config.seed, step, ids, (channels, *bucket.latent_shape)),
            sigma_B=sigma_B,
            text_BED=text_BED,
            text_mask_BE=mask_BE,
            condition_BCTYX=self._condition(step, ids, first, sigma_B, given_B),
            first_frame_given_B=given_B,
            image_BID=image_BID,
            image_given_B=image_given_B,
            teachers=self._features(batch),
            route=route,
            forward_flops=self._forward_flops(bucket, mask_BE, image_BID, image_given_B, routed=route is not None),
        )
        return _pinned(made) if self._pinned else made

    def _latents(self, batch: LaneBatch) -> tuple[Tensor, Tensor]:
        """All frames as the batch keeps them, and the first ones as float32."""
        if self._pinned:
            clean = batch.latents().transpose(1, 2)
            return clean, clean[:, :, :1].float()
        clean = torch.from_numpy(batch.latent_BTCHW.swapaxes(1, 2).astype(np.float32, order="C"))
        return clean, clean[:, :, :1]

    def _forward_flops(
        self, bucket: Bucket, mask_BE: Tensor, image_BID: Tensor | None, image_given_B: Tensor | None, *, routed: bool
    ) -> int:
        """Of real tokens: padding that compiled graphs compute is no work done."""
        num_image = 0 if image_BID is None else image_BID.shape[1]
        images = [0] * len(mask_BE) if image_given_B is None else (image_given_B * num_image).tolist()
        pairs = zip(mask_BE.sum(dim=1).tolist(), images, strict=True)
        return sum(self._config.forward_flops(bucket, a, image_tokens=b, routed=routed) for a, b in pairs)

    def _route(self, step: int, ids: Sequence[str], bucket: Bucket) -> Route | None:
        """The kept tokens of the step; None where it is dense, and where nothing would be dropped: that is the dense pass, to the last bit."""
        config = self._config
        if config.tread is None or not config.tread.active_at(step):
            return None
        spec = config.tread.spec()
        if spec.num_kept(bucket.video_tokens) == bucket.video_tokens:
            return None
        return spec.for_clips(seed=config.seed, step=step, clip_ids=ids, num_tokens=bucket.video_tokens)

    def _condition(
        self, step: int, ids: Sequence[str], first_BCTYX: Tensor, sigma_B: Tensor, given_B: Tensor
    ) -> Tensor:
        """The first frames, low-passed by what their time says for the clips that the blur falls on."""
        blur = self._config.i2v.blur
        if blur is None:
            return first_BCTYX
        drawn_B = randomness.chance(self._config.seed, step, ids, "blur", blur.probability) & given_B
        if not drawn_B.any():
            return first_BCTYX
        condition = first_BCTYX.clone()
        for index in drawn_B.nonzero().flatten().tolist():
            condition[index] = low_pass(first_BCTYX[index], blur.factor_at(float(sigma_B[index])))
        return condition

    def _image_tokens(self, clips: Sequence[ClipArrays], given_B: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Tokens of the clips whose first frame is given and that have some; (None, None) when there is no such clip."""
        if not self._config.i2v.image_tokens:
            return None, None
        tokens = [clip.image_ID if given else None for clip, given in zip(clips, given_B.tolist(), strict=True)]
        some = [image_ID for image_ID in tokens if image_ID is not None]
        if not some:
            return None, None
        if len({image_ID.shape for image_ID in some}) > 1:
            raise DataError(
                f"image tokens of shapes {sorted({image_ID.shape for image_ID in some})} in one micro-batch, expected one shape "
                "(image.npy); pack the sets with one image encoder"
            )
        stacked = np.stack([np.zeros_like(some[0]) if image_ID is None else image_ID for image_ID in tokens])
        return torch.from_numpy(stacked), torch.tensor([image_ID is not None for image_ID in tokens])

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

    def _features(self, batch: LaneBatch) -> dict[str, TeacherFeatures]:
        """The features of each teacher's clips, in the order of the video tokens; no clip has any once alignment is off."""
        if self._teachers is None:
            return {}
        assert self._config.repa is not None
        on = self._config.repa.weight_at(batch.step) > 0.0
        found = [self._teachers.features_of(clip) if on else None for clip in batch.clips]
        return {name: self._features_of(name, found, batch.bucket) for name in self._teachers.widths}

    def _features_of(self, name: str, found: Sequence[ClipFeatures | None], bucket: Bucket) -> TeacherFeatures:
        assert self._teachers is not None
        width, tokens = self._teachers.widths[name], bucket.video_tokens
        mine = [
            (row, clip.features_TYXC) for row, clip in enumerate(found) if clip is not None and clip.teacher == name
        ]
        features_NLC = np.empty((len(mine), tokens, width), np.float16)
        for index, (_, features_TYXC) in enumerate(mine):
            features_NLC[index] = features_TYXC.reshape(tokens, width)
        rows_N = torch.tensor([row for row, _ in mine], dtype=torch.int64)
        return TeacherFeatures(rows_N=rows_N, features_NLC=torch.from_numpy(features_NLC))


def _widened(latent_BCTYX: Tensor) -> Tensor:
    """Contiguous float32 of latents in any order and type, in one pass."""
    if latent_BCTYX.dtype == torch.float32:
        return latent_BCTYX
    return torch.empty(latent_BCTYX.shape, dtype=torch.float32, device=latent_BCTYX.device).copy_(latent_BCTYX)


def _pinned(batch: TrainingBatch) -> TrainingBatch:
    """The batch in page-locked memory; the latents are there already."""
    moved: dict[str, Any] = {
        name: getattr(batch, name).pin_memory()
        for name in _TENSORS
        if name != "clean_BCTYX" and getattr(batch, name) is not None
    }
    if batch.route is not None:
        moved["route"] = replace(batch.route, kept_BK=batch.route.kept_BK.pin_memory())
    moved["teachers"] = {name: features.pinned() for name, features in batch.teachers.items()}
    return replace(batch, **moved)


def pad_texts(texts: Sequence[np.ndarray], length_multiple: int = 1) -> tuple[Tensor, Tensor]:
    """(tokens, width) arrays to (B, E, D) float16, zero-padded to the longest or the next multiple, and the mask of real tokens (B, E)."""
    longest = -(-max(len(text) for text in texts) // length_multiple) * length_multiple
    padded = np.zeros((len(texts), longest, texts[0].shape[1]), np.float16)
    mask = np.zeros((len(texts), longest), bool)
    for index, text in enumerate(texts):
        padded[index, : len(text)] = text
        mask[index, : len(text)] = True
    return torch.from_numpy(padded), torch.from_numpy(mask)
