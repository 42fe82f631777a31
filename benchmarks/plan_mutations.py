"""Does the verifier find every damage, and name it by the right rule? And does it leave legal changes alone?

    python benchmarks/plan_mutations.py [--quick] [--json FILE] [--mutations N] [--seed N]

Small plans of each kind (uniform, tiers, repeats, rules over scores, the paper's, one that continues another) are broken at random places, one damage
at a time, with all hashes made to fit again (but for those that are about hashes and files). `caught_share` counts damages that the verifier reports
under the rule that they break; legal changes are the controls. Price: small plans only; every rule is checked alike at any size.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from bench_table import row, show, write
from mutations import KINDS, LEGAL_CHANGES, NoPlaceError, OpenPlan, apply_damage
from mutations.small_sets import PLANS, build_plan_of, write_small_set

__all__ = ["Tally", "run_mutations"]

_QUICK_MUTATIONS = 100
_FULL_MUTATIONS = 500
_CONTROLS_PER_MUTATION = 0.3


class Tally:
    """What was tried, caught and named, and what was missed."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.caught = 0
        self.named = 0
        self.controls = 0
        self.passed = 0
        self.missed: list[str] = []
        self.no_place: Counter[str] = Counter()


def run_mutations(folder: Path, count: int, seed: int) -> Tally:
    """Break `count` plans, kinds and plans in turns; then make legal changes."""
    plans = [
        build_plan_of(kind, write_small_set(folder / f"set-{kind}", seed + number), folder / kind, seed)
        for number, kind in enumerate((*PLANS, "continued"))
    ]
    tally = Tally()
    for plan in plans:
        _control(plan, "untouched", tally)
    for number in range(count):
        _break(plans, folder / "broken", KINDS[number % len(KINDS)], [seed, number], tally)
    for number in range(int(count * _CONTROLS_PER_MUTATION)):
        _change(plans, folder / "changed", list(LEGAL_CHANGES)[number % len(LEGAL_CHANGES)], [seed, number, 1], tally)
    return tally


def _break(plans: Sequence[OpenPlan], folder: Path, kind: str, key: list[int], tally: Tally) -> None:
    """One damage, in the first plan (in random order) that has a place for it."""
    rng = np.random.default_rng(key)
    for index in rng.permutation(len(plans)).tolist():
        plan = plans[index].copied(folder)
        try:
            rule = apply_damage(kind, plan, rng)
            broken = set(plan.verify().broken)
        except NoPlaceError:
            continue
        finally:
            shutil.rmtree(folder)
        tally.tried[kind] += 1
        tally.caught += bool(broken)
        tally.named += rule in broken
        if rule not in broken:
            tally.missed.append(f"{kind} ({plan.meta['policy']}, {key}): {rule} not in {sorted(broken)}")
        return
    tally.no_place[kind] += 1


def _change(plans: Sequence[OpenPlan], folder: Path, name: str, key: list[int], tally: Tally) -> None:
    """One legal change, likewise."""
    rng = np.random.default_rng(key)
    for index in rng.permutation(len(plans)).tolist():
        plan = plans[index].copied(folder)
        try:
            LEGAL_CHANGES[name](plan, rng)
            plan.save()
            _control(plan, name, tally)
        except NoPlaceError:
            continue
        finally:
            shutil.rmtree(folder)
        return
    tally.no_place[name] += 1


def _control(plan: OpenPlan, name: str, tally: Tally) -> None:
    report = plan.verify()
    tally.controls += 1
    tally.passed += report.ok
    if not report.ok:
        tally.missed.append(f"legal {name} ({plan.meta['policy']}): {report.broken}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK_MUTATIONS} damages instead of {_FULL_MUTATIONS}")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--mutations", type=int, help="number of damages")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    count = arguments.mutations or (_QUICK_MUTATIONS if arguments.quick else _FULL_MUTATIONS)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()), _quiet():
        tally = run_mutations(Path(folder), count, arguments.seed)
    tried = sum(tally.tried.values())
    rows = [
        row("caught_share", tally.named / max(1, tried), "of damages, by rule", goal=1.0, better="higher"),
        row("reported_share", tally.caught / max(1, tried), "of damages, by any rule", goal=1.0, better="higher"),
        row(
            "controls_passed_share",
            tally.passed / max(1, tally.controls),
            "of legal changes",
            goal=1.0,
            better="higher",
        ),
        row("kinds", len(tally.tried), "kinds of damage", goal=15, better="higher"),
        row("mutations", tried, "damages", goal=None, better="higher"),
        row("controls", tally.controls, "legal changes", goal=None, better="higher"),
    ]
    show(rows)
    for line in tally.missed:
        print(f"missed: {line}")
    for name, times in tally.no_place.items():
        print(f"no place in any of the plans: {name}, {times} times")
    write(arguments.json, rows)
    return int(bool(tally.missed))


def _quiet() -> contextlib.redirect_stdout[io.StringIO]:
    return contextlib.redirect_stdout(io.StringIO())


if __name__ == "__main__":
    sys.exit(main())
