"""What building and verifying a plan cost as the data grow: seconds, memory, and bytes of the plan.

    python benchmarks/plan_scale.py [--quick] [--json FILE] [--sizes CLIPS ...]

1, 3 and 10 million clips in tars of 1,000, 12 buckets, 512 lanes (`NAME/1M`, ...; names without a size are the largest). `--quick`: 200,000
and 500,000 clips at 64 lanes. Build and verify are the commands, each in a process of its own; seconds are wall clock of the whole process,
`peak_gib` is the larger of the two processes' largest resident sizes as the kernel counted them. `startup_*_s` are the same commands on a set
that takes no time: Python, imports, and compiled kernels from their cache. `bytes_per_clip` is all files of the plan over clips. `*_growth` is the
exponent b of CPU seconds (without start-up), or of memory, ~ clips^b, from the smallest to the largest size; 1 is as fast as the data. No peer.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_table import Row, row, show, write
from plan_sets import SetShape, write_set

from schemas.command import say

BUCKETS = tuple(f"{frames}x{size}" for size in ("144x256", "256x144", "192x192") for frames in (1, 33, 65, 121))
SHARES = (0.20, 0.16, 0.10, 0.06, 0.10, 0.08, 0.05, 0.03, 0.08, 0.07, 0.04, 0.03)
CLIPS_PER_SHARD = 1000
CONCENTRATION = 50.0
CONFIG = "lanes: {lanes}\nmicro_per_step: 4\nmax_tokens_per_micro_batch: 40000\n"
KIB_PER_GIB = 1 << 20


@dataclass(frozen=True)
class Spent:
    """What one process took."""

    seconds: float
    """Wall clock."""
    cpu_seconds: float
    peak_gib: float


@dataclass(frozen=True)
class Measured:
    """One size."""

    build: Spent
    verify: Spent
    plan_bytes: int


def run_planner(*arguments: str) -> Spent:
    """One `reelyard-plan` command in a process of its own.

    Raises:
        SystemExit: if it fails.
    """
    start = time.perf_counter()
    command = [sys.executable, "-c", "from planner.cli import main; main()", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"reelyard-plan {' '.join(arguments)} ended with {process.returncode}")
    return Spent(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / KIB_PER_GIB)


def make_set(folder: Path, clips: int) -> Path:
    """A set of about `clips` clips; one that is there already is taken as it is."""
    if not (folder / "set.json").exists():
        say(f"writing a set of {clips:,} clips")
        shards = max(1, clips // CLIPS_PER_SHARD)
        per_shard = min(clips, CLIPS_PER_SHARD)
        shape = SetShape(
            shards=shards, clips_per_shard=per_shard, buckets=BUCKETS, shares=SHARES, concentration=CONCENTRATION
        )
        write_set(folder, shape)
    return folder


def one_size(work: Path, clips: int, lanes: int) -> Measured:
    """Build, verify, and remove the plan."""
    samples = make_set(work / f"set-{clips}", clips)
    config = work / "plan.yaml"
    config.write_text(CONFIG.format(lanes=lanes), encoding="utf-8")
    plan = work / f"plan-{clips}"
    common = ["--samples", str(samples)]
    say(f"building {clips:,} clips on {lanes} lanes")
    build = run_planner("build", *common, "--config", str(config), "--output", str(plan), "--overwrite")
    say("verifying")
    verify = run_planner("verify", str(plan), *common)
    return Measured(build, verify, sum(path.stat().st_size for path in plan.rglob("*") if path.is_file()))


def growth(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Exponent b of values ~ sizes^b between the first and the last."""
    low, high = max(values[0], 1e-3), max(values[-1], 1e-3)
    return math.log(high / low) / math.log(sizes[-1] / sizes[0])


def label(clips: int) -> str:
    """`label(3_000_000) == "3M"`, `label(200_000) == "200k"`."""
    return f"{clips // 1_000_000}M" if clips >= 1_000_000 else f"{clips // 1000}k"


def rows_of(sizes: Sequence[int], found: Sequence[Measured], startup: Measured) -> list[Row]:
    """One table."""
    rows: list[Row] = []
    for clips, measured in zip(sizes, found, strict=True):
        last = clips == sizes[-1]
        suffix = "" if last else f"/{label(clips)}"
        peak = max(measured.build.peak_gib, measured.verify.peak_gib)
        rows += [
            row(f"build_s{suffix}", measured.build.seconds, "s", goal=60.0 if last else None, better="lower"),
            row(f"verify_s{suffix}", measured.verify.seconds, "s", goal=60.0 if last else None, better="lower"),
            row(f"peak_gib{suffix}", peak, "GiB", goal=8.0 if last else None, better="lower"),
            row(f"bytes_per_clip{suffix}", measured.plan_bytes / clips, "bytes", goal=10.0, better="lower"),
        ]
    build = [one.build.cpu_seconds - startup.build.cpu_seconds for one in found]
    verify = [one.verify.cpu_seconds - startup.verify.cpu_seconds for one in found]
    peaks = [max(one.build.peak_gib, one.verify.peak_gib) for one in found]
    return [
        *rows,
        row("build_growth", growth(sizes, build), "exponent", goal=1.0, better="lower"),
        row("verify_growth", growth(sizes, verify), "exponent", goal=1.0, better="lower"),
        row("memory_growth", growth(sizes, peaks), "exponent", goal=1.0, better="lower"),
        row("clips", float(sizes[-1]), "clips", goal=None, better="higher"),
        row("startup_build_s", startup.build.seconds, "s", goal=None, better="lower"),
        row("startup_verify_s", startup.verify.seconds, "s", goal=None, better="lower"),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute: 200,000 and 500,000 clips at 64 lanes")
    parser.add_argument("--json", type=Path, default=None, help="write the rows to this file")
    parser.add_argument(
        "--sizes", type=int, nargs="+", help="clips of each size, smallest first, instead of 1, 3 and 10 million"
    )
    parser.add_argument(
        "--work", type=Path, default=None, help="keep the sets in this folder, and take those that are there"
    )
    options = parser.parse_args()
    sizes = options.sizes or ([200_000, 500_000] if options.quick else [1_000_000, 3_000_000, 10_000_000])
    lanes = 64 if options.quick else 512
    with tempfile.TemporaryDirectory() as name:
        work = options.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        one_size(work, 1000, 2)  # fills the kernels' cache, as the first build after an installation does
        startup = one_size(work, 1000, 2)
        found = [one_size(work, clips, lanes) for clips in sizes]
    rows = rows_of(sizes, found, startup)
    show(rows)
    write(options.json, rows)


if __name__ == "__main__":
    main()
