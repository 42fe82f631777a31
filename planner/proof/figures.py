"""The metrics of `plan.json`, computed anew from rows, lanes and samples by the definitions that stand beside them, and held against what it says.

A metric that the files of a plan cannot give (what the annealing won, clips handed over) is not checked, and is named. Seconds are those of the batch
table: what a micro-batch takes is the cost model's word. Price: a metric that plan.json does not have is no claim, and nobody asks for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np

from planner.proof.bounds import sort_bound
from planner.proof.lanes import LaneChecks
from planner.proof.mixed import sliding_mix_index
from planner.proof.report import VerifyReport
from planner.proof.truth import Truth
from schemas.plan import PlanMeta

__all__ = ["NotChecked", "check_figures", "check_read_figures"]

_RELATIVE = 1e-9
_ABSOLUTE = 1e-10
"""For shares and indices; of hours and counts only the relative difference counts."""
_READ_FIGURES = ("read_amplification", "sequential_share", "opens_per_shard")
"""Have a rule of their own, under which they must be there."""
_NO_TOLERANCE = ("predicted_hours", "use_count_min", "use_count_max", "repeated_uses", "shortened_uses")
_OF_THE_SEARCH = re.compile(r"anneal_.*|handed_over_share|follow/.*")
_MOST_COUNTED = 255


class NotChecked(Exception):  # noqa: N818  (it is an answer, not an error)
    """Why a metric cannot be computed."""


def check_figures(meta: PlanMeta, truth: Truth, checks: LaneChecks, report: VerifyReport) -> None:
    """Every metric: equal, wrong, or named as not checked."""
    if checks.tallies.lanes != meta.num_lanes:
        report.skip(
            "metrics", f"{meta.num_lanes - checks.tallies.lanes} of {meta.num_lanes} lanes could not be counted"
        )
        return
    figures = _Figures(meta, truth, checks, report)
    for name, said in sorted(meta.metrics.items()):
        if name in _READ_FIGURES:
            continue
        try:
            values = figures.values(name)
        except NotChecked as reason:
            report.metrics_not_checked[name] = str(reason)
            continue
        least = 0.0 if name in _NO_TOLERANCE else _ABSOLUTE
        if not any(math.isclose(said, value, rel_tol=_RELATIVE, abs_tol=least) for value in values):
            found = " or ".join(dict.fromkeys(f"{value:.9g}" for value in values))
            report.add("metrics", f"plan.json says {name} {said:.9g}, rows and lanes give {found or 'no such epoch'}")


def check_read_figures(meta: PlanMeta, truth: Truth, checks: LaneChecks, report: VerifyReport) -> None:
    """The metrics that follow from the reads; NaN where nothing is read."""
    total = checks.counts["bytes_read"]
    distinct = np.array([truth.length[again > 0].sum() for again in truth.reads], dtype=np.float64)
    whole = bool(total) and bool(distinct.all())
    values = {
        "read_amplification": float((checks.epoch_bytes / distinct).mean()) if whole else math.nan,
        "sequential_share": (total - checks.counts["bytes_read_back"]) / total if whole else math.nan,
        "opens_per_shard": checks.opens_per_shard,
    }
    for name, value in values.items():
        said = meta.metrics.get(name, math.nan)
        if not math.isclose(said, value, rel_tol=1e-12):
            report.add("read_metrics", f"plan.json says {name} {said:.6f}, the lanes' reads give {value:.6f}")


class _Figures:
    """Computes by name; what several metrics need is computed once."""

    def __init__(self, meta: PlanMeta, truth: Truth, checks: LaneChecks, report: VerifyReport) -> None:
        self._meta, self._truth, self._checks, self._report = meta, truth, checks, report
        self._distinct = [int((uses > 0).sum()) for uses in truth.uses]
        self._admitted_known = truth.rules_known or truth.before_known or meta.num_epochs > 1
        admitted = truth.admitted
        self._num_admitted = int(admitted.sum())
        self._taken = int((admitted & (truth.used_before > 0)).sum())
        """Clips that the continued plans have used of the first epoch."""
        seconds = np.array([entry.predicted_seconds for entry in meta.batches])
        self._busy = float((checks.micro_batches * seconds).sum())
        self._by_row = math.fsum(checks.slowest.tolist())
        self._by_step = math.fsum(checks.slowest_steps.tolist())
        self._least = sort_bound(checks.micro_batches, seconds, max(1, meta.num_lanes))
        self._plain: dict[str, Callable[[], float]] = {
            "waste_micro": lambda: self._waste(self._by_row),
            "waste_step": lambda: self._waste(self._by_step),
            "predicted_hours": lambda: (self._by_row if meta.sync == "micro" else self._by_step) / 3600,
            "time_over_bound": self._over_bound,
            "reads_per_clip": lambda: checks.counts["read_ranges"] / max(1, checks.counts["uses"]),
            "ranges_per_shard": lambda: checks.counts["read_runs"] / max(1, checks.shard_lanes.size),
        }
        self._of_samples: dict[str, Callable[[], float]] = {
            "repeated_uses": lambda: float(checks.counts["uses"] - sum(self._distinct)),
            "shortened_uses": lambda: float(checks.tallies.shortened),
            "shared_source_ratio": self._shared_sources,
        }
        self._of_admitted: dict[str, Callable[[], float]] = {
            "clips_ever_used_share": lambda: float((self._uses() > 0).sum()) / max(1, self._num_admitted),
            "use_count_min": lambda: float(self._uses().min(initial=_MOST_COUNTED)),
            "use_count_max": lambda: float(self._uses().max(initial=0)),
        }

    def values(self, name: str) -> list[float]:
        """What the metric may be: one value, two where the files leave it open, none where the plan has no such epoch."""
        if _OF_THE_SEARCH.fullmatch(name):
            raise NotChecked("says how the plan was found, which its files do not keep")
        if name in self._plain:
            return [self._plain[name]()]
        kind, _, group = name.partition("/")
        if kind.startswith("mix_index_") and kind[10:].isdigit() and group in ("bucket", "domain"):
            return [self._mix_index(int(kind[10:]), group)]
        if name in self._of_samples:
            self._need_samples()
            return [self._of_samples[name]()]
        if name in self._of_admitted:
            self._need_admitted()
            return [self._of_admitted[name]()]
        if name == "used_share_full_epochs":
            return self._full_epochs()
        if kind == "used_share" and re.fullmatch(r"epoch-\d{4,}", group):
            return self._epoch_share(int(group[6:]) - self._meta.first_epoch)
        raise NotChecked("is no metric that the verifier has a definition of")

    def _need_samples(self) -> None:
        if self._report.other_samples:
            raise NotChecked("these are other samples than the plan's")

    def _need_admitted(self) -> None:
        self._need_samples()
        if not self._admitted_known:
            raise NotChecked("neither the scores that rules look at nor the plan that this one continues is given")

    def _need_before(self) -> None:
        if not self._truth.before_known:
            raise NotChecked("needs the plans that this one continues; give them: --continues PLAN")

    def _waste(self, time: float) -> float:
        return max(0.0, 1.0 - self._busy / (self._meta.num_lanes * time)) if time > 0 else 0.0

    def _over_bound(self) -> float:
        if self._least <= 0:
            raise NotChecked("no micro-batch takes any time")
        return self._by_row / self._least

    def _mix_index(self, window: int, group: str) -> float:
        tallies = self._checks.tallies
        if group == "domain":
            self._need_samples()
            if "domains" in tallies.not_counted:
                raise NotChecked(tallies.not_counted["domains"])
        found = sliding_mix_index(tallies.buckets if group == "bucket" else tallies.domains, window)
        if found is None:
            raise NotChecked("the steps of the plan hold nothing to mix")
        return found

    def _shared_sources(self) -> float:
        ratios = self._checks.tallies.shared_source_ratios()
        if ratios is None:
            raise NotChecked(self._checks.tallies.not_counted["sources"])
        return float(np.mean(ratios))

    def _uses(self) -> np.ndarray:
        """Uses of each admitted clip over this plan."""
        if self._truth.uses.max(initial=0) >= _MOST_COUNTED:
            raise NotChecked(
                f"a clip is used {_MOST_COUNTED} times or more in an epoch, which is as far as the verifier counts"
            )
        uses: np.ndarray = self._truth.uses.sum(axis=0, dtype=np.int32)[self._truth.admitted]
        return uses

    def _epoch_share(self, epoch: int) -> list[float]:
        self._need_admitted()
        if not 0 <= epoch < self._meta.num_epochs:
            return []
        if epoch == 0:
            self._need_before()
        return [self._distinct[epoch] / max(1, self._num_admitted - (self._taken if epoch == 0 else 0))]

    def _full_epochs(self) -> list[float]:
        """Where `max_steps` ended the plan, its last epoch may be full or not, which only the builder knows."""
        self._need_admitted()
        self._need_before()
        meta = self._meta
        used = self._distinct[1 if self._taken else 0 :]
        limit = meta.config.get("max_steps")
        cut = limit is not None and meta.first_step + meta.num_steps == limit
        choices = [used, used[:-1]] if cut else [used]
        return [sum(some) / (len(some) * max(1, self._num_admitted)) for some in choices if some]
