"""Seconds, memory and recall of the match by the size of the table: made-up descriptors of clips, with copies planted around the limit.

    python benchmarks/dedup.py [--quick] [--json FILE] [--sizes 100000 300000 1000000]

Each size runs in a process of its own, through the code of the match phase: up to `frames_per_block` frames `search_whole`, above it blocks on
disk and `search_blocks` for one pair of blocks after the other, here without workers, so seconds and memory are those of one process. A table has
five descriptors a clip, forty clips a source. They have what real ones have: the cosines of unrelated frames spread by 0.07 (as SSCD's of
different photographs), frames of a clip and clips of a source are alike, and a tenth of the sources are copies of others, each with a cosine
between 0.5 and 0.98. Recall: of the frame pairs at or above `candidate_cosine` that an exact search finds for a random sample of frames, the
share that the search for candidates finds. Peer: the exact search of the same sample (float32 matrix products), its seconds scaled to the whole
table.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from bench_table import Row, row, show, write
from numpy.typing import NDArray

SIZES = (100_000, 300_000, 1_000_000)
QUICK_SIZES = (20_000, 60_000)
FRAMES_PER_CLIP, CLIPS_PER_SOURCE = 5, 40
SPREAD = 0.07
COPIED_SHARE = 0.1
GOAL_SECONDS, GOAL_GIB, GOAL_RECALL = 600.0, 8.0, 0.99


def directions(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Unit vectors whose cosines with each other spread by `SPREAD`: fewer of the 512 dimensions carry most of them."""
    weights = np.exp(-np.arange(512) / (0.51 / SPREAD**2) / 2).astype(np.float32)
    return _unit(rng.standard_normal((count, 512), dtype=np.float32) * weights)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def made_up(num_frames: int) -> tuple[pa.Table, pa.Table]:
    """Clips and descriptors, source by source; the same for the same size."""
    from schemas.ids import clip_id
    from schemas.tables import DESCRIPTORS

    num_sources = max(2, num_frames // (FRAMES_PER_CLIP * CLIPS_PER_SOURCE))
    copied = int(num_sources * COPIED_SHARE)
    strength = np.random.default_rng(0).uniform(0.5, 0.98, copied)
    per_source = FRAMES_PER_CLIP * CLIPS_PER_SOURCE
    vectors = np.empty((num_sources * per_source, 512), dtype=np.float16)
    facts: dict[str, list[Any]] = {name: [] for name in ("clip_id", "content_hash", "kind", "start_us", "end_us")}
    for source in range(num_sources):
        original = source - (num_sources - copied)
        frames = _film(source if original < 0 else original)
        if original >= 0:
            noise = directions(np.random.default_rng([1, source]), len(frames))
            share = np.float32(strength[original])
            frames = _unit(share * frames + np.sqrt(1 - share**2) * noise)
        vectors[source * per_source : (source + 1) * per_source] = frames
        for clip in range(CLIPS_PER_SOURCE):
            start, end = clip * 5_000_000, (clip + 1) * 5_000_000
            name = f"{source:08x}"
            for column, value in zip(facts, (clip_id(name, start, end), name, "video", start, end), strict=True):
                facts[column].append(value)
    num_clips = num_sources * CLIPS_PER_SOURCE
    flat = pa.array(vectors.reshape(-1), pa.float16())
    kind = DESCRIPTORS.field("descriptor").type
    columns = {
        "clip_id": pa.array(np.repeat(np.array(facts["clip_id"]), FRAMES_PER_CLIP)),
        "time_us": pa.array(np.tile(np.arange(FRAMES_PER_CLIP) * 1_000_000, num_clips)),
        "descriptor": pa.FixedSizeListArray.from_arrays(flat, type=kind),
        "model": pa.array(["made up"] * (num_clips * FRAMES_PER_CLIP)),
    }
    return pa.table(facts), pa.table(columns)


def _film(number: int) -> NDArray[np.float32]:
    """Frames of a source: clips with something of the source, frames that walk on from one to the next."""
    rng = np.random.default_rng([0, number])
    base = directions(rng, 1)
    frame = _unit(0.45 * base + 0.89 * directions(rng, CLIPS_PER_SOURCE))
    frames = [frame]
    for _ in range(FRAMES_PER_CLIP - 1):
        frame = _unit(0.93 * frame + 0.37 * directions(rng, CLIPS_PER_SOURCE))
        frames.append(frame)
    return np.stack(frames, axis=1).reshape(-1, 512)


def measure(num_frames: int, sample: int) -> dict[str, float]:
    """One size, in this process."""
    from curation.match import compared_frames, judge_hits, search_whole
    from curation.match_frames import gather_frames
    from curation.match_settings import MatchSettings

    clips, descriptors = made_up(num_frames)
    settings = MatchSettings()
    start, cpu = time.perf_counter(), time.process_time()
    data = compared_frames(gather_frames(descriptors, clips), settings)
    in_blocks = descriptors.num_rows > settings.frames_per_block
    hits = _in_blocks(data, clips, descriptors, settings) if in_blocks else search_whole(data, settings)
    pairs = judge_hits(data, hits, settings)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    picked = np.sort(np.random.default_rng(5).choice(len(data.clip), min(sample, len(data.clip)), replace=False))
    start = time.process_time()
    wanted = _exact(data, picked, settings.candidate_cosine)
    exact = (time.process_time() - start) * len(data.clip) / len(picked)
    found = np.isin(wanted, hits.first * len(data.clip) + hits.second).mean() if len(wanted) else float("nan")
    return {
        "frames": len(data.clip), "seconds": seconds, "cpu_seconds": cpu, "peak_gib": peak, "recall": float(found),
        "exact_cpu_seconds": exact, "sample_pairs": len(wanted), "pairs": pairs.num_rows, "in_blocks": float(in_blocks),
    }  # fmt: skip


def _in_blocks(data: Any, clips: pa.Table, descriptors: pa.Table, settings: Any) -> Any:
    """Hits of all pairs of blocks, as units of the match find them."""
    from curation.commits import DONE, CommitStore
    from curation.match_blocks import BLOCKS, block_pairs, collect_hits, search_blocks, settle_blocks

    with tempfile.TemporaryDirectory() as folder:
        store = CommitStore(Path(folder))
        blocks = settle_blocks(store, clips, descriptors, earlier=False, frames_per_block=settings.frames_per_block)
        units = list(block_pairs(blocks, "benchmark"))
        for key, one, other in units:
            sides = [store.folder(BLOCKS, block.key) for block in ([one] if one is other else [one, other])]
            with store.unit("match", key, {"status": DONE, "reason": None}) as target:
                search_blocks(sides, settings, target)
        return collect_hits(data, store, units, settings)


def _exact(data: Any, picked: NDArray[np.int64], limit: float) -> NDArray[np.int64]:
    """Keys of all comparable pairs of the picked frames at or above the limit, by matrix products."""
    keys = [np.zeros(0, dtype=np.int64)]
    asking = data.unit(picked)
    for start in range(0, len(data.clip), 1 << 15):
        rows = np.arange(start, min(start + (1 << 15), len(data.clip)))
        place, column = np.nonzero(asking @ data.unit(rows).T >= limit)
        first, second = picked[place], rows[column]
        good = data.comparable(data.clip[first], data.clip[second])
        good[good] = data.cosines(first[good], second[good]) >= limit
        keys.append(np.minimum(first[good], second[good]) * len(data.clip) + np.maximum(first[good], second[good]))
    return np.unique(np.concatenate(keys))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 and 60 thousand descriptors")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--sizes", type=int, nargs="+", help="other sizes")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, 2000)))
        return 0
    rows: list[Row] = []
    results = []
    for size in arguments.sizes or (QUICK_SIZES if arguments.quick else SIZES):
        command = [sys.executable, __file__, "--one", str(size)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(", ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)
        results.append(found)
        for metric, goal, better, unit, peer in (
            ("seconds", GOAL_SECONDS, "lower", "s", None),
            ("cpu_seconds", None, "lower", "s", found["exact_cpu_seconds"]),
            ("peak_gib", GOAL_GIB, "lower", "GiB", None),
            ("recall", GOAL_RECALL, "higher", "share", 1.0),
        ):
            rows.append(row(f"{metric}, {size:,}", found[metric], unit, goal=goal, better=better, peer=peer))
    for small, large in pairwise(results):
        growth = np.log(large["cpu_seconds"] / small["cpu_seconds"]) / np.log(large["frames"] / small["frames"])
        name = f"growth exponent, {small['frames']:,} to {large['frames']:,}"
        rows.append(row(name, float(growth), "power of the size", goal=1.7, better="lower"))
    show(rows)
    write(arguments.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
