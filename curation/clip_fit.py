"""How well two clips agree along one time offset, for many pairs of clips at once.

Every difference of two frame times is tried as the offset, and the best one kept. Price: O(i^2 j^2) per pair, 1,296 for six frames each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curation.match_frames import ClipFrames, Indices
from curation.match_settings import MatchSettings

__all__ = ["Fit", "fit_clips"]

_PAIRS_AT_ONCE = 1024


@dataclass(frozen=True)
class Fit:
    """How well candidate pairs agree at their best time offset; one entry per pair."""

    cosine: NDArray[np.float32]
    """Highest over all frame pairs, whatever their times."""
    mean: NDArray[np.float64]
    agree: Indices
    compared: Indices
    offset_s: NDArray[np.float64]
    """A frame of the first clip at t, from that clip's start, lines up with one of the second at t + offset."""
    missed: NDArray[np.float64]
    """By how much the frames that line up fall short, on average, of the best partner that either has in the other clip, wherever it stands."""


def fit_clips(data: ClipFrames, pairs: Indices, settings: MatchSettings) -> Fit:
    """Of clip pairs (n, 2)."""
    cosine = np.zeros(len(pairs), dtype=np.float32)
    mean = np.zeros(len(pairs))
    agree, compared = np.zeros((2, len(pairs)), dtype=np.int64)
    offset_s, missed = np.zeros((2, len(pairs)))
    spacing = data.spacing_s()
    for rows in _blocks(data, pairs):
        coarse, fine = pairs[rows].T
        swapped = spacing[coarse] < spacing[fine]
        coarse, fine = np.where(swapped, fine, coarse), np.where(swapped, coarse, fine)
        for shape_rows in _same_counts(data, coarse, fine):
            part = rows[shape_rows]
            cosine[part], mean[part], agree[part], compared[part], offset_s[part], missed[part] = _fit_block(
                data, coarse[shape_rows], fine[shape_rows], spacing[coarse[shape_rows]], settings
            )
            offset_s[part] *= np.where(swapped[shape_rows], -1.0, 1.0)
    return Fit(cosine, mean, agree, compared, offset_s, missed)


def _blocks(data: ClipFrames, pairs: Indices) -> Iterator[Indices]:
    """Row numbers of pairs, in blocks small enough for the (pair, offset, frame, frame) arrays."""
    if not len(pairs):
        return
    most = max(int(data.count[pairs].max()), 1)
    step = max(_PAIRS_AT_ONCE * 6**4 // most**4, 1)
    for start in range(0, len(pairs), step):
        yield np.arange(start, min(start + step, len(pairs)))


def _same_counts(data: ClipFrames, coarse: Indices, fine: Indices) -> Iterator[Indices]:
    shapes = data.count[coarse] * (data.count.max() + 1) + data.count[fine]
    for shape in np.unique(shapes):
        yield np.flatnonzero(shapes == shape)


def _fit_block(
    data: ClipFrames, coarse: Indices, fine: Indices, spacing_s: NDArray[np.float64], settings: MatchSettings
) -> tuple[NDArray[np.float32], NDArray[np.float64], Indices, Indices, NDArray[np.float64], NDArray[np.float64]]:
    """Highest cosine, mean, agreeing and compared frames, time offset of the second, what is missed; of pairs with i frames in one clip and
    j in the other.

    A frame of the coarser clip is compared with the nearest frame of the finer one when that is within half the coarser spacing.
    """
    num_i, num_j = int(data.count[coarse[0]]), int(data.count[fine[0]])
    rows_i = data.first[coarse][:, None] + np.arange(num_i)
    rows_j = data.first[fine][:, None] + np.arange(num_j)
    frames_i = data.unit(rows_i.reshape(-1)).reshape(len(coarse), num_i, -1)
    frames_j = data.unit(rows_j.reshape(-1)).reshape(len(fine), num_j, -1)
    cosine_pij = np.matmul(frames_i, frames_j.transpose(0, 2, 1))
    shift_pij = data.time_s[rows_j][:, None, :] - data.time_s[rows_i][:, :, None]
    offset_po = shift_pij.reshape(len(coarse), -1)
    error_poij = np.abs(shift_pij[:, None] - offset_po[:, :, None, None])
    nearest_poi = error_poij.argmin(axis=3)
    lined_up_poi = error_poij.min(axis=3) <= (spacing_s / 2 + 1e-6)[:, None, None]
    place_pi = np.arange(num_i)
    at_nearest_poi = cosine_pij[np.arange(len(coarse))[:, None, None], place_pi, nearest_poi]
    compared_po = lined_up_poi.sum(axis=2)
    mean_po = (at_nearest_poi * lined_up_poi).sum(axis=2, dtype=np.float64) / compared_po
    fewest = min(num_i, num_j)
    enough = compared_po >= max(min(2, fewest), int(np.ceil(settings.min_overlap_ratio * fewest)))
    best_p = np.where(enough, mean_po, -1.0).argmax(axis=1)
    pick = (np.arange(len(coarse)), best_p)
    agree_po = ((at_nearest_poi >= settings.frame_cosine) & lined_up_poi).sum(axis=2)
    nearest_pi, used_pi = nearest_poi[pick], lined_up_poi[pick]
    of_coarse_pi = cosine_pij.max(axis=2)
    of_fine_pi = np.take_along_axis(cosine_pij.max(axis=1), nearest_pi, axis=1)
    missed_p = [
        ((best_pi - at_nearest_poi[pick]) * used_pi).sum(axis=1, dtype=np.float64) / np.maximum(used_pi.sum(axis=1), 1)
        for best_pi in (of_coarse_pi, of_fine_pi)
    ]
    fit = (cosine_pij.max(axis=(1, 2)), mean_po[pick], agree_po[pick], compared_po[pick], offset_po[pick])
    return *fit, np.maximum(*missed_p)
