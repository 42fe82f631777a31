"""What metrics cost a step, and what a report of a long run costs.

    python benchmarks/metrics.py [--quick] [--json FILE]

`line_ms`: a step's line into metrics.jsonl. `tensorboard_ms`: the same numbers as one event; the peer is `SummaryWriter.add_scalar` for each number.
`clock_ms`: timing 4 micro-batches of 40 collectives each, and reading the clock. `share_of_a_100_ms_step`: all three. `report_seconds` and
`report_mb`: `reelyard-train report` of a run of 100,000 steps (10,000 with --quick) with nine buckets.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_table import row, show, write

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

STEP_MS = 100.0
BUCKETS = [
    f"{frames}x{height}x{width}" for frames in (1, 33, 121) for height, width in ((144, 256), (256, 144), (192, 192))
]


def line_of(step: int) -> dict[str, Any]:
    """A line with every key, as large as they get."""
    from training.metrics import METRICS

    by_bucket = {bucket: 0.5 + 0.01 * place + 1 / (step + 10) for place, bucket in enumerate(BUCKETS)}
    line: dict[str, Any] = {key: 1.0 + step % 7 / 100 for key in METRICS}
    line |= {"step": step, "unix_s": 1.7e9 + step, "loss": 1.0 + 10 / (step + 10), "clips_digest": "0" * 16}
    line |= dict.fromkeys(("loss_by_bucket", "micro_ms_by_bucket", "buckets"), by_bucket)
    return line | {"loss_by_time": [0.1 * place + 0.001 for place in range(10)], "loss_hex": float(line["loss"]).hex()}


def milliseconds(call: Callable[[int], object], times: int) -> float:
    """Of one call, mean."""
    start = time.perf_counter()
    for index in range(times):
        call(index)
    return 1000 * (time.perf_counter() - start) / times


def cost_of_a_step(folder: Path, times: int) -> list[dict[str, Any]]:
    import torch
    from torch.utils.tensorboard import SummaryWriter

    from training.logs.scalars import scalars
    from training.logs.tensorboard_log import TensorBoard
    from training.metrics import LineFile, write_metrics
    from training.step_clock import StepClock

    lines = [line_of(step) for step in range(times)]
    bare = [{key: value for key, value in line.items() if key != "loss_hex"} for line in lines]
    file, board, clock = LineFile(folder / "metrics.jsonl"), TensorBoard(folder, 0), StepClock(torch.device("cpu"))

    def clocked(_: int) -> None:
        clock.begin()
        for bucket in BUCKETS[:4]:
            with clock.micro_batch(bucket):
                for _ in range(40):
                    clock.collective(lambda: None)
        clock.exchanged(0, 1, 0.0)

    line_ms = milliseconds(lambda step: write_metrics(file, bare[step]), times)
    board_ms = milliseconds(lambda step: board.numbers(step, scalars(lines[step])), times)
    clock_ms = milliseconds(clocked, times)
    file.close()
    board.close()
    peer = SummaryWriter(str(folder / "peer"))
    peer_ms = milliseconds(
        lambda step: [peer.add_scalar(name, value, step) for name, value in scalars(lines[step]).items()], times
    )
    peer.close()
    share = (line_ms + board_ms + clock_ms) / STEP_MS
    return [
        row("line_ms", line_ms, "ms", goal=None, better="lower"),
        row("tensorboard_ms", board_ms, "ms", goal=None, better="lower", peer=peer_ms),
        row("clock_ms", clock_ms, "ms", goal=None, better="lower"),
        row("share_of_a_100_ms_step", share, "ratio", goal=0.03, better="lower"),
    ]


def cost_of_a_report(folder: Path, steps: int) -> list[dict[str, Any]]:
    from training.report.page import render_report
    from training.report.run_data import read_run

    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as stream:
        for step in range(steps):
            stream.write(json.dumps(line_of(step)) + "\n")
    start = time.perf_counter()
    html = render_report(read_run(folder), folder / "report.html")
    seconds = time.perf_counter() - start
    return [
        row("report_seconds", seconds, "s", goal=None, better="lower"),
        row("report_mb", len(html.encode()) / 1e6, "MB", goal=2.0, better="lower"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        rows = cost_of_a_step(Path(first), 200 if arguments.quick else 2000)
        rows += cost_of_a_report(Path(second), 10_000 if arguments.quick else 100_000)
    show(rows)
    write(arguments.json, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
