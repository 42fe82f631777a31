"""Clips of packed sets without a plan: sorted into buckets, in an order that a seed and the clip ids alone decide, read and checked one by one.

So two runs are looked at on the same clips. A clip of several sets, or twice in one, counts once. Price: every clip of the table gets a hash,
some microseconds each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from schemas.buckets import FRAME_COUNTS, Bucket, frame_counts_up_to, pixel_frames
from schemas.errors import UsageError
from schemas.shards import SetInfo
from training.loading.clip_arrays import ClipArrays, parse_clip
from training.loading.sample_sets import ClipKey, SampleSets
from training.loading.set_folders import SetPlace
from training.loading.shard_files import ShardFiles

__all__ = ["DrawnClips", "SetClip", "clips_by_bucket", "draw_clips", "read_clip"]


@dataclass(frozen=True, kw_only=True)
class SetClip:
    """One clip, and the bucket it is looked at in."""

    key: ClipKey
    clip_id: str
    bucket: Bucket


@dataclass(frozen=True, kw_only=True)
class DrawnClips:
    """Clips of one bucket."""

    bucket: Bucket
    clips: tuple[ClipArrays, ...]
    info: SetInfo


def clips_by_bucket(
    sets: SampleSets, *, seed: int = 0, max_frames: int = FRAME_COUNTS[-1]
) -> dict[Bucket, list[SetClip]]:
    """Every clip under the longest bucket of at most `max_frames` that its latent serves, buckets rising, clips in the seed's order."""
    found: dict[Bucket, dict[str, SetClip]] = {}
    for key in sets.all_keys():
        sample = sets.sample(key)
        frames, _, rows, columns = sample.latent_shape
        bucket = Bucket(frame_counts_up_to(min(pixel_frames(frames), max_frames))[0], rows * 8, columns * 8)
        found.setdefault(bucket, {}).setdefault(sample.clip_id, SetClip(key=key, clip_id=sample.clip_id, bucket=bucket))
    return {bucket: _in_order(found[bucket].values(), seed) for bucket in sorted(found)}


def read_clip(sets: SampleSets, clip: SetClip) -> ClipArrays:
    """A clip's arrays, cut to its bucket; ShardError or DataError when it is damaged or cannot be read."""
    sample, files = sets.sample(clip.key), ShardFiles()
    try:
        data = files.read(sets.shard_address(clip.key[0]), sample.offset, sample.length)
    finally:
        files.close()
    return parse_clip(sample, data, clip.bucket, with_teacher=False)


def draw_clips(sets: SampleSets, count: int, *, seed: int, bucket: Bucket | None = None) -> DrawnClips:
    """`count` clips of one bucket; fewer where there are not so many.

    Without a bucket the video bucket with most clips is taken. Longer clips of the same size take part with their first frames.

    Raises:
        DataError: when a shard is damaged.
        UsageError: when no clip can be used in the bucket.
    """
    found = clips_by_bucket(sets, seed=seed)
    bucket = bucket or _most_common(found, sets.folders)
    usable = {
        clip.clip_id: replace(clip, bucket=bucket)
        for size, clips in found.items()
        if (size.height, size.width) == (bucket.height, bucket.width) and size.frames >= bucket.frames
        for clip in clips
    }
    if not usable:
        listed = ", ".join(map(str, found)) or "no clips"
        raise UsageError(f"the set {_names(sets.folders)} has no clip for bucket {bucket}; it has {listed}")
    clips = tuple(read_clip(sets, clip) for clip in _in_order(usable.values(), seed)[:count])
    return DrawnClips(bucket=bucket, clips=clips, info=sets.infos[0])


def _in_order(clips: Iterable[SetClip], seed: int) -> list[SetClip]:
    return sorted(clips, key=lambda clip: hashlib.blake2b(f"{seed}:{clip.clip_id}".encode(), digest_size=16).digest())


def _most_common(found: Mapping[Bucket, Sequence[SetClip]], folders: Sequence[SetPlace]) -> Bucket:
    """The video bucket with most clips, the longest on a tie."""
    videos = {bucket: len(clips) for bucket, clips in found.items() if bucket.frames > 1}
    if not videos:
        raise UsageError(f"the set {_names(folders)} has images only; attention between frames is looked at on videos")
    return max(videos, key=lambda bucket: (videos[bucket], bucket))


def _names(folders: Sequence[SetPlace]) -> str:
    return ", ".join(map(str, folders))
