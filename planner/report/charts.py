"""What the page's script draws, as packed arrays of bounded size: at most `STRIP_COLUMNS` bins of rows, whatever the plan's length."""

from __future__ import annotations

from typing import Any

import numpy as np

from planner.report.binning import bin_edges, bin_max, bin_mean, bin_sum, pack
from planner.report.colours import OTHER_COLOUR, bucket_colours, group_colours, tier_colours
from planner.report.figures import WindowMix
from planner.report.tally import PlanTally
from schemas.buckets import Bucket
from schemas.plan import PlanMeta

__all__ = ["chart_data", "lanes_per_rank", "num_shards"]

STRIP_COLUMNS = 12_288
_GRID_SHARDS = 600
_MOST_VISITS = 60_000
_DOMAIN_COLUMNS = 2_000
_SHOWN_DOMAINS = 10
_LEVELS = 65_535


def chart_data(
    meta: PlanMeta, tally: PlanTally, bucket_mix: list[WindowMix], domain_mix: list[WindowMix]
) -> dict[str, Any]:
    """Everything the script reads, ready for JSON."""
    return {
        "lanes": meta.num_lanes,
        "rows": len(tally.epoch_M),
        "microPerStep": meta.micro_per_step,
        "firstStep": meta.first_step,
        "epochs": _epochs(tally),
        "buckets": _buckets(meta),
        "strip": _strip(tally),
        "picture": {
            "lanes": pack(tally.drawn_lanes.astype(np.int32)),
            "rows": pack(tally.picture_rows.astype(np.int32)),
            "cells": pack(tally.picture_VxC),
        },
        "buffer": _buffer(meta, tally),
        "open": {
            "edges": pack(tally.buffer_edges.astype(np.int32)),
            "most": pack(tally.open_max_C.astype(np.float32)),
            "mean": pack(tally.open_mean_C.astype(np.float32)),
            "cap": meta.max_open_shards,
        },
        "mix": {"buckets": [_mix(item) for item in bucket_mix], "domains": [_mix(item) for item in domain_mix]},
        "domains": _domains(tally),
        "pareto": _pareto(meta, tally, bucket_mix),
        "grid": _grid(meta, tally),
        "visits": _visits(tally),
        "shards": [f"{item.name}/{name}" for item in meta.sets for name in item.shard_names],
        "perLane": {
            "clips": pack(tally.clips_V.astype(np.float64)),
            "bytes": pack(tally.bytes_V.astype(np.float64)),
            "reads": pack(tally.reads_V.astype(np.float64)),
            "seconds": pack(tally.seconds_V),
            "peakBytes": pack(np.array(meta.peak_buffer_bytes, dtype=np.float64)),
            "peakOpen": pack(tally.open_peak_V.astype(np.float64)),
        },
        "bufferCap": meta.max_buffer_bytes,
        "worlds": lanes_per_rank(meta.num_lanes),
    }


def num_shards(meta: PlanMeta) -> int:
    """Shards of all sets."""
    return sum(len(item.shard_names) for item in meta.sets)


