"""The same plan's steps on every layout of ranks: how far apart the losses are, and whether that is more than rounding alone explains.

    python benchmarks/loss_equality.py [--quick] [--json FILE] [--figure FILE]

Each layout is a real run of `reelyard-train run` on gloo processes, TREAD and REPA on, and is compared with one process on the same plan.
`max_relative_difference_20_*`: loss and gradient norm, fp32, 20 steps at lr 1e-3. After that the smallest difference grows, as training is chaotic,
so the long runs (100 steps at lr 3e-3) are held against controls: one process, one starting weight changed in the last bit of the computation's
type. `band_ratio_*`: the worst layout's difference over the controls', both as the largest of a window of steps (a quarter of the run), the
largest ratio of all windows that start at step 20 or later. Its peer is the same of each control against the others; the goal is a factor of two, as
layouts round otherwise in every step, controls began otherwise once. `*_bf16`: with bf16 compute, against bf16 controls. `accumulate_*`: the same
clips of each step in 1, 2 or 4 micro-batches a lane, by plans of as many rows, and by ranks that run 4, 2 or 1 lanes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from bench_table import Row, row, show, write
from layouts import PROJECT, Run, run_all

sys.path.insert(0, str(PROJECT))

from tests.training.conftest import Clip, pack_set, train_config, write_plan
from training.pages.svg import HUES, Curve, curves

Losses = list[tuple[float, float]]
"""Loss and gradient norm by step."""
NUDGES = 3
STYLE = (
    "<style>text{font:12px sans-serif;fill:#445}.end{text-anchor:end}.middle{text-anchor:middle}.grid{stroke:#dde;stroke-width:1}"
    ".curve{fill:none;stroke-width:1.6}.band{opacity:.18}</style>"
)


@dataclass(frozen=True)
class Layout:
    """One line of the figure."""

    name: str
    processes: int
    plan: str = "mixed"
    changes: dict[str, Any] = field(default_factory=dict)


LAYOUTS = (
    Layout("fsdp_2", 2),
    Layout("fsdp_4", 4),
    Layout("hsdp_2x2", 4, changes={"parallel": {"replicate": 2}}),
    Layout("recomputed_1", 1, changes={"activation_checkpointing": True}),
    Layout("recomputed_fsdp_4", 4, changes={"activation_checkpointing": True}),
    Layout("recomputed_hsdp_2x2", 4, changes={"activation_checkpointing": True, "parallel": {"replicate": 2}}),
    Layout("sync_step_fsdp_4", 4, plan="step"),
    Layout("accumulate_k2", 1, plan="k2"),
    Layout("accumulate_k4", 1, plan="k4"),
    Layout("accumulate_k2_fsdp_2", 2, plan="k2"),
    Layout("accumulate_k4_fsdp_2", 2, plan="k4"),
)
IN_BF16 = ("fsdp_2", "fsdp_4", "hsdp_2x2", "accumulate_k4")
BASES = {"mixed": "mixed", "step": "mixed", "k2": "k1", "k4": "k1"}
"""Plan of a layout to the plan that one process runs for comparison."""


def prepare(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Plan and set by name. mixed: four lanes, three buckets in turn. k1, k2, k4: the same clips a step in one, two and four rows."""
    mixed = [Clip(frames, teacher=index % 3 != 0) for index in range(16) for frames in (1, 33, 65, 1)]
    videos = [Clip(33, teacher=index % 3 != 0) for index in range(64)]
    sets = {"mixed": pack_set(folder / "mixed", mixed, per_shard=8), "k": pack_set(folder / "k", videos, per_shard=8)}
    plans = {
        "mixed": write_plan(
            folder / "plan-mixed", [sets["mixed"]], lanes=4, micro=1, steps=100, batch={1: 2, 33: 1, 65: 1}
        )
    }
    for rows in (1, 2, 4):
        batch = {33: 4 // rows}
        plans[f"k{rows}"] = write_plan(
            folder / f"plan-k{rows}", [sets["k"]], lanes=2, micro=rows, steps=100, batch=batch
        )
    step = write_plan(
        folder / "plan-step", [sets["mixed"]], lanes=4, micro=1, steps=100, batch={1: 2, 33: 1, 65: 1}, sync="step"
    )
    found = {name: (plan.folder, sets["k" if name.startswith("k") else "mixed"]) for name, plan in plans.items()}
    return {**found, "step": (step.folder, sets["mixed"])}


class Bench:
    """Runs, by name, in a folder."""

    def __init__(self, folder: Path, *, steps: int, lr: float, precision: str) -> None:
        self._folder = folder / f"{precision}-{lr}"
        self._folder.mkdir()
        self._plans = prepare(self._folder)
        self._steps, self._lr, self._precision = steps, lr, precision
        self._runs: dict[str, Run] = {}
        self.digests: dict[str, list[str]] = {}
        """Of the clips of each step, by run."""

    def add(self, name: str, processes: int, plan: str, changes: dict[str, Any], nudge: int | None = None) -> None:
        config = train_config(
            optimizer={"lr": self._lr, "warmup_steps": 3},
            checkpoint={"every_steps": 1000, "keep": 1},
            precision=self._precision,
            steps=self._steps,
            **changes,
        )
        path = self._folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        plan_folder, samples = self._plans[plan]
        options = {"--config": path, "--plan": plan_folder, "--samples": samples, "--output": self._folder / name}
        arguments = tuple(str(part) for pair in options.items() for part in pair)
        kind = {"fp32": "float32", "bf16": "bfloat16"}[self._precision]
        self._runs[name] = Run(processes=processes, arguments=arguments, nudge=nudge, nudged_type=kind)

    def losses(self) -> dict[str, Losses]:
        """Run all; what each one's metrics say."""
        run_all(list(self._runs.values()))
        found = {}
        for name in self._runs:
            lines = [json.loads(line) for line in (self._folder / name / "metrics.jsonl").read_text().splitlines()]
            found[name] = [(line["loss"], line["grad_norm"]) for line in lines]
            self.digests[name] = [line["clips_digest"] for line in lines]
            assert len(lines) == self._steps
        return found


@dataclass(frozen=True)
class Measured:
    """What the runs of one rate and precision gave."""

    losses: dict[str, Losses]
    """By layout, and `one_PLAN`."""
    differences: dict[str, list[float]]
    """By layout: relative, from one process on its plan, by step."""
    controls: dict[str, list[list[float]]]
    """By plan: the same of each control."""


def measure(bench: Bench, layouts: Sequence[Layout], nudges: int) -> Measured:
    """Run one process on each plan, its controls, and all layouts."""
    bases = sorted({BASES[layout.plan] for layout in layouts})
    for base in bases:
        bench.add(f"one_{base}", 1, base, {})
        for nudge in range(nudges):
            bench.add(f"nudged_{base}_{nudge}", 1, base, {}, nudge)
    for layout in layouts:
        bench.add(layout.name, layout.processes, layout.plan, layout.changes)
    losses = bench.losses()
    for layout in layouts:
        assert bench.digests[layout.name] == bench.digests[f"one_{BASES[layout.plan]}"], "other clips in a step"
    return Measured(
        losses={name: found for name, found in losses.items() if not name.startswith("nudged")},
        differences={
            layout.name: differences(losses[layout.name], losses[f"one_{BASES[layout.plan]}"]) for layout in layouts
        },
        controls={
            base: [differences(losses[f"nudged_{base}_{nudge}"], losses[f"one_{base}"]) for nudge in range(nudges)]
            for base in bases
        },
    )


def differences(found: Losses, expected: Losses) -> list[float]:
    """The larger of the relative differences of loss and gradient norm, by step."""
    pairs = zip(found, expected, strict=True)
    return [max(abs(a - b) / abs(b) for a, b in zip(mine, theirs, strict=True)) for mine, theirs in pairs]


def band_ratio(found: Sequence[float], controls: Sequence[Sequence[float]], *, window: int, first: int) -> float:
    """The largest ratio of a layout's worst difference in a window of steps to the controls' worst in the same window."""
    starts = range(first, len(found) - window + 1)
    return max(
        max(found[start : start + window]) / max(max(control[start : start + window]) for control in controls)
        for start in starts
    )


def band_rows(layouts: Sequence[Layout], found: Measured, suffix: str) -> list[Row]:
    """Each layout against its controls, each control against the others, and both at the last step."""
    steps = len(next(iter(found.differences.values())))
    window, first = max(5, steps // 4), min(20, steps // 2)
    ratios = {
        layout.name: band_ratio(
            found.differences[layout.name], found.controls[BASES[layout.plan]], window=window, first=first
        )
        for layout in layouts
    }
    among = [
        band_ratio(line, [other for other in lines if other is not line], window=window, first=first)
        for lines in found.controls.values()
        for line in lines
    ]
    rows = [row(f"band_ratio_{name}{suffix}", ratio, "", goal=None, better="lower") for name, ratio in ratios.items()]
    rows.append(row(f"band_ratio{suffix}", max(ratios.values()), "", goal=2.0, better="lower", peer=max(among)))
    last = max(values[-1] for values in found.differences.values())
    control = max(line[-1] for lines in found.controls.values() for line in lines)
    rows.append(row(f"difference_at_{steps}{suffix}", last, "", goal=None, better="lower", peer=control))
    return rows


def draw(path: Path, layouts: Sequence[Layout], found: Measured) -> None:
    """Above the losses of all layouts of the mixed plan, which are one line; below how far each layout is from one process, on a logarithmic axis."""
    floor = 1e-9
    worst = [
        max(floor, *step) for step in zip(*(line for lines in found.controls.values() for line in lines), strict=True)
    ]
    band = tuple((float(step), floor, value) for step, value in enumerate(worst))
    colours = {layout.name: HUES[1 + index % (len(HUES) - 1)] for index, layout in enumerate(layouts)}
    mixed = {"one_mixed": HUES[0]} | {
        layout.name: colours[layout.name] for layout in layouts if BASES[layout.plan] == "mixed"
    }
    losses = [
        Curve(
            name=name,
            colour=colour,
            points=tuple((float(step), loss) for step, (loss, _) in enumerate(found.losses[name])),
        )
        for name, colour in mixed.items()
    ]
    apart = [
        Curve(name="one last bit changed", colour=HUES[0], points=tuple((x, high) for x, _, high in band), band=band)
    ]
    for name, colour in colours.items():
        values = enumerate(found.differences[name])
        apart.append(
            Curve(name=name, colour=colour, points=tuple((float(step), max(floor, value)) for step, value in values))
        )
    legend = "".join(
        f"<g transform='translate(910,{300 + 18 * index})'><rect width='10' height='3' y='-5' fill='{line.colour}'/>"
        f"<text x='16'>{line.name}</text></g>"
        for index, line in enumerate(apart)
    )
    above = curves(losses, x_name="step", y_name="loss: all layouts of one plan, drawn over each other", height=250)
    below = curves(apart, x_name="step", y_name="relative difference from one process", log_y=True, height=340)
    below = below.replace("<svg ", "<svg y='255' ", 1)
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 1110 600'>{STYLE}<rect width='100%' height='100%' fill='#fff'/>"
        f"{above}{below}{legend}</svg>\n",
        encoding="utf-8",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three layouts, 24 steps of the long runs, two controls")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path, default=Path(__file__).parent / "figures" / "loss_equality.svg")
    arguments = parser.parse_args()
    layouts = [
        layout for layout in LAYOUTS if not arguments.quick or layout.name in ("fsdp_2", "hsdp_2x2", "accumulate_k4")
    ]
    steps, nudges = (24, 2) if arguments.quick else (100, NUDGES)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        short = measure(Bench(Path(folder), steps=20, lr=1e-3, precision="fp32"), layouts, 0).differences
        worst = {name: max(values) for name, values in short.items()}
        for name_20, value in [*((f"_{name}", value) for name, value in worst.items()), ("", max(worst.values()))]:
            rows.append(row(f"max_relative_difference_20{name_20}", value, "", goal=1e-6, better="lower"))
        for precision in ("fp32", "bf16"):
            suffix = "" if precision == "fp32" else "_bf16"
            some = [layout for layout in layouts if precision == "fp32" or layout.name in IN_BF16]
            found = measure(Bench(Path(folder), steps=steps, lr=3e-3, precision=precision), some, nudges)
            rows += band_rows(some, found, suffix)
            if precision == "fp32" and not arguments.quick:
                draw(arguments.figure, layouts, found)
    show(rows)
    write(arguments.json, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
