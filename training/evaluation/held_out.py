"""Clips that are never trained on: whole packed sets beside those of the plan, refused where a clip is in both.

A clip's id is a hash of its source and span, so a clip is found again in any set, at any size. Clips of a source that training sees other
parts of are not refused, but counted and said: what such clips show was half seen. Chosen clips are read and checked once, and held in
memory, so that a damaged one ends a run before it begins. Price: about 0.1 MB a clip at 144p, 15 MB at 720p.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from schemas.buckets import FRAME_COUNTS, Bucket, frame_counts_up_to
from schemas.errors import DataError, UsageError
from schemas.shards import SetInfo, samples_path
from schemas.tables import SAMPLES, read_table
from training.clip_arrays import ClipArrays, parse_clip
from training.sample_sets import ClipKey, SampleSets, open_whole_sets

__all__ = ["HeldOutClip", "HeldOutSets", "encoders_of", "open_held_out"]


@dataclass(frozen=True, kw_only=True)
class HeldOutClip:
    """One chosen clip, and the bucket it is measured in."""

    key: ClipKey
    clip_id: str
    bucket: Bucket


class HeldOutSets:
    """The chosen clips, bucket by bucket, and how to read them."""

    def __init__(self, sets: SampleSets, clips: Sequence[HeldOutClip], notes: Sequence[str]) -> None:
        self._sets = sets
        self.info = sets.infos[0]
        self.clips = tuple(clips)
        self.notes = tuple(notes)

    def read(self, clip: HeldOutClip) -> ClipArrays:
        """A clip's arrays; ShardError or DataError when it is damaged or cannot be read."""
        sample, path = self._sets.sample(clip.key), self._sets.shard_path(clip.key[0])
        try:
            with path.open("rb") as stream:
                stream.seek(sample.offset)
                data = stream.read(sample.length)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error}); give a set that can, or pack it again") from error
        return parse_clip(sample, data, clip.bucket, with_teacher=False)


def open_held_out(
    folders: Sequence[Path],
    *,
    expected: Mapping[str, object] | None = None,
    trained_on: Sequence[Path] = (),
    max_frames: int = FRAME_COUNTS[-1],
    clips_per_bucket: int | None = None,
) -> HeldOutSets:
    """Choose clips of whole sets; longer ones are cut to the longest bucket of at most `max_frames`.

    `expected` are fields of `set.json` and what they must be, see `encoders_of`. The clips of a bucket are taken in the order of a hash of
    their ids, so that which they are depends on nothing else.

    Raises:
        UsageError: if some clip is in a set of `trained_on` too, or there is none to measure.
        DataError: if a folder is not a set, or the sets were packed with other encoders than `expected`, or than each other.
    """
    sets = open_whole_sets(folders)
    _check_encoders(sets.infos[0], folders[0], expected or {})
    notes = _check_apart(folders, trained_on)
    by_bucket: dict[Bucket, dict[str, HeldOutClip]] = {}
    for key in sets.all_keys():
        sample = sets.sample(key)
        frames, _, rows, columns = sample.latent_shape
        bucket = Bucket(frame_counts_up_to(min(4 * frames - 3, max_frames))[0], rows * 8, columns * 8)
        by_bucket.setdefault(bucket, {}).setdefault(
            sample.clip_id, HeldOutClip(key=key, clip_id=sample.clip_id, bucket=bucket)
        )
    clips = [
        found[clip_id]
        for _, found in sorted(by_bucket.items())
        for clip_id in sorted(found, key=_order)[:clips_per_bucket]
    ]
    if not clips:
        raise UsageError(f"the sets {', '.join(map(str, folders))} hold no clip; give a packed set with --validation")
    return HeldOutSets(sets, clips, notes)


def _order(clip_id: str) -> bytes:
    return hashlib.blake2b(clip_id.encode(), digest_size=8).digest()


def _check_apart(folders: Sequence[Path], trained_on: Sequence[Path]) -> list[str]:
    """UsageError if a clip is in both; a sentence if only sources are."""
    held_ids, held_sources, sources_N = _facts(folders)
    trained_ids, trained_sources, _ = _facts(trained_on)
    shared = sorted(held_ids & trained_ids)
    if shared:
        raise UsageError(
            f"{len(shared)} of {len(held_ids)} clips of --validation {', '.join(map(str, folders))} are in the training sets "
            f"{', '.join(map(str, trained_on))} too, the first is {shared[0]}; give sets of clips that are not trained on"
        )
    common = held_sources & trained_sources
    if not common:
        return []
    count = sum(source in common for source in sources_N)
    return [
        f"{count} of {len(sources_N)} validation clips are parts of sources of which training sees other parts; "
        "their loss says less of what was never seen"
    ]


def encoders_of(info: SetInfo) -> dict[str, object]:
    """What other sets of the same network must have in `set.json`."""
    return {
        "codec_fingerprint": info.codec_fingerprint,
        "text_encoder_fingerprint": info.text_encoder_fingerprint,
        "latent_channels": info.latent_channels,
        "text_width": info.text_width,
    }


def _check_encoders(found: SetInfo, folder: Path, expected: Mapping[str, object]) -> None:
    values = found.model_dump()
    for name, wanted in expected.items():
        if values[name] != wanted:
            raise DataError(
                f"validation set {folder}: {name} is {values[name]!r} (set.json), the network was trained with {wanted!r}; "
                "pack it with the codec and the text encoder of the training sets"
            )


def _facts(folders: Sequence[Path]) -> tuple[set[str], set[str], list[str]]:
    """Clip ids, sources, and the source of every clip."""
    ids: set[str] = set()
    sources: list[str] = []
    for folder in folders:
        table = read_table(samples_path(folder), SAMPLES, columns=["clip_id", "source"])
        ids |= set(np.asarray(table.column("clip_id").to_numpy()).tolist())
        sources += table.column("source").to_pylist()
    return ids, set(sources), sources
