"""How far windows of steps are from the mix of the whole plan: the worst window of each length, and the bucket that is off in it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planner.explain.facts import PlanFacts
from planner.looking.wording import table_lines
from planner.mixing import mix_index, tv_floor, window_tv

__all__ = ["mixing_lines", "step_counts"]

_WINDOWS = (1, 8, 64, 512)


def step_counts(facts: PlanFacts) -> np.ndarray:
    """(steps, buckets): micro-batches of all lanes."""
    micro = facts.meta.micro_per_step
    return np.stack(
        [facts.by_row(bucket).reshape(-1, micro).sum(axis=1) for bucket in range(len(facts.buckets))], axis=1
    )


def mixing_lines(facts: PlanFacts) -> Iterator[str]:
    """The chapter on mixing."""
    meta = facts.meta
    counts = step_counts(facts)
    share = counts.sum(axis=0) / counts.sum()
    per_step = meta.num_lanes * meta.micro_per_step
    yield (
        "mixing of buckets: share of micro-batches that would have to change for a window to have the plan's mix (TV), "
        "and its mean over that of random draws"
    )
    if np.count_nonzero(share) < 2:
        yield "  nothing to mix: all micro-batches are of one bucket"
        return
    if meta.config.get("mix"):
        yield "  (the configuration changes the mix over the run, so windows differ from the whole on purpose)"
    rows = []
    windows = [window for window in _WINDOWS if window <= meta.num_steps]
    for window in windows:
        found = window_tv(counts, window)
        worst = int(found.argmax())
        inside = counts[worst : worst + window].sum(axis=0) / (per_step * window)
        bucket = int(np.abs(inside - share).argmax())
        last = f" to {meta.first_step + worst + window - 1}" if window > 1 else ""
        rows.append(
            [
                str(window),
                f"{found.mean():.4f}",
                f"{tv_floor(share, per_step * window):.4f}",
                f"{mix_index(counts, window):.3f}",
                f"{found[worst]:.4f}",
                f"{meta.first_step + worst}{last}",
                f"{meta.batches[bucket].bucket}: {inside[bucket]:.1%}, not {share[bucket]:.1%}",
            ]
        )
    head = ["steps", "mean TV", "random", "index", "worst TV", "worst window", "most off in it"]
    yield from table_lines(head, rows, text_columns=[5, 6])
    yield from _change_lines(facts, counts)


def _change_lines(facts: PlanFacts, counts: np.ndarray) -> Iterator[str]:
    meta = facts.meta
    if meta.num_steps >= 4:
        pairs = counts[: meta.num_steps // 2 * 2].reshape(-1, 2, counts.shape[1]).sum(axis=1)
        yield (
            f"  micro_per_step {2 * meta.micro_per_step} with the rows in this order: mean TV of a step {window_tv(pairs, 1).mean():.4f} "
            f"in place of {window_tv(counts, 1).mean():.4f} (index {mix_index(pairs, 1):.3f})"
        )
    own = 1 + max(entry.tier for entry in meta.batches)
    for point in meta.tier_curve:
        if abs(point.tiers - own) == 1 and meta.policy == "tiers":
            yield (
                f"  {point.tiers} tiers in place of {own}, by the model: index {point.mix_index_1:.3f} over 1 step, "
                f"{point.mix_index_8:.3f} over 8, at {point.waste:.2%} idle"
            )
    if meta.policy != "tiers" and meta.num_lanes > 1:
        draws = meta.micro_per_step
        share = counts.sum(axis=0) / counts.sum()
        yield (
            f"  under {meta.policy} all {meta.num_lanes} lanes run one bucket in a row, so a step holds {draws} draws: {draws} random rows would "
            f"have TV {tv_floor(share, draws):.4f}, random micro-batches {tv_floor(share, draws * meta.num_lanes):.4f}; policy tiers mixes lanes"
        )
