"""What `plan.json` says of the plan against the configuration that it carries: neither may be changed without the other, or without the tables.

The configuration is read as a plain dictionary, and a key that it lacks is not compared: another builder's plan may carry none. Price: the settings
that steer the search (annealing, pools, chunks of reads, the cost model) leave no trace to check; the certificate names what is taken on trust.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from planner.proof.report import VerifyReport
from schemas.plan import AdmissionRule, PlanMeta

__all__ = ["check_settings", "check_table_settings"]

_BYTES_PER_MB = 1_000_000
_BYTES_PER_GB = 1e9
_WASTE_TOLERANCE = 1e-6

ON_TRUST = {
    "batches.predicted_seconds": "what a micro-batch takes is the cost model's word; rows, waste and hours are checked against it",
    "batches.memory_bytes": "the cost table's word; the limit is checked against it",
    "cost_model": "where the seconds come from, in words",
    "cost_errors": "how far the cost model was from its measurements, which the plan does not carry",
    "tier_curve": "other numbers of tiers are other plans; its points are checked to be in order and in range",
    "config": "settings that steer the search (anneal_*, pool_micro_batches, read_chunk_kb, window_steps, target_seconds, mix, cost) "
    "leave no trace that a plan's files could prove",
    "formulas": "words",
    "created_by": "words, and not hashed",
}
"""Fields of `plan.json` that no rule checks, and why."""


def _same(value: Any) -> Any:
    return value


def _bytes(unit: float) -> Callable[[Any], int | None]:
    return lambda value: None if value is None else int(value * unit)


def _rules(value: Any) -> tuple[AdmissionRule, ...]:
    return tuple(AdmissionRule.model_validate(rule) for rule in value)


_FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "lanes": ("num_lanes", _same),
    "micro_per_step": ("micro_per_step", _same),
    "policy": ("policy", _same),
    "sync": ("sync", _same),
    "admission": ("admission", _same),
    "seed": ("seed", _same),
    "rules": ("rules", _rules),
    "domain_column": ("domain_column", _same),
    "max_buffer_mb": ("max_buffer_bytes", _bytes(_BYTES_PER_MB)),
    "max_buffer_clips": ("max_buffer_clips", _same),
    "max_open_shards": ("max_open_shards", _same),
    "max_tokens_per_micro_batch": ("max_tokens_per_micro_batch", _same),
    "max_memory_gb": ("max_memory_bytes", _bytes(_BYTES_PER_GB)),
}
"""Key of the configuration to the field that must follow from it, and how."""


def check_settings(meta: PlanMeta, report: VerifyReport) -> None:
    """All that follows from `plan.json` alone."""
    report.fields_not_checked |= ON_TRUST
    if not meta.config:
        report.skip("settings", "plan.json carries no configuration")
    for parts in (_fields, _batches, _length, _tiers):
        try:
            for message in parts(meta):
                report.add("settings", message)
        except (TypeError, ValueError, OverflowError, AttributeError, KeyError) as error:
            report.add(
                "settings",
                f"the configuration in plan.json cannot be read: {type(error).__name__} {error}",
            )
    for message in _curve(meta):
        report.add("settings", message)


def check_table_settings(meta: PlanMeta, spares: pa.Table | None, shortened: int, report: VerifyReport) -> None:
    """What the configuration says of the tables: clips that may not be shortened, and spares."""
    if shortened and meta.config.get("shorten_left_over") is False and not report.other_samples:
        report.add(
            "settings",
            f"config: shorten_left_over is false, yet {shortened} uses are of a shorter bucket than their clip's",
        )
    most = meta.config.get("spares_per_bucket")
    if spares is None or not isinstance(most, int) or not spares.num_rows:
        return
    columns = [spares.column(name).to_numpy() for name in ("lane", "frames", "height", "width")]
    found, times = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    for place in np.flatnonzero(times > most)[:1].tolist():
        lane, *sides = found[place].tolist()
        report.add(
            "settings",
            f"lane {lane} has {times[place]} spares of bucket {'x'.join(map(str, sides))}, config: spares_per_bucket is {most}",
        )


def _fields(meta: PlanMeta) -> Iterator[str]:
    config = meta.config
    for key, (field, follow) in _FIELDS.items():
        if key in config:
            expected, said = follow(config[key]), getattr(meta, field)
            if said != expected:
                yield f"{field} is {_words(said)}, but config: {key} is {_words(config[key])}"
    if "left_over" in config and (config["left_over"] != "repeat" or "repeat_at_most" in config):
        expected = config["repeat_at_most"] if config["left_over"] == "repeat" else 1
        if meta.max_uses_per_epoch != expected:
            yield (
                f"max_uses_per_epoch is {meta.max_uses_per_epoch}, but config: left_over {config['left_over']} "
                f"(repeat_at_most {config.get('repeat_at_most')}) gives {expected}"
            )


def _batches(meta: PlanMeta) -> Iterator[str]:
    named = meta.config.get("batch_clips") or {}
    for entry in meta.batches:
        if entry.bucket in named and named[entry.bucket] != entry.clips_per_lane:
            yield (
                f"the batch table gives bucket {entry.bucket} {entry.clips_per_lane} clips, "
                f"but config: batch_clips says {named[entry.bucket]}"
            )


def _length(meta: PlanMeta) -> Iterator[str]:
    """epochs and max_steps are limits, and one of them ends the plan."""
    config = meta.config
    if "epochs" not in config or "max_steps" not in config:
        return
    epochs, steps = config["epochs"], config["max_steps"]
    end_epoch, end_step = meta.first_epoch + meta.num_epochs, meta.first_step + meta.num_steps
    if epochs is not None and end_epoch > epochs:
        yield f"the plan has epochs up to {end_epoch - 1}, but config: epochs is {epochs}"
    if steps is not None and end_step > steps:
        yield f"the plan has steps up to {end_step - 1}, but config: max_steps is {steps}"
    if end_step != steps and end_epoch != epochs:
        yield (
            f"the plan ends behind step {end_step - 1} of epoch {end_epoch - 1}, "
            f"but config: max_steps {_words(steps)} and epochs {_words(epochs)} end it elsewhere"
        )


def _tiers(meta: PlanMeta) -> Iterator[str]:
    config = meta.config
    if meta.policy != "tiers" or "tiers" not in config:
        return
    own = len({entry.tier for entry in meta.batches})
    if config["tiers"] is not None:
        if own != config["tiers"]:
            yield f"the batch table has {own} tiers, but config: tiers is {config['tiers']}"
        return
    points = {point.tiers: point.waste for point in meta.tier_curve}
    if own not in points:
        yield f"the batch table has {own} tiers, of which tier_curve ({len(points)} points) says nothing"
    elif "max_waste" in config and points[own] > max(config["max_waste"], points[max(points)]) + _WASTE_TOLERANCE:
        yield f"tier_curve gives the plan's {own} tiers a waste of {points[own]:.6f}, but config: max_waste is {config['max_waste']}"


def _curve(meta: PlanMeta) -> Iterator[str]:
    """The points of the curve, as far as they can be judged by themselves."""
    if not meta.tier_curve and "max_waste" in meta.config:
        yield "tier_curve has 0 points, though the plan was built with max_waste"
    tiers = [point.tiers for point in meta.tier_curve]
    if tiers != sorted(set(tiers)) or not all(1 <= count <= len(meta.batches) for count in tiers):
        yield f"tier_curve has points for {tiers[:8]} tiers; expected rising numbers from 1 to the {len(meta.batches)} buckets"
    for point in meta.tier_curve:
        if not (0.0 <= point.waste <= 1.0 and point.mix_index_1 >= 0.0 and point.mix_index_8 >= 0.0):
            yield f"tier_curve gives {point.tiers} tiers a waste of {point.waste} and mix indices {point.mix_index_1} and {point.mix_index_8}"
            return


def _words(value: Any) -> str:
    return "null" if value is None else str(value)
