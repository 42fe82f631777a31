"""Dense validation loss: held-out clips at fixed times with fixed noise, every token, no dropped text, no alignment, no given frame.

    loss = mean over clips of the mean over times of the mean squared velocity error

Times are the middles of equal shares of the training density of the clip's size, so the mean estimates the training loss of dense passes, and
the noise depends on the seed and the clip alone: between two checkpoints only the weights differ. Passes are dealt to the ranks in turn and
every rank runs equally many, so that sharded networks meet in their collectives; which clips are in a pass does not depend on the ranks.
Price: clips x times forward passes, each about a third of a training pass.

Legend: N clips, S times, B rows of a pass (clip and time), C channels, T latent frames, Y/X latent rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemas.buckets import Bucket
from training import randomness
from training.batch import pad_texts
from training.config import FlowConfig
from training.evaluation.held_out import HeldOutSets
from training.evaluation.set_clips import SetClip
from training.evaluation.settings import ValidationConfig
from training.flow import flow_loss, interpolate, model_input, sample_sigma, timestep_of
from training.loading.clip_arrays import ClipArrays
from training.parallel import World
from training.sampling.integrate import Velocity

__all__ = ["Validation", "ValidationResult", "quantile_sigmas"]

_NO_STEP = -1
"""In the key of the noise, where training has its step."""


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """Losses of every clip at every time."""

    clips: tuple[SetClip, ...]
    losses_NS: np.ndarray
    """float64."""
    sigmas_by_bucket: dict[Bucket, list[float]]

    @property
    def loss(self) -> float:
        """Of all clips."""
        return float(self.losses_NS.mean())

    @property
    def num_not_finite(self) -> int:
        """Losses, of a clip at a time, that are infinite or no number."""
        return int((~np.isfinite(self.losses_NS)).sum())

    def line(self) -> dict[str, Any]:
        """For JSON: the loss, exactly as well, at each share of the times, and all that for each bucket. What is not finite is null."""
        buckets = {}
        for bucket, sigmas in self.sigmas_by_bucket.items():
            rows = self.losses_NS[[clip.bucket == bucket for clip in self.clips]]
            by_time = [
                {"sigma": sigma, "loss": loss} for sigma, loss in zip(sigmas, _finite(rows.mean(0)), strict=True)
            ]
            (loss,) = _finite(rows.mean(keepdims=True).ravel())
            buckets[str(bucket)] = {"clips": len(rows), "loss": loss, "by_time": by_time}
        return {
            "loss": self.loss if math.isfinite(self.loss) else None,
            "loss_hex": self.loss.hex() if math.isfinite(self.loss) else None,
            "clips": len(self.clips),
            "by_share": _finite(self.losses_NS.mean(0)),
            "buckets": buckets,
        }


class Validation:
    """Chosen clips of which this rank holds those that it measures.

    `clips_per_pass` says how many rows of a bucket go through the network together.
    """

    def __init__(
        self,
        held_out: HeldOutSets,
        config: ValidationConfig,
        flow: FlowConfig,
        *,
        clips_per_pass: Callable[[Bucket], int],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.held_out = held_out
        self._config = config
        self._sigmas = {
            bucket: quantile_sigmas(flow, bucket.video_tokens, config.num_timesteps)
            for bucket in sorted({clip.bucket for clip in held_out.clips})
        }
        passes = list(self._passes(clips_per_pass))
        rounds = -(-len(passes) // world_size)
        places = [index * world_size + rank for index in range(rounds)]
        self._mine = [(passes[min(place, len(passes) - 1)], place < len(passes)) for place in places]
        """Passes of this rank, and whether each counts: the last one may be done again, only to keep step."""
        needed = sorted({clip for rows, _ in self._mine for clip, _ in rows})
        self._arrays: dict[int, ClipArrays] = {index: held_out.read(held_out.clips[index]) for index in needed}

    @torch.no_grad()
    def measure(
        self, velocity: Velocity, world: World, *, go_on: Callable[[], None] = lambda: None
    ) -> ValidationResult:
        """Losses with the network as it is; every rank calls it, and gets the same result.

        `go_on` is called before every pass, on all ranks equally often; what it raises ends the measurement.
        """
        clips = self.held_out.clips
        losses_NS = np.zeros((len(clips), self._config.num_timesteps))
        for rows, counts in self._mine:
            go_on()
            found = self._losses(velocity, rows, world.device)
            if counts:
                for (clip, time), loss in zip(rows, found, strict=True):
                    losses_NS[clip, time] = loss
        # Every entry is not zero on one rank only, so the sum has the same bits for every world size.
        total = np.array(world.sum_float64(losses_NS.ravel().tolist())).reshape(losses_NS.shape)
        sigmas = {bucket: found.tolist() for bucket, found in self._sigmas.items()}
        return ValidationResult(clips=clips, losses_NS=total, sigmas_by_bucket=sigmas)

    def _passes(self, clips_per_pass: Callable[[Bucket], int]) -> Iterator[list[tuple[int, int]]]:
        """(clip, time) rows of one bucket, as many as go through the network together."""
        for bucket in self._sigmas:
            rows = [
                (index, time)
                for index, clip in enumerate(self.held_out.clips)
                if clip.bucket == bucket
                for time in range(self._config.num_timesteps)
            ]
            size = clips_per_pass(bucket)
            yield from (rows[start : start + size] for start in range(0, len(rows), size))

    def _losses(self, velocity: Velocity, rows: Sequence[tuple[int, int]], device: torch.device) -> list[float]:
        """The loss of each row of one pass."""
        clips = [self.held_out.clips[index] for index, _ in rows]
        arrays = [self._arrays[index] for index, _ in rows]
        latents_BTCYX = np.stack([one.latent_TCHW for one in arrays])
        clean = torch.from_numpy(latents_BTCYX.swapaxes(1, 2).astype(np.float32, order="C")).to(device)
        noise = self._noise(clips, tuple(clean.shape[1:])).to(device)
        sigma_B = torch.stack([self._sigmas[clip.bucket][time] for clip, (_, time) in zip(clips, rows, strict=True)])
        sigma_B = sigma_B.to(device)
        text_BED, mask_BE = pad_texts([one.text_by_kind[self._config.caption] for one in arrays])
        mask = None if bool(mask_BE.all()) else mask_BE.to(device)
        noisy = interpolate(clean, noise, sigma_B)
        not_given_B = torch.zeros(len(rows), dtype=torch.bool, device=device)
        found = velocity(model_input(noisy, clean, not_given_B), timestep_of(sigma_B), text_BED.to(device), mask, None)
        return flow_loss(found, clean, noise).per_clip_B.double().tolist()

    def _noise(self, clips: Sequence[SetClip], shape: tuple[int, ...]) -> Tensor:
        """Drawn once for each clip of a pass."""
        channels, frames, rows, columns = shape
        ids = list(dict.fromkeys(clip.clip_id for clip in clips))
        drawn = randomness.noise(self._config.seed, _NO_STEP, ids, (channels, frames, rows, columns))
        return drawn[[ids.index(clip.clip_id) for clip in clips]]


def _finite(values: np.ndarray) -> list[float | None]:
    """As JSON has them: null for what is not finite."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def quantile_sigmas(flow: FlowConfig, video_tokens: int, count: int) -> Tensor:
    """The middles of `count` equal shares of the training density, float64, rising."""
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return sample_sigma(
        middles,
        density=flow.time_density,
        mean=flow.logit_mean,
        std=flow.logit_std,
        shift=flow.shift_of(video_tokens),
    )
