"""The same plan on every layout of ranks: the same losses, the same gradient norms, the same state read back."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from training.checkpoints.checkpoint import find_checkpoint
from training.metrics import read_lines

STEPS = 4
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "fsdp_2": (2, {}),
    "fsdp_4": (4, {}),
    "hsdp_2x2": (4, {"parallel": {"replicate": 2}}),
    "hsdp_2x2_recomputed": (4, {"parallel": {"replicate": 2}, "activation_checkpointing": True}),
    "copies_4": (4, {"parallel": {"replicate": 4, "shard": 1}}),
    "recomputed": (1, {"activation_checkpointing": True}),
    "every_second_recomputed_on_4": (4, {"activation_checkpointing": 2}),
}
"""Name to processes and what is set; each is compared with one process."""
RESHARDED = ("2x2_to_1", "2x2_to_2", "2x2_to_4", "2x2_to_2x2", "2_to_2x2")
"""Two steps on one layout, the rest on another."""


@pytest.fixture(scope="module")
def layouts() -> ModuleType:
    """`benchmarks/layouts.py`."""
    return benchmark("layouts")


def benchmark(name: str) -> ModuleType:
    folder = str(Path(__file__).parents[2] / "benchmarks")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def plans(make_plan: Callable[..., Any], layout_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four lanes, two rows a step, three buckets: for ranks that wait for each micro-batch, and for such that wait once a step."""
    folder = tmp_path_factory.mktemp("plans")
    shape: dict[str, Any] = {"lanes": 4, "micro": 2, "steps": 8, "batch": {1: 2, 33: 1, 65: 1}}
    return {sync: make_plan(folder / sync, [layout_set], sync=sync, **shape).folder for sync in ("micro", "step")}


