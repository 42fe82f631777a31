"""Frame pairs that look alike: a join by binary codes inside cells, whose hits are measured by their exact cosine.

A frame's code is the signs of its descriptor in 512 turned directions. The angle between two descriptors decides how many signs differ, so a
radius of four standard deviations loses 3 in 100,000 pairs at the limit; comparing two codes (faiss) is far cheaper than a dot product, and the
codes of a million frames are 64 MB. Small tables are compared as a whole. Large ones are cut into cells (k-means on a seeded
sample), and a frame looks into the cells nearest to it; a pair is found when either frame looks into the other's cell. How many cells is measured
on the table itself: a seeded sample of frames is compared with all, and the fewest cells that find the asked-for share of its pairs are taken.
All of it is a function of the frames, so blocks of a table can be joined anywhere. Price: above `flat_frames` a share of the pairs near the limit
is missed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.match_frames import ClipFrames, Indices
from curation.match_settings import MatchSettings

__all__ = ["FrameIndex", "Hits", "best_hits", "build_index", "popular_frames", "search"]

_WIDTH = 512
_BLOCK = 1 << 14
_HITS_AT_ONCE = 1 << 23
_SAMPLE = 1000
_FEWEST_SAMPLE_PAIRS = 100
_USUAL_PROBE_SHARE = 0.08
_MOST_PROBE_SHARE = 0.25
_ROUGH_CAP = 8

Allowed = Callable[[Indices, Indices], NDArray[np.bool_]]


@dataclass(frozen=True)
class Hits:
    """Frame pairs, `first` < `second`, sorted, with their cosine."""

    first: Indices
    second: Indices
    cosine: NDArray[np.float32]

    @staticmethod
    def none() -> Hits:
        return Hits(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


@dataclass(frozen=True)
class FrameIndex:
    """Some frames of a table, as codes in cells."""

    rows: Indices
    """Frames of the table that are in here."""
    codes: NDArray[np.uint8]
    centres: NDArray[np.float32]
    """(cells, 512); one cell when everything is compared."""
    order: Indices
    """Positions in `rows`, cell by cell."""
    limits: Indices
    """Cell c is `order[limits[c] : limits[c + 1]]`."""
    num_probes: int


def build_index(data: ClipFrames, rows: Indices, settings: MatchSettings) -> FrameIndex:
    """Codes and cells of these frames; `num_probes` from a sample of them."""
    codes = _codes(data, rows)
    whole = settings.index == "flat" or (settings.index == "auto" and len(rows) <= settings.flat_frames)
    if whole:
        limits = np.array([0, len(rows)])
        return FrameIndex(rows, codes, np.zeros((1, _WIDTH), np.float32), np.arange(len(rows)), limits, 1)
    centres = _train(data, rows)
    cell = nearest_cells(data, rows, centres, 1)[:, 0]
    limits = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=len(centres)))])
    index = FrameIndex(rows, codes, centres, np.argsort(cell, kind="stable"), limits, 1)
    probes = _enough_probes(data, index, cell, settings)
    return FrameIndex(rows, codes, centres, index.order, limits, probes)


def search(data: ClipFrames, one: FrameIndex, other: FrameIndex | None, settings: MatchSettings) -> Hits:
    """Pairs at or above `candidate_cosine` within one index, or between two; at most `max_hits_per_frame` of each frame's best."""

    def allowed(first: Indices, second: Indices) -> NDArray[np.bool_]:
        return data.comparable(data.clip[first], data.clip[second])

    ways = [(one, one)] if other is None else [(one, other), (other, one)]
    keys = [_one_way(data, asking, index, allowed, settings) for asking, index in ways]
    pairs = np.unique(np.concatenate(keys))
    first, second = np.divmod(pairs, max(len(data.clip), 1))
    cosine = data.cosines(first, second)
    real = cosine >= settings.candidate_cosine
    return best_hits(Hits(first[real], second[real], cosine[real]), settings.max_hits_per_frame)


def best_hits(hits: Hits, most: int) -> Hits:
    """Those that are among the `most` best of at least one of their two frames; ties go to the smaller frame numbers."""
    frame = np.concatenate([hits.first, hits.second])
    if not len(frame) or np.bincount(frame).max() <= most:
        return hits
    pair = np.tile(np.arange(len(hits.first)), 2)
    order = np.lexsort((pair, -hits.cosine[pair], frame))
    ranked = frame[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    place = np.arange(len(ranked)) - np.repeat(starts, np.diff(np.append(starts, len(ranked))))
    keep = np.zeros(len(hits.first), dtype=bool)
    keep[pair[order[place < most]]] = True
    return Hits(hits.first[keep], hits.second[keep], hits.cosine[keep])


def popular_frames(hits: Hits, most: int) -> Indices:
    """Frames with at least `most` hits, which `best_hits` leaves their best."""
    return np.flatnonzero(np.bincount(np.concatenate([hits.first, hits.second])) >= most)


def radius_of(cosine: float) -> int:
    """Hamming distance below which codes of descriptors with this cosine stay, but for 3 in 100,000."""
    share = np.arccos(cosine) / np.pi
    return int(np.ceil(_WIDTH * share + 4 * np.sqrt(_WIDTH * share * (1 - share))))


@cache
def _turn() -> NDArray[np.float32]:
    """512 orthogonal directions from a fixed seed, so that no single coordinate of a descriptor decides a sign."""
    turned, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((_WIDTH, _WIDTH)))
    return np.ascontiguousarray(turned, dtype=np.float32)


