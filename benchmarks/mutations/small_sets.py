"""Small sets and the plans that are broken: made by `reelyard-plan build` as users make theirs, one of each kind of plan."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mutations.legal_changes import repeat_a_clip
from mutations.opened import NoPlaceError, OpenPlan
from planner.cli import app
from schemas.buckets import Bucket, latent_frames
from schemas.command import run_command
from schemas.ids import clip_id
from schemas.shards import SetInfo, ShardInfo, samples_path, shard_name, write_set_info
from schemas.tables import SAMPLES, table_from_rows, write_table

__all__ = ["PLANS", "build_plan_of", "write_small_set"]

_MIX = {"1x64x112": 0.35, "33x64x112": 0.25, "65x64x112": 0.15, "121x64x112": 0.1, "33x112x64": 0.15}
_COMMON = {
    "lanes": 3,
    "micro_per_step": 2,
    "max_tokens_per_micro_batch": 1024,
    "anneal_steps": 100,
    "cost": {"preset": "tiny"},
}
PLANS: dict[str, dict[str, Any]] = {
    "uniform": {"epochs": 2},
    "tiers": {"epochs": 2, "policy": "tiers", "tiers": 2},
    "repeat": {"epochs": 2, "left_over": "repeat", "repeat_at_most": 2},
    "rules": {
        "epochs": 1,
        "rules": [
            {"column": "motion", "at_least": 0.2, "missing": "drop"},
            {"column": "subject", "one_of": ["street", "sea"]},
        ],
    },
    "paper": {"epochs": 1, "policy": "paper"},
}
"""Name to what its configuration adds. `continued` is the uniform plan from the middle of an epoch on."""


def write_small_set(folder: Path, seed: int) -> Path:
    """A set of four shards of 50 clips with uneven buckets, some clips of another level, and `scores.parquet` beside it."""
    rng = np.random.default_rng([seed, 11])
    rows: list[dict[str, Any]] = []
    shards = []
    for shard in range(4):
        mix = rng.dirichlet(np.array(list(_MIX.values())) * 6)
        offset = 0
        for ordinal, bucket in enumerate(rng.choice(list(_MIX), size=50, p=mix).tolist()):
            rows.append(_sample(shard, ordinal, offset, Bucket.parse(bucket), len(rows), rng))
            offset += rows[-1]["length"]
        shards.append(ShardInfo(name=shard_name(shard), size_bytes=offset + 1024, sha256="0" * 64, num_samples=50))
    write_table(samples_path(folder), table_from_rows(SAMPLES, rows), SAMPLES)
    write_set_info(
        folder,
        SetInfo(
            set_name="64p",
            fps=24.0,
            codec="dct",
            codec_fingerprint="c" * 16,
            latent_channels=16,
            text_encoder="minilm",
            text_encoder_fingerprint="t" * 16,
            text_width=384,
            teacher_by_branch={},
            teacher_width=None,
            seed=0,
            shards=tuple(shards),
        ),
    )
    motion = [None if rng.random() < 0.1 else float(rng.random()) for _ in rows]
    scores = {"clip_id": [row["clip_id"] for row in rows], "motion": pa.array(motion, pa.float32())}
    pq.write_table(pa.table(scores), folder / "scores.parquet")
    return folder


def _sample(
    shard: int, ordinal: int, offset: int, bucket: Bucket, index: int, rng: np.random.Generator
) -> dict[str, Any]:
    frames, height, width = latent_frames(bucket.frames), bucket.height // 8, bucket.width // 8
    payload = 2 * 16 * frames * height * width + 768 * int(rng.integers(4, 40))
    content = f"{index // 3:064x}"
    return {
        "clip_id": clip_id(content, index, index + 1),
        "set": "64p",
        "shard_index": shard,
        "ordinal": ordinal,
        "offset": offset,
        "length": 512 * (6 + -(-payload // 512)),
        "members": [{"name": "latent.npy", "offset": offset + 512, "length": payload, "crc32": index}],
        "latent_shape": [frames, 16, height, width],
        "frames": bucket.frames,
        "height": bucket.height,
        "width": bucket.width,
        "text_tokens_long": 20,
        "text_tokens_short": 8,
        "text_tokens_first": 8,
        "branch": "image_real" if bucket.frames == 1 else "video_real",
        "domain": ("city", "nature", "people")[index * 7 // 3 % 3],
        "subject": str(rng.choice(["street", "sea", "hand"])),
        "style": "",
        "source": content,
        "start_us": index,
        "admissions": [] if rng.random() < 0.08 else ["144p"],
        "has_teacher": False,
    }


def build_plan_of(kind: str, samples: Path, folder: Path, seed: int) -> OpenPlan:
    """Build a plan of this kind into `folder`, whose parent takes the configuration; `continued` builds the one before beside it."""
    if kind == "continued":
        parent = build_plan_of("uniform", samples, folder.parent / f"{folder.name}-parent", seed)
        steps = sorted({row["step"] for row in parent.tables["rows"]})
        return parent.continued_at(steps[len(steps) // 4], folder)
    config = folder.parent / f"{folder.name}.yaml"
    config.write_text(json.dumps({**_COMMON, **PLANS[kind], "seed": seed}), encoding="utf-8")
    arguments = ["build", "--samples", str(samples), "--config", str(config), "--output", str(folder)]
    scores = samples / "scores.parquet" if kind == "rules" else None
    if scores is not None:
        arguments += ["--scores", str(scores)]
    assert run_command(app, arguments) == 0, kind
    plan = OpenPlan.open(folder, [samples], scores=scores)
    if kind == "repeat" and not any(row["event"] == "repeated" for row in plan.tables["ledger"]):
        _repeat_some(plan, seed)
    return plan


def _repeat_some(plan: OpenPlan, seed: int) -> None:
    """A set whose rows all fill needs no repeats: make two."""
    made = 0
    for number in range(100):
        try:
            repeat_a_clip(plan, np.random.default_rng([seed, number]))
        except NoPlaceError:
            continue
        made += 1
        if made == 2:
            plan.save()
            plan.saved = copy.deepcopy(plan.tables)
            return
    raise AssertionError("no clip of the plan can be repeated")
