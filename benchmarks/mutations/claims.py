"""Damage to what plan.json says of itself: fields and configuration that do not fit each other, and metrics that the tables do not give."""

from __future__ import annotations

from typing import Any

import numpy as np

from mutations.opened import NoPlaceError, OpenPlan
from mutations.places import damage, pick

__all__ = [
    "another_admission_in_the_config",
    "another_lane_count_in_the_config",
    "another_policy_in_the_config",
    "another_rule_in_the_config",
    "another_seed_in_the_config",
    "another_step_size_in_the_config",
    "another_sync",
    "batch_not_as_named",
    "cap_lowered_in_the_config",
    "cap_raised",
    "curve_dropped",
    "curve_out_of_order",
    "curve_out_of_range",
    "ends_too_early",
    "ends_too_late",
    "forged_count",
    "forged_epoch_share",
    "forged_hours",
    "forged_mix_index",
    "forged_reads",
    "forged_share",
    "forged_sources",
    "forged_waste",
    "memory_limit_dropped",
    "more_repeats_allowed",
    "other_caps_dropped",
    "shortened_against_the_config",
    "spares_beyond_the_config",
    "tiers_not_as_asked",
    "token_limit_dropped",
    "token_limit_lowered_in_the_config",
    "waste_above_the_config",
]


@damage
def cap_raised(plan: OpenPlan, rng: np.random.Generator) -> str:
    """plan.json allows more bytes than the configuration."""
    plan.meta["max_buffer_bytes"] = int(pick(rng, [plan.meta["max_buffer_bytes"] + 1, 10**15]))
    return "settings"


