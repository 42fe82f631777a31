"""Copies: pairs of clips whose frames look alike, and which of them several frames confirm.

Candidates are cheap and generous: any two frames with a descriptor cosine of 0.6 (`frame_search`). One frame proves little, because windows of
one take look alike too. So a pair is verified in one of two ways. By itself: along one time offset enough of its frames line up, most agree,
their mean is high, and no other clip of the same source fits better (a copied film has for each clip a sibling that is nearly as good, and the
true partner). Or by its sources: they run in step at one offset over many frames, and the two clips share time there (`source_alignment`). The
limits are measured by `benchmarks/copies.py`. Price: a copy played at another speed is not found, a mirrored one as far as SSCD sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation.clip_fit import Fit, fit_clips
from curation.frame_search import Hits, build_index, search
from curation.match_frames import ClipFrames, Indices, gather_frames
from curation.match_settings import MatchSettings
from curation.source_alignment import InStep, sources_in_step
from schemas.tables import PAIRS

__all__ = ["MatchSettings", "compared_frames", "judge_hits", "match_clips", "search_whole"]

_TENTH_FRAME_S = 9 / 24


def match_clips(
    descriptors: pa.Table,
    clips: pa.Table,
    settings: MatchSettings,
    *,
    earlier: pa.Array | pa.ChunkedArray | None = None,
    find: Callable[[ClipFrames], Hits] | None = None,
) -> pa.Table:
    """PAIRS, sorted by (clip_a, clip_b): every candidate pair, with what verified it or did not.

    Only clips of one kind are compared (a photograph is no copy of a film that shows it), and non-overlapping clips of one source never.
    `earlier` names the clips of earlier runs; `find` is another search than the one of the whole table in this process.

    Raises:
        DataError: descriptors of several models, or of a clip that is not in `clips`.
    """
    data = compared_frames(gather_frames(descriptors, clips, earlier=earlier), settings)
    if len(data.ids) < 2:
        return PAIRS.empty_table()
    return judge_hits(data, find(data) if find else search_whole(data, settings), settings)


def search_whole(data: ClipFrames, settings: MatchSettings) -> Hits:
    """All frames against all, in this process."""
    return search(data, build_index(data, np.arange(len(data.clip)), settings), None, settings)


def compared_frames(data: ClipFrames, settings: MatchSettings) -> ClipFrames:
    """All frames, or for the method `paper` one frame of each clip, the nearest to its 10th."""
    if settings.method == "frames" or not len(data.clip):
        return data
    order = np.lexsort((np.abs(data.time_s - _TENTH_FRAME_S), data.clip))
    rows = order[np.searchsorted(data.clip[order], np.arange(len(data.ids)))]
    return replace(
        data,
        first=np.arange(len(rows)),
        count=np.ones(len(rows), dtype=np.int64),
        clip=np.arange(len(rows)),
        time_s=data.time_s[rows],
        vectors=data.vectors[rows],
        inverse_length=data.inverse_length[rows],
    )


def judge_hits(data: ClipFrames, hits: Hits, settings: MatchSettings) -> pa.Table:
    """PAIRS of the clips that the hits bring together."""
    if not len(hits.first):
        return PAIRS.empty_table()
    keys = _keys(data, data.clip[hits.first], data.clip[hits.second])
    if settings.method == "paper":
        pairs = np.stack(np.divmod(keys, len(data.ids)), axis=1)
        order = np.argsort(keys)
        ones = np.ones(len(keys), dtype=np.int64)
        offset = data.time_s[pairs[:, 1]] - data.time_s[pairs[:, 0]]
        same = hits.cosine > settings.paper_cosine
        mean, missed = hits.cosine.astype(np.float64), np.zeros(len(keys))
        return _table(data, pairs, Fit(hits.cosine, mean, same * ones, ones, offset, missed), same, order)
    in_step = {}
    for found in sources_in_step(data, hits, settings):
        a, b = sorted((found.first, found.second))
        in_step[a * len(data.ids) + b] = found
    every = np.union1d(keys, np.array(sorted(in_step), dtype=np.int64))
    pairs = np.stack(np.divmod(every, len(data.ids)), axis=1)
    fit = fit_clips(data, pairs, settings)
    by_source = _with_sources(fit, every, pairs, in_step)
    verified = _agrees(data, pairs, fit, settings) & _best_sibling(data, pairs, fit, settings)
    return _table(
        data, pairs, _chosen(fit, by_source, verified), verified | (by_source.compared > 0), np.arange(len(every))
    )


def _keys(data: ClipFrames, first: Indices, second: Indices) -> Indices:
    return np.unique(np.minimum(first, second) * len(data.ids) + np.maximum(first, second))


def _with_sources(fit: Fit, keys: Indices, pairs: Indices, in_step: dict[int, InStep]) -> Fit:
    """What the sources say of each pair; nothing compared where they say nothing."""
    mean, offset = np.zeros(len(keys)), np.zeros(len(keys))
    agree, compared = np.zeros((2, len(keys)), dtype=np.int64)
    for key, found in in_step.items():
        place = int(np.searchsorted(keys, key))
        ahead = found.first == pairs[place, 0]
        mean[place], agree[place], compared[place] = found.mean, found.agree, found.compared
        offset[place] = found.offset_s if ahead else -found.offset_s
    return Fit(fit.cosine, mean, agree, compared, offset, fit.missed)


def _chosen(fit: Fit, by_source: Fit, verified: NDArray[np.bool_]) -> Fit:
    """The numbers of what verified the pair: its own frames first."""
    use = ~verified & (by_source.compared > 0)
    return Fit(
        fit.cosine,
        np.where(use, by_source.mean, fit.mean),
        np.where(use, by_source.agree, fit.agree),
        np.where(use, by_source.compared, fit.compared),
        np.where(use, by_source.offset_s, fit.offset_s),
        fit.missed,
    )


def _agrees(data: ClipFrames, pairs: Indices, fit: Fit, settings: MatchSettings) -> NDArray[np.bool_]:
    """Whether the frames confirm the pair, looking at nothing but the pair."""
    single = data.count[pairs].min(axis=1) == 1
    several = (fit.mean >= settings.min_mean_cosine) & (fit.agree >= settings.min_agree_ratio * fit.compared)
    several &= (fit.missed <= settings.order_margin) | (fit.mean >= settings.single_frame_cosine)
    return np.where(single, fit.mean >= settings.single_frame_cosine, several)


def _best_sibling(data: ClipFrames, pairs: Indices, fit: Fit, settings: MatchSettings) -> NDArray[np.bool_]:
    """Whether neither clip fits another clip of the other's source better, by more than the margin."""
    fits = np.ones(len(pairs), dtype=bool)
    for own, other in ((0, 1), (1, 0)):
        key = pairs[:, own] * (data.source.max() + 1) + data.source[pairs[:, other]]
        _, group = np.unique(key, return_inverse=True)
        best = np.full(group.max() + 1, -1.0)
        np.maximum.at(best, group.reshape(-1), fit.mean)
        fits &= fit.mean >= best[group.reshape(-1)] - settings.sibling_margin
    return fits


def _table(data: ClipFrames, pairs: Indices, fit: Fit, verified: NDArray[np.bool_], order: Indices) -> pa.Table:
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
    return pa.table({name: pa.array(values[order]) for name, values in columns.items()}).cast(PAIRS)
