"""Real tars for `loader.py`: sets as curation's packer writes them, of random arrays, and plans of them by the planner's own command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from curation.pack import PackEntry, assemble_shard, finish_set, shard_info
from schemas.buckets import Bucket
from schemas.ids import clip_id
from schemas.shards import CAPTION_KINDS, SampleRecord, shard_name

__all__ = ["LoaderSet", "build_plan", "index_for_energon", "pack"]

CHANNELS, TEXT_WIDTH = 16, 384
DISTINCT = 24
"""Different arrays of each member; the samples of a set take them in turn."""
TOKENS = {"long": (16, 33), "short": (4, 9), "first": (6, 13)}
COMMAND = "import sys; from planner.cli import main; sys.exit(main())"


@dataclass(frozen=True, kw_only=True)
class LoaderSet:
    """A set to pack: clips of one bucket."""

    name: str
    bucket: Bucket
    clips: int
    clips_per_shard: int
    batch_clips: int
    """Clips of one batch, on every side."""


def pack(folder: Path, what: LoaderSet) -> Path:
    """Write the set."""
    folder.mkdir(parents=True)
    members = _members(folder.parent / f"{folder.name}-arrays", what.bucket)
    rows, shards = [], []
    for index, first in enumerate(range(0, what.clips, what.clips_per_shard)):
        numbers = range(first, min(first + what.clips_per_shard, what.clips))
        entries = [PackEntry(_record(what, n), "", "", ("144p",), members[n % DISTINCT]) for n in numbers]
        path = folder / shard_name(index)
        rows += assemble_shard(entries, set_name=what.name, shard_index=index, tar_path=path)
        shards.append(shard_info(path, len(entries)))
    facts = {
        "set_name": what.name,
        "fps": 24.0,
        "codec": "dct",
        "codec_fingerprint": "random",
        "latent_channels": CHANNELS,
        "text_encoder": "minilm",
        "text_encoder_fingerprint": "random",
        "text_width": TEXT_WIDTH,
        "teacher_by_branch": {},
        "teacher_width": None,
        "seed": 0,
    }
    finish_set(folder, rows=rows, shards=shards, null_text=np.zeros((2, TEXT_WIDTH), np.float16), facts=facts)
    return folder


def build_plan(
    samples: Path,
    folder: Path,
    what: LoaderSet,
    *,
    lanes: int,
    batch_clips: int,
    epochs: int = 1,
    reads_kb: int = 1024,
    micro_per_step: int = 1,
) -> Path:
    """`reelyard-plan build` of one set; each step is `micro_per_step` micro-batches on each lane. No annealing: the order of clips costs a loader
    nothing."""
    config = {
        "lanes": lanes,
        "micro_per_step": micro_per_step,
        "epochs": epochs,
        "batch_clips": {str(what.bucket): batch_clips},
        "policy": "uniform",
        "left_over": "drop",
        "shorten_left_over": False,
        "anneal_steps": 0,
        "anneal_moves_per_clip": 0.0,
        "read_chunk_kb": reads_kb,
    }
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    _planner("build", "--samples", samples, "--config", file, "--output", folder)
    return folder


def index_for_energon(samples: Path) -> None:
    """The index files that megatron-energon reads tars with."""
    _planner("index", "--energon", samples)


def _planner(*arguments: object) -> None:
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))} failed:\n{done.stderr}")


def _record(what: LoaderSet, number: int) -> SampleRecord:
    source, bucket = f"{number:064x}", what.bucket
    return SampleRecord(
        clip_id=clip_id(source, 0, 1000),
        frames=bucket.frames,
        height=bucket.height,
        width=bucket.width,
        fps=24.0,
        branch="image_real" if bucket.frames == 1 else "video_real",
        domain="",
        source=source,
        start_us=0,
        end_us=1000,
        caption_long="A man rides a bike along a road between fields.",
        caption_short="A man on a bike.",
        caption_first="A man rides a bike.",
    )


def _members(folder: Path, bucket: Bucket) -> list[dict[str, str]]:
    """Files of `DISTINCT` random samples."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    frames, rows, columns = bucket.latent_shape
    found = []
    for number in range(DISTINCT):
        shapes = {"latent": (frames, CHANNELS, rows, columns)}
        shapes |= {f"text_{kind}": (int(generator.integers(*TOKENS[kind])), TEXT_WIDTH) for kind in CAPTION_KINDS}
        found.append(dict(_saved(folder, number, shapes, generator)))
    return found


def _saved(
    folder: Path, number: int, shapes: dict[str, tuple[int, ...]], generator: np.random.Generator
) -> Iterator[tuple[str, str]]:
    for name, shape in shapes.items():
        path = folder / f"{number}.{name}.npy"
        np.save(path, generator.standard_normal(shape, np.float32).astype(np.float16))
        yield f"{name}.npy", str(path)
