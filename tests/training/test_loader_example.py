"""The example of a trainer of one's own runs: to the end, in two stretches, and on two ranks, always over the same clips."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(plan: Path, samples: Path, output: Path, *more: str, processes: int = 1) -> list[tuple[int, float]]:
    """(step, loss) of each line."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [
            *(sys.executable, *(launcher if processes > 1 else ()), str(ROOT / "examples/planned_loader.py")),
            *("--plan", str(plan), "--samples", str(samples), "--output", str(output), *more),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(int(step), float(loss)) for step, loss in re.findall(r"step (\d+): loss (\S+),", done.stdout)]


@pytest.mark.timeout(180)
def test_it_goes_on_where_it_was_and_two_ranks_take_the_same_steps(
    tiny_plan: Any, tiny_set: Path, tmp_path: Path
) -> None:
    whole = run(tiny_plan.folder, tiny_set, tmp_path / "whole")
    assert [step for step, _ in whole] == list(range(10))
    parts = run(tiny_plan.folder, tiny_set, tmp_path / "parts", "--steps", "3")
    parts += run(tiny_plan.folder, tiny_set, tmp_path / "parts")
    assert parts == whole
    assert whole[-1][1] < whole[0][1]
    both = run(tiny_plan.folder, tiny_set, tmp_path / "both", "--steps", "2", processes=2)
    assert [step for step, _ in both] == [0, 1]
    assert [loss for _, loss in both] == pytest.approx([loss for _, loss in whole[:2]], rel=1e-5)
