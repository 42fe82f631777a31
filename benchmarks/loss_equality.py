"""The same plan's steps on every layout of ranks: how far apart the losses are, and whether that is more than rounding alone explains.

    python benchmarks/loss_equality.py [--quick] [--json FILE] [--figure FILE]

Each layout is a real run of `reelyard-train run` on gloo processes, TREAD and REPA on, and is compared with one process on the same plan.
`max_relative_difference_20_*`: loss and gradient norm, fp32, 20 steps at lr 1e-3. After that the smallest difference grows, as training is chaotic,
so the long runs (100 steps at lr 3e-3) are held against controls: one process, one starting weight changed in the last bit of the computation's
type. `band_ratio_*`: the worst layout's difference over the controls', both as the largest of a window of steps (a quarter of the run), the
largest ratio of all windows that start at step 20 or later. About 1: layouts differ as a last bit does. `*_bf16`: the same with bf16 compute,
against bf16 controls. `accumulate_*`: the same clips of each step in 1, 2 or 4 micro-batches a lane, by plans of as many rows, and by ranks that
run 4, 2 or 1 lanes.
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
Lines = dict[str, list[float]]
"""Relative difference by step, of each layout."""
NUDGES = 4
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
    Layout("sync_step_fsdp_4", 4, plan="step"),
    Layout("accumulate_k2", 1, plan="k2"),
    Layout("accumulate_k4", 1, plan="k4"),
    Layout("accumulate_k4_fsdp_2", 2, plan="k4"),
)
BASES = {"mixed": "mixed", "step": "mixed", "k2": "k1", "k4": "k1"}
"""Plan of a layout to the plan that one process runs for comparison."""


def prepare(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Plan and set by name. mixed: four lanes, two rows a step, three buckets. k1, k2, k4: the same clips a step in one, two and four rows."""
    mixed = [Clip(frames, teacher=index % 3 != 0) for index in range(16) for frames in (1, 33, 65, 1)]
    videos = [Clip(33, teacher=index % 3 != 0) for index in range(64)]
    sets = {"mixed": pack_set(folder / "mixed", mixed, per_shard=8), "k": pack_set(folder / "k", videos, per_shard=8)}
    plans = {
        "mixed": write_plan(
            folder / "plan-mixed", [sets["mixed"]], lanes=4, micro=2, steps=100, batch={1: 2, 33: 1, 65: 1}
        )
    }
    for rows in (1, 2, 4):
        batch = {33: 4 // rows}
        plans[f"k{rows}"] = write_plan(
            folder / f"plan-k{rows}", [sets["k"]], lanes=2, micro=rows, steps=100, batch=batch
        )
    step = write_plan(
        folder / "plan-step", [sets["mixed"]], lanes=4, micro=2, steps=100, batch={1: 2, 33: 1, 65: 1}, sync="step"
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


def measure(bench: Bench, layouts: Sequence[Layout], nudges: int) -> tuple[Lines, dict[str, list[list[float]]]]:
    """Relative differences by step: of each layout from one process on its plan, and of each plan's controls from it."""
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
    controls = {
        base: [differences(losses[f"nudged_{base}_{nudge}"], losses[f"one_{base}"]) for nudge in range(nudges)]
        for base in bases
    }
    return {
        layout.name: differences(losses[layout.name], losses[f"one_{BASES[layout.plan]}"]) for layout in layouts
    }, controls


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


def draw(path: Path, found: dict[str, list[float]], controls: list[list[float]]) -> None:
    """Differences by step on a logarithmic axis, and the controls' band."""
    floor = 1e-9
    worst = [max(floor, *(control[step] for control in controls)) for step in range(len(controls[0]))]
    band = tuple((float(step), floor, value) for step, value in enumerate(worst))
    lines = [
        Curve(name="one last bit changed", colour=HUES[0], points=tuple((x, high) for x, _, high in band), band=band)
    ]
    for index, (name, values) in enumerate(found.items()):
        points = tuple((float(step), max(floor, value)) for step, value in enumerate(values))
        lines.append(Curve(name=name, colour=HUES[1 + index % (len(HUES) - 1)], points=points))
    picture = curves(lines, x_name="step", y_name="relative difference from one process", log_y=True, height=420)
    legend = "".join(
        f"<g transform='translate(700,{370 - 16 * index})'><rect width='10' height='3' y='-5' fill='{line.colour}'/>"
        f"<text x='16'>{line.name}</text></g>"
        for index, line in enumerate(lines)
    )
    picture = picture.replace("<svg ", "<svg xmlns='http://www.w3.org/2000/svg' ", 1)
    picture = picture.replace("</title>", f"</title>{STYLE}<rect width='100%' height='100%' fill='#fff'/>", 1)
    path.parent.mkdir(exist_ok=True)
    path.write_text(picture.removesuffix("</svg>") + legend + "</svg>\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three layouts, 30 steps of the long runs, two controls")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path, default=Path(__file__).parent / "figures" / "loss_equality.svg")
    arguments = parser.parse_args()
    layouts = [
        layout for layout in LAYOUTS if not arguments.quick or layout.name in ("fsdp_2", "hsdp_2x2", "accumulate_k4")
    ]
    steps, nudges = (30, 2) if arguments.quick else (100, NUDGES)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        short, _ = measure(Bench(Path(name), steps=20, lr=1e-3, precision="fp32"), layouts, 0)
        for layout, found in short.items():
            rows.append(row(f"max_relative_difference_20_{layout}", max(found), "", goal=1e-6, better="lower"))
        rows.append(
            row(
                "max_relative_difference_20", max(max(found) for found in short.values()), "", goal=1e-6, better="lower"
            )
        )
        for precision in ("fp32", "bf16"):
            suffix = "" if precision == "fp32" else "_bf16"
            long, controls = measure(Bench(Path(name), steps=steps, lr=3e-3, precision=precision), layouts, nudges)
            window, first = max(5, steps // 4), min(20, steps // 2)
            ratios = {
                layout.name: band_ratio(long[layout.name], controls[BASES[layout.plan]], window=window, first=first)
                for layout in layouts
            }
            rows += [
                row(f"band_ratio_{layout}{suffix}", ratio, "", goal=None, better="lower")
                for layout, ratio in ratios.items()
            ]
            print(f"{precision}: done", flush=True)
            rows.append(row(f"band_ratio{suffix}", max(ratios.values()), "", goal=1.0, better="lower"))
            last = f"difference_at_{steps}{suffix}"
            worst = max(found[-1] for found in long.values())
            control = max(line[-1] for lines in controls.values() for line in lines)
            rows.append(row(last, worst, "", goal=None, better="lower", peer=control))
            if precision == "fp32" and not arguments.quick:
                draw(arguments.figure, long, [line for lines in controls.values() for line in lines])
    show(rows)
    write(arguments.json, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
