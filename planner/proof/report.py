"""The rules by name, what was found about each, and the certificate that says so.

A rule says one thing, is looked at whatever else is broken, and its messages carry numbers. Price: one defect often breaks several rules.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from schemas.files import write_json
from schemas.plan import PlanMeta

__all__ = [
    "CERTIFICATE",
    "MOST_MESSAGES",
    "RULES",
    "VerifyReport",
    "advice",
    "held_line",
    "report_lines",
    "write_certificate",
]

CERTIFICATE = "certificate.json"
MOST_MESSAGES = 5
"""Messages that a rule keeps; `broken_counts` counts what was looked at beyond them."""
_CERTIFICATE_VERSION = 3

RULES = {
    "plan_hash": "plan.json's hash fits its content",
    "table_hashes": "each table's hash fits plan.json, and no table is missing or extra",
    "samples_hash": "the samples are those that the plan was built from",
    "scores_hash": "the scores that rules look at are those whose hash plan.json gives",
    "shards_listed": "names and sizes of the shards are those of set.json",
    "shard_files": "the tars on this machine are as set.json says",
    "continues": "the plan begins at step 0 of epoch 0, or where the plan that it continues stops: its hash, steps, lanes and samples fit",
    "settings": "plan.json's fields, batch table and length are those of the configuration that it carries, and its tier_curve is in order",
    "admitted_clips": "plan.json counts the admitted clips, and those of each bucket, right",
    "rows_complete": "rows are steps first_step, first_step + 1, ... of K micro-batches each, epochs in order",
    "lane_rows": "every lane has exactly the plan's rows",
    "row_policy": "lanes of a row run the same bucket (uniform, paper) or the same cost tier (tiers)",
    "row_costs": "tier and predicted seconds of a row are those of its slowest lane in the batch table",
    "batch_sizes": "every micro-batch has the clips_per_lane of its bucket in the batch table",
    "batch_memory": "no micro-batch of the table is above max_tokens_per_micro_batch or max_memory_bytes, but for those that batch_clips names",
    "clips_known": "every named clip is in the samples",
    "clips_admitted": "every named clip is admitted at the plan's level",
    "admission_rules": "every named clip meets the plan's rules",
    "one_shape": "every clip has the size of its micro-batch and at least its frames",
    "once_per_epoch": "no clip is used twice in an epoch, but as often as the ledger repeats it, and never more than max_uses_per_epoch times",
    "once_per_step": "no clip is used twice in a step, on whatever lanes and in whatever epochs",
    "ledger": "every admitted clip of an epoch is used or in the ledger, never both, with its own facts; each further use is in the ledger once",
    "reads_whole": "every read is a run of whole samples",
    "reads_forward": "a lane reads each shard front to back within an epoch",
    "reads_once": "no sample is read twice in an epoch",
    "reads_used": "every sample that is read is used by that lane in that epoch",
    "read_before_use": "every clip is read by its lane before, or at, the row that uses it",
    "whole_tars": "under the policy paper each tar is read by one lane in an epoch",
    "peak_buffer": "peak_buffer_bytes of each lane is exact",
    "buffer_cap": "no lane buffers more than max_buffer_bytes",
    "peak_clips": "peak_buffer_clips of each lane is exact",
    "clips_cap": "no lane buffers more than max_buffer_clips",
    "peak_open_shards": "peak_open_shards of each lane is exact, read by read",
    "open_shards_cap": "no lane has more than max_open_shards open",
    "used_share": "used_share is exact",
    "read_metrics": "read_amplification, sequential_share and opens_per_shard are exact, by the reads of the lanes",
    "metrics": "every metric that rows, lanes and samples can give is what they give (the certificate names the others)",
    "spares": "spares are admitted clips that fit their bucket and were left over in some epoch",
}
"""Rule name to what it says."""

_ADVICE = {
    "samples_hash": "give the sets that the plan was built from",
    "scores_hash": "give --scores the table that the plan was built with",
    "shards_listed": "give the sets that the plan was built from, in its order, or build it again from these",
    "shard_files": "put the tars of set.json back, or index or pack the set again and build a new plan of it",
    "continues": "give the plans that were run before this one, and only those, oldest first: --continues OLDER --continues NEWER",
}
"""What may help besides building again."""

_OF_SAMPLES = (
    "scores_hash",
    "shards_listed",
    "shard_files",
    "admitted_clips",
    "clips_known",
    "clips_admitted",
    "admission_rules",
    "one_shape",
    "once_per_epoch",
    "once_per_step",
    "ledger",
    "reads_whole",
    "reads_once",
    "reads_used",
    "read_before_use",
    "peak_buffer",
    "buffer_cap",
    "peak_clips",
    "clips_cap",
    "used_share",
    "read_metrics",
    "spares",
)
"""Rules that say nothing when the samples are others."""

_OF_JSON = (
    "plan_hash",
    "table_hashes",
    "samples_hash",
    "scores_hash",
    "shards_listed",
    "shard_files",
    "continues",
    "settings",
    "batch_memory",
    "rows_complete",
)
"""Rules that need neither rows nor lanes."""

_FORMULAS = {
    "used_share_upper_bound": (
        "distinct clips that any schedule with this batch table can use over epochs x admitted clips: per size and epoch the largest sum of "
        "micro-batches (times lanes under uniform and paper) of which those of f frames and more take no more than the clips of f frames and more; "
        "all clips of a size where they may be repeated; in all at most the whole steps of K rows that they fill at the smallest clips_per_lane "
        "(num_steps, where max_steps ended the plan) x K x lanes x largest clips_per_lane. "
        "Clips that continued plans used of the first epoch are taken off"
    ),
    "predicted_seconds": "sum over rows of the slowest lane (sync micro), or over steps of the lane with the largest sum (sync step)",
    "predicted_seconds_mean_bound": "sum of all micro-batches over the lanes: no schedule of these micro-batches is faster",
    "predicted_seconds_sort_bound": "all micro-batches sorted by seconds, cut into rows of all lanes, sum of row maxima: the least under sync micro",
    "predicted_gap": "predicted_seconds over the bound of the sync (sort for micro, mean for step), minus 1",
    "opens_per_shard": "(lane, shard) pairs read, per epoch and shard",
}


@dataclass
class VerifyReport:
    """What was found. `broken` holds messages by rule, `skipped` why a rule could not be looked at."""

    meta: PlanMeta
    broken: dict[str, list[str]] = field(default_factory=dict)
    broken_counts: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    metrics_not_checked: dict[str, str] = field(default_factory=dict)
    """Metrics of plan.json that its files cannot give, and why."""
    fields_not_checked: dict[str, str] = field(default_factory=dict)
    """Fields of plan.json that are taken on trust, and why."""
    other_samples: bool = False
    """The samples given are not those of the plan; rules that need them are not checked."""

    @property
    def ok(self) -> bool:
        """No rule is broken; tars that are not on this machine are no breach."""
        return not self.broken

    def add(self, rule: str, message: str) -> None:
        """Record a breach."""
        assert rule in RULES, rule
        if self.other_samples and rule in _OF_SAMPLES:
            return
        self.skipped.pop(rule, None)
        self.broken_counts[rule] = self.broken_counts.get(rule, 0) + 1
        messages = self.broken.setdefault(rule, [])
        if len(messages) < MOST_MESSAGES:
            messages.append(message)

    def add_first(self, rule: str, messages: Sequence[str], count: int) -> None:
        """Record `count` breaches of which only the first ones are worded."""
        for message in messages[:count]:
            self.add(rule, message)
        if count > len(messages) and rule in self.broken_counts:
            self.broken_counts[rule] += count - len(messages)

    def skip(self, rule: str, reason: str) -> None:
        """Record that a rule was not looked at."""
        if rule not in self.broken:
            self.skipped.setdefault(rule, reason)

    def leave_out_tables(self, reason: str) -> None:
        """Rules that look at rows or lanes are not checked."""
        for rule in RULES:
            if rule not in _OF_JSON:
                self.skip(rule, reason)

    def leave_out_samples(self) -> None:
        """From here on only rules that do not need the samples are looked at."""
        self.other_samples = True
        for rule in _OF_SAMPLES:
            self.broken.pop(rule, None)
            self.broken_counts.pop(rule, None)
            self.skipped[rule] = "not checked: these are other samples than the plan's"


def report_lines(report: VerifyReport) -> Iterator[str]:
    """Each rule and what was found about it, then counts and bounds, for people."""
    width = max(map(len, RULES))
    for rule, text in RULES.items():
        if rule in report.broken:
            yield f"BROKEN   {rule:<{width}}  {text}"
            for message in report.broken[rule]:
                yield f"         {'':<{width}}  - {message}"
            more = report.broken_counts[rule] - len(report.broken[rule])
            if more > 0:
                yield f"         {'':<{width}}  - and {more:,} more"
        elif rule in report.skipped:
            yield f"skipped  {rule:<{width}}  {report.skipped[rule]}"
        else:
            yield f"holds    {rule:<{width}}  {text}"
    counts, bounds = report.counts, report.bounds
    yield "  ".join(f"{name} {value:,}" for name, value in counts.items())
    if "used_share" in bounds:
        most = bounds.get("used_share_upper_bound")
        yield f"used share {bounds['used_share']:.4%}, " + (
            "no bound without the plan that this one continues"
            if most is None
            else f"at most {most:.4%} by any schedule with this batch table"
        )
    if "peak_buffer_bytes" in bounds and not report.other_samples:
        yield (
            f"peaks: {_of(bounds, 'peak_buffer_bytes', 'max_buffer_bytes')} bytes buffered, "
            f"{_of(bounds, 'peak_buffer_clips', 'max_buffer_clips')} clips buffered, "
            f"{_of(bounds, 'peak_open_shards', 'max_open_shards')} shards open; {bounds['opens_per_shard']:.3f} opens per shard and epoch"
        )
    if "predicted_seconds" in bounds:
        yield (
            f"predicted {bounds['predicted_seconds']:.6g} s under sync {report.meta.sync}, {bounds['predicted_gap']:.4%} above its lower bound; "
            f"idle {bounds['predicted_idle_share']:.4%}"
        )

    for what, left in (("metrics", report.metrics_not_checked), ("fields", report.fields_not_checked)):
        if left:
            yield f"{what} of plan.json that are not checked: {', '.join(_grouped(left))}"


def _grouped(names: Iterable[str]) -> Iterator[str]:
    """Names; those of the annealing, and those of single epochs, as one with their number."""
    groups = Counter(re.sub(r"^anneal_.*", "anneal_*", re.sub(r"/epoch-\d+$", "/epoch-*", name)) for name in names)
    return (f"{name} ({times})" if times > 1 else name for name, times in groups.items())


def advice(broken: Iterable[str]) -> str:
    """What to do about these rules."""
    broken = list(broken)
    known = [_ADVICE[rule] for rule in _ADVICE if rule in broken]
    return "; ".join(known if len(known) == len(set(broken)) else [*known, "build the plan again"])


def held_line(report: VerifyReport) -> str:
    """`33 rules hold, 2 are not checked (shard_files, clips_cap)`."""
    left = list(report.skipped)
    words = f"{len(RULES) - len(left)} of {len(RULES)} rules"
    return words + (f", not checked: {', '.join(left)}" if left else "")


def _of(bounds: dict[str, float], peak: str, cap: str) -> str:
    return f"{bounds[peak]:,.0f}" + (f" of {bounds[cap]:,.0f}" if cap in bounds else "")


def write_certificate(plan: Path, report: VerifyReport) -> Path:
    """Write what was proved; only for a report that is ok."""
    assert report.ok
    path = plan / CERTIFICATE
    write_json(
        path,
        {
            "format_version": _CERTIFICATE_VERSION,
            "plan_hash": report.meta.plan_hash,
            "samples_hashes": {str(index): item.samples_hash for index, item in enumerate(report.meta.sets)},
            "rules_that_hold": {name: text for name, text in RULES.items() if name not in report.skipped},
            "rules_not_checked": report.skipped,
            "metrics_not_checked": report.metrics_not_checked,
            "fields_not_checked": report.fields_not_checked,
            "counts": report.counts,
            "bounds": report.bounds,
            "formulas": {name: text for name, text in _FORMULAS.items() if name in report.bounds},
        },
    )
    return path