@damage
def cap_lowered_in_the_config(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The configuration allows fewer bytes than plan.json."""
    plan.meta["config"]["max_buffer_mb"] = 1.0
    return "settings"


@damage
def other_caps_dropped(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A cap on clips or shards is in one place only."""
    key = pick(rng, ["max_buffer_clips", "max_open_shards"])
    place = plan.meta if plan.meta[key] is not None else plan.meta["config"]
    place[key] = 10_000 if plan.meta[key] is None else None
    return "settings"


@damage
def token_limit_dropped(plan: OpenPlan, rng: np.random.Generator) -> str:
    """plan.json has no limit of tokens, the configuration has."""
    plan.meta["max_tokens_per_micro_batch"] = None
    return "settings"


@damage
def token_limit_lowered_in_the_config(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The configuration has a limit of one token."""
    plan.meta["config"]["max_tokens_per_micro_batch"] = 1
    return "settings"


@damage
def memory_limit_dropped(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The configuration limits memory, plan.json does not."""
    plan.meta["config"]["max_memory_gb"] = float(rng.integers(10, 80))
    return "settings"


def _other(plan: OpenPlan, key: str, value: Any) -> str:
    assert plan.meta["config"][key] != value
    plan.meta["config"][key] = value
    return "settings"


@damage
def another_lane_count_in_the_config(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The lanes are not those that were asked for."""
    return _other(plan, "lanes", plan.num_lanes + int(rng.integers(1, 60)))


@damage
def another_step_size_in_the_config(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Nor are the micro-batches of a step."""
    return _other(plan, "micro_per_step", plan.meta["micro_per_step"] + int(rng.integers(1, 8)))


@damage
def another_policy_in_the_config(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Nor is the policy."""
    return _other(plan, "policy", pick(rng, {"uniform", "tiers", "paper"} - {plan.meta["policy"]}))


@damage
def another_admission_in_the_config(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Nor is the level."""
    return _other(plan, "admission", pick(rng, ["360p", "480p", "720p", "sft"]))


@damage
def another_rule_in_the_config(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A rule more than was applied."""
    return _other(plan, "rules", [*plan.meta["config"]["rules"], {"column": "luma", "at_least": 16.0}])


@damage
def another_seed_in_the_config(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Another seed."""
    return _other(plan, "seed", plan.meta["seed"] + 1)


@damage
def another_sync(plan: OpenPlan, rng: np.random.Generator) -> str:
    """plan.json says another sync than the configuration."""
    plan.meta["sync"] = "step" if plan.meta["sync"] == "micro" else "micro"
    return "settings"


@damage
def more_repeats_allowed(plan: OpenPlan, rng: np.random.Generator) -> str:
    """plan.json allows more uses in an epoch than was asked for."""
    plan.meta["max_uses_per_epoch"] += int(rng.integers(1, 4))
    return "settings"


@damage
def batch_not_as_named(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A batch that the configuration gives has another size."""
    entry = pick(rng, plan.meta["batches"])
    plan.meta["config"]["batch_clips"] = {entry["bucket"]: entry["clips_per_lane"] + 1}
    return "settings"


@damage
def ends_too_late(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The configuration has fewer epochs or steps."""
    key, last = pick(
        rng, [("max_steps", plan.meta["first_step"] + plan.meta["num_steps"]), ("epochs", max(plan.epochs()) + 1)]
    )
    return _other(plan, key, last - 1)


@damage
def ends_too_early(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The configuration has more epochs."""
    return _other(plan, "epochs", max(plan.epochs()) + 2)


@damage
def tiers_not_as_asked(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Another number of tiers was asked for."""
    if plan.meta["policy"] != "tiers":
        raise NoPlaceError("the plan has no tiers")
    return _other(plan, "tiers", len({entry["tier"] for entry in plan.meta["batches"]}) + 1)


@damage
def waste_above_the_config(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The curve gives the plan's own tiers more waste than was allowed."""
    if plan.meta["policy"] != "tiers":
        raise NoPlaceError("the plan has no tiers")
    config, curve = plan.meta["config"], plan.meta["tier_curve"]
    own = len({entry["tier"] for entry in plan.meta["batches"]})
    point = next(point for point in curve if point["tiers"] == own)
    if point is curve[-1] or point["waste"] < 2e-5:
        raise NoPlaceError("the finest cut may waste what it must")
    config |= {"tiers": None, "max_waste": (point["waste"] + curve[-1]["waste"]) / 2}
    return "settings"


@damage
def curve_dropped(plan: OpenPlan, rng: np.random.Generator) -> str:
    """The prices of other numbers of tiers are gone."""
    plan.meta["tier_curve"] = []
    return "settings"


@damage
def curve_out_of_order(plan: OpenPlan, rng: np.random.Generator) -> str:
    """They are not in order."""
    curve = plan.meta["tier_curve"]
    if len(curve) < 2:
        raise NoPlaceError("the curve has one point")
    curve.reverse()
    return "settings"


@damage
def curve_out_of_range(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A waste that is no share."""
    pick(rng, plan.meta["tier_curve"])["waste"] = float(pick(rng, [-0.1, 1.5]))
    return "settings"


@damage
def shortened_against_the_config(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Clips are shortened, though none may be."""
    if not plan.meta["metrics"]["shortened_uses"]:
        raise NoPlaceError("no clip is shortened")
    return _other(plan, "shorten_left_over", False)


@damage
def spares_beyond_the_config(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A lane has more spares than were asked for."""
    if not plan.tables["spares"]:
        raise NoPlaceError("no spares")
    return _other(plan, "spares_per_bucket", 0)


def _forged(plan: OpenPlan, rng: np.random.Generator, names: list[str], rule: str = "metrics") -> str:
    """One of these metrics is better than it is: a little, or by far."""
    metrics = plan.meta["metrics"]
    name = pick(rng, [name for name in names if name in metrics])
    value = metrics[name]
    metrics[name] = value * float(pick(rng, [0.01, 0.999])) if value else 0.01
    return rule


@damage
def forged_mix_index(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Better mixed than the steps are, in buckets or domains."""
    return _forged(plan, rng, [name for name in plan.meta["metrics"] if name.startswith("mix_index_")])


@damage
def forged_waste(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Less idle time."""
    return _forged(plan, rng, ["waste_micro", "waste_step", "time_over_bound"])


@damage
def forged_hours(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A shorter run."""
    return _forged(plan, rng, ["predicted_hours"])


@damage
def forged_count(plan: OpenPlan, rng: np.random.Generator) -> str:
    """A count of uses is off by one."""
    name = pick(rng, ["use_count_min", "use_count_max", "repeated_uses", "shortened_uses"])
    plan.meta["metrics"][name] += float(pick(rng, [-1, 1]))
    return "metrics"


@damage
def forged_epoch_share(plan: OpenPlan, rng: np.random.Generator) -> str:
    """An epoch uses a clip more than it does, or an epoch is named that the plan does not have."""
    metrics = plan.meta["metrics"]
    name = pick(rng, [name for name in metrics if name.startswith("used_share/epoch-")])
    if rng.integers(2):
        metrics[name] += 1 / plan.meta["admitted_clips"]
    else:
        metrics[f"used_share/epoch-{max(plan.epochs()) + 1:04d}"] = metrics.pop(name)
    return "metrics"


@damage
def forged_share(plan: OpenPlan, rng: np.random.Generator) -> str:
    """More is used over the run."""
    return _forged(plan, rng, ["clips_ever_used_share", "used_share_full_epochs"])


@damage
def forged_reads(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Fewer opens or reads."""
    name = pick(rng, ["opens_per_shard", "ranges_per_shard", "reads_per_clip"])
    return _forged(plan, rng, [name], "read_metrics" if name == "opens_per_shard" else "metrics")


@damage
def forged_sources(plan: OpenPlan, rng: np.random.Generator) -> str:
    """Clips of one source meet less often."""
    return _forged(plan, rng, ["shared_source_ratio"])
