"""The example of the loader for other trainers runs as written, and goes on exactly where it stopped."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.training.tiny_plans import Plan

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "planned_loader.py"


def test_it_takes_every_step_once_and_in_order(
    tiny_set: Path, tiny_plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(EXAMPLE))["main"]
    main(["--plan", str(tiny_plan.folder), "--samples", str(tiny_set), "--steps", "5"])
    said = capsys.readouterr().out.splitlines()
    steps = [int(line.split(",")[0].removeprefix("step ")) for line in said if line.startswith("step ")]
    assert list(dict.fromkeys(steps)) == [0, 1, 2, 3, 4] and steps == sorted(steps)
    stopped = next(index for index, line in enumerate(said) if line.startswith("stopped"))
    assert '"next_step": 2' in said[stopped] and said[stopped + 1].startswith("step 2,")