def lanes_per_rank(num_lanes: int) -> list[int]:
    """World sizes that the plan runs on: `lanes_per_rank(6) == [1, 2, 3, 6]`."""
    small = [count for count in range(1, int(num_lanes**0.5) + 1) if num_lanes % count == 0]
    return sorted({*small, *(num_lanes // count for count in small)})


def _epochs(tally: PlanTally) -> list[list[int]]:
    """[epoch, first row] of each."""
    first = np.concatenate([[0], np.flatnonzero(np.diff(tally.epoch_M)) + 1])
    return [[int(tally.epoch_M[row]), int(row)] for row in first]


def _buckets(meta: PlanMeta) -> list[dict[str, Any]]:
    colours = bucket_colours([Bucket.parse(entry.bucket) for entry in meta.batches])
    tiers = sorted({entry.tier for entry in meta.batches})
    shades = dict(zip(tiers, tier_colours(len(tiers)), strict=True))
    return [
        {
            "name": entry.bucket,
            "colour": colour,
            "tier": entry.tier,
            "tierColour": shades[entry.tier],
            "seconds": entry.predicted_seconds,
            "clips": entry.clips_per_lane,
        }
        for entry, colour in zip(meta.batches, colours, strict=True)
    ]


def _strip(tally: PlanTally) -> dict[str, Any]:
    edges = bin_edges(len(tally.epoch_M), STRIP_COLUMNS)
    counts = bin_sum(tally.counts_MxB, edges)
    return {
        "edges": pack(edges.astype(np.int32)),
        "counts": pack(counts.astype(np.uint16 if counts.max() < 1 << 16 else np.int32)),
        "slowest": pack(bin_max(tally.slowest_M, edges).astype(np.float32)),
        "mean": pack(bin_mean(tally.slowest_M, edges).astype(np.float32)),
    }


def _buffer(meta: PlanMeta, tally: PlanTally) -> dict[str, Any] | None:
    found = tally.buffer
    if found is None:
        return None
    lane = int(np.argmax(found.peak_bytes_V))
    top = max(1.0, float(found.bytes_VxC.max()))
    return {
        "edges": pack(tally.buffer_edges.astype(np.int32)),
        "levels": pack(np.round(found.bytes_VxC * (_LEVELS / top)).astype(np.uint16)),
        "top": top,
        "highest": pack(found.highest_C),
        "median": pack(found.median_C),
        "lowest": pack(found.lowest_C),
        "peak": {"lane": lane, "row": int(found.peak_row_V[lane]), "bytes": int(found.peak_bytes_V[lane])},
        "cap": meta.max_buffer_bytes,
    }


def _mix(item: WindowMix) -> dict[str, Any]:
    return {
        "window": item.window,
        "floor": item.floor,
        "middles": pack(item.middles.astype(np.float32)),
        "values": pack(item.values.astype(np.float32)),
    }


def _domains(tally: PlanTally) -> dict[str, Any] | None:
    """Shares of the largest domains over bins of steps."""
    if tally.domain_SxD is None:
        return None
    order = np.argsort(-tally.domain_SxD.sum(axis=0), kind="stable")
    edges = bin_edges(len(tally.domain_SxD), _DOMAIN_COLUMNS)
    counts = bin_sum(tally.domain_SxD, edges)[:, order]
    shown = counts[:, :_SHOWN_DOMAINS]
    names = [tally.domains[index] for index in order[:_SHOWN_DOMAINS]]
    colours = group_colours(len(names))
    if len(order) > _SHOWN_DOMAINS:
        shown = np.concatenate([shown, counts[:, _SHOWN_DOMAINS:].sum(axis=1, keepdims=True)], axis=1)
        names.append(f"{len(order) - _SHOWN_DOMAINS} more")
        colours.append(OTHER_COLOUR)
    return {
        "edges": pack(edges.astype(np.int32)),
        "counts": pack(shown.astype(np.int32)),
        "groups": [{"name": name, "colour": colour} for name, colour in zip(names, colours, strict=True)],
    }


def _pareto(meta: PlanMeta, tally: PlanTally, bucket_mix: list[WindowMix]) -> dict[str, Any]:
    measured = {f"w{item.window}": item.index for item in bucket_mix}
    return {
        "points": [[point.tiers, point.waste, point.mix_index_1, point.mix_index_8] for point in meta.tier_curve],
        "tiers": len({entry.tier for entry in meta.batches}),
        "waste": tally.waste("micro"),
        "index1": measured.get("w1"),
        "index8": measured.get("w8"),
    }


def _grid(meta: PlanMeta, tally: PlanTally) -> dict[str, Any]:
    """Opens and megabytes by drawn lane and bin of shards, over all epochs."""
    edges = bin_edges(num_shards(meta), _GRID_SHARDS)
    lanes, columns = len(tally.drawn_lanes), len(edges) - 1
    visits = tally.visits
    place = np.minimum(np.searchsorted(tally.drawn_lanes, visits.lane), lanes - 1)
    drawn = tally.drawn_lanes[place] == visits.lane
    column = np.searchsorted(edges, visits.shard, side="right") - 1
    cell = (place * columns + column)[drawn]
    opens = np.bincount(cell, minlength=lanes * columns)
    megabytes = np.bincount(cell, visits.num_bytes[drawn] / 1e6, minlength=lanes * columns)
    return {
        "edges": pack(edges.astype(np.int32)),
        "opens": pack(np.minimum(opens, _LEVELS).astype(np.uint16).reshape(lanes, columns)),
        "megabytes": pack(megabytes.astype(np.float32).reshape(lanes, columns)),
    }


def _visits(tally: PlanTally) -> dict[str, Any]:
    """What lanes read, earliest epochs first where there is more than the page holds."""
    visits = tally.visits
    kept = np.sort(np.lexsort((visits.lane, visits.epoch))[:_MOST_VISITS])
    return {
        "total": len(visits.lane),
        "lane": pack(visits.lane[kept].astype(np.int32)),
        "epoch": pack(visits.epoch[kept].astype(np.int32)),
        "shard": pack(visits.shard[kept].astype(np.int32)),
        "first": pack(visits.first_row[kept].astype(np.int32)),
        "last": pack(visits.last_row[kept].astype(np.int32)),
        "reads": pack(visits.num_reads[kept].astype(np.int32)),
        "bytes": pack(visits.num_bytes[kept].astype(np.float64)),
    }
