"""Waiting is told from working: by the arithmetic, and on two real ranks of which one is late; and it costs no collective of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.cli import main
from training.metrics import read_lines
from training.parallel import World
from training.step_clock import NUMBERS_PER_RANK, RankTimes, StepClock

WORKER = Path(__file__).with_name("waits_worker.py")


def test_the_rank_that_all_wait_for_has_not_waited() -> None:
    late_data = RankTimes.of([100, 2, 5, 7e9, 0, 102, 3, 8e9])
    assert late_data == RankTimes(data_wait_ms=100, idle_ms=101.0, peak_bytes=8_000_000_000)
    assert RankTimes.of([0, 1, 250, 1, 0, 1, 50, 1]).idle_ms == 100, (
        "half of the 200 that one rank waited in the network"
    )


def test_one_rank_waits_for_data_alone() -> None:
    assert RankTimes.of([3, 0.5, 40, 1]).idle_ms == 3, "what it spends in collectives is their price, not waiting"


@given(st.lists(st.tuples(*[st.integers(0, 10**6)] * NUMBERS_PER_RANK), min_size=1, max_size=6))
def test_idle_time_is_never_below_the_mean_wait_for_data(ranks: list[tuple[int, ...]]) -> None:
    times = RankTimes.of([float(number) for rank in ranks for number in rank])
    assert times.idle_ms >= sum(rank[0] for rank in ranks) / len(ranks) - 1e-6
    assert times.peak_bytes == max(rank[3] for rank in ranks)


def test_numbers_of_a_rank_stand_in_its_place_and_the_clock_is_empty_after() -> None:
    clock = StepClock(torch.device("cpu"))
    clock.begin()
    clock.gathered(4.0)
    with clock.micro_batch("1x32x48"):
        assert clock.collective(lambda value: value + 1, 1) == 2
    numbers = clock.exchanged(1, 3, wait_ms=2.5)
    assert len(numbers) == 3 * NUMBERS_PER_RANK
    assert numbers[:NUMBERS_PER_RANK] == [0.0] * NUMBERS_PER_RANK and numbers[4:6] == [2.5, 4.0]
    assert numbers[6] > 0 and numbers[7] > 10e6, "a network's collective, and a process of some megabytes"
    assert list(clock.micro_batch_ms) == ["1x32x48"]
    clock.collective(lambda: None)
    clock.begin()
    assert clock.exchanged(0, 1, wait_ms=0.0)[:3] == [0.0, 0.0, 0.0], "between steps nothing is timed"


def test_two_ranks_wait_for_the_late_one() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(WORKER)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    data, computation, nobody = json.loads(done.stdout.strip().splitlines()[-1])
    assert data["data_wait_ms"] == 500 and data["idle_ms"] > 350, "half of 500, and half of what the other rank waited"
    assert computation["data_wait_ms"] == 0 and computation["idle_ms"] > 100
    assert nobody["data_wait_ms"] == 0 and nobody["peak_bytes"] > 10e6


def test_a_step_makes_the_same_few_collectives_with_everything_on(
    tmp_path: Path, run_arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts with whether everyone has its data, the sums, and whether anyone has a signal or an unsaved checkpoint."""
    counts: list[int] = []
    calls: list[str] = []
    exchange = World._sum

    def counted(self: World, values: torch.Tensor) -> list[Any]:
        calls.append("sum")
        return exchange(self, values)

    import training.step_log as step_log

    write = step_log.write_metrics

    def note(*arguments: Any) -> Any:
        counts.append(len(calls))
        return write(*arguments)

    monkeypatch.setattr(World, "_sum", counted)
    monkeypatch.setattr(step_log, "write_metrics", note)
    quiet = {"checkpoint": {"every_steps": 100, "keep": 1}}
    assert main(["run", *run_arguments(tmp_path / "run", steps=5, **quiet)]) == 0
    per_step = [after - before for before, after in pairwise(counts)]
    assert per_step == [3] * 4, "any more would be a synchronisation that the metrics brought in"


def test_shares_of_a_real_run_on_two_ranks(two_rank_run: Path) -> None:
    lines = read_lines(two_rank_run / "metrics.jsonl")
    assert all(0 <= line["idle_share"] <= 1 for line in lines)
    assert any(line["idle_share"] > 0 for line in lines)
    assert all(line["idle_share"] * line["step_ms"] >= line["data_wait_ms"] / 2 - 0.01 for line in lines)
    for line in lines:
        assert line["micro_ms_by_bucket"].keys() <= line["buckets"].keys()
        assert sum(line["micro_ms_by_bucket"].values()) <= line["step_ms"]
    assert all(line["mem_gb"] > 0.05 for line in lines)


@pytest.mark.gpu
def test_a_gpu_is_timed_by_events() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device; timing by events did not run")
    clock = StepClock(torch.device("cuda"))
    clock.begin()
    values = torch.randn(2048, 2048, device="cuda")
    with clock.micro_batch("1x32x48"):
        for _ in range(8):
            values = values @ values / 2048
    clock.collective(torch.mm, values, values)
    torch.cuda.synchronize()
    numbers = clock.exchanged(0, 1, wait_ms=0.0)
    assert numbers[2] > 0 and clock.micro_batch_ms["1x32x48"][0] > numbers[2] and numbers[3] >= 16e6
