"""The report of a real run that was continued, with names that try to be markup, in a real browser; and of long, broken and old runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from schemas.files import write_json
from training.cli import main
from training.metrics import read_lines
from training.report.page import render_report
from training.report.run_data import read_run
from training.report.thinning import MOST_POINTS, smoothed, thinned
from training.video import write_mp4

HOSTILE = "<img src=x onerror=\"document.title='broken'\">'\"&"
Arguments = Callable[..., list[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, run_arguments: Arguments, make_set: Callable[..., Path]) -> Path:
    """Ten steps in two starts, validated; a replaced clip and videos whose words are hostile, as they would be written."""
    folder = tmp_path_factory.mktemp("report") / HOSTILE.replace("/", "")
    held_out = make_set(tmp_path_factory.mktemp("held") / "set", seed=9, first=500)
    validation = {"validation": {"every_steps": 3, "num_timesteps": 1, "clips_per_bucket": 1}}
    for steps in (6, 10):
        arguments = run_arguments(folder, "--validation", held_out, steps=steps, **validation)
        assert main(["run", *arguments]) == 0
    for done in (0, 10):
        samples = folder / "samples" / f"step-{done:08d}"
        samples.mkdir(parents=True)
        frames = np.full((5, 48, 64, 3), 20 * done + 40, dtype=np.uint8)
        write_mp4(samples / "0001.mp4", frames, 24.0)
        Image.fromarray(np.tile(frames[0], (1, 5, 1))).save(samples / "contact-sheet.png")
        clips = [{"file": "0001.mp4", "prompt": HOSTILE, "seed": 0}]
        write_json(samples / "samples.json", {"steps_done": done, "clips": clips})
    line = {"step": 4, "micro": 0, "lane": 1, "bucket": "1x32x48", "clip_id": "a" * 24, "shard": 0, "ordinal": 3}
    line |= {"reason": f"clip: {HOSTILE}", "replaced_by": "b" * 24, "replacement": "spare"}
    (folder / "ledger").mkdir(exist_ok=True)
    (folder / "ledger" / "lane-0001.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def text_of(driver: Any) -> str:
    found = driver.find_element("css selector", "body").text
    assert isinstance(found, str)
    return found


def test_a_browser_shows_the_whole_report(
    run: Path, tmp_path: Path, open_page: Callable[[Path], AbstractContextManager[Any]]
) -> None:
    page = tmp_path / "report.html"
    assert main(["report", "--run", str(run), "--output", str(page)]) == 0
    assert page.stat().st_size < 2_000_000
    with open_page(page) as driver:
        assert driver.title == f"Training run: {run.name}", "no markup of a name ran"
        text = text_of(driver)
        for words in (
            "finished",
            "of 10 steps",
            "idle share",
            "planner's error, p95",
            "1\nrestarts",
            "1\nreplaced clips",
        ):
            assert words in text, words
        charts = [one for one in driver.find_elements("css selector", ".wide svg") if one.is_displayed()]
        assert len(charts) >= 11
        dashed = driver.find_elements("css selector", ".wide svg .mark title")
        assert any("started at step 6 on 1 ranks" in one.get_attribute("textContent") for one in dashed)
        log = driver.find_element("css selector", "label[for=loss-1]")
        before, after = (driver.find_element("css selector", f".either .{name} svg") for name in ("first", "second"))
        assert before.is_displayed() and not after.is_displayed()
        log.click()
        assert after.is_displayed() and not before.is_displayed(), "the log axis needs no script"
        video = driver.find_element("css selector", "video")
        assert driver.execute_script("return arguments[0].error === null", video)
        sheets = driver.find_elements("css selector", ".samples img")
        assert len(sheets) == 2 and all(int(one.get_attribute("naturalWidth")) == 320 for one in sheets)
        fetched = driver.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
        assert all(name.startswith("data:") for name in fetched), "nothing was fetched"
        assert not [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        )
        colour = "return getComputedStyle(document.body).backgroundColor"
        assert driver.execute_script(colour) == "rgb(21, 25, 29)", "dark where the reader's system is"


def test_another_run_is_drawn_beside(
    run: Path, tmp_path: Path, run_arguments: Arguments, open_page: Callable[[Path], AbstractContextManager[Any]]
) -> None:
    other = tmp_path / "other"
    changed = {"optimizer": {"lr": 2e-3, "warmup_steps": 3}, "seed": 7}
    assert main(["run", *run_arguments(other, steps=4, **changed)]) == 0
    page = tmp_path / "both.html"
    assert main(["report", "--run", str(run), "--compare", str(other), "--output", str(page)]) == 0
    with open_page(page) as driver:
        text = text_of(driver)
        assert "optimizer.lr" in text and "0.001" in text and "0.002" in text
        assert "Losses are the same bits before step 1 " in text, "the first update comes after the first loss"
        first = driver.find_element("css selector", ".either .first svg")
        assert len(first.find_elements("css selector", "polyline")) == 3, "raw and smoothed, and the other's"
    same = tmp_path / "copy"
    shutil.copytree(other, same)
    html = render_report(read_run(other), page, read_run(same))
    assert "All 4 steps that both have lost the same to the last bit." in html
    assert "No setting that changes the maths differs." in html


def test_a_long_run_stays_small(run: Path, tmp_path: Path) -> None:
    long = tmp_path / "long"
    long.mkdir()
    lines = read_lines(run / "metrics.jsonl")
    with (long / "metrics.jsonl").open("w") as stream:
        for step in range(12_000):
            line = {**lines[step % 10], "step": step}
            stream.write(json.dumps(line) + "\n")
    html = render_report(read_run(long), tmp_path / "report.html")
    assert len(html) < 500_000 and "of 10 steps" not in html and "no history.jsonl" in html


@pytest.mark.parametrize("missing", ["history.jsonl", "validation.jsonl", "ledger", "samples"])
def test_what_is_not_there_is_left_out(run: Path, tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    html = render_report(read_run(folder), tmp_path / "report.html")
    headings = {"validation.jsonl": "Loss on held-out clips", "samples": "<h2>Samples</h2>"}
    assert headings.get(missing, "nowhere") not in html
    assert ("No clip had to be replaced" in html) == (missing == "ledger")
    if missing == "history.jsonl":
        assert "unknown" in html and "no predicted seconds" in html and "world_size" in html, "from the checkpoint"


def test_a_run_of_an_earlier_version_can_be_read(run: Path, tmp_path: Path) -> None:
    """Lines that lack keys which came later."""
    kept = ("step", "loss", "loss_hex", "loss_by_bucket", "grad_norm", "lr", "step_ms", "data_wait_ms", "tokens_per_s")
    folder = tmp_path / "old"
    folder.mkdir()
    with (folder / "metrics.jsonl").open("w") as stream:
        for line in read_lines(run / "metrics.jsonl"):
            stream.write(json.dumps({key: line[key] for key in kept}) + "\n")
        stream.write('{"step": 10, "lo')
    data = read_run(folder)
    assert len(data.metrics) == 10 and np.isnan(data.idle_share())
    assert "nan" not in render_report(data, tmp_path / "report.html").lower().replace("finance", "")


def test_the_state_is_told_from_the_history(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    lines = (folder / "history.jsonl").read_text().splitlines()
    (folder / "history.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    last = float(read_lines(folder / "metrics.jsonl")[-1]["unix_s"])
    assert read_run(folder).state(now=last + 5) == "running"
    assert read_run(folder).state(now=last + 3600) == "killed"
    ended = json.loads(lines[-1]) | {"state": "failed", "error": "ReelyardError"}
    (folder / "history.jsonl").write_text("\n".join([*lines[:-1], json.dumps(ended)]) + "\n")
    assert "ReelyardError after step 10" in render_report(read_run(folder), tmp_path / "report.html")


def test_a_folder_without_steps_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--run", str(tmp_path)]) == 2
    assert "holds no metrics.jsonl with at least one step" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["report", "--run", str(run), "--output", str(tmp_path / "file" / "report.html")]) == 1
    assert "cannot be written" in capsys.readouterr().err


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=4000))
def test_thinning_keeps_means_and_extremes(values: list[float]) -> None:
    steps, found = np.arange(len(values), dtype=float), np.array(values)
    x, mean, least, most = thinned(steps, found)
    known = found[np.isfinite(found)]
    assert len(x) == len(mean) <= MOST_POINTS and (len(x) > 0) == (len(known) > 0)
    assert (np.diff(x) > 0).all()
    if len(known):
        assert least.min() == known.min() and most.max() == known.max()
        assert ((least <= mean + 1e-6) & (mean <= most + 1e-6)).all()


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50), st.floats(1, 30))
def test_a_smoothed_value_lies_between_what_it_is_the_mean_of(values: list[float], span: float) -> None:
    found = smoothed(np.array(values), span)
    for index, value in enumerate(found.tolist()):
        assert min(values[: index + 1]) - 1e-6 <= value <= max(values[: index + 1]) + 1e-6


@pytest.mark.long
def test_a_hundred_thousand_steps(run: Path, tmp_path: Path) -> None:
    long = tmp_path / "long"
    long.mkdir()
    lines = read_lines(run / "metrics.jsonl")
    with (long / "metrics.jsonl").open("w") as stream:
        for step in range(100_000):
            stream.write(json.dumps({**lines[step % 10], "step": step}) + "\n")
    assert main(["report", "--run", str(long)]) == 0
    assert os.path.getsize(long / "report.html") < 2_000_000
