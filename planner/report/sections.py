"""The other tabs in words and tables; pictures are drawn by the script into the places left here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pyarrow as pa

from planner.report.figures import WINDOWS, ShardOpens, WindowMix, wait_quantile
from planner.report.markup import bar, chart, choices, fact, note, number, state, table
from planner.report.tally import PlanTally
from schemas.plan import LEDGER_EVENTS, PlanMeta

__all__ = ["buffer", "ledger", "mixing", "numbers", "ranks", "reads", "time"]

_MOST_LEDGER_ROWS = 2_000
_ZOOM = (
    "<div class='zoom'><button data-zoom='all'>whole plan</button><button data-zoom='out'>zoom out</button>"
    "<button data-zoom='left'>&#9664;</button><button data-zoom='right'>&#9654;</button>"
    "<input type='range' class='slide' min='0' max='1000' value='0' aria-label='place in the plan'><span class='span'></span>"
    "<span class='dim'>click a place to zoom in, or drag over a span</span></div>"
)


def time(meta: PlanMeta, tally: PlanTally) -> str:
    """The strip, predicted seconds, and lanes by time."""
    modes = [("bucket", "bucket"), ("tier", "cost tier")]
    lane_modes = [*modes, ("buffer", "bytes buffered")] if tally.buffer is not None else modes
    thin = _thinning(tally, meta)
    return (
        f"{_ZOOM}<h2>What lanes run: share of the lanes, row by row</h2>{bar('colour ' + choices('strip', modes), 'strip')}"
        f"{chart('strip', 210, 'Share of lanes that run each bucket, over the rows of the plan')}"
        f"<h2>Predicted seconds of a row</h2>{bar(legend='cost')}"
        f"{chart('cost', 150, 'Predicted seconds of the slowest lane, over the rows of the plan')}"
        f"<h2>Lane by time</h2>{bar('colour ' + choices('lanes', lane_modes), 'lanes')}"
        f"{chart('lanes', _lane_height(len(tally.drawn_lanes)), 'Bucket of every lane, over the rows of the plan')}{note(thin)}"
    )


def _lane_height(lanes: int) -> int:
    return 50 + max(120, min(520, lanes * 12))


def _thinning(tally: PlanTally, meta: PlanMeta) -> str:
    rows, columns = len(tally.epoch_M), len(tally.picture_rows)
    parts = []
    if columns < rows:
        parts.append(f"The page holds {columns:,} of {rows:,} rows, one of each bin by a seeded draw")
    if len(tally.drawn_lanes) < meta.num_lanes:
        parts.append(f"it shows {len(tally.drawn_lanes)} of {meta.num_lanes} lanes, evenly")
    return ("; ".join(parts) + ".") if parts else "Every row of every lane is in the page; zoom in to see them singly."


def mixing(meta: PlanMeta, bucket_mix: Sequence[WindowMix], domain_mix: Sequence[WindowMix], tally: PlanTally) -> str:
    """Windows against random draws, domains over time, and idle time against mixing."""
    parts = [
        _ZOOM,
        "<h2>Buckets over windows: how far from the mix of the whole</h2>",
        note(
            "Total variation (TV) of the buckets of w steps from those of the plan; dashed: what random draws would have, sum over buckets of "
            "sqrt(p (1 - p) / (2 pi N)), N micro-batches in the window. Index: mean TV / that; 1 is a random order, less is more even."
            + (
                " The configuration changes the mix over the run, so part of the distance is wanted."
                if meta.config.get("mix")
                else ""
            )
        ),
        _mix_table(bucket_mix, meta),
        bar(legend="mix-buckets"),
        chart("mix-buckets", 260, "Total variation of windows from the whole, buckets"),
        f"<h2>Clips by {escape(meta.domain_column)} over windows: how far from the mix of the whole</h2>",
    ]
    if tally.domain_SxD is None:
        parts.append(note("Domains are facts of the samples; make this page with --samples to see how they mix."))
    elif not domain_mix:
        parts.append(note(f"All clips have one {meta.domain_column} ({tally.domains[0]}); there is nothing to mix."))
    else:
        parts += [
            _mix_table(domain_mix, meta),
            bar(legend="mix-domains"),
            chart("mix-domains", 260, "Total variation of windows from the whole, domains"),
            f"<h2>Share of each {escape(meta.domain_column)} over time</h2>{bar(legend='domains')}",
            chart("domains", 190, "Share of the clips of each domain, over the steps of the plan"),
        ]
    return "".join(parts) + _pareto(meta, bucket_mix, tally)


def _mix_table(mixes: Sequence[WindowMix], meta: PlanMeta) -> str:
    if not mixes:
        return note("One group has all draws; there is nothing to mix.")
    rows = [
        [
            f"{item.window} step{'s' * (item.window > 1)}",
            f"{item.mean:.4f}",
            f"{item.worst:.4f}",
            f"{item.floor:.4f}",
            f"{item.index:.3f}",
        ]
        for item in mixes
    ]
    absent = [window for window in WINDOWS if window not in {item.window for item in mixes}]
    words = (
        f"The plan has {meta.num_steps} steps; windows of {', '.join(map(str, absent))} are the whole of it."
        if absent
        else ""
    )
    return table(["window", "mean TV", "largest TV", "random draws", "mix index"], rows, name="mix") + (
        note(words) if words else ""
    )


def _pareto(meta: PlanMeta, bucket_mix: Sequence[WindowMix], tally: PlanTally) -> str:
    head = "<h2>Idle time against mixing, by number of cost tiers</h2>"
    if not meta.tier_curve:
        return head + note(
            "plan.json has no curve: the plan was built without a choice of tiers (policies uniform and paper, or one bucket)."
        )
    own = len({entry.tier for entry in meta.batches})
    rows = [
        [
            f"{point.tiers}{' (this plan)' if point.tiers == own else ''}",
            f"{point.waste:.2%}",
            f"{point.mix_index_1:.3f}",
            f"{point.mix_index_8:.3f}",
        ]
        for point in meta.tier_curve
    ]
    measured = {item.window: f"{item.index:.3f}" for item in bucket_mix}
    rows.append(["measured in the lanes", f"{tally.waste('micro'):.2%}", measured.get(1, ""), measured.get(8, "")])
    line = bar("mix index over " + choices("pareto", [("1", "1 step"), ("8", "8 steps")]), "pareto")
    return (
        f"{head}{line}{chart('pareto', 300, 'Predicted idle share against mix index, one point per number of tiers')}"
        f"{table(['tiers', 'idle (sync micro)', 'mix index, 1 step', 'mix index, 8 steps'], rows, name='pareto', sums=True)}"
    )


def buffer(meta: PlanMeta, tally: PlanTally) -> str:
    """Bytes waiting on lanes, and open shards."""
    parts = [_ZOOM, "<h2>Bytes read and not yet used, on a lane</h2>"]
    found = tally.buffer
    if found is None:
        parts.append(
            note(
                "The curve needs the size of each clip; make this page with --samples. The peaks below are those of plan.json, exact."
            )
        )
    else:
        half, most = wait_quantile(found.wait_rows, 0.5), wait_quantile(found.wait_rows, 0.99)
        peaks = tuple(int(value) for value in found.peak_bytes_V)
        if peaks != meta.peak_buffer_bytes:
            words = "These samples give other peaks than plan.json; they are not those of the plan. Run <code>reelyard-plan verify</code>."
            parts.append(state(words, good=False))
        parts += [
            bar(f"lane <input type='number' id='buffer-lane' min='0' max='{meta.num_lanes - 1}'>", "buffer"),
            chart(
                "buffer",
                260,
                "Buffered bytes of the fullest, the median and the emptiest lane, over the rows of the plan",
            ),
            note(
                f"Half of the clips wait at most {half:,} rows between being read and last used, 99% at most {most:,}. "
                f"Most clips waiting on a lane: {int(found.peak_clips_V.max()):,}."
            ),
        ]
    parts += [
        "<h2>Peak of each lane</h2>",
        chart("peaks", 170, "Peak of the buffered bytes by lane"),
        f"<h2>Open shards</h2>{bar(legend='open')}",
        chart("open", 150, "Shards that a lane is in the middle of, over the rows of the plan"),
    ]
    return "".join(parts)


def reads(meta: PlanMeta, opens: ShardOpens, names: Sequence[str]) -> str:
    """Who opens which shard."""
    counts = opens.by_lanes
    histogram = [
        [f"{lanes}", f"{count:,}", f"{count / max(1, counts.sum()):.2%}"]
        for lanes, count in enumerate(counts.tolist())
        if count
    ]
    if len(histogram) > 12:
        rest = counts[12:].sum()
        histogram = [row for row in histogram if int(row[0]) < 12] + [
            ["12 and more", f"{rest:,}", f"{rest / counts.sum():.2%}"]
        ]
    top = [
        [escape(names[shard]), f"{epoch}", f"{lanes:,}", f"{ranges:,}"]
        for shard, epoch, lanes, ranges in opens.most_opened
    ]
    keys = [
        key
        for key in ("read_amplification", "sequential_share", "reads_per_clip", "opens_per_shard", "handed_over_share")
        if key in meta.metrics
    ]
    metrics = [[escape(key), number(meta.metrics[key]), escape(meta.formulas.get(key, ""))] for key in keys]
    return (
        f"<h2>Shard by lane</h2>{bar('colour ' + choices('grid', [('megabytes', 'MB read'), ('opens', 'opens')]), 'grid')}"
        f"{chart('grid', 420, 'Megabytes that each lane reads of each shard')}"
        f"<div class='side'><div><h2>Lanes that open a shard in an epoch</h2>"
        f"{table(['lanes', 'shards x epochs', 'share'], histogram, name='opens')}</div>"
        f"<div><h2>Opened by most lanes</h2>{table(['shard', 'epoch', 'lanes', 'byte ranges'], top, name='top')}</div></div>"
        f"<h2>Figures of plan.json</h2>{_words_table(['figure', 'value', 'definition'], metrics, name='reads')}"
    )


def ledger(found: pa.Table, num_epochs: int) -> str:
    """What the plan leaves over, carries or repeats: by epoch, bucket, event and reason."""
    total = {event: 0 for event in LEDGER_EVENTS}
    keys = ["epoch", "frames", "height", "width", "event", "reason"]
    groups = found.group_by(keys).aggregate([([], "count_all")]).to_pylist()
    by_epoch = len(groups) <= _MOST_LEDGER_ROWS
    if not by_epoch:
        groups = found.group_by(keys[1:]).aggregate([([], "count_all")]).to_pylist()
    groups.sort(
        key=lambda row: (
            row.get("epoch", 0),
            -row["count_all"],
            row["frames"],
            row["height"],
            row["width"],
            row["event"],
            row["reason"],
        )
    )
    rows = []
    for row in groups:
        total[row["event"]] = total.get(row["event"], 0) + row["count_all"]
        bucket = f"{row['frames']}x{row['height']}x{row['width']}"
        rows.append(
            [
                str(row["epoch"]) if by_epoch else "all",
                bucket,
                escape(row["event"].replace("_", " ")),
                escape(row["reason"]),
                f"{row['count_all']:,}",
            ]
        )
    facts = "".join(fact(f"{count:,}", event.replace("_", " ")) for event, count in total.items())
    cut = len(rows) - _MOST_LEDGER_ROWS
    more = note(f"{cut:,} more lines are in ledger.parquet.") if cut > 0 else ""
    body = table(
        ["epoch", "longest bucket", "event", "reason", "clips"], rows[:_MOST_LEDGER_ROWS], name="ledger", text=4
    )
    tools = bar(
        "<input type='search' id='ledger-filter' placeholder='bucket, event, epoch or reason'><span id='ledger-sum' class='dim'></span>"
    )
    words = "left over: not used in the epoch; carried: not used, and first in the next one; repeated: used once more in the epoch"
    empty = note("The ledger is empty: every admitted clip is used exactly once in every epoch.")
    return (
        f"<h2>The ledger: clips not used once in an epoch</h2><div class='facts'>{facts}</div>"
        f"{(tools + body + more) if rows else empty}"
        f"{note(f'Over {num_epochs} epochs; {words}.')}"
    )


def ranks(meta: PlanMeta) -> str:
    """What rank r of R reads; filled by the script."""
    return (
        f"<h2>What a rank reads</h2><div class='bar'>rank <input type='number' id='rank' min='0' value='0'> of <select id='world'></select>"
        f"<span class='dim'>world sizes that divide {meta.num_lanes} lanes run this plan unchanged</span></div>"
        f"<div id='rank-facts' class='facts'></div>{_ZOOM}<h3>Shards while they are open, lane by lane</h3>"
        f"{chart('gantt', 320, 'Spans in which each lane of the rank has a shard open')}<div class='bar'>"
        "<input type='search' id='shard-filter' placeholder='shard name'><span id='visit-sum' class='dim'></span></div>"
        f"{table(['shard', 'lane', 'epoch', 'open from step', 'to step', 'byte ranges', 'size'], [], name='visits')}"
    )


def numbers(meta: PlanMeta, certificate: Mapping[str, Any] | None) -> str:
    """Every figure with its definition, what was proved, and the configuration."""
    metrics = [
        [escape(name), number(value), escape(meta.formulas.get(name, meta.formulas.get(name.split("/")[0], "")))]
        for name, value in sorted(meta.metrics.items())
    ]
    parts = [f"<h2>Figures of plan.json</h2>{_words_table(['figure', 'value', 'definition'], metrics, name='metrics')}"]
    if certificate is not None and certificate.get("plan_hash") == meta.plan_hash:
        formulas = certificate.get("formulas", {})
        found = [
            [escape(str(name)), number(value), escape(str(formulas.get(name, "")))]
            for part in ("bounds", "counts")
            for name, value in certificate.get(part, {}).items()
            if isinstance(value, int | float)
        ]
        held = [
            [escape(str(name)), "holds", escape(str(text))]
            for name, text in certificate.get("rules_that_hold", {}).items()
        ]
        held += [
            [escape(str(name)), "not checked", escape(str(text))]
            for part in ("rules_not_checked", "metrics_not_checked", "fields_not_checked")
            for name, text in certificate.get(part, {}).items()
        ]
        parts.append(
            f"<h2>Bounds and counts of the certificate</h2>{_words_table(['figure', 'value', 'definition'], found, name='bounds')}"
        )
        parts.append(
            f"<h2>Rules, and what was not checked</h2>{_words_table(['name', 'state', 'what it says'], held, name='rules')}"
        )
    config = [[escape(name), escape(json.dumps(value))] for name, value in sorted(meta.config.items())]
    hashes = f"plan {meta.plan_hash}; made by {meta.created_by}"
    parts.append(f"<h2>Configuration</h2>{table(['key', 'value'], config, name='config', text=2)}{note(hashes)}")
    return "".join(parts)


def _words_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, name: str) -> str:
    """A table whose last column is a sentence."""
    return table(head, rows, name=f"{name} words", text=1) if rows else note("none")
