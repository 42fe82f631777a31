"""The attention report of a run: its averaged weights on real clips at given times, summed up per block as JSON.

Each clip is noised with noise of (seed, clip id), the same at every time, and goes through the network alone with its long caption, so nothing
is padded and nothing hidden. The page is drawn from the JSON alone. Price: one forward pass per clip and time, its attention computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from schemas.buckets import Bucket
from schemas.errors import ConfigError, UsageError
from training import randomness
from training.checkpoints.whole_network import WeightsKind, load_network, read_run_config
from training.dit.model import MotifVideoDiT
from training.evaluation.attention.shares import FrameLayout, FrameMass, WatchedBlock, watch_attention
from training.evaluation.set_clips import draw_clips
from training.flow import interpolate, model_input, timestep_of
from training.loading.clip_arrays import ClipArrays
from training.loading.sample_sets import open_whole_sets
from training.parallel import choose_device, choose_precision
from training.run_setup import read_run_info
from training.set_encoders import check_encoders, encoders_of_run

__all__ = ["REPORT_VERSION", "AttentionRequest", "measure_attention", "summarize", "watch_clips"]

REPORT_VERSION = 1
_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class AttentionRequest:
    """What to look at."""

    run: Path
    samples: Path
    num_clips: int
    sigmas: tuple[float, ...]
    """Times, 0 data to 1 noise."""
    seed: int = 0
    bucket: Bucket | None = None
    """None takes the set's most common video bucket."""
    checkpoint: int | None = None
    device: str = "auto"


