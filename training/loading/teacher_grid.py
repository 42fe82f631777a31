"""Teacher features from the grid that a teacher works on to the grid of video tokens, for sets whose features were stored elsewhere.

Reelyard's own sets store features on the token grid already, and nothing is done to those. Time is counted in pictures: the first latent frame
stands for one picture, each later one for four. A teacher's cell stands for

    k cells per latent frame (T' = k T)         the same cells of that latent frame; all k of the first frame show its one picture
    first picture alone (T' = k (T - 1) + 1)    one picture, then 4 / k pictures each
    tubelets from picture 0 (T' = N // c)       c pictures each, the rest of the clip's N pictures unseen
    anything else                               an equal share of the N pictures

tried in this order, and a latent frame takes the mean of the cells over its pictures, each by how many of them it covers. Where a count fits two
of them the earlier one is taken; a set that meant the other one is off by half a tubelet. Rows and columns are interpolated linearly, averaged
over a wider window where they shrink. All of it is a product with three small matrices, one for each axis.

Legend: T latent frames, Y/X token rows and columns, C teacher channels, N pictures, J teacher cells in time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.buckets import pixel_frames
from schemas.errors import DataError

__all__ = ["resample_teacher"]

_GROUP = 4
"""Pictures of every latent frame but the first."""


def resample_teacher(features_TYXC: NDArray[np.floating], grid_TYX: tuple[int, int, int]) -> NDArray[np.floating]:
    """Features of a whole clip on the token grid, in their own dtype; the same array when they lie on it.

    `resample_teacher(f, (9, 4, 6))` takes 17 or 18 tubelets of a 33-frame clip to its 9 latent frames. Features of a shorter bucket are the first
    latent frames of the result: resample first, then cut.

    Raises:
        DataError: for an empty grid, or another number of axes.
    """
    if features_TYXC.ndim != 4 or 0 in features_TYXC.shape or min(grid_TYX) < 1:
        raise DataError(
            f"teacher features of shape {features_TYXC.shape} for the token grid {grid_TYX}; "
            "expected (frames, rows, columns, channels), none of them 0"
        )
    if features_TYXC.shape[:3] == grid_TYX:
        return features_TYXC
    frames, rows, columns = features_TYXC.shape[:3]
    time, down, across = (
        _time_weights(frames, grid_TYX[0]),
        _space_weights(rows, grid_TYX[1]),
        _space_weights(columns, grid_TYX[2]),
    )
    resampled = np.einsum("tj,jyxc->tyxc", time, features_TYXC.astype(np.float32), optimize=True)
    resampled = np.einsum("by,tyxc->tbxc", down, resampled, optimize=True)
    resampled = np.einsum("ax,tbxc->tbac", across, resampled, optimize=True)
    return resampled.astype(features_TYXC.dtype)


def _time_weights(num_cells: int, num_latent: int) -> NDArray[np.float32]:
    """(T, J), rows add up to 1: how much of each teacher cell a latent frame takes."""
    if num_cells == num_latent:
        return np.eye(num_latent, dtype=np.float32)
    if num_cells % num_latent == 0:
        cells_per_frame = num_cells // num_latent
        return np.repeat(np.eye(num_latent, dtype=np.float32), cells_per_frame, axis=1) / np.float32(cells_per_frame)
    pictures = pixel_frames(num_latent)
    starts = np.concatenate(([0], np.arange(1, pictures, _GROUP)))
    ends = np.concatenate(([1], starts[1:] + _GROUP))
    edges = _cell_edges(num_cells, num_latent, pictures)
    overlap = np.minimum(ends[:, None], edges[None, 1:]) - np.maximum(starts[:, None], edges[None, :-1])
    weights = np.maximum(overlap, 0.0)
    unseen = weights.sum(axis=1) == 0.0
    weights[unseen, -1] = 1.0  # pictures after the last tubelet: what the teacher saw last
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _cell_edges(num_cells: int, num_latent: int, pictures: int) -> NDArray[np.float64]:
    """J + 1 times in pictures: where the teacher's cells begin and end."""
    if num_latent > 1 and (num_cells - 1) % (num_latent - 1) == 0 and num_cells > 1:
        length = _GROUP * (num_latent - 1) / (num_cells - 1)
        return np.concatenate(([0.0], 1.0 + length * np.arange(num_cells)))
    tubelet = round(pictures / num_cells)
    if tubelet > 1 and pictures // tubelet == num_cells:
        return tubelet * np.arange(num_cells + 1, dtype=np.float64)
    return np.linspace(0.0, pictures, num_cells + 1)


def _space_weights(old: int, new: int) -> NDArray[np.float32]:
    """(new, old), rows add up to 1: linear interpolation between cell centres, over a window as wide as a new cell where they shrink."""
    if old == new:
        return np.eye(old, dtype=np.float32)
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale
    distance = np.abs(np.arange(old)[None] + 0.5 - centres[:, None]) / max(1.0, scale)
    weights = np.maximum(0.0, 1.0 - distance)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