@pytest.fixture(scope="module")
def layout_set(make_set: Callable[..., Path], clip_type: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [clip_type(frames, teacher=index % 3 != 0) for index in range(8) for frames in (1, 33, 65, 1)]
    return make_set(tmp_path_factory.mktemp("sets") / "four", clips, per_shard=4)


@pytest.fixture(scope="module")
def runs(
    layouts: ModuleType,
    plans: dict[str, Path],
    layout_set: Path,
    run_arguments: Callable[..., list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """All layouts, and one process, without anything special."""
    root = tmp_path_factory.mktemp("runs")

    def run(name: str, processes: int, sync: str = "micro", **changes: Any) -> Any:
        arguments = run_arguments(root / name, plan=plans[sync], samples=layout_set, **{"steps": STEPS, **changes})
        return layouts.Run(processes=processes, arguments=tuple(arguments))

    half = {"checkpoint": {"every_steps": 100, "keep": 5}, "steps": 2}
    replicas = {"parallel": {"replicate": 2}}
    todo = [run("one", 1), *(run(name, count, **changes) for name, (count, changes) in LAYOUTS.items())]
    bf16 = {"precision": "bf16"}
    todo += [run("bf16_one", 1, **bf16), run("bf16_on_2", 2, **bf16)]
    nudged = {"nudge": 0, "nudged_type": "bfloat16"}
    todo += [replace(run(f"bf16_nudged_{n}", 1, **bf16), **{**nudged, "nudge": n}) for n in range(2)]
    todo += [run("step_on_4", 4, sync="step"), run("step_on_2x2", 4, sync="step", **replicas)]
    todo += [run("half_on_2x2", 4, **half, **replicas), run("half_on_2", 2, **half)]
    for source, name, count, changes in (
        ("half_on_2x2", "2x2_to_1", 1, {}),
        ("half_on_2x2", "2x2_to_2", 2, {}),
        ("half_on_2x2", "2x2_to_4", 4, {}),
        ("half_on_2x2", "2x2_to_2x2", 4, replicas),
        ("half_on_2", "2_to_2x2", 4, replicas),
    ):
        todo.append(replace(run(name, count, **changes), copied=(root / source, root / name)))
    layouts.run_all(todo, seconds=200)
    return {path.name: path for path in root.iterdir()}


def values(run: Path, key: str) -> list[Any]:
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(STEPS))
    return [line[key] for line in lines]


@pytest.mark.parametrize("name", [*LAYOUTS, "step_on_4", "step_on_2x2", *RESHARDED])
def test_every_layout_gives_the_same_line(runs: dict[str, Path], name: str) -> None:
    for key in ("loss", "flow_loss", "repa_loss", "grad_norm"):
        assert values(runs[name], key) == pytest.approx(values(runs["one"], key), rel=1e-6), key
    for key in ("clips", "clips_digest", "buckets", "lr"):
        assert values(runs[name], key) == values(runs["one"], key), key


def test_recomputing_and_going_on_alike_change_no_bit(runs: dict[str, Path]) -> None:
    assert values(runs["recomputed"], "loss_hex") == values(runs["one"], "loss_hex")
    assert values(runs["every_second_recomputed_on_4"], "loss_hex") == values(runs["fsdp_4"], "loss_hex")
    assert values(runs["2x2_to_2x2"], "loss_hex") == values(runs["hsdp_2x2"], "loss_hex")


def test_recomputing_in_replicas_changes_no_bit(runs: dict[str, Path]) -> None:
    assert values(runs["hsdp_2x2_recomputed"], "loss_hex") == values(runs["hsdp_2x2"], "loss_hex")


def test_bf16_on_two_ranks_is_as_close_to_one_as_a_last_bit_keeps_it(runs: dict[str, Path]) -> None:
    equality = benchmark("loss_equality")

    def line(name: str) -> list[tuple[float, float]]:
        return list(zip(values(runs[name], "loss"), values(runs[name], "grad_norm"), strict=True))

    apart, *controls = (
        max(equality.differences(line(name), line("bf16_one")))
        for name in ("bf16_on_2", "bf16_nudged_0", "bf16_nudged_1")
    )
    assert 0 < max(controls) < 1e-2 and apart <= 2 * max(controls)
    assert max(equality.differences(line("bf16_one"), line("one"))) > 1e-5, "it was computed in bf16"


def test_when_ranks_wait_changes_no_bit(runs: dict[str, Path]) -> None:
    assert values(runs["step_on_4"], "loss_hex") == values(runs["fsdp_4"], "loss_hex")
    assert values(runs["step_on_2x2"], "loss_hex") == values(runs["hsdp_2x2"], "loss_hex")


def test_copies_are_saved_once_and_averages_agree(runs: dict[str, Path]) -> None:
    from safetensors.torch import load_file

    def stored(run: str) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for path in find_checkpoint(runs[run], None).glob("*.safetensors"):
            for name, part in load_file(path).items():
                sizes[name] = sizes.get(name, 0) + part.numel()
        return sizes

    assert stored("hsdp_2x2") == stored("one")
    assert stored("copies_4") == stored("one")


@pytest.mark.long
@pytest.mark.parametrize("name", ["muon", "adamw8bit"])
def test_runs_of_the_other_optimizers_go_on_to_the_bit_on_one_and_two_ranks(
    layouts: ModuleType,
    plans: dict[str, Path],
    layout_set: Path,
    run_arguments: Callable[..., list[str]],
    small_config: Callable[..., dict[str, Any]],
    tmp_path: Path,
    name: str,
) -> None:
    """With rows of 256 numbers, so that some matrices are held in 8 bits."""
    if name == "adamw8bit":
        pytest.importorskip("torchao", reason="torchao is not installed: adamw8bit was NOT exercised")
    shape = {**small_config()["model"], "width": 64, "head_width": 32, "rope_axes": [8, 12, 12]}
    todo = []
    for count in (1, 2):
        for run, steps in (("whole", STEPS), ("half", 2), ("half", STEPS)):
            changes = {"model": shape, "optimizer": {"name": name, "lr": 1e-3}, "steps": steps}
            output = tmp_path / f"{run}_{count}"
            copied = None
            if run == "half" and steps == STEPS:
                copied, output = (output, tmp_path / f"rest_{count}"), tmp_path / f"rest_{count}"
            arguments = tuple(run_arguments(output, plan=plans["micro"], samples=layout_set, **changes))
            todo.append(layouts.Run(processes=count, arguments=arguments, copied=copied))
    layouts.run_all(todo, seconds=200)
    for count in (1, 2):
        assert values(tmp_path / f"rest_{count}", "loss_hex") == values(tmp_path / f"whole_{count}", "loss_hex")
    rel = 1e-6 if name == "adamw8bit" else 1e-3
    assert values(tmp_path / "whole_2", "loss") == pytest.approx(values(tmp_path / "whole_1", "loss"), rel=rel)


@pytest.mark.long
def test_twenty_steps_of_every_layout_and_accumulation_are_one_line(tmp_path: Path) -> None:
    equality = benchmark("loss_equality")
    bench = equality.Bench(tmp_path, steps=20, lr=1e-3, precision="fp32")
    found = equality.measure(bench, equality.LAYOUTS, 0).differences
    assert {name: max(values) for name, values in found.items() if max(values) > 1e-6} == {}


def test_a_band_is_as_wide_as_its_widest_control() -> None:
    equality = benchmark("loss_equality")
    controls = [[0.0, 1.0, 1.0, 4.0], [0.0, 2.0, 1.0, 1.0]]
    assert equality.band_ratio([9.0, 1.0, 3.0, 2.0], controls, window=2, first=1) == 1.5
    assert equality.differences([(1.0, 2.0)], [(1.0, 4.0)]) == [0.5]