def measure_attention(
    request: AttentionRequest, *, on_pass: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """The report as JSON values: what was looked at, and for each time the shares of every block.

    Raises:
        UsageError, DataError: for a folder that is no run or no set, and times or sizes that make no sense.
    """
    wrong = [sigma for sigma in request.sigmas if not 0.0 <= sigma <= 1.0]
    if wrong or not request.sigmas:
        raise UsageError(f"--sigma has {wrong or 'no time'}, expected times from 0 (data) to 1 (noise)")
    checkpoint, config = read_run_config(request.run, request.checkpoint)
    sets = open_whole_sets([request.samples])
    check_encoders(sets.infos[0], request.samples, encoders_of_run(read_run_info(request.run), config))
    drawn = draw_clips(sets, request.num_clips, seed=request.seed, bucket=request.bucket)
    device = choose_device(request.device)
    weights: WeightsKind = "ema" if config.ema_decays else "trained"
    model = load_network(checkpoint, config, weights).to(device, choose_precision(config.precision, device))
    by_sigma = watch_clips(model, drawn.clips, request.sigmas, seed=request.seed, on_pass=on_pass)
    layout = by_sigma[0][0].layout
    return {
        "report_version": REPORT_VERSION,
        "run": request.run.name,
        "checkpoint": checkpoint.name,
        "weights": f"average, decay {config.ema_decays[0]}" if config.ema_decays else "trained weights",
        "set": drawn.info.set_name,
        "bucket": str(drawn.bucket),
        "latent_frames": layout.frames,
        "tokens_per_frame": layout.tokens_per_frame,
        "seed": request.seed,
        "clips": [clip.clip_id for clip in drawn.clips],
        "even_inter_frame_of_video": (layout.frames - 1) / layout.frames,
        "times": [
            {"sigma": sigma, "blocks": [summarize(block) for block in blocks]}
            for sigma, blocks in zip(request.sigmas, by_sigma, strict=True)
        ],
    }


@torch.inference_mode()
def watch_clips(
    model: MotifVideoDiT,
    clips: Sequence[ClipArrays],
    sigmas: Sequence[float],
    *,
    seed: int,
    on_pass: Callable[[int, int], None] | None = None,
) -> list[list[WatchedBlock]]:
    """For each time all blocks, each with one `FrameMass` per clip."""
    by_sigma: list[list[WatchedBlock]] = []
    device = next(model.parameters()).device
    for sigma in sigmas:
        merged: list[WatchedBlock] = []
        for clip in clips:
            clean = torch.from_numpy(clip.latent_TCHW.astype("float32").swapaxes(0, 1)[None].copy())
            channels, frames, rows, columns = clean.shape[1:]
            noise = randomness.noise(seed, 0, [clip.clip_id], (channels, frames, rows, columns))
            sigma_B = torch.tensor([sigma], dtype=torch.float64)
            noisy = interpolate(clean, noise, sigma_B)
            text_BED = torch.from_numpy(clip.text_by_kind["long"][None].copy()).to(device)
            latent = model_input(noisy, clean, torch.zeros(1, dtype=torch.bool)).to(device)
            with watch_attention(model, _layout(model, clean, text_BED)) as blocks:
                model(latent, timestep_of(sigma_B).to(device), text_BED)
            merged = merged or blocks
            if merged is not blocks:
                for whole, part in zip(merged, blocks, strict=True):
                    whole.seen += part.seen
            if on_pass is not None:
                on_pass(len(by_sigma) * len(clips) + len(merged[0].seen), len(sigmas) * len(clips))
        by_sigma.append(merged)
    return by_sigma


def summarize(block: WatchedBlock) -> dict[str, Any]:
    """One block's shares over all clips; shares of all attention mass, so own + inter + image + text is 1."""
    mean = FrameMass(layout=block.layout, mass_HQG=torch.stack([found.mass_HQG for found in block.seen]).mean(0))
    by_clip = torch.stack([found.other_frames().mean() for found in block.seen])
    inter, own = mean.other_frames(), mean.own_frame()
    summary: dict[str, Any] = {
        "name": block.name,
        "kind": block.kind,
        "index": block.index,
        "own_frame_share": _number(own.mean()),
        "inter_frame_share": _number(inter.mean()),
        "image_share": _number(mean.image().mean()),
        "text_share": _number(mean.text().mean()),
        "even_inter_frame_share": sum(_even_share(found.layout) for found in block.seen) / len(block.seen),
        "inter_frame_of_video": _number((inter / (inter + own)).mean()),
        "inter_frame_share_by_head": _numbers(inter),
        "inter_frame_share_std_over_clips": _number(by_clip.std(correction=0)),
        "frames": _numbers(mean.frames_between(0, 0).mean(0)),
    }
    if block.layout.halves == 2:
        summary["halves"] = {
            f"{name}_queries": {
                f"to_{key_name}_half": {
                    "own_frame_share": _number(mean.own_frame(half, key_half).mean()),
                    "inter_frame_share": _number(mean.other_frames(half, key_half).mean()),
                    "frames": _numbers(mean.frames_between(half, key_half).mean(0)),
                }
                for key_half, key_name in enumerate(("decoder", "encoder"))
            }
            for half, name in enumerate(("decoder", "encoder")[: mean.query_halves])
        }
    return summary


def _even_share(layout: FrameLayout) -> float:
    """The inter-frame share of attention that looks everywhere alike."""
    return layout.halves * (layout.frames - 1) * layout.tokens_per_frame / layout.total_tokens


def _layout(model: MotifVideoDiT, clean_BCTYX: Tensor, text_BED: Tensor) -> FrameLayout:
    patch_t, patch_y, patch_x = model.shape.patch
    _, _, frames, rows, columns = clean_BCTYX.shape
    if patch_t != 1:
        raise ConfigError(
            f"model.patch is {model.shape.patch}; attention by frame is told for patches of one latent frame"
        )
    per_frame = (rows // patch_y) * (columns // patch_x)
    return FrameLayout(frames=frames, tokens_per_frame=per_frame, text_tokens=text_BED.shape[1])


def _number(value: Tensor) -> float:
    return round(float(value), _DIGITS)


def _numbers(values: Tensor) -> Any:
    """Nested lists, rounded."""
    return (values * 10**_DIGITS).round().div(10**_DIGITS).tolist()
