"""Some clips of a packed set without a plan: drawn by a seed, all cut to one bucket.

Which clips are drawn depends on the seed and the clip ids alone, so that two runs are looked at on the same clips. Price: every clip of the table
gets a hash, some microseconds each.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.buckets import FRAME_COUNTS, Bucket
from schemas.errors import DataError, ShardError, UsageError
from schemas.shards import SetInfo, read_set_info, samples_path
from schemas.tables import SAMPLES, read_table
from training.clip_arrays import ClipArrays, parse_clip
from training.sample_sets import Member, Sample
from training.shard_files import ShardFiles

__all__ = ["DrawnClips", "draw_clips"]

_COLUMNS = (
    "clip_id",
    "shard_index",
    "ordinal",
    "offset",
    "length",
    "members",
    "latent_shape",
    "frames",
    "height",
    "width",
)


@dataclass(frozen=True, kw_only=True)
class DrawnClips:
    """Clips of one bucket."""

    bucket: Bucket
    clips: tuple[ClipArrays, ...]
    info: SetInfo


def draw_clips(folder: Path, count: int, *, seed: int, bucket: Bucket | None = None) -> DrawnClips:
    """`count` clips of the set, in an order that the seed decides; fewer where there are not so many.

    Without a bucket the video bucket with most clips is taken. Longer clips of the same size take part with their first frames.

    Raises:
        DataError: when the folder is no packed set, or a shard is damaged.
        UsageError: when no clip can be used in the bucket.
    """
    info = read_set_info(folder)
    rows = read_table(samples_path(folder), SAMPLES).select(_COLUMNS).to_pylist()
    bucket = bucket or _most_common(rows, folder)
    usable = [row for row in rows if _fits(row, bucket)]
    if not usable:
        raise UsageError(f"the set {folder} has no clip for bucket {bucket}; it has {_listed(rows)}")
    usable.sort(key=lambda row: _draw(seed, row["clip_id"]))
    files = ShardFiles()
    return DrawnClips(
        bucket=bucket, clips=tuple(_read(files, folder, info, row, bucket) for row in usable[:count]), info=info
    )


def _most_common(rows: Sequence[dict[str, Any]], folder: Path) -> Bucket:
    """The video bucket with most clips, the longest on a tie."""
    counts = Counter((row["frames"], row["height"], row["width"]) for row in rows if row["frames"] > 1)
    if not counts:
        raise UsageError(f"the set {folder} has images only; attention between frames is looked at on videos")
    return Bucket(*max(counts, key=lambda found: (counts[found], found)))


def _fits(row: dict[str, Any], bucket: Bucket) -> bool:
    return (row["height"], row["width"]) == (bucket.height, bucket.width) and row["frames"] >= bucket.frames


def _listed(rows: Sequence[dict[str, Any]]) -> str:
    found = sorted({(row["frames"], row["height"], row["width"]) for row in rows if row["frames"] in FRAME_COUNTS})
    return ", ".join("x".join(map(str, sizes)) for sizes in found) or "no clips"


def _draw(seed: int, clip_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{clip_id}".encode(), digest_size=16).digest()


def _read(files: ShardFiles, folder: Path, info: SetInfo, row: dict[str, Any], bucket: Bucket) -> ClipArrays:
    """One clip, checked as in training."""
    sample = Sample(
        key=(row["shard_index"], row["ordinal"]),
        clip_id=row["clip_id"],
        offset=row["offset"],
        length=row["length"],
        members={
            member["name"]: Member(offset=member["offset"], length=member["length"], crc32=member["crc32"])
            for member in row["members"]
        },
        latent_shape=tuple(row["latent_shape"]),
        branch=row["branch"],
        teacher=None,
        has_teacher=False,
    )
    (data,) = files.read(folder / info.shards[row["shard_index"]].name, row["offset"], [row["length"]])
    try:
        if isinstance(data, ShardError):
            raise data
        return parse_clip(sample, data, bucket, with_teacher=False)
    except ShardError as error:
        raise DataError(f"{folder}: {error}; copy the shard again, or pack the set again") from error
