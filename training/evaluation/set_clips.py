"""Some clips of a packed set without a plan: drawn by a seed, all cut to one bucket.

Which clips are drawn depends on the seed and the clip ids alone, so that two runs are looked at on the same clips. Price: every clip of the table
gets a hash, some microseconds each.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from schemas.buckets import Bucket, frame_counts_up_to, pixel_frames
from schemas.errors import DataError, ShardError, UsageError
from schemas.shards import SetInfo
from training.clip_arrays import ClipArrays, parse_clip
from training.sample_sets import Sample, SampleSets, open_whole_sets
from training.shard_files import ShardFiles

__all__ = ["DrawnClips", "draw_clips"]


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
    sets = open_whole_sets([folder])
    sizes = {sample.clip_id: (sample, _bucket_of(sample)) for sample in map(sets.sample, sets.all_keys())}
    counts = Counter(found for _, found in sizes.values())
    bucket = bucket or _most_common(counts, folder)
    usable = [sample for sample, found in sizes.values() if _fits(found, bucket)]
    if not usable:
        listed = ", ".join(map(str, sorted(counts))) or "no clips"
        raise UsageError(f"the set {folder} has no clip for bucket {bucket}; it has {listed}")
    usable.sort(key=lambda sample: _draw(seed, sample.clip_id))
    files = ShardFiles()
    clips = tuple(_read(files, sets, sample, bucket) for sample in usable[:count])
    return DrawnClips(bucket=bucket, clips=clips, info=sets.infos[0])


def _bucket_of(sample: Sample) -> Bucket:
    """The longest bucket that the stored latent serves."""
    frames, _, rows, columns = sample.latent_shape
    return Bucket(frame_counts_up_to(pixel_frames(frames))[0], rows * 8, columns * 8)


def _most_common(counts: Mapping[Bucket, int], folder: Path) -> Bucket:
    """The video bucket with most clips, the longest on a tie."""
    videos = {bucket: count for bucket, count in counts.items() if bucket.frames > 1}
    if not videos:
        raise UsageError(f"the set {folder} has images only; attention between frames is looked at on videos")
    return max(videos, key=lambda bucket: (videos[bucket], bucket))


def _fits(found: Bucket, wanted: Bucket) -> bool:
    return (found.height, found.width) == (wanted.height, wanted.width) and found.frames >= wanted.frames


def _draw(seed: int, clip_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{clip_id}".encode(), digest_size=16).digest()


def _read(files: ShardFiles, sets: SampleSets, sample: Sample, bucket: Bucket) -> ClipArrays:
    """One clip, checked as in training."""
    path = sets.shard_path(sample.key[0])
    (data,) = files.read(path, sample.offset, [sample.length])
    try:
        if isinstance(data, ShardError):
            raise data
        return parse_clip(sample, data, bucket, with_teacher=False)
    except ShardError as error:
        raise DataError(f"{path}: {error}; copy the shard again, or pack the set again") from error
