"""The least time of a few steps of a plan, by CP-SAT: ground truth for small windows.

A window's steps may exchange micro-batches, as long as no step's mix is farther from the whole than the plan's own was. For given counts of a step
the best rows are known: in order of cost, where N_j micro-batches that cost at least c_j reach into ceil(N_j / V) rows. So the solver only chooses
the counts of each step. Lanes are not told apart, which makes the optimum lower: what a plan is above it, is at most what it loses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model

__all__ = ["Optimum", "least_seconds"]

TICKS_PER_SECOND = 1000
TARGET_SCALE = 10


@dataclass(frozen=True)
class Optimum:
    """What the solver found."""

    seconds: float
    """Of the best steps found."""
    bound: float
    """No steps take less."""
    proven: bool


def least_seconds(
    buckets_SxKxV: np.ndarray, seconds_B: np.ndarray, share_B: np.ndarray, *, limit_seconds: float
) -> Optimum:
    """Least sum of row maxima over S steps of K rows of V lanes that together have the window's micro-batches.

    Each step's total variation from `share_B` is at most what it was.
    """
    steps, rows, lanes = buckets_SxKxV.shape
    order = np.argsort(seconds_B, kind="stable")
    ticks = np.round(seconds_B[order] * TICKS_PER_SECOND).astype(np.int64)
    target = np.round(share_B[order] * rows * lanes * TARGET_SCALE).astype(np.int64)
    rank = np.argsort(order)
    counts = np.stack([np.bincount(rank[step].ravel(), minlength=len(order)) for step in buckets_SxKxV])
    total = counts.sum(axis=0)
    model = cp_model.CpModel()
    chosen = [[model.new_int_var(0, int(most), "") for most in total] for _ in range(steps)]
    cost = []
    for step, numbers in enumerate(chosen):
        model.add(sum(numbers) == rows * lanes)
        off = [model.new_int_var(0, rows * lanes * TARGET_SCALE, "") for _ in numbers]
        for number, each, exact, planned in zip(numbers, off, target.tolist(), counts[step].tolist(), strict=True):
            model.add(each >= TARGET_SCALE * number - exact)
            model.add(each >= exact - TARGET_SCALE * number)
            model.add_hint(number, planned)
        before = None
        model.add(sum(off) <= int(np.abs(TARGET_SCALE * counts[step] - target).sum()))
        for level in range(len(numbers)):
            reached = model.new_int_var(0, rows, "")
            model.add(lanes * reached >= sum(numbers[level:]))
            model.add(reached <= (before if level else rows))
            before = reached
            cost.append(int(ticks[level] - (ticks[level - 1] if level else 0)) * reached)
    for bucket, every in enumerate(zip(*chosen, strict=True)):
        model.add(sum(every) == int(total[bucket]))
    model.minimize(sum(cost))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit_seconds
    solver.parameters.random_seed = 1
    solver.parameters.num_workers = 2
    status = solver.solve(model)
    assert status in (cp_model.OPTIMAL, cp_model.FEASIBLE), "the plan's own steps are a solution"
    found, bound = (value / TICKS_PER_SECOND for value in (solver.objective_value, solver.best_objective_bound))
    return Optimum(found, bound, status == cp_model.OPTIMAL)
