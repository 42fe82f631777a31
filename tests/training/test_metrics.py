"""Lines are whole or not there, and their keys are the documented ones."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from schemas.errors import DataError
from training.cli import main
from training.metrics import METRICS, LineFile, read_lines
from training.metrics_table import MetricsTable

PROJECT = Path(__file__).resolve().parents[2]


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """A write that would go beyond is cut off at the limit, as on a full disk; the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_line_without_room_is_taken_back_and_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = LineFile(tmp_path / "metrics.jsonl")
    file.append([{"step": 0, "text": "x" * 50}])
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with no_file_larger_than(size + 20):
        file.append([{"step": 1, "text": "x" * 50}])
        file.append([{"step": 2, "text": "x" * 50}])
        assert (tmp_path / "metrics.jsonl").stat().st_size == size
    file.append([{"step": 3}])
    file.close()
    file.close()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [0, 3]
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_a_folder_that_cannot_be_made_does_not_raise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ledger").touch()
    LineFile(tmp_path / "ledger" / "lane-0000.jsonl").append([{"step": 0}])
    assert "the run goes on" in capsys.readouterr().err


def test_a_kill_cuts_off_the_last_line_at_most(tmp_path: Path) -> None:
    """A process that writes as fast as it can, SIGKILLed: what lies there is every line but perhaps the last."""
    path = tmp_path / "metrics.jsonl"
    code = (
        "import sys, itertools; from pathlib import Path; from training.metrics import LineFile\n"
        "file = LineFile(Path(sys.argv[1]))\n"
        "for n in itertools.count(): file.append([{'step': n, 'text': 'x' * 5000}])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=PROJECT)
    while not (path.is_file() and path.stat().st_size > 1_000_000):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    steps = [line["step"] for line in read_lines(path)]
    assert steps == list(range(len(steps))) and len(steps) > 190


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "lines.jsonl")
    file.append([{"loss": float("nan"), "by": {"a": float("inf"), "b": 1.0}, "list": [float("-inf"), None]}])
    assert read_lines(tmp_path / "lines.jsonl") == [{"loss": None, "by": {"a": None, "b": 1.0}, "list": [None, None]}]


def test_the_documented_table_is_the_lines_own() -> None:
    page = (PROJECT / "docs/metrics.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    told = {row[0].strip("`"): (row[1].strip(), row[2]) for row in rows if row[0].strip("`") in METRICS}
    assert list(told) == list(METRICS)
    assert told == {key: (unit or "-", meaning) for key, (unit, meaning) in METRICS.items()}


def test_names_carry_their_unit() -> None:
    suffix = {"ms": "_ms", "%": "_pct", "GB": "_gb", "share": "_share", "1/s": "_per_s", "s": "_s"}
    for key, (unit, _) in METRICS.items():
        assert not unit or re.search(suffix[unit] + r"(_by_bucket)?$", key), key


def test_columns_are_the_lines(two_rank_run: Path) -> None:
    table, lines = MetricsTable.read(two_rank_run), read_lines(two_rank_run / "metrics.jsonl")
    assert len(table) == len(lines) and table.loss_hex == tuple(line["loss_hex"] for line in lines)
    assert table["loss"].tolist() == [line["loss"] for line in lines]
    for bucket, values in table.by_bucket["loss_by_bucket"].items():
        assert [None if value != value else value for value in values.tolist()] == [
            line["loss_by_bucket"].get(bucket) for line in lines
        ]
    times = [[None if value != value else value for value in row] for row in table.by_time_NS.tolist()]
    assert times == [line["loss_by_time"] for line in lines]


def test_a_run_whose_metrics_cannot_be_written_goes_on(
    tmp_path: Path, run_arguments: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (run / "history.jsonl").mkdir(parents=True)
    (run / "tensorboard").write_text("in the way")
    (run / "cost_error.json").mkdir()
    assert main(["run", *run_arguments(run, steps=3)]) == 0
    said = capsys.readouterr().err
    assert said.count("history.jsonl cannot be written") == 1
    assert said.count("cost_error.json gave up (IsADirectoryError") == 1
    assert said.count("TensorBoard gave up") == 1 and "metrics.jsonl has everything" in said
    assert len(read_lines(run / "metrics.jsonl")) == 3


def test_a_run_says_its_history(two_rank_run: Path) -> None:
    lines = [json.loads(line) for line in (two_rank_run / "history.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "save", "save", "save", "end"]
    assert [line["steps_done"] for line in lines] == [0, 4, 8, 10, 10]
    assert lines[0]["environment"]["world_size"] == 2 and lines[0]["config"]["seed"] == 7
    assert lines[-1]["state"] == "finished" and os.path.getsize(two_rank_run / "metrics.jsonl") > 0
    saved = {line["step"]: line["save_ms"] for line in read_lines(two_rank_run / "metrics.jsonl") if line["save_ms"]}
    assert saved == {line["steps_done"]: line["save_ms"] for line in lines[1:3]}, "on the line of the step after it"


def test_a_torn_line_does_not_take_the_next_one_with_it(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"a": 1}\n{"a": ' + "9" * 200_000, encoding="utf-8")
    file = LineFile(path)
    file.append([{"a": 2}])
    file.close()
    assert read_lines(path) == [{"a": 1}, {"a": 2}]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 2 is not JSON"):
        read_lines(path)
