"""The fine annealing: which clip of a lane is used in which step, window by window, in compiled code.

Rows, buckets and reads stand; two clips of one bucket on one lane change places. The energy has the terms of the coarse one where they are felt:
pairs of clips of one source in a step, domains of a step against the whole's, and bytes kept waiting longer. A clip moves to an earlier row only if
it is read by then, and a lane's buffer may grow in a window by no more than its headroom there, so no cap can break. Windows touch disjoint uses and
have random numbers of their own: they run on threads and give the same plan on any number of them. Each starts from the constructive order (reading
order) and is put back to it if its energy ends higher.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.schedule.kernels import new_state, on_threads
from planner.schedule.window_kernel import anneal_window

__all__ = ["WindowGain", "WindowProblem", "anneal_windows"]


@dataclass(frozen=True)
class WindowProblem:
    """An epoch's uses, flat: lane by lane, row by row. `clip` is changed in place."""

    clip: np.ndarray
    """Number of the clip (int64), an index into `source`, `domain`, `size` and `read_row`."""
    lane_start: np.ndarray
    """First use of each lane; lanes + 1 entries."""
    row: np.ndarray
    """Row of each use, int32."""
    line: np.ndarray
    """Line of each use, int16."""
    step_of_row: np.ndarray
    source: np.ndarray
    domain: np.ndarray
    domain_mix: np.ndarray
    size: np.ndarray
    read_row: np.ndarray
    movable: np.ndarray
    """By clip: False for those that are used more than once."""
    held: np.ndarray
    """Bytes that each lane holds in each row, (lanes, rows)."""
    max_bytes: int


@dataclass(frozen=True)
class WindowGain:
    """Sums over all windows."""

    energy_before: float
    energy_after: float
    shared_before: int
    """Pairs of clips of one source in a step."""
    shared_after: int


def anneal_windows(
    problem: WindowProblem, window_steps: int, moves_per_clip: float, seed: tuple[int, ...]
) -> WindowGain:
    """Anneal each window; O(moves). The pairs of sources are counted also with no moves."""
    steps = problem.step_of_row - problem.step_of_row[0]
    num_windows = int(steps[-1]) // window_steps + 1
    lanes = len(problem.lane_start) - 1
    edges = np.searchsorted(steps, np.arange(num_windows + 1) * window_steps)
    first_use = np.empty((lanes, num_windows + 1), dtype=np.int64)
    for lane in range(lanes):
        own = slice(int(problem.lane_start[lane]), int(problem.lane_start[lane + 1]))
        first_use[lane] = own.start + np.searchsorted(problem.row[own], edges)

    def run(window: int) -> tuple[float, float, int, int]:
        begin, end = int(edges[window]), int(edges[window + 1])
        headroom = np.maximum(0, problem.max_bytes - problem.held[:, begin:end].max(axis=1, initial=0))
        uses = int((first_use[:, window + 1] - first_use[:, window]).sum())
        result: tuple[float, float, int, int] = anneal_window(
            problem.clip,
            first_use[:, window].copy(),
            first_use[:, window + 1].copy(),
            problem.row,
            problem.line,
            problem.step_of_row,
            problem.source,
            problem.domain,
            problem.domain_mix,
            problem.size,
            problem.read_row,
            problem.movable,
            headroom,
            int(moves_per_clip * uses),
            new_state(*seed, window),
        )
        return result

    results = np.array(on_threads(run, range(num_windows), what="annealing windows"))
    before, after, shared_before, shared_after = results.sum(axis=0).tolist()
    return WindowGain(before, after, int(shared_before), int(shared_after))
