"""The first tab: the facts that decide whether a plan is good, what proved it, what annealing added, and the batch table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pyarrow as pa

from planner.looking.wording import size_words, span_words
from planner.report.colours import bucket_colours
from planner.report.figures import ShardOpens, WindowMix
from planner.report.markup import fact, note, number, state, swatch, table
from planner.report.tally import PlanTally
from schemas.buckets import Bucket
from schemas.plan import PlanMeta

__all__ = ["batch_table", "headline"]


def headline(
    meta: PlanMeta,
    tally: PlanTally,
    mixes: Sequence[WindowMix],
    opens: ShardOpens,
    certificate: Mapping[str, Any] | None,
) -> str:
    """The facts that decide whether a plan is good, what proved it, and what annealing added."""
    peak = max(meta.peak_buffer_bytes, default=0)
    lane = meta.peak_buffer_bytes.index(peak) if meta.peak_buffer_bytes else 0
    bound, gap = (_proved(meta, certificate, name) for name in ("used_share_upper_bound", "predicted_gap"))
    indices = {item.window: item.index for item in mixes}
    facts = [
        fact(
            f"{meta.used_share:.2%}",
            "used share",
            "no certificate, no bound"
            if bound is None
            else f"bound {bound:.2%}, gap {max(0.0, bound - meta.used_share):.2%}",
            title="Clips that some step names over all admitted clips, over all epochs.",
        ),
        fact(
            f"{tally.waste(meta.sync):.2%}",
            f"idle, predicted (sync {meta.sync})",
            f"sync {'step' if meta.sync == 'micro' else 'micro'}: {tally.waste('step' if meta.sync == 'micro' else 'micro'):.2%}",
            title="1 - sum of micro-batch seconds / (lanes x time of the slowest), by the cost model.",
        ),
        *([] if gap is None else [fact(f"{gap:.2%}", "time above its bound", "proved for these micro-batches")]),
        *(
            fact(
                f"{indices[window]:.3g}" if window in indices else "n/a",
                f"mix index, {window} step{'s' * (window > 1)}",
                "1 is a random order",
            )
            for window in (1, 8)
        ),
        fact(
            size_words(peak),
            "peak buffer of a lane",
            f"lane {lane}; cap {size_words(meta.max_buffer_bytes)}",
            bad=peak > meta.max_buffer_bytes,
        ),
        *_peak_facts(meta),
        fact(f"{opens.per_shard:.3f}", "opens per shard", "per epoch"),
        *(
            fact(f"{meta.metrics[key]:.3f}", words, "1.000 is best")
            for key, words in (("read_amplification", "read amplification"), ("sequential_share", "sequential share"))
            if key in meta.metrics
        ),
        *(
            fact(f"{meta.metrics[key]:.3g}", "clips of one source in a step", "over chance; 0 is none")
            for key in ("shared_source_ratio",)
            if key in meta.metrics
        ),
    ]
    time_s = float(tally.slowest_M.sum() if meta.sync == "micro" else tally.step_slowest_S.sum())
    run = (
        f"{meta.num_steps:,} steps of {meta.micro_per_step} rows on {meta.num_lanes} lanes, policy {meta.policy}, seed {meta.seed}; "
        f"{meta.num_epochs} epoch{'s' * (meta.num_epochs != 1)} of {meta.admitted_clips:,} clips admitted at {meta.admission}; "
        f"{span_words(time_s)} predicted"
    )
    return (
        f"<p>{escape(run)}</p>{_continues(meta)}<div class='facts'>{''.join(facts)}</div>"
        f"{_certificate(meta, certificate)}<h2>What annealing added over the constructive start</h2>{_annealing(meta)}"
    )


def _peak_facts(meta: PlanMeta) -> list[str]:
    facts = []
    for values, cap, words in (
        (meta.peak_buffer_clips, meta.max_buffer_clips, "peak buffer in clips"),
        (meta.peak_open_shards, meta.max_open_shards, "shards open at once"),
    ):
        if values:
            most = max(values)
            limit = "no cap" if cap is None else f"cap {cap:,}"
            facts.append(
                fact(f"{most:,}", words, f"lane {values.index(most)}; {limit}", bad=cap is not None and most > cap)
            )
    return facts


def _proved(meta: PlanMeta, certificate: Mapping[str, Any] | None, name: str) -> float | None:
    """A bound of the certificate, if it is this plan's and has it."""
    if certificate is None or certificate.get("plan_hash") != meta.plan_hash:
        return None
    value = certificate.get("bounds", {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def _continues(meta: PlanMeta) -> str:
    if meta.continues is None:
        return ""
    before = meta.continues
    return note(
        f"Continues plan {before.plan_hash[:12]} from step {before.from_step} (it had {before.num_lanes} lanes); steps here are "
        f"{meta.steps.start} to {meta.steps.stop - 1}."
    )


def _certificate(meta: PlanMeta, certificate: Mapping[str, Any] | None) -> str:
    again = "Run <code>reelyard-plan verify</code>, then make this page again."
    if certificate is None:
        return state(f"Not proved: there is no certificate.json. {again}", good=False)
    if certificate.get("plan_hash") != meta.plan_hash:
        return state(f"Not proved: certificate.json is of another plan. {again}", good=False)
    held, skipped = certificate.get("rules_that_hold", {}), certificate.get("rules_not_checked", {})
    left = f"; {len(skipped)} not checked: {', '.join(map(str, skipped))}" if skipped else ""
    return state(f"Proved: {len(held)} rules hold{escape(left)}. The list is under Numbers.", good=True)


def _annealing(meta: PlanMeta) -> str:
    """Every `anneal_..._start...` beside its `..._gain...` (how much better, whatever the sign of better); the rest as it is."""
    values = {name: value for name, value in meta.metrics.items() if name.startswith("anneal_")}
    if not values:
        return note("plan.json says nothing of annealing.")
    rows, others, gained = [], [], False
    for name, value in sorted(values.items()):
        title, formula = escape(name.removeprefix("anneal_").replace("_start", "")), escape(meta.formulas.get(name, ""))
        gain = values.get(name.replace("_start", "_gain")) if "_start" in name else None
        if gain is not None:
            gained |= gain != 0.0
            after = value + gain if re.search(r"_share(_|$)", name) else value - gain
            rows.append([title, number(value), number(after), f"{'+' if gain > 0 else ''}{number(gain)}", formula])
        elif name.replace("_gain", "_start") not in values or "_gain" not in name:
            others.append([title, "", number(value), "", formula])
    words = (
        "Gains over the constructive start:" if gained else "Nothing: every figure is that of the constructive start."
    )
    return f"<p>{words}</p>" + table(
        ["figure", "start", "with annealing", "gain", "definition"], rows + others, name="annealing words"
    )


def batch_table(meta: PlanMeta, tally: PlanTally, ledger_table: pa.Table, spares: pa.Table) -> str:
    """One line per bucket: what there is, what a micro-batch holds and costs, what the plan makes of it."""
    colours = bucket_colours([Bucket.parse(entry.bucket) for entry in meta.batches])
    micro = tally.counts_MxB.sum(axis=0, dtype=np.int64)
    seconds = micro * np.array([entry.predicted_seconds for entry in meta.batches])
    left, spare = _by_bucket(ledger_table, "left_over", "carried"), _by_bucket(spares)
    rows = []
    for index, (entry, colour) in enumerate(zip(meta.batches, colours, strict=True)):
        rows.append(
            [
                swatch(colour) + escape(entry.bucket),
                f"{entry.clips_in_set:,}",
                f"{entry.clips_per_lane:,}",
                f"{entry.tier}",
                span_words(entry.predicted_seconds),
                "" if entry.memory_bytes is None else size_words(entry.memory_bytes),
                f"{micro[index]:,}",
                f"{micro[index] / micro.sum():.1%}",
                f"{seconds[index] / max(seconds.sum(), 1e-300):.1%}",
                f"{tally.clips_B[index]:,}",
                f"{left.get(entry.bucket, 0):,}",
                f"{spare.get(entry.bucket, 0):,}",
            ]
        )
    total = [
        "all", f"{sum(entry.clips_in_set for entry in meta.batches):,}", "", "", "", "", f"{micro.sum():,}", "100.0%", "100.0%",
        f"{tally.clips_B.sum():,}", f"{sum(left.values()):,}", f"{spares.num_rows:,}",
    ]  # fmt: skip
    head = [
        "bucket (frames x height x width)", "clips in set", "clips a micro-batch", "tier", "predicted", "memory", "micro-batches", "of them",
        "of the time", "clips used", "not used", "spares",
    ]  # fmt: skip
    sets = [
        [
            escape(item.name),
            f"{len(item.shard_names):,}",
            size_words(sum(item.shard_bytes)),
            f"<code>{escape(item.samples_hash[:12])}</code>",
        ]
        for item in meta.sets
    ]
    errors = ", ".join(f"{name} {value:.2%}" for name, value in meta.cost_errors.items())
    return (
        f"<h2>Batch table</h2>{table(head, [*rows, total], name='batches', sums=True)}"
        f"{note(f'Seconds: {meta.cost_model}. ' + (f'Error of the cost model: {errors}.' if errors else ''))}"
        f"{note('Clips are counted over all epochs: used ones at the bucket they are used at, others at the longest bucket they have.')}"
        f"<h2>Sets</h2>{table(['set', 'shards', 'size', 'samples hash'], sets, name='sets')}"
    )


def _by_bucket(found: pa.Table, *events: str) -> dict[str, int]:
    groups = found.group_by(["frames", "height", "width", *(["event"] if events else [])]).aggregate(
        [([], "count_all")]
    )
    counts: dict[str, int] = {}
    for row in groups.to_pylist():
        if not events or row["event"] in events:
            name = f"{row['frames']}x{row['height']}x{row['width']}"
            counts[name] = counts.get(name, 0) + row["count_all"]
    return counts