def _codes(data: ClipFrames, rows: Indices) -> NDArray[np.uint8]:
    codes = np.empty((len(rows), _WIDTH // 8), dtype=np.uint8)
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        codes[start : start + len(part)] = np.packbits(data.unit(part) @ _turn() > 0, axis=1)
    return codes


def _train(data: ClipFrames, rows: Indices) -> NDArray[np.float32]:
    """About as many centres as the square root of the frames, a power of two."""
    import faiss

    num_cells = int(np.clip(1 << round(np.log2(len(rows)) / 2), 16, 8192))
    sample = np.random.default_rng(1).choice(len(rows), min(len(rows), 40 * num_cells), replace=False)
    training = faiss.Kmeans(
        _WIDTH, num_cells, niter=6, spherical=True, seed=1, min_points_per_centroid=1, max_points_per_centroid=40
    )
    training.train(data.unit(rows[np.sort(sample)]))
    return np.asarray(training.centroids, dtype=np.float32)


def nearest_cells(data: ClipFrames, rows: Indices, centres: NDArray[np.float32], count: int) -> NDArray[Any]:
    """(n, count) cells of frames, nearest first."""
    import faiss

    if len(centres) == 1:
        return np.zeros((len(rows), 1), dtype=np.int64)
    quantizer = faiss.IndexFlatIP(_WIDTH)
    quantizer.add(centres)
    found: NDArray[np.int32] = np.empty((len(rows), count), dtype=np.int32)
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        found[start : start + len(part)] = quantizer.search(data.unit(part), count)[1]
    return found


def _enough_probes(data: ClipFrames, index: FrameIndex, cell: Indices, settings: MatchSettings) -> int:
    """Fewest probes that find `search_recall` of the pairs of a sample of frames with all others."""
    import faiss

    num_cells = len(index.centres)
    most = max(1, int(num_cells * _MOST_PROBE_SHARE))
    picked = np.sort(np.random.default_rng(2).choice(len(index.rows), min(len(index.rows), _SAMPLE), replace=False))
    whole = faiss.IndexBinaryFlat(_WIDTH)
    whole.add(index.codes)
    limits, _, found = whole.range_search(index.codes[picked], radius_of(settings.candidate_cosine))
    asking = np.repeat(picked, _steps(limits))
    first, second = index.rows[asking], index.rows[found]
    real = data.comparable(data.clip[first], data.clip[second])
    real[real] = data.cosines(first[real], second[real]) >= settings.candidate_cosine
    if real.sum() < _FEWEST_SAMPLE_PAIRS:
        return max(1, int(num_cells * _USUAL_PROBE_SHARE))
    asking, found = asking[real][:50_000], found[real][:50_000]
    rank = np.minimum(
        _rank(nearest_cells(data, index.rows[asking], index.centres, most), cell[found]),
        _rank(nearest_cells(data, index.rows[found], index.centres, most), cell[asking]),
    )
    needed = int(np.ceil(settings.search_recall * len(rank)))
    return int(min(most, np.sort(rank)[needed - 1] + 1))


def _steps(limits: NDArray[Any]) -> Indices:
    """How many results each query has."""
    return np.asarray(limits[1:].astype(np.int64) - limits[:-1].astype(np.int64))


def _rank(cells: NDArray[Any], wanted: Indices) -> Indices:
    """Place of the wanted cell among the cells of a row; their number when it is not there."""
    equal = cells == wanted[:, None]
    return np.where(equal.any(axis=1), equal.argmax(axis=1), cells.shape[1])


def _one_way(
    data: ClipFrames, asking: FrameIndex, index: FrameIndex, allowed: Allowed, settings: MatchSettings
) -> Indices:
    """Keys (smaller frame x frames + larger frame) of pairs within the radius, of frames that look into their cells of the index."""
    import faiss

    probes = nearest_cells(data, asking.rows, index.centres, index.num_probes)
    by_cell = np.argsort(probes.reshape(-1), kind="stable")
    bounds = np.searchsorted(probes.reshape(-1)[by_cell], np.arange(len(index.centres) + 1))
    askers = by_cell // probes.shape[1]
    radius, frames = radius_of(settings.candidate_cosine), len(data.clip)
    keys = [np.zeros(0, dtype=np.int64)]
    for cell in range(len(index.centres)):
        members = index.order[index.limits[cell] : index.limits[cell + 1]]
        looking = askers[bounds[cell] : bounds[cell + 1]]
        if not len(members) or not len(looking):
            continue
        inside = faiss.IndexBinaryFlat(_WIDTH)
        inside.add(index.codes[members])
        step = max(1, min(_BLOCK, _HITS_AT_ONCE // len(members)))
        for start in range(0, len(looking), step):
            part = looking[start : start + step]
            limits, distance, found = inside.range_search(asking.codes[part], radius)
            place = np.repeat(np.arange(len(part)), _steps(limits))
            first, second = asking.rows[part[place]], index.rows[members[found]]
            good = allowed(first, second)
            good[good] = _nearest_only(place[good], distance[good], second[good], settings.max_hits_per_frame)
            low, high = np.minimum(first[good], second[good]), np.maximum(first[good], second[good])
            keys.append(low * frames + high)
    return np.unique(np.concatenate(keys))


def _nearest_only(place: Indices, distance: NDArray[np.int32], frame: Indices, most: int) -> NDArray[np.bool_]:
    """Guard against frames that match everything (black, a title): only the nearest few times `most` are measured exactly."""
    counts = np.bincount(place) if len(place) else np.zeros(1, np.int64)
    if counts.max() <= most * _ROUGH_CAP:
        return np.ones(len(place), dtype=bool)
    order = np.lexsort((frame, distance, place))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank = np.arange(len(place)) - starts[place[order]]
    keep = np.zeros(len(place), dtype=bool)
    keep[order[rank < most * _ROUGH_CAP]] = True
    return keep
