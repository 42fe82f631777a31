"""What a command writes of itself, and how it is read: while it runs, after its end, after a kill, in numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from curation.cli import main
from curation.run_metrics import RunMetrics
from curation.run_status import STATUS_FILE, Board, StageLoad
from curation.status_view import read_status, status_lines
from schemas.errors import UsageError


class _Silent(RunMetrics):
    """Takes the place of Ray's metrics, which need a connected driver; the engine's tests read the real ones."""

    def loads(self, phase: str, loads: list[StageLoad]) -> None: ...

    def unit(self, phase: str, *, quarantined: bool, clips: int, video_seconds: float) -> None: ...


def _unit(name: str, weight: float) -> dict[str, Any]:
    return {"label": name, "parts": {"analyze": {"unit": name, "weight": weight}}, "results": {}}


def _finish(board: Board, unit: dict[str, Any], status: str = "done") -> None:
    result = {"status": status, "counts": {"clips": 3, "video_seconds": 20.0}}
    board.finished({**unit, "results": {"analyze": result}})


def test_units_rates_shares_and_the_end_while_it_runs(tmp_path: Path) -> None:
    board, units = Board(tmp_path, metrics=_Silent()), [_unit("a", 30.0), _unit("b", 10.0)]
    with board.command("run", ("analyze", "match")):
        board.phase("analyze")
        with board.work("analyze", units, skipped=5):
            board.loads([StageLoad("analyze", 2, 2, 0, 0, 0.0)])
            time.sleep(0.3)
            board.loads([StageLoad("analyze", 2, 1, 0, 1, 0.3)])
            _finish(board, units[0], "quarantined")
            board.phase("analyze")  # writes at once
            status = read_status(tmp_path)
            work = status["work"]
            assert (work["done"], work["units"], work["skipped"], work["quarantined"], work["queue"]) == (1, 2, 5, 1, 1)
            assert work["clips_per_second"] == pytest.approx(3 / work["seconds"])
            assert work["video_hours_per_hour"] == pytest.approx(20 / work["seconds"])
            assert 0.3 < work["stages"][0]["busy_share"] <= 0.51, (
                "0.3 s of work of two workers that were there for 0.3 s"
            )
            assert 0.05 < work["seconds_left"] < work["seconds"], "three quarters of the weight are done"
            text = "\n".join(status_lines(status))
            assert text.startswith("running for ") and "phase analyze of analyze, match" in text
            assert "1 of 2 units (5 more were done before), 1 quarantined, 1 to go" in text
            assert "stage analyze: 2 workers, busy" in text and "this phase ends in about" in text
    assert read_status(tmp_path)["state"] == "done" and "ended well" in status_lines(read_status(tmp_path))[0]
    assert read_status(tmp_path)["finished"][0]["phase"] == "analyze"


def test_a_failed_command_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no disk"), Board(tmp_path).command("run", ("analyze",)) as _:
        raise ValueError("no disk")
    assert "failed in phase None" in status_lines(read_status(tmp_path))[0]
    assert "ValueError: no disk" in status_lines(read_status(tmp_path))[0]


def test_a_killed_command_is_not_taken_for_a_running_one(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys; from curation.run_status import Board\n"
        "with Board(pathlib.Path(sys.argv[1])).command('run', ('analyze',)):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(root)}, timeout=100
    )
    assert done.returncode == -9
    status = read_status(tmp_path)
    assert status["state"] == "killed" and "the same command again continues" in status_lines(status)[0]


def test_a_process_id_that_was_given_out_again_is_not_believed(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.phase("analyze")
    status = json.loads((tmp_path / STATUS_FILE).read_text())
    status |= {"started": time.time(), "process_start": status["process_start"] + 1}
    (tmp_path / STATUS_FILE).write_text(json.dumps(status))
    assert read_status(tmp_path)["state"] == "killed"


def test_an_output_without_a_run_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no `reelyard-curate run` has begun"):
        read_status(tmp_path)
    assert main(["status", str(tmp_path)]) == 2
    assert main(["status"]) == 2
    assert "give the output folder of the run, or --config" in capsys.readouterr().err
