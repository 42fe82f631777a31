"""The example for other people's trainers runs, stops, goes on, and does not depend on the number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def run(tiny_plan: Any, samples: Path, output: Path, *more: str, processes: int = 1) -> str:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    paths = ["--plan", tiny_plan.folder, "--samples", samples, "--output", output, *more]
    done = subprocess.run(
        [sys.executable, *launcher, "examples/planned_loader.py", *map(str, paths)],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(10))
    return [line["loss"] for line in lines]


def test_it_stops_and_goes_on_with_the_same_losses(tiny_plan: Any, tiny_set: Path, tmp_path: Path) -> None:
    assert "up to step 10; the loader took" in run(tiny_plan, tiny_set, tmp_path / "whole")
    assert "up to step 4;" in run(tiny_plan, tiny_set, tmp_path / "parts", "--steps", "4")
    run(tiny_plan, tiny_set, tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_train_as_one(tiny_plan: Any, tiny_set: Path, tmp_path: Path) -> None:
    run(tiny_plan, tiny_set, tmp_path / "one")
    run(tiny_plan, tiny_set, tmp_path / "two", processes=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
