"""What chance decides for one clip in one step, as plain facts: its time, its text, whether its first frame is given, its route.

`training.batch` draws the same for whole micro-batches and goes on to tensors; here nothing is read and nothing but the clip's id is known, so a
step can be told years later without its shards. Both use the same functions of `training.randomness` and `training.flow` on the same keys.
Price: the order of the draws is written down twice; a test compares every fact with the batches that a run trains on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.buckets import Bucket
from training import randomness
from training.config import TrainConfig
from training.flow import sample_sigma
from training.randomness import CaptionKind

__all__ = ["ClipDraws", "clip_draws"]


@dataclass(frozen=True, kw_only=True)
class ClipDraws:
    """One clip in one step."""

    sigma: float
    """Time s in [0, 1]: 0 data, 1 noise."""
    text: CaptionKind | None
    """The caption that is given; None: it is dropped, the null text takes its place."""
    first_frame_given: bool
    blur_factor: float | None
    """Size of the low-passed first frame relative to the latent; None where it is not given, or given as it is."""
    video_tokens: int
    kept_tokens: int
    """Video tokens that the routed blocks see; all of them in a dense step."""


def clip_draws(config: TrainConfig, step: int, bucket: Bucket, clip_ids: Sequence[str]) -> list[ClipDraws]:
    """The draws of some clips that a step has in one bucket, in their order."""
    seed, tokens = config.seed, bucket.video_tokens
    sigma_B = sample_sigma(
        randomness.uniform(seed, step, clip_ids, "timestep"),
        density=config.flow.time_density,
        mean=config.flow.logit_mean,
        std=config.flow.logit_std,
        shift=config.flow.shift_of(tokens),
    )
    dropped_B = randomness.chance(seed, step, clip_ids, "text_dropout", config.text.dropout_probability)
    given_B = randomness.chance(seed, step, clip_ids, "image_to_video", config.i2v.probability) & (bucket.frames > 1)
    blur = config.i2v.blur
    blurred_B = randomness.chance(seed, step, clip_ids, "blur", 0.0 if blur is None else blur.probability) & given_B
    routed = config.tread is not None and config.tread.active_at(step)
    kept = config.tread.spec().num_kept(tokens) if routed and config.tread is not None else tokens
    draws = []
    for index, clip_id in enumerate(clip_ids):
        sigma = float(sigma_B[index])
        kind = None if dropped_B[index] else randomness.caption_kind(seed, step, clip_id, shares=config.text.shares)
        draws.append(
            ClipDraws(
                sigma=sigma,
                text=kind,
                first_frame_given=bool(given_B[index]),
                blur_factor=blur.factor_at(sigma) if blur is not None and blurred_B[index] else None,
                video_tokens=tokens,
                kept_tokens=kept,
            )
        )
    return draws
