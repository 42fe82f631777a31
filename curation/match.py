"""Copies: pairs of clips whose frames look alike, and which of them several frames confirm.

Candidates are cheap and generous: any two frames with a descriptor cosine of 0.6 (faiss, exact search). One frame proves little, because windows
of one take look alike too. So a pair is verified by its frames along one time offset: enough of them must line up, most must agree, their mean
must be high, and no other clip of the same source may fit better (a copied film has for each clip a sibling that is nearly as good, and the
true partner). The limits are measured, see docs/curation-decisions.md. Price: a copy played at another speed is not found, and a copy cut at
other places is found less often, the finer its windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from schemas.config import StrictConfig
from schemas.errors import DataError
from schemas.tables import DESCRIPTOR_WIDTH, PAIRS

__all__ = ["MatchSettings", "match_clips"]

_QUERY_FRAMES = 4096
_PAIRS_AT_ONCE = 1024
_ROUNDING = 1e-3
"""Slack of the search, so that the exact cosine decides at the limit and not the rounding of a block of a matrix product."""


class MatchSettings(StrictConfig):
    """Settings of the match phase; docs/curation-decisions.md says what each limit was measured on."""

    candidate_cosine: float = Field(default=0.6, gt=0, lt=1)
    """Two clips are a candidate pair when any two of their frames reach it."""
    frame_cosine: float = Field(default=0.6, gt=0, lt=1)
    """Two frames agree when they reach it."""
    min_agree_ratio: float = Field(default=0.75, gt=0, le=1)
    """Share of the compared frames that must agree."""
    min_mean_cosine: float = Field(default=0.65, gt=0, lt=1)
    """Mean over the compared frames at the best time offset."""
    min_overlap_ratio: float = Field(default=0.5, gt=0, le=1)
    """Frames that line up at that offset, over the frames of the clip that has fewer; at least two."""
    sibling_margin: float = Field(default=0.03, ge=0, lt=1)
    """A pair may fall short by this much of the best fit between either clip and the other's source; more, and a sibling is the true partner."""
    single_frame_cosine: float = Field(default=0.75, gt=0, lt=1)
    """Limit where one of the two has one frame only, as images have: nothing else can confirm it."""


@dataclass(frozen=True)
class _Clips:
    """Clips with descriptors, by clip id; frame rows of clip c are `first[c] : first[c] + count[c]`, in time order."""

    ids: NDArray[np.str_]
    source: NDArray[np.int64]
    kind: NDArray[np.int64]
    start_us: NDArray[np.int64]
    end_us: NDArray[np.int64]
    first: NDArray[np.int64]
    count: NDArray[np.int64]
    time_s: NDArray[np.float64]
    frames: NDArray[np.float32]

    def spacing_s(self) -> NDArray[np.float64]:
        """Mean time between neighbouring frames; 0 for a single one."""
        last = self.time_s[self.first + self.count - 1]
        return (last - self.time_s[self.first]) / np.maximum(self.count - 1, 1)


@dataclass(frozen=True)
class _Fit:
    """How well candidate pairs agree at their best time offset; one entry per pair."""

    cosine: NDArray[np.float32]
    """Highest over all frame pairs, whatever their times."""
    mean: NDArray[np.float64]
    agree: NDArray[np.int64]
    compared: NDArray[np.int64]
    offset_s: NDArray[np.float64]
    """From the first clip of the pair to the second."""

    def at(self, rows: NDArray[np.bool_]) -> _Fit:
        """Of these pairs only."""
        return _Fit(self.cosine[rows], self.mean[rows], self.agree[rows], self.compared[rows], self.offset_s[rows])


def match_clips(descriptors: pa.Table, clips: pa.Table, settings: MatchSettings) -> pa.Table:
    """PAIRS, sorted by (clip_a, clip_b): every candidate pair, with what verified it or did not.

    Only clips of one kind are compared (a photograph is no copy of a film that shows it), and non-overlapping clips of one source never.

    Raises:
        DataError: descriptors of several models, or of a clip that is not in `clips`.
    """
    data = _gather(descriptors, clips)
    pairs = _candidates(data, settings)
    if not len(pairs):
        return PAIRS.empty_table()
    fit = _fits(data, pairs, settings)
    real = fit.cosine >= settings.candidate_cosine
    pairs, fit = pairs[real], fit.at(real)
    verified = _agrees(data, pairs, fit, settings) & _best_sibling(data, pairs, fit, settings)
    columns = {
        "clip_a": data.ids[pairs[:, 0]],
        "clip_b": data.ids[pairs[:, 1]],
        "cosine": fit.cosine,
        "mean_cosine": fit.mean.astype(np.float32),
        "offset_us": np.round(fit.offset_s * 1e6).astype(np.int64),
        "frames_agree": fit.agree.astype(np.int32),
        "frames_compared": fit.compared.astype(np.int32),
        "verified": verified,
    }
    return pa.table({name: pa.array(values) for name, values in columns.items()}).cast(PAIRS)


