"""The command on real small runs: table, page, curves, what is done once, and a failure that is a row."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import UsageError
from schemas.tables import SAMPLES, read_table
from training.ablations.data import part_of_set
from training.ablations.results import smoothed
from training.ablations.table import sparkline
from training.cli import main
from training.metrics import read_lines

pytestmark = pytest.mark.timeout(240)


def command(file: Path, plan: Path, samples: Path, output: Path, *extra: object) -> int:
    paths = ["--config", file, "--plan", plan, "--samples", samples, "--output", output, *extra]
    return main(["ablate", *map(str, paths)])


def test_two_variants_through_the_command(
    ablation_file: Callable[..., Path],
    tiny_plan: Any,
    tiny_set: Path,
    tmp_path: Path,
    make_set: Callable[..., Path],
    clip_type: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    open_page: Callable[[Path], AbstractContextManager[Any]],
) -> None:
    file, out = ablation_file(seeds=1), tmp_path / "out"
    held_out = make_set(tmp_path / "held-out", [clip_type(33), clip_type(1)], first=1000)
    arguments = (file, tiny_plan.folder, tiny_set, out, "--validation", held_out)
    assert command(*arguments) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["base", "dense", "later"]
    losses = [line["flow_loss"] for line in read_lines(out / "runs" / "base" / "run" / "metrics.jsonl")]
    assert lines[1].split()[1:3] == ["5", f"{losses[-1]:.4f}"] and "▁" in lines[1] + lines[2] + lines[3]
    assert "noise: unknown, the base has not two seeds" in said.out
    table = json.loads((out / "table.json").read_text())
    rows = {row["name"]: row for row in table["rows"]}
    assert rows["dense"]["result"]["flops_per_clip"] > rows["base"]["result"]["flops_per_clip"], "routing saves FLOPs"
    assert rows["dense"]["result"]["parameters"] == rows["base"]["result"]["parameters"]
    assert rows["later"]["result"]["steps"] == 2
    assert "from checkpoint" in (out / "runs" / "later" / "log.txt").read_text(), "it began with the base's weights"
    assert [rows[name]["result"]["validation_loss"] is not None for name in rows] == [True] * 3
    begun = {name: row["result"]["validation_curve"][0] for name, row in rows.items()}
    assert begun["dense"] == begun["base"], "dense and the same for all"
    assert begun["later"][1] == pytest.approx(rows["base"]["result"]["validation_loss"])
    difference = rows["dense"]["result"]["final_flow_loss"] - losses[-1]
    assert rows["dense"]["differences"]["final_flow_loss"] == pytest.approx(difference)
    with open_page(out / "ablations.html") as driver:
        assert driver.title == "Ablations"
        cells = [row.find_elements("css selector", "td") for row in driver.find_elements("css selector", "tbody tr")]
        assert [row[0].text for row in cells] == ["base", "dense", "later"]
        assert cells[1][1].text == "TREAD <ratio>"
        assert cells[1][4].text == f"{rows['dense']['result']['final_flow_loss']:.4f}"
        assert "dense: What does routing cost & give?" in driver.find_element("css selector", "main").text
        assert [head.text for head in driver.find_elements("css selector", "h2")] == ["Runs", "TREAD <ratio>", "Steps"]
        pictures = driver.find_elements("css selector", ".wide svg")
        assert len(pictures) == 4 and all(len(one.find_elements("css selector", "polyline")) == 2 for one in pictures)
        assert not [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0

    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("metrics.jsonl")}
    assert command(*arguments) == 0
    again = capsys.readouterr()
    assert again.out == said.out and again.err.count("(was done)") == 3
    assert before == {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("metrics.jsonl")}

    assert command(*arguments, "--steps", 4) == 2
    assert "holds a run of another configuration, plan, held-out set or first run" in capsys.readouterr().err


def test_a_run_that_fails_is_a_row_and_the_rest_goes_on(
    ablation_file: Callable[..., Path],
    make_plan: Callable[..., Any],
    tiny_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    variants = [
        {"name": "later", "group": "g", "question": "q", "after": "base"},
        {"name": "half", "group": "g", "question": "q", "data": "half"},
    ]
    file = ablation_file(seeds=1, variants=variants)
    burst = ["--set", "base.optimizer.lr=1e30", "--set", "base.optimizer.warmup_steps=0"]
    plan = make_plan(tmp_path / "plan", [tiny_set], settings={})
    assert command(file, plan.folder, tiny_set, tmp_path / "out", "--steps", 2, *burst) == 1
    said = capsys.readouterr()
    reasons = {line.split()[0]: line for line in said.out.splitlines()[1:4]}
    assert "exit code 1: step 1: the loss is nan" in reasons["base"]
    assert "it begins with the weights of base, which failed" in reasons["later"]
    assert "the base's plan does not say the settings that it was built with" in reasons["half"]
    assert "3 runs failed and are tried again by the same command" in said.err
    assert "the loss is nan" in (tmp_path / "out" / "ablations.html").read_text()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--steps", 100], "100 steps are asked for, the plan"),
        (["--only", "dens"], "--only has dens"),
        (["--data", "half"], "--data is 'half', expected NAME=PLAN,SET"),
        (["--data", "third=a,b"], "--data names third, expected some of half"),
        (["--set", "base.steps_=1"], "base: steps_: unknown key; did you mean 'steps'?"),
    ],
)
def test_mistakes_end_with_one_message(
    extra: list[object],
    message: str,
    ablation_file: Callable[..., Path],
    tiny_plan: Any,
    tiny_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(ablation_file(), tiny_plan.folder, tiny_set, tmp_path / "out", *extra) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and not (tmp_path / "out").exists()


def test_a_part_of_a_set_is_a_set_of_some_shards(tiny_set: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    part_of_set(tiny_set, half, 0.5)
    assert sorted(path.name for path in half.glob("*.tar")) == [
        "shard-000000.tar",
        "shard-000002.tar",
        "shard-000004.tar",
    ]
    assert all(path.read_bytes() == (tiny_set / path.name).read_bytes() for path in half.glob("*.tar"))
    whole, rows = (read_table(path / "samples.parquet", SAMPLES).to_pylist() for path in (tiny_set, half))
    kept = [row for row in whole if row["shard_index"] in (0, 2, 4)]
    assert [row["clip_id"] for row in rows] == [row["clip_id"] for row in kept]
    assert [row["shard_index"] for row in rows] == [row["shard_index"] // 2 for row in kept]
    with pytest.raises(UsageError, match=r"has 6 shards: 0\.95 of them cannot be taken"):
        part_of_set(tiny_set, tmp_path / "most", 0.95)


def test_sparklines_and_smoothing() -> None:
    assert sparkline([0, 1, 2], 0, 2) == "▁▅█" and sparkline([], 0, 1) == "" and sparkline([1.0], 1, 1) == "▁"
    assert len(sparkline(list(range(1000)), 0, 1000)) == 16
    assert smoothed([0, 1, 2], [3.0, 2.0, 1.0]) == ((0, 3.0), (1, 2.0), (2, 1.0))
    curve = smoothed(list(range(10_000)), [float(step) for step in range(10_000)])
    assert len(curve) <= 400 and all(x == pytest.approx(y) for x, y in curve)
