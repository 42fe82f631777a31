"""The command on real small runs: table, page, curves, what is done once, and a failure that is a row."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import UsageError
from schemas.plan import read_plan_meta
from schemas.tables import SAMPLES, read_table
from training.ablations.config import DataPart
from training.ablations.data import Data, part_of_set, planner_command, prepare_data
from training.ablations.results import RunResult, smoothed
from training.ablations.suite import Row, SuiteTable
from training.ablations.table import difference_words, sparkline, table_lines
from training.cli import main
from training.metrics import read_lines
from training.sample_sets import open_sample_sets

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
    assert "holds a run of another configuration, plan or held-out set" in capsys.readouterr().err


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
    assert "exit code 1: step 1: the gradient norm is" in reasons["base"]
    assert "it begins with the weights of base, which failed" in reasons["later"]
    assert "the base's plan does not say the settings that it was built with" in reasons["half"]
    assert "3 runs failed and are tried again by the same command" in said.err
    assert "the gradient norm is" in (tmp_path / "out" / "ablations.html").read_text()


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


def test_a_dry_run_lists_the_questions(
    ablation_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        command(ablation_file(), tmp_path / "plan", tmp_path / "set", tmp_path / "out", "--dry-run", "--only", "later")
        == 0
    )
    assert capsys.readouterr().out == "base: 5 steps, 2 seeds\nlater (Steps, against base): And some steps more?\n"


def test_a_part_of_a_set_is_a_set_of_some_shards(tiny_set: Path, tmp_path: Path) -> None:
    half = part_of_set(tiny_set, tmp_path / "half", 0.5)
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
    assert part_of_set(tiny_set, tmp_path / "half", 0.5) == half, "made once"
    with pytest.raises(UsageError, match=r"has 6 shards: 0\.95 of them cannot be taken"):
        part_of_set(tiny_set, tmp_path / "most", 0.95)


def test_parts_get_plans_by_the_planners_command(tiny_set: Path, tmp_path: Path) -> None:
    settings = tmp_path / "plan.yaml"
    settings.write_text(
        "{lanes: 1, micro_per_step: 1, max_steps: 6, epochs: null, seed: 0, admission: 144p, max_buffer_mb: 64, max_tokens_per_micro_batch: 128, "
        "anneal_steps: 10, spares_per_bucket: 0, cost: {preset: tiny, text_tokens: 8, teraflops_per_second: 0.05}}"
    )
    build = [planner_command(), "build", "--samples", tiny_set, "--config", settings, "--output", tmp_path / "plan"]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole = Data(plan=tmp_path / "plan", samples=(tiny_set,))
    half = prepare_data(DataPart(share=0.5), whole, tmp_path / "data" / "half")
    meta = read_plan_meta(half.plan)
    assert meta.num_steps == 6 and len(meta.sets[0].shard_names) == 3
    assert open_sample_sets(meta, half.samples).infos[0].set_name == "tiny"
    assert prepare_data(DataPart(share=0.5), whole, tmp_path / "data" / "half") == half
    with pytest.raises(Exception, match="reelyard-plan build gave up: "):
        prepare_data(DataPart(admission="sft"), whole, tmp_path / "data" / "sft")


def result(loss: float, validation: float | None = None) -> RunResult:
    return RunResult(
        steps=4, final_flow_loss=loss, validation_loss=validation, validation_weights=None, seconds_per_step=0.5, parameters=1000,
        flops_per_clip=2e9, flow_curve=((0, 1.0), (1, loss)), validation_curve=(),
    )  # fmt: skip


def test_differences_are_held_against_the_noise_of_the_seeds() -> None:
    def row(name: str, against: str | None, *losses: float) -> Row:
        return Row(name=name, group="g", question="q", against=against, result=result(*losses))

    rows = (
        row("base", None, 0.50, 0.600), row("base-seed-1", None, 0.52, 0.607),
        row("near", "base", 0.51, 0.595), row("far", "base", 0.45, 0.650), row("next", "far", 0.46, 0.640),
    )  # fmt: skip
    table = SuiteTable(rows=rows)
    assert table.noise("final_flow_loss") == pytest.approx(0.02) and table.noise("validation_loss") == pytest.approx(
        0.007
    )
    words = {
        one.name: (difference_words(table, one, "final_flow_loss"), difference_words(table, one, "validation_loss"))
        for one in rows
    }
    assert words["base"] == ("", "") == words["base-seed-1"]
    assert words["near"] == ("~+0.0100", "~-0.0050") and words["far"] == ("-0.0500", "+0.0500")
    assert words["next"] == ("~+0.0100", "-0.0100"), "against far, not the base"
    lines = table_lines(table)
    assert "-0.0100" in lines[5] and "noise of the validation loss: 0.0070 between 2 seeds of the base" in lines
    alone = SuiteTable(rows=rows[::2])
    assert alone.noise("final_flow_loss") is None and difference_words(alone, rows[2], "final_flow_loss") == "~+0.0100"


def test_sparklines_and_smoothing() -> None:
    assert sparkline([0, 1, 2], 0, 2) == "▁▅█" and sparkline([], 0, 1) == "" and sparkline([1.0], 1, 1) == "▁"
    assert len(sparkline(list(range(1000)), 0, 1000)) == 16
    assert smoothed([0, 1, 2], [3.0, 2.0, 1.0]) == ((0, 3.0), (1, 2.0), (2, 1.0))
    curve = smoothed(list(range(10_000)), [float(step) for step in range(10_000)])
    assert len(curve) <= 400 and all(x == pytest.approx(y) for x, y in curve)
