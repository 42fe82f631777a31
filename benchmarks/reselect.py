"""How long a change of thresholds takes: tables read from Parquet, decided, and the decisions written, over made-up clips.

    python benchmarks/reselect.py [--quick] [--json FILE]

A million clips (a hundred thousand with --quick) with drawn scores, five admission levels, labels for a fifth, one verified pair per fifty clips. No
video is touched.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from bench_table import row, show, write

from curation.decide import decide
from curation.thresholds import DecideSettings
from schemas.tables import CLIPS, DECISIONS, LABELS, PAIRS, SCORES, read_table, write_table

RANGES = {
    "nsfw": 1.0,
    "motion": 8.0,
    "luma": 255.0,
    "sharpness": 400.0,
    "text_area_ratio": 0.4,
    "overlay_area_ratio": 0.01,
    "border_area_ratio": 0.3,
    "aesthetic": 10.0,
    "motion_global": 8.0,
    "motion_local": 8.0,
    "shake": 4.0,
    "blockiness": 3.0,
    "effective_resolution_ratio": 1.0,
    "effective_fps": 30.0,
}
LABELLED = 5
"""One clip of so many has labels."""


def clips_table(count: int, random: np.random.Generator) -> pa.Table:
    """`count` clips with drawn scores, in the schema of the clips table."""
    ids = [f"{value:024x}" for value in range(count)]
    frames = random.choice(np.array([33, 65, 121], np.int32), count)
    height = random.choice(np.array([144, 360, 480, 720], np.int32), count)
    width = height * 16 // 9
    box = [pa.array(np.zeros(count, np.int32))] * 2 + [pa.array(height), pa.array(width)]
    columns: dict[str, pa.Array] = {
        "clip_id": pa.array(ids),
        "content_hash": pa.array([f"{value // 8:064x}" for value in range(count)]),
        "uri": pa.array([f"file:///{value // 8}.mp4" for value in range(count)]),
        "shot": pa.array(np.arange(count, dtype=np.int32) % 8),
        "start_us": pa.array(np.arange(count, dtype=np.int64) % 8 * 6_000_000),
        "end_us": pa.array(np.arange(count, dtype=np.int64) % 8 * 6_000_000 + 5_000_000),
        "frames": pa.array(frames),
        "clip_fps": pa.array(np.full(count, 24.0)),
        "source_fps": pa.array(random.choice(np.array([24.0, 25.0, 30.0]), count)),
        "source_height": pa.array(height),
        "source_width": pa.array(width.astype(np.int32)),
        "source_bytes": pa.array(random.integers(10**5, 10**8, count)),
        "crop": pa.StructArray.from_arrays(box, names=["top", "left", "bottom", "right"]),
        "model_frames": pa.array(np.full(count, 4, np.int32)),
    }
    for name, text in {"kind": "video", "branch": "video_real", "domain": "", "licence": ""}.items():
        columns[name] = pa.repeat(text, count)
    for score in SCORES:
        columns[score] = pa.array((random.random(count) * RANGES[score]).astype(np.float32))
        columns[f"{score}_model"] = pa.repeat("drawn", count)
        columns[f"{score}_reason"] = pa.nulls(count, pa.string())
    for name in ("crop_flags", "overlays", "overlay_kinds"):
        kind = CLIPS.field(name).type
        columns[name] = pa.ListArray.from_arrays(
            pa.array(np.zeros(count + 1, np.int32)), pa.array([], kind.value_type)
        ).cast(kind)
    return pa.table({name: columns[name] for name in CLIPS.names}).cast(CLIPS)


def pairs_table(count: int, random: np.random.Generator) -> pa.Table:
    """One verified pair per fifty clips."""
    first = random.integers(0, count - 1, count // 50)
    names = [[f"{value:024x}" for value in side] for side in (first, first + 1)]
    total = len(first)
    return pa.table(
        {
            "clip_a": pa.array(names[0]),
            "clip_b": pa.array(names[1]),
            "cosine": pa.array(np.full(total, 0.95, np.float32)),
            "mean_cosine": pa.array(np.full(total, 0.9, np.float32)),
            "offset_us": pa.array(np.zeros(total, np.int64)),
            "frames_agree": pa.array(np.full(total, 4, np.int32)),
            "frames_compared": pa.array(np.full(total, 4, np.int32)),
            "verified": pa.array(np.ones(total, bool)),
        }
    ).cast(PAIRS)


def labels_table(count: int, random: np.random.Generator) -> pa.Table:
    """Labels of every fifth clip, with drawn verdicts."""
    ids = [f"{value:024x}" for value in range(0, count, LABELLED)]
    total = len(ids)
    drawn = {
        "clip_id": pa.array(ids),
        "quality": pa.array(random.choice(np.array(["low", "medium", "high"]), total)),
        "watermark": pa.array(random.random(total) < 0.1),
        "nsfw": pa.array(random.random(total) < 0.02),
    }
    columns = {}
    for field in LABELS:
        if pa.types.is_string(field.type):
            same = pa.repeat("drawn", total)
        elif pa.types.is_list(field.type):
            same = pa.array([[]] * total, field.type)
        else:
            same = pa.nulls(total, field.type)
        columns[field.name] = drawn.get(field.name, same)
    return pa.table(columns).cast(LABELS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundred thousand clips")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    count = 100_000 if arguments.quick else 1_000_000
    random = np.random.default_rng(0)
    clips, pairs = clips_table(count, random), pairs_table(count, random)
    made = {"clips": (clips, CLIPS), "pairs": (pairs, PAIRS), "labels": (labels_table(count, random), LABELS)}
    with tempfile.TemporaryDirectory() as folder:
        for name, (table, schema) in made.items():
            write_table(Path(folder) / f"{name}.parquet", table, schema)
        start = time.perf_counter()
        read = [read_table(Path(folder) / f"{name}.parquet", schema) for name, (_, schema) in made.items()]
        decisions = decide(*read, DecideSettings())
        write_table(Path(folder) / "decisions.parquet", decisions, DECISIONS)
        seconds = time.perf_counter() - start
    rows = [
        row("seconds", seconds, f"s for {count:,} clips", goal=10.0, better="lower"),
        row("decisions", decisions.num_rows, "rows", goal=None, better="higher"),
    ]
    show(rows)
    write(arguments.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
