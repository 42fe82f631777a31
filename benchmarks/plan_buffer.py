"""Clips that the fullest lane holds, when shards are read one after another: a random order, greedy prefix balancing, and the planner's plans.

    python benchmarks/plan_buffer.py [--quick] [--json FILE]

64 lanes with 80 shards of 2,000 clips each, 12 buckets, batches of 8, policy `uniform`: rows ask every lane for the same mix all the time. Three
kinds of shards: `iid` (each nearly like the whole), `clustered`, `pure` (each nearly one bucket). Peers, in the same run: every lane's own whole
shards in random order (`peer_random`), and in the order that keeps what is read closest to the whole (`greedy`), both with rows at the whole's mix
as soon as the poorest bucket allows, in fractions of clips; the buffer is looked at after each shard. Ours are whole plans, their peaks exact, clip
by clip, under a cap of what `greedy` took (without one where that is refused), with as many clips of each bucket on every lane, which whole shards
do not give: `open_1` reads one shard after another, `open_4` may be in the middle of four. Nothing is read that could wait. `--quick`: 16 lanes
with 20 shards of 500 clips.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from bench_table import Row, row, show, write

from planner.building import build_plan
from planner.samples import Corpus
from planner.schedule.reading import Parts, order_greedily
from planner.settings import PlanConfig
from schemas.buckets import Bucket
from schemas.command import say
from schemas.errors import PlanError
from schemas.plan import PlanSet

SIZES = ((144, 256), (256, 144), (192, 192))
BUCKETS = tuple(Bucket(frames, *size) for frames in (1, 33, 65, 121) for size in SIZES)
SHARES = np.array([0.20, 0.10, 0.08, 0.16, 0.08, 0.07, 0.10, 0.05, 0.04, 0.06, 0.03, 0.03])
CONCENTRATIONS = {"iid": 2000.0, "clustered": 50.0, "pure": 0.5}
BATCH = 8
CLIP_BYTES = 1 << 20


@dataclass(frozen=True)
class Scale:
    """Full or quick."""

    lanes: int
    shards_per_lane: int
    clips_per_shard: int


FULL = Scale(64, 80, 2000)
QUICK = Scale(16, 20, 500)


def corpus_of(scale: Scale, concentration: float, seed: int) -> Corpus:
    """Shards whose mixes are from a Dirichlet of this total concentration, clips in random order, all of one size in bytes."""
    rng = np.random.default_rng([seed, 1])
    shards, clips = scale.lanes * scale.shards_per_lane, scale.clips_per_shard
    mixes = rng.dirichlet(SHARES / SHARES.sum() * concentration, size=shards)
    bucket = np.concatenate([rng.choice(len(SHARES), size=clips, p=mix) for mix in mixes]).astype(np.int32)
    total = shards * clips
    names = tuple(f"{index}.tar" for index in range(shards))
    return Corpus(
        sets=(PlanSet(name="made-up", samples_hash="", first_shard=0, shard_names=names, shard_bytes=(0,) * shards),),
        clip_ids=pa.array(np.arange(total).astype(str)),
        shard=np.repeat(np.arange(shards, dtype=np.int32), clips),
        ordinal=np.tile(np.arange(clips, dtype=np.int32), shards),
        offset=np.tile(np.arange(clips, dtype=np.int64) * CLIP_BYTES, shards),
        length=np.full(total, CLIP_BYTES, dtype=np.int64),
        source=np.arange(total, dtype=np.int32),
        domain=np.zeros(total, dtype=np.int32),
        domains=("",),
        bucket=bucket,
        buckets=BUCKETS,
        clips_in_tables=total,
        scores_hash=None,
    )


def whole_shard_peaks(scale: Scale, counts: np.ndarray, *, greedy: bool, seed: int) -> int:
    """Largest buffer, in clips, over lanes that read whole shards: `counts` by (shard, bucket), shards dealt round."""
    rng = np.random.default_rng([seed, 2])
    worst = 0.0
    for lane in range(scale.lanes):
        own = counts[lane :: scale.lanes]
        order = rng.permutation(len(own))
        if greedy:
            order = order_greedily(_as_parts(own), 0, rng)
        read = np.cumsum(own[order], axis=0)
        totals = read[-1]
        share = (read[:, totals > 0] / totals[totals > 0]).min(axis=1, keepdims=True)
        worst = max(worst, float((read - share * totals).sum(axis=1).max()))
    return round(worst)


def _as_parts(counts: np.ndarray) -> Parts:
    """Shards of one lane, for the planner's own greedy order."""
    number = len(counts)
    zero = np.zeros(number)
    return Parts(
        lane_start=np.array([0, number]),
        clip_order=np.empty(0, dtype=np.int64),
        part_start=np.zeros(number + 1, dtype=np.int64),
        counts=counts.astype(np.int64),
        source=zero.astype(np.int64),
        source_share=zero,
        domains=zero[:, None],
    )


def ours(scale: Scale, corpus: Corpus, max_open: int, cap: int) -> tuple[int, float]:
    """(largest exact buffer in clips, used share) of a plan under the cap, or without one where the planner refuses it."""
    config = PlanConfig.model_validate(
        {
            "lanes": scale.lanes,
            "batch_clips": {str(bucket): BATCH for bucket in BUCKETS},
            "shorten_left_over": False,
            "max_buffer_mb": 1e9,
            "max_buffer_clips": cap,
            "max_open_shards": max_open,
            "pool_micro_batches": 0,
            "read_chunk_kb": 0,
            "anneal_moves_per_clip": 0.0,
        }
    )
    try:
        (epoch,) = build_plan(corpus, config).epochs
    except PlanError as error:
        say(str(error))
        (epoch,) = build_plan(corpus, config.model_copy(update={"max_buffer_clips": None})).epochs
    return int(epoch.peak_clips.max()), len(epoch.read_clip) / corpus.num_clips


def rows_of(scale: Scale, kind: str, seed: int) -> list[Row]:
    """The lines of one kind of shards."""
    say(f"{kind} shards")
    corpus = corpus_of(scale, CONCENTRATIONS[kind], seed)
    counts = np.bincount(corpus.shard.astype(np.int64) * len(SHARES) + corpus.bucket, minlength=corpus.num_shards * 12)
    by_shard = counts.reshape(corpus.num_shards, len(SHARES))
    random = whole_shard_peaks(scale, by_shard, greedy=False, seed=seed)
    greedy = whole_shard_peaks(scale, by_shard, greedy=True, seed=seed)
    found = {max_open: ours(scale, corpus, max_open, greedy) for max_open in (1, 4)}
    lines = [
        row(f"peer_random/{kind}", float(random), "clips a lane", goal=None, better="lower"),
        row(f"greedy/{kind}", float(greedy), "clips a lane", goal=None, better="lower", peer=float(random)),
    ]
    for max_open, (peak, _) in found.items():
        goal = float(greedy)
        lines.append(
            row(f"open_{max_open}/{kind}", float(peak), "clips a lane", goal=goal, better="lower", peer=float(greedy))
        )
    used = min(share for _, share in found.values())
    return [*lines, row(f"used_share/{kind}", used, "of clips", goal=None, better="higher")]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer and smaller shards")
    parser.add_argument("--json", type=Path, default=None, help="write the rows to this file")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    rows = [line for kind in CONCENTRATIONS for line in rows_of(scale, kind, seed=0)]
    show(rows)
    write(options.json, rows)


if __name__ == "__main__":
    main()
