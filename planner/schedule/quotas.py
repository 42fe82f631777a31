"""Whole rows of each group in every step, as even as whole numbers can be.

n_t rows of a group over S steps are x_t = n_t / S a step. Each step has floor(x_t) or ceil(x_t) of them, which makes the mean of |rows - x_t| the
least that is possible, 2 f (1 - f); and up to any step the rows so far are at most one off x_t times the steps. That both can be had at once is the
theorem behind fair scheduling of periodic tasks (Baruah, Cohen, Plaxton, Varvel 1996): the rows above floor(x_t) are tasks of weight f_t, of which
every step runs sum f_t. The i-th such row may come from step floor((i-1) / f) on and must come before step ceil(i / f); the most urgent are taken
first. Price: that order is for rows whose weight is the same over the epoch.
"""

from __future__ import annotations

import numpy as np

__all__ = ["step_quotas"]


def step_quotas(rows_by_group: np.ndarray, num_steps: int) -> np.ndarray:
    """Rows by step and group, (steps, groups); every step has the same number, every group its rows.

    `step_quotas([3, 1], 2)` is `[[2, 0], [1, 1]]` or `[[1, 1], [2, 0]]`.

    Raises:
        ValueError: if the rows do not fill the steps.
    """
    rows = np.asarray(rows_by_group, dtype=np.int64)
    total = int(rows.sum())
    if num_steps < 1 or total % num_steps:
        raise ValueError(f"{total} rows fill no {num_steps} steps of equal length")
    base, extra = np.divmod(rows, num_steps)
    quotas = np.tile(base, (num_steps, 1))
    each = total // num_steps - int(base.sum())
    groups = np.flatnonzero(extra).tolist()
    done = dict.fromkeys(groups, 0)
    for step in range(num_steps):
        waiting = [group for group in groups if _release(done[group], int(extra[group]), num_steps) <= step]
        waiting += [group for group in groups if group not in waiting and done[group] < extra[group]]
        urgency = {group: _urgency(done[group], int(extra[group]), num_steps, step) for group in waiting}
        for group in sorted(waiting, key=lambda name: (urgency[name], name))[:each]:
            quotas[step, group] += 1
            done[group] += 1
    assert (quotas.sum(axis=0) == rows).all() and (quotas.sum(axis=1) == quotas[0].sum()).all()
    return quotas


def _release(done: int, extra: int, num_steps: int) -> int:
    """First step that may have the next extra row."""
    return done * num_steps // extra if done < extra else num_steps


def _urgency(done: int, extra: int, num_steps: int, step: int) -> tuple[bool, int, bool, int]:
    """Released rows first, by their last step; of equals one whose successor's time overlaps its own, then the denser group."""
    last, over = divmod((done + 1) * num_steps, extra)
    return (_release(done, extra, num_steps) > step, last + bool(over), not over, -extra)
