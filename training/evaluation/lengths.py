"""Sampling at several lengths, beyond those of training above all: time, memory, and drift against the frame number.

The first length is the reference: the longest that the network was trained at. The same prompts, seeds, shift rule and size are sampled at
each length; every prompt has a seed of its own, so that the reference does not see one noise many times. Positions beyond training are
reached by the rotary table as it is, without scaling. What is measured says how the output's statistics change, not whether the video is
good: the MP4s are there to be looked at.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemas.command import say
from schemas.errors import UsageError
from schemas.files import write_json
from training.evaluation.drift import MEASURES, LatentReference, frame_measures, head_and_tail
from training.evaluation.peak_memory import peak_memory
from training.metrics import device_name
from training.sampler_config import LatentSize
from training.sampling import OpenSampler
from training.sampling.gallery import clip_path, write_index
from training.video import thumbnails, write_mp4

__all__ = ["measure_lengths", "table_lines"]


@dataclass(frozen=True, kw_only=True)
class _Length:
    """What was measured at one length."""

    size: LatentSize
    seconds_per_step: float
    decode_seconds: float
    sample_bytes: int | None
    decode_bytes: int | None
    forward_tflops: float
    """Of one forward pass of one clip, analytic."""
    curves: dict[str, np.ndarray]
    """Mean over prompts of each picture measure, by frame; and `latent_distance`, by latent frame."""


def measure_lengths(opened: OpenSampler, lengths: Sequence[int], output: Path) -> dict[str, Any]:
    """Sample the request's prompts at every length, write the videos and `lengths.json` into `output`, and return what is in it.

    Raises:
        UsageError: unless the lengths are 4k + 1, different, and begin with the shortest.
    """
    sizes = [LatentSize(frames, opened.request.size.height, opened.request.size.width) for frames in lengths]
    if list(lengths) != sorted(set(lengths)):
        raise UsageError(
            f"--lengths are {', '.join(map(str, lengths))}; expected each once, rising: the first is the longest length of the training"
        )
    reference: LatentReference | None = None
    found = []
    for size in sizes:
        latents, timing = _sample(opened, size)
        arrays = [latent.numpy() for latent in latents]
        if reference is None:
            reference = LatentReference(arrays)
            distances = [reference.own_distances(index) for index in range(len(arrays))]
        else:
            distances = [reference.distances(array) for array in arrays]
        found.append(_measure(opened, size, latents, distances, timing, output))
        one = found[-1]
        say(f"{size}: {one.seconds_per_step:.3g} s a step, decoded in {one.decode_seconds:.3g} s")
    report = _report(opened, found)
    write_json(output / "lengths.json", report)
    return report


def table_lines(report: dict[str, Any]) -> list[str]:
    """Times, memory, and how the end of the videos compares with their beginning."""
    head = ["frames", "tokens", "s/step", "decode s", "peak GB", *MEASURES, "latent"]
    lines = ["".join(f"{name:>12}" for name in head)]
    for one in report["lengths"]:
        numbers = [
            str(one["frames"]),
            str(one["video_tokens"]),
            f"{one['seconds_per_step']:.3g}",
            f"{one['decode_seconds']:.3g}",
            "-" if one["sample_bytes"] is None else f"{one['sample_bytes'] / 1e9:.2f}",
            *(_ratio_words(one["drift"][name]) for name in MEASURES),
            f"{one['latent_distance_at_end']:.2f}",
        ]
        lines.append("".join(f"{number:>12}" for number in numbers))
    return lines


def _ratio_words(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _sample(opened: OpenSampler, size: LatentSize) -> tuple[list[Tensor], tuple[float, int | None]]:
    """Latents of every prompt; the fastest prompt's seconds a step, and the peak of memory."""
    latents: list[Tensor] = []
    seconds = []
    with peak_memory(opened.device) as peak:
        for index in range(len(opened.request.prompts)):
            started = time.perf_counter()
            latents += opened.latents(
                index, index + 1, size, seed=opened.request.seed + index
            )  # ends on the CPU, so the device has finished
            seconds.append((time.perf_counter() - started) / opened.request.sampler.num_steps)
    return latents, (min(seconds), peak.bytes)


