"""Clips that are never trained on: whole packed sets beside those of the plan, refused where a clip is in both.

A clip's id is a hash of its source and span, so a clip is found again in any set, at any size. Clips of a source that training sees other
parts of are not refused, but counted and said: what such clips show was half seen. Chosen clips are read and checked once, and held in
memory, so that a damaged one ends a run before it begins. Price: about 0.1 MB a clip at 144p, 15 MB at 720p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from schemas.buckets import FRAME_COUNTS
from schemas.errors import UsageError
from training.evaluation.set_clips import SetClip, clips_by_bucket, read_clip
from training.loading.clip_arrays import ClipArrays
from training.loading.sample_sets import SampleSets, open_whole_sets
from training.loading.set_folders import SetPlace, open_set
from training.set_encoders import check_encoders

__all__ = ["HeldOutSets", "open_held_out"]


class HeldOutSets:
    """The chosen clips, bucket by bucket, and how to read them."""

    def __init__(self, sets: SampleSets, clips: Sequence[SetClip], notes: Sequence[str]) -> None:
        self._sets = sets
        self.info = sets.infos[0]
        self.clips = tuple(clips)
        self.notes = tuple(notes)

    def read(self, clip: SetClip) -> ClipArrays:
        """A clip's arrays; ShardError or DataError when it is damaged or cannot be read."""
        return read_clip(self._sets, clip)


def open_held_out(
    folders: Sequence[Path],
    *,
    expected: Mapping[str, object] | None = None,
    trained_on: Sequence[SetPlace] = (),
    max_frames: int = FRAME_COUNTS[-1],
    clips_per_bucket: int | None = None,
) -> HeldOutSets:
    """Choose clips of whole sets; longer ones are cut to the longest bucket of at most `max_frames`.

    `expected` are fields of `set.json` and what they must be, see `training.set_encoders`. The clips of a bucket are taken in the order of a hash of
    their ids, so that which they are depends on nothing else.

    Raises:
        UsageError: if some clip is in a set of `trained_on` too, or there is none to measure.
        DataError: if a folder is not a set, or the sets were packed with other encoders than `expected`, or than each other.
    """
    sets = open_whole_sets(folders)
    check_encoders(sets.infos[0], folders[0], expected or {})
    notes = _check_apart(folders, trained_on)
    by_bucket = clips_by_bucket(sets, max_frames=max_frames)
    clips = [clip for found in by_bucket.values() for clip in found[:clips_per_bucket]]
    if not clips:
        raise UsageError(f"the sets {', '.join(map(str, folders))} hold no clip; give a packed set with --validation")
    return HeldOutSets(sets, clips, notes)


def _check_apart(folders: Sequence[Path], trained_on: Sequence[SetPlace]) -> list[str]:
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


def _facts(folders: Sequence[SetPlace]) -> tuple[set[str], set[str], list[str]]:
    """Clip ids, sources, and the source of every clip."""
    ids: set[str] = set()
    sources: list[str] = []
    for folder in folders:
        table = open_set(folder).samples
        ids |= set(np.asarray(table.column("clip_id").to_numpy()).tolist())
        sources += table.column("source").to_pylist()
    return ids, set(sources), sources
