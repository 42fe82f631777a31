"""The frames of clips as the match phase sees them: descriptors in one array, with the clip, source and time of each.

Descriptors stay float16 and are widened in blocks, so a million of them are 1 GB. Frames stand in the order of (clip id, time), whatever the
order of the tables. Price: one sorted copy of the descriptors table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.errors import DataError
from schemas.tables import DESCRIPTOR_WIDTH

__all__ = ["ClipFrames", "gather_frames"]

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class ClipFrames:
    """Clips with descriptors, by clip id; frame rows of clip c are `first[c] : first[c] + count[c]`, in time order."""

    ids: NDArray[np.str_]
    source: Indices
    """Number of the source among the sources here, by content hash."""
    kind: Indices
    """0 image, 1 video."""
    start_us: Indices
    end_us: Indices
    first: Indices
    count: Indices
    clip: Indices
    """Clip of each frame."""
    time_s: NDArray[np.float64]
    """Of each frame, from its clip's start."""
    vectors: NDArray[np.float16]
    inverse_length: NDArray[np.float32]
    """float16 storage leaves the vectors' lengths off 1 by up to 1e-3."""
    earlier: NDArray[np.bool_]
    """Of each clip: it is of an earlier run, and not compared with others of such."""

    def source_time_s(self) -> NDArray[np.float64]:
        """Of each frame, on the timeline of its source."""
        return self.time_s + self.start_us[self.clip] / 1e6

    def spacing_s(self) -> NDArray[np.float64]:
        """Mean time between neighbouring frames of each clip; 0 for a single one."""
        last = self.time_s[self.first + self.count - 1]
        return (last - self.time_s[self.first]) / np.maximum(self.count - 1, 1)

    def unit(self, rows: Indices | slice) -> NDArray[np.float32]:
        """Descriptors of these frames, float32 of length 1."""
        return self.vectors[rows].astype(np.float32) * self.inverse_length[rows, None]

    def cosines(self, first: Indices, second: Indices) -> NDArray[np.float32]:
        """Of frame pairs; the value of a pair does not depend on which other pairs are asked for with it."""
        found = np.empty(len(first), dtype=np.float32)
        for start in range(0, len(first), 1 << 15):
            part = slice(start, start + (1 << 15))
            found[part] = np.einsum("nd,nd->n", self.unit(first[part]), self.unit(second[part]))
        return found

    def comparable(self, first: Indices, second: Indices) -> NDArray[np.bool_]:
        """Whether two clips may be copies: of one kind, and not two that share no time of one source."""
        apart = (self.end_us[first] <= self.start_us[second]) | (self.end_us[second] <= self.start_us[first])
        siblings = (self.source[first] == self.source[second]) & apart
        old = self.earlier[first] & self.earlier[second]
        return (first != second) & (self.kind[first] == self.kind[second]) & ~siblings & ~old


def gather_frames(
    descriptors: pa.Table, clips: pa.Table, *, earlier: pa.Array | pa.ChunkedArray | None = None
) -> ClipFrames:
    """Put the two tables together; `earlier` names the clips of earlier runs.

    Raises:
        DataError: descriptors of several models, or of a clip that is not in `clips`.
    """
    models = descriptors.column("model").unique().to_pylist()
    if len(models) > 1:
        raise DataError(
            f"descriptors are of several models ({', '.join(sorted(models))}), which cannot be compared; "
            "run the analyze phase for all sources with one model"
        )
    names = descriptors.column("clip_id").to_numpy(zero_copy_only=False).astype(str)
    ids, of_frame, count = np.unique(names, return_inverse=True, return_counts=True)
    times = descriptors.column("time_us").to_numpy()
    order = np.lexsort((times, of_frame.reshape(-1)))
    rows = _clip_rows(ids, clips)

    def numbers(column: str) -> Indices:
        return np.asarray(clips.column(column).to_numpy(zero_copy_only=False))[rows].astype(np.int64)

    sources = clips.column("content_hash").to_numpy(zero_copy_only=False).astype(str)[rows]
    kinds = clips.column("kind").to_numpy(zero_copy_only=False).astype(str)[rows]
    vectors = _vectors(descriptors)[order]
    lengths = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), 1 << 15):
        block = vectors[start : start + (1 << 15)].astype(np.float32)
        lengths[start : start + len(block)] = np.linalg.norm(block, axis=1)
    return ClipFrames(
        ids=ids,
        source=np.unique(sources, return_inverse=True)[1].reshape(-1).astype(np.int64),
        kind=(kinds == "video").astype(np.int64),
        start_us=numbers("start_us"),
        end_us=numbers("end_us"),
        first=np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int64) if len(ids) else np.zeros(0, np.int64),
        count=count.astype(np.int64),
        clip=np.repeat(np.arange(len(ids)), count),
        time_s=times[order] / 1e6,
        vectors=vectors,
        inverse_length=(1 / np.maximum(lengths, 1e-12)).astype(np.float32),
        earlier=np.zeros(len(ids), dtype=bool)
        if earlier is None
        else np.isin(ids, earlier.to_numpy(zero_copy_only=False).astype(str)),
    )


def _clip_rows(ids: NDArray[np.str_], clips: pa.Table) -> Indices:
    """Row of each id in the clips table."""
    known = clips.column("clip_id").to_numpy(zero_copy_only=False).astype(str)
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, ids, sorter=order)
    if not len(ids):
        return np.zeros(0, dtype=np.int64)
    strange = place == len(known)
    if len(known):
        strange |= known[order[np.minimum(place, len(known) - 1)]] != ids
    if strange.any():
        raise DataError(
            f"descriptors name clip {ids[strange][0]} ({int(strange.sum())} in all), which is not among the clips; "
            "descriptors and clips are of different runs, run the analyze phase again"
        )
    return np.asarray(order[place], dtype=np.int64)


def _vectors(descriptors: pa.Table) -> NDArray[np.float16]:
    """(n, 512), without a copy per chunk."""
    column = descriptors.column("descriptor")
    parts = [np.asarray(chunk.flatten().to_numpy(zero_copy_only=False)) for chunk in column.chunks]
    joined = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float16)
    return joined.astype(np.float16, copy=False).reshape(-1, DESCRIPTOR_WIDTH)
