"""The planned loader as one of the sides of `loader.py`: the same requests and the same batches as `peers.py` answers and makes.

A micro-batch is a tensor of stacked latents and, per caption kind, the texts one behind another with their lengths, made in the loader's thread.
"""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loader_clock import Batch, cool, first_batch, serve, waits, whole_throughput

from schemas.shards import CAPTION_KINDS
from training.loader import LaneBatch, PlannedLoader
from training.loading.sample_kernel import compiled_read


def joined(batch: LaneBatch) -> dict[str, Any]:
    """What the peers' collate functions make."""
    texts = {}
    for kind in CAPTION_KINDS:
        parts = [clip.text_by_kind[kind] for clip in batch.clips]
        texts[f"text_{kind}"] = torch.from_numpy(np.concatenate(parts))
        texts[f"tokens_{kind}"] = torch.tensor([len(part) for part in parts])
    return {"latent": batch.latents(), **texts}


def opened(plan: str, samples: str, start_step: int | None = None) -> PlannedLoader[dict[str, Any]]:
    """The loader of rank 0 of 1; nothing is read yet."""
    return PlannedLoader(Path(plan), samples=[Path(samples)], prepare=joined, start_step=start_step)


def counted(loader: PlannedLoader[dict[str, Any]]) -> Iterator[Batch]:
    """Steps as the clock counts them: (clips, the batches)."""
    for step in loader:
        yield sum(len(batch["latent"]) for batch in step.batches), step.batches


def read(plan: str, samples: str, *, cold: bool) -> dict[str, float]:
    """Throughput over the whole plan."""
    _prepare(samples, cold=cold)
    return whole_throughput(lambda: counted(opened(plan, samples)))


def waited(plan: str, samples: str, *, steps: int, step_s: float, busy: bool) -> dict[str, list[float]]:
    """What the consumer waits in ms, by its own clock and as the loader tells it with each step."""
    _prepare(samples, cold=True)
    told: list[float] = []

    def noted() -> Iterator[Batch]:
        for step in opened(plan, samples):
            told.append(step.wait_ms)
            yield 1, step

    found = waits(noted, steps=steps, step_s=step_s, busy=busy)
    return {"next": found, "told": told[1:]}


def seek(plan: str, samples: str, *, step: int) -> dict[str, float]:
    """What it costs to get a step first."""
    _prepare(samples, cold=True)
    return first_batch(lambda: counted(opened(plan, samples, step)))


def digest(plan: str, samples: str) -> dict[str, int]:
    """Clips and the sum of the crc32 of their arrays, whatever their order."""
    clips = total = 0
    for step in opened(plan, samples):
        for batch in step.batches:
            clips += len(batch["latent"])
            total += sum(zlib.crc32(latent.numpy()) for latent in batch["latent"])
            for kind in CAPTION_KINDS:
                ends = batch[f"tokens_{kind}"].cumsum(0).tolist()
                parts = np.split(batch[f"text_{kind}"].numpy(), ends[:-1])
                total += sum(zlib.crc32(part) for part in parts)
    return {"clips": clips, "sum": total}


def _prepare(samples: str, *, cold: bool) -> None:
    if cold:
        cool(sorted(Path(samples).glob("*.tar")))


if __name__ == "__main__":
    if importlib.util.find_spec("pandas"):
        importlib.import_module(
            "pandas"
        )  # by pyarrow, when it makes its first array; here once, before the forks that answer
    compiled_read()  # as an import, too
    serve({"read": read, "waits": waited, "seek": seek, "digest": digest})