def _gather(descriptors: pa.Table, clips: pa.Table) -> _Clips:
    models = descriptors.column("model").unique().to_pylist()
    if len(models) > 1:
        raise DataError(
            f"descriptors are of several models ({', '.join(sorted(models))}), which cannot be compared; "
            "run the analyze phase for all sources with one model"
        )
    ordered = descriptors.sort_by([("clip_id", "ascending"), ("time_us", "ascending")])
    names = ordered.column("clip_id").to_numpy(zero_copy_only=False).astype(str)
    ids, first, count = np.unique(names, return_index=True, return_counts=True)
    known = clips.column("clip_id").to_numpy(zero_copy_only=False).astype(str)
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, ids, sorter=order)
    strangers = (
        [] if not len(ids) else ids[(place == len(known)) | (known[order[np.minimum(place, len(known) - 1)]] != ids)]
    )
    if len(strangers):
        raise DataError(
            f"descriptors name clip {strangers[0]} ({len(strangers)} in all), which is not among the clips; "
            "descriptors and clips are of different runs, run the analyze phase again"
        )
    rows = order[place]

    def numbers(column: str) -> NDArray[np.int64]:
        return np.asarray(clips.column(column).to_numpy(zero_copy_only=False))[rows].astype(np.int64)

    def codes(column: str) -> NDArray[np.int64]:
        values = clips.column(column).to_numpy(zero_copy_only=False).astype(str)[rows]
        return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)

    vectors = ordered.column("descriptor").combine_chunks()
    frames = np.asarray(vectors.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
    frames = frames.reshape(-1, DESCRIPTOR_WIDTH)
    lengths = np.linalg.norm(frames, axis=1, keepdims=True)  # float16 storage leaves them off 1 by up to 1e-3
    return _Clips(
        ids=ids,
        source=codes("content_hash"),
        kind=codes("kind"),
        start_us=numbers("start_us"),
        end_us=numbers("end_us"),
        first=first.astype(np.int64),
        count=count.astype(np.int64),
        time_s=ordered.column("time_us").to_numpy() / 1e6,
        frames=frames / np.maximum(lengths, 1e-12),
    )


def _candidates(data: _Clips, settings: MatchSettings) -> NDArray[np.int64]:
    """Pairs (n, 2) of clip indices, a < b, in order, that some two frames bring together and that may be copies of each other."""
    import faiss

    if len(data.ids) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    index = faiss.IndexFlatIP(DESCRIPTOR_WIDTH)
    index.add(data.frames)
    clip_of_frame = np.repeat(np.arange(len(data.ids)), data.count)
    found = []
    for start in range(0, len(data.frames), _QUERY_FRAMES):
        limits, _, hits = index.range_search(
            data.frames[start : start + _QUERY_FRAMES], settings.candidate_cosine - _ROUNDING
        )
        clip_a = np.repeat(clip_of_frame[start : start + _QUERY_FRAMES], np.diff(limits).astype(np.int64))
        clip_b = clip_of_frame[hits]
        ahead = clip_a < clip_b
        found.append(np.unique(clip_a[ahead] * len(data.ids) + clip_b[ahead]))
    pairs = np.stack(np.divmod(np.unique(np.concatenate(found)), len(data.ids)), axis=1)
    first, second = pairs[:, 0], pairs[:, 1]
    apart = (data.end_us[first] <= data.start_us[second]) | (data.end_us[second] <= data.start_us[first])
    siblings = (data.source[first] == data.source[second]) & apart
    return pairs[(data.kind[first] == data.kind[second]) & ~siblings]


def _fits(data: _Clips, pairs: NDArray[np.int64], settings: MatchSettings) -> _Fit:
    cosine = np.zeros(len(pairs), dtype=np.float32)
    mean = np.zeros(len(pairs))
    agree, compared = np.zeros((2, len(pairs)), dtype=np.int64)
    offset_s = np.zeros(len(pairs))
    spacing = data.spacing_s()
    for rows in _alike(data, pairs):
        coarse, fine = pairs[rows].T
        swapped = spacing[coarse] < spacing[fine]
        coarse, fine = np.where(swapped, fine, coarse), np.where(swapped, coarse, fine)
        for shape_rows in _same_counts(data, coarse, fine):
            part = rows[shape_rows]
            cosine[part], mean[part], agree[part], compared[part], offset_s[part] = _fit_block(
                data, coarse[shape_rows], fine[shape_rows], spacing[coarse[shape_rows]], settings
            )
            offset_s[part] *= np.where(swapped[shape_rows], -1.0, 1.0)
    return _Fit(cosine, mean, agree, compared, offset_s)


def _alike(data: _Clips, pairs: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Row numbers of pairs, in blocks small enough for the (pair, offset, frame, frame) arrays."""
    most = max(int(data.count[pairs].max()), 1)
    step = max(_PAIRS_AT_ONCE * 6**4 // most**4, 1)
    for start in range(0, len(pairs), step):
        yield np.arange(start, min(start + step, len(pairs)))


def _same_counts(data: _Clips, coarse: NDArray[np.int64], fine: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    shapes = data.count[coarse] * (data.count.max() + 1) + data.count[fine]
    for shape in np.unique(shapes):
        yield np.flatnonzero(shapes == shape)


def _fit_block(
    data: _Clips,
    coarse: NDArray[np.int64],
    fine: NDArray[np.int64],
    spacing_s: NDArray[np.float64],
    settings: MatchSettings,
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Highest cosine, mean, agreeing and compared frames, and time offset of the second, of pairs with i frames in one clip, j in the other.

    Every difference of two frame times is tried as the offset; a frame of the coarser clip is compared with the nearest frame of the finer one
    when that is within half the coarser spacing. O(i^2 j^2) per pair: 1,296 for six frames each.
    """
    num_i, num_j = int(data.count[coarse[0]]), int(data.count[fine[0]])
    rows_i = data.first[coarse][:, None] + np.arange(num_i)
    rows_j = data.first[fine][:, None] + np.arange(num_j)
    cosine_pij = np.matmul(data.frames[rows_i], data.frames[rows_j].transpose(0, 2, 1))
    shift_pij = data.time_s[rows_j][:, None, :] - data.time_s[rows_i][:, :, None]
    offset_po = shift_pij.reshape(len(coarse), -1)
    error_poij = np.abs(shift_pij[:, None] - offset_po[:, :, None, None])
    nearest_poi = error_poij.argmin(axis=3)
    lined_up_poi = error_poij.min(axis=3) <= (spacing_s / 2 + 1e-6)[:, None, None]
    at_nearest_poi = np.take_along_axis(cosine_pij[:, None].repeat(offset_po.shape[1], 1), nearest_poi[..., None], 3)[
        ..., 0
    ]
    compared_po = lined_up_poi.sum(axis=2)
    mean_po = (at_nearest_poi * lined_up_poi).sum(axis=2, dtype=np.float64) / compared_po
    fewest = min(num_i, num_j)
    enough = compared_po >= max(min(2, fewest), int(np.ceil(settings.min_overlap_ratio * fewest)))
    best_p = np.where(enough, mean_po, -1.0).argmax(axis=1)
    pick = (np.arange(len(coarse)), best_p)
    agree_po = ((at_nearest_poi >= settings.frame_cosine) & lined_up_poi).sum(axis=2)
    return cosine_pij.max(axis=(1, 2)), mean_po[pick], agree_po[pick], compared_po[pick], offset_po[pick]


def _agrees(data: _Clips, pairs: NDArray[np.int64], fit: _Fit, settings: MatchSettings) -> NDArray[np.bool_]:
    """Whether the frames confirm the pair, looking at nothing but the pair."""
    single = data.count[pairs].min(axis=1) == 1
    several = (fit.mean >= settings.min_mean_cosine) & (fit.agree >= settings.min_agree_ratio * fit.compared)
    return np.where(single, fit.mean >= settings.single_frame_cosine, several)


def _best_sibling(data: _Clips, pairs: NDArray[np.int64], fit: _Fit, settings: MatchSettings) -> NDArray[np.bool_]:
    """Whether neither clip fits another clip of the other's source better, by more than the margin."""
    fits = np.ones(len(pairs), dtype=bool)
    for own, other in ((0, 1), (1, 0)):
        key = pairs[:, own] * (data.source.max() + 1) + data.source[pairs[:, other]]
        _, group = np.unique(key, return_inverse=True)
        best = np.full(group.max() + 1, -1.0)
        np.maximum.at(best, group.reshape(-1), fit.mean)
        fits &= fit.mean >= best[group.reshape(-1)] - settings.sibling_margin
    return fits