def _measure(
    opened: OpenSampler,
    size: LatentSize,
    latents: Sequence[Tensor],
    distances: Sequence[np.ndarray],
    timing: tuple[float, int | None],
    output: Path,
) -> _Length:
    """Decode, write and describe the clips of one length."""
    folder = output / f"frames-{size.frames:04d}"
    measured, rows, seconds = [], [], []
    with peak_memory(opened.device) as peak:
        for index, frames_THWC, took in _decoded(opened, latents):
            write_mp4(clip_path(folder, index), frames_THWC, opened.info.fps)
            measured.append(frame_measures(frames_THWC))
            rows.append(thumbnails(frames_THWC))
            seconds.append(took)
    request = opened.request
    write_index(
        folder,
        rows,
        [{"prompt": prompt, "seed": request.seed + index} for index, prompt in enumerate(request.prompts)],
        {"size": str(size), "fps": opened.info.fps, "sampler": request.sampler.model_dump(mode="json")},
    )
    curves = {name: np.mean([one[name] for one in measured], axis=0) for name in MEASURES}
    curves["latent_distance"] = np.mean(distances, axis=0)
    text_tokens = max(len(text) for text in opened.texts)
    return _Length(
        size=size,
        seconds_per_step=timing[0],
        decode_seconds=min(seconds),
        sample_bytes=timing[1],
        decode_bytes=peak.bytes,
        forward_tflops=opened.config.model.forward_flops(size.video_tokens, text_tokens).total / 1e12,
        curves=curves,
    )


def _decoded(opened: OpenSampler, latents: Sequence[Tensor]) -> Iterator[tuple[int, np.ndarray, float]]:
    """Index, frames and seconds of each clip, one in memory at a time."""
    for index, latent_TCYX in enumerate(latents):
        started = time.perf_counter()
        frames_THWC = opened.decode(latent_TCYX)
        yield index, frames_THWC, time.perf_counter() - started


def _report(opened: OpenSampler, found: Sequence[_Length]) -> dict[str, Any]:
    """What `lengths.json` holds."""
    reference = found[0].size.frames
    window = max(1, reference // 4)
    request = opened.request
    return {
        "run": str(request.run),
        "checkpoint": str(opened.checkpoint),
        "weights": request.weights,
        "device": device_name(opened.device),
        "torch": torch.__version__,
        "prompts": list(request.prompts),
        "seed": request.seed,
        "sampler": request.sampler.model_dump(mode="json"),
        "fps": opened.info.fps,
        "reference_frames": reference,
        "window_frames": window,
        "lengths": [_length_facts(one, window) for one in found],
    }


def _length_facts(one: _Length, window: int) -> dict[str, Any]:
    """One length, for JSON. `drift` is the last window's mean over the first's; null where the first is 0."""
    drift: dict[str, float | None] = {}
    for name in MEASURES:
        head, tail = head_and_tail(one.curves[name], window)
        drift[name] = tail / head if head > 0.0 and not np.isnan(tail) else None
    _, distance = head_and_tail(one.curves["latent_distance"], max(1, window // 4))
    return {
        "frames": one.size.frames,
        "size": str(one.size),
        "video_tokens": one.size.video_tokens,
        "seconds_per_step": one.seconds_per_step,
        "decode_seconds": one.decode_seconds,
        "sample_bytes": one.sample_bytes,
        "decode_bytes": one.decode_bytes,
        "forward_tflops": one.forward_tflops,
        "drift": drift,
        "latent_distance_at_end": distance,
        "curves": {
            name: [None if np.isnan(value) else float(value) for value in values] for name, values in one.curves.items()
        },
    }
