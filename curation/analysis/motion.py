"""Motion of a clip from its flow grids: how much there is, how much of it is the camera's, and how unsteady the camera is.

The motion of the picture as a whole is fitted to each grid as a shift, a zoom and a turn, by least squares over the cells that agree with it, so
that a pan or a zoom over a photograph is all camera, and an actor who walks through a fixed frame is none. Cells without contrast are left out:
flow over a clear sky says nothing. Price: parallax (near things that pass faster than far ones) counts as motion in the scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from curation.analysis.crops import Box
from curation.analysis.flow import FLOW_GRID, FlowSample

__all__ = ["MOTION_MODEL", "Motion", "clip_motion", "whole_picture_motion"]

MOTION_MODEL = "dis-flow-2"
_UNIT_SIDE = 256
"""Long side, pixels, of the cropped picture that displacements refer to."""
_LEAST_CONTRAST = 2.0
"""Levels; cells below it show no motion."""
_LEAST_CELLS = 0.05
"""Share of the cells inside the crop that must have contrast."""
_START_SHARE = 0.5
_ROUNDS = 5
_AGREES = 2.5
"""Cells whose residual is within this many times the median of those that were used are used in the next round."""
_FLOW_NOISE = 0.02
"""Proxy pixels; residuals below it always agree."""


@dataclass(frozen=True)
class Motion:
    """Mean displacements, pixels per tick at a long side of 256 of the cropped picture."""

    mean: float
    whole: float | None
    """Of the picture as a whole; None where too few cells have contrast in every pair."""
    local: float | None
    """What is left when that is taken out."""
    shake: float | None
    """Mean change of the picture's displacement from one pair to the next; None with fewer than two pairs."""


def clip_motion(
    flows: Sequence[FlowSample], first_tick: int, end_tick: int, crop: Box, picture: Box, proxy_size: tuple[int, int]
) -> Motion | None:
    """Motion inside the crop between the clip's ticks; None without a pair of frames in the clip."""
    rows = _cells(crop.top / picture.bottom, crop.bottom / picture.bottom, FLOW_GRID[0])
    columns = _cells(crop.left / picture.right, crop.right / picture.right, FLOW_GRID[1])
    inside = [flow for flow in flows if first_tick <= flow.first_tick and flow.second_tick < end_tick]
    if not inside:
        return None
    long_side = max(
        (crop.bottom - crop.top) / picture.bottom * proxy_size[0],
        (crop.right - crop.left) / picture.right * proxy_size[1],
    )
    unit = _UNIT_SIDE / long_side
    mean = float(np.mean([flow.lengths[rows, columns].mean(dtype=np.float64) for flow in inside]))
    wholes: list[NDArray[np.float64]] = []
    locals_: list[float] = []
    for flow in inside:
        vectors = flow.vectors[rows, columns].astype(np.float64)
        seen = flow.contrast[rows, columns] >= _LEAST_CONTRAST
        if seen.mean() < _LEAST_CELLS:
            continue
        whole = whole_picture_motion(vectors, seen, _aspect(proxy_size))
        wholes.append(whole)
        locals_.append(float(_lengths(vectors - whole)[seen].mean()))
    if not wholes:
        return Motion(mean * unit, None, None, None)
    changes = [_lengths(after - before).mean() for before, after in pairwise(wholes)]
    return Motion(
        mean=mean * unit,
        whole=float(np.mean([_lengths(whole).mean() for whole in wholes])) * unit,
        local=float(np.mean(locals_)) * unit,
        shake=float(np.mean(changes)) * unit if changes else None,
    )


def whole_picture_motion(
    vectors: NDArray[np.float64], seen: NDArray[np.bool_], cell_aspect: float = 1.0
) -> NDArray[np.float64]:
    """(rows, columns, 2): the shift + zoom + turn that most of the cells in `seen` share, at every cell.

    `cell_aspect`: height of a cell over its width. Starts from the half of the cells nearest to the median vector, then fits
    and takes in what agrees.
    """
    num_rows, num_columns = vectors.shape[:2]
    y, x = np.mgrid[0:num_rows, 0:num_columns].astype(np.float64)
    x -= x.mean()
    y = (y - y.mean()) * cell_aspect
    one, none = np.ones_like(x), np.zeros_like(x)
    # Unknowns: shift right, shift down, zoom, turn. Rows: both components of every cell.
    design = np.stack([np.stack([one, none, x, -y], axis=-1), np.stack([none, one, y, x], axis=-1)], axis=2)
    places = np.flatnonzero(seen)
    equations, wanted = design.reshape(-1, 2, 4)[places], vectors.reshape(-1, 2)[places]
    distance = _lengths(wanted - np.median(wanted, axis=0))
    used = distance <= np.quantile(distance, _START_SHARE)
    solution = np.zeros(4)
    for _ in range(_ROUNDS):
        left, right = equations[used].reshape(-1, 4), wanted[used].reshape(-1)
        solution = np.linalg.lstsq(left, right, rcond=None)[0]
        residual = _lengths(wanted - equations @ solution)
        agreeing = residual <= max(_FLOW_NOISE, _AGREES * float(np.median(residual[used])))
        if np.array_equal(agreeing, used):
            break
        used = agreeing
    return np.asarray(design @ solution)


def _lengths(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.hypot(vectors[..., 0], vectors[..., 1])


def _aspect(proxy_size: tuple[int, int]) -> float:
    return (proxy_size[0] / FLOW_GRID[0]) / (proxy_size[1] / FLOW_GRID[1])


def _cells(low: float, high: float, count: int) -> slice:
    """Grid cells whose middle lies in [low, high); at least one."""
    first = int(np.ceil(low * count - 0.5))
    end = int(np.ceil(high * count - 0.5))
    first = min(max(0, first), count - 1)
    return slice(first, max(first + 1, min(end, count)))
