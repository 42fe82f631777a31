"""The simulation against runs that can be worked out by hand, and against a slow, read-by-read version of its own rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cli import app
from planner.looking.read_events import RankReads, Storage, run_reads
from planner.looking.simulate import simulate_plan, simulation_lines
from planner.looking.step_times import idle_share, step_times
from schemas.command import run_command
from schemas.plan import PlanMeta

MB = 1_000_000
SHORT, LONG = "1x64x112", "33x64x112"
SECONDS = {SHORT: 1.0, LONG: 3.0}
TEN_MB_PER_S = Storage(bandwidth_mb_per_s=10, open_latency_ms=500, read_ahead_steps=1)


def two_lanes(hand_plans: ModuleType, folder: Path, micro_per_step: int = 1) -> PlanMeta:
    """Lane 0: a short, then a long row; 10 MB, then 20 MB. Lane 1: a long, then a short row; 40 MB at once."""
    lanes = [
        [(SHORT, [(0, 0)], [(0, 0, 10 * MB)]), (LONG, [(0, 1)], [(0, 10 * MB, 20 * MB)])],
        [(LONG, [(1, 0)], [(1, 0, 40 * MB)]), (SHORT, [(1, 1)], [])],
    ]
    return hand_plans.write_plan(folder, lanes, SECONDS, micro_per_step=micro_per_step)


def test_times_of_two_ranks_by_hand() -> None:
    seconds = np.array([[1.0, 3.0], [3.0, 1.0]])
    apart = step_times(seconds, ranks=2, micro_per_step=1)
    assert apart.micro.tolist() == [3, 3] and apart.step.tolist() == [3, 3] and apart.busy.tolist() == [2, 2]
    together = step_times(seconds, ranks=2, micro_per_step=2)
    assert together.micro.tolist() == [6] and together.step.tolist() == [4]
    assert idle_share(together.busy, together.micro) == pytest.approx(1 / 3)
    assert idle_share(together.busy, together.step) == 0
    alone = step_times(seconds, ranks=1, micro_per_step=2)
    assert alone.micro.tolist() == alone.step.tolist() == alone.every.tolist() == [8]


def test_lanes_of_a_rank_that_meet_in_each_micro_batch_wait_more_than_in_each_row() -> None:
    seconds = np.array([[1.0], [3.0], [3.0], [1.0]])
    times = step_times(seconds, ranks=2, micro_per_step=1)
    assert times.micro.tolist() == [4] and times.every.tolist() == [6]


def test_stalls_by_hand(hand_plans: ModuleType, tmp_path: Path) -> None:
    two_lanes(hand_plans, tmp_path / "plan")
    trace = simulate_plan(tmp_path / "plan", [], TEN_MB_PER_S).trace
    # rank 0: 0.5 + 1 s, then 2 s more of the same shard; rank 1: 0.5 + 4 s. Both steps take 3 s.
    assert trace.ready.tolist() == [[1.5, 3.5], [4.5, 4.5]]
    assert trace.asked.tolist() == [0, 7.5, 10.5]
    assert trace.stall.tolist() == [4.5, 0] and trace.stall_rank.tolist() == [1, -1]
    assert trace.ahead.tolist() == [[20 * MB, 0], [0, 0]]
    assert trace.open_starts.tolist() == [0, 0]


def test_without_reading_ahead_the_second_step_waits_for_its_own_read(hand_plans: ModuleType, tmp_path: Path) -> None:
    two_lanes(hand_plans, tmp_path / "plan")
    for storage in (
        Storage(bandwidth_mb_per_s=10, open_latency_ms=500, read_ahead_steps=0),
        Storage(bandwidth_mb_per_s=10, open_latency_ms=500, prefetch_mb=19),
    ):
        trace = simulate_plan(tmp_path / "plan", [], storage).trace
        assert trace.ready.tolist() == [[1.5, 9.5], [4.5, 4.5]]
        assert trace.asked.tolist() == [0, 7.5, 12.5]
        assert trace.stall.tolist() == [4.5, 2] and trace.stall_rank.tolist() == [1, 0]
    enough = Storage(bandwidth_mb_per_s=10, open_latency_ms=500, prefetch_mb=20)
    assert simulate_plan(tmp_path / "plan", [], enough).trace.asked.tolist() == [0, 7.5, 10.5]


def test_under_step_sync_a_late_rank_that_has_less_to_do_costs_less(hand_plans: ModuleType, tmp_path: Path) -> None:
    """Step 0: rank 0 begins at 1.5 and works 1 s, rank 1 begins at 4.5 and works 3 s."""
    two_lanes(hand_plans, tmp_path / "plan")
    storage = Storage(bandwidth_mb_per_s=10, open_latency_ms=500, request_latency_ms=250, read_ahead_steps=0)
    sim = simulate_plan(tmp_path / "plan", [], storage, sync="step")
    # 0.25 s more per request: rank 1 is ready at 4.75, so step 1 is asked for at 7.75; its read takes 2.25 s, then 3 s of work.
    assert sim.trace.asked.tolist() == [0, 7.75, 13]
    assert sim.trace.stall.tolist() == [4.75, 2.25]


def test_one_rank_runs_both_lanes_one_after_another(hand_plans: ModuleType, tmp_path: Path) -> None:
    two_lanes(hand_plans, tmp_path / "plan")
    sim = simulate_plan(tmp_path / "plan", [], TEN_MB_PER_S, ranks=1)
    # reads: 1.5 s, 4.5 s (both for step 0), then 2 s; each step takes 1 + 3 s
    assert sim.trace.ready.tolist() == [[6, 8]]
    assert sim.trace.asked.tolist() == [0, 10, 14]
    assert sim.bytes.tolist() == [50 * MB, 20 * MB] and sim.opens.tolist() == [2, 0]


def test_a_shard_is_opened_again_in_the_next_epoch(hand_plans: ModuleType, tmp_path: Path) -> None:
    row = (SHORT, [(0, 0)], [(0, 0, MB)])
    hand_plans.write_plan(tmp_path / "plan", [[row, row]], SECONDS, epoch_of_row=[0, 1])
    assert simulate_plan(tmp_path / "plan", [], TEN_MB_PER_S).opens.tolist() == [1, 1]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[tuple[int, int, bool]]], int, Storage, str]:
    ranks, steps = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    read = st.tuples(st.integers(0, steps - 1), st.integers(1, 9), st.booleans())
    reads = [sorted(draw(st.lists(read, max_size=12)), key=lambda item: item[0]) for _ in range(ranks)]
    storage = Storage(
        bandwidth_mb_per_s=draw(st.sampled_from([1.0, 4.0])),
        open_latency_ms=draw(st.sampled_from([0.0, 700.0])),
        request_latency_ms=draw(st.sampled_from([0.0, 30.0])),
        prefetch_mb=draw(st.sampled_from([None, 0.0, 5.0, 30.0])),
        read_ahead_steps=draw(st.sampled_from([0, 1, 3])),
    )
    return reads, steps, storage, draw(st.sampled_from(["micro", "step"]))


@given(cases(), st.integers(0, 3))
def test_as_the_rules_say_read_by_read(
    case: tuple[list[list[tuple[int, int, bool]]], int, Storage, str], seed: int
) -> None:
    reads, steps, storage, sync = case
    seconds = np.random.default_rng(seed).uniform(0.1, 4.0, (len(reads), steps))
    times = step_times(seconds, len(reads), 1)
    ranks = [
        RankReads(
            step=np.array([item[0] for item in rank], dtype=np.int32),
            bytes=np.array([item[1] * MB for item in rank], dtype=np.int64),
            opens=np.array([item[2] for item in rank], dtype=bool),
        )
        for rank in reads
    ]
    trace = run_reads(ranks, times, sync, storage)
    np.testing.assert_allclose(trace.asked, read_by_read(reads, seconds, storage, sync), rtol=1e-9)


def read_by_read(
    reads: Sequence[Sequence[tuple[int, int, bool]]], seconds: np.ndarray, storage: Storage, sync: str
) -> list[float]:
    """When each step is asked for: one read after another, in plain Python."""
    asked, free, done = [0.0], [0.0] * len(reads), [0] * len(reads)
    for step in range(seconds.shape[1]):
        starts = []
        for rank, items in enumerate(reads):
            while done[rank] < len(items) and items[done[rank]][0] <= step:
                target, size, opens = items[done[rank]]
                until_here = sum(item[1] for item in items[: done[rank] + 1])

                def may_begin(now: int, target: int = target, until: int = until_here, items=items) -> bool:
                    ahead = until - sum(item[1] for item in items if item[0] <= now)
                    held = storage.prefetch_mb is None or ahead <= storage.prefetch_mb
                    return held and now >= target - (storage.read_ahead_steps or 0)

                moment = next(asked[now] for now in range(step + 1) if may_begin(now))
                service = size / storage.bandwidth_mb_per_s + storage.request_latency_ms / 1e3
                service += storage.open_latency_ms / 1e3 if opens else 0
                free[rank] = max(free[rank], moment) + service
                done[rank] += 1
            starts.append(max(asked[step], free[rank] if done[rank] and items[done[rank] - 1][0] <= step else 0.0))
        if sync == "micro":
            asked.append(max(starts) + seconds[:, step].max())
        else:
            asked.append(max(start + busy for start, busy in zip(starts, seconds[:, step], strict=True)))
    return asked


def test_memory_is_what_is_read_and_not_used_up(
    write_set: Callable[..., Path], hand_plans: ModuleType, tmp_path: Path
) -> None:
    """One lane reads three clips at once and uses them in three steps."""
    from schemas.plan import PlanSet
    from schemas.shards import read_set_info
    from schemas.tables import SAMPLES, read_table

    samples = write_set(tmp_path / "set", [[(SHORT, index) for index in range(3)]])
    table = read_table(samples / "samples.parquet", SAMPLES)
    length = table.column("length").to_pylist()
    info = read_set_info(samples).shards[0]
    sets = [
        PlanSet(
            name="64p", samples_hash="5" * 64, first_shard=0, shard_names=(info.name,), shard_bytes=(info.size_bytes,)
        )
    ]
    rows = [(SHORT, [(0, index)], [(0, 0, sum(length))] if index == 0 else []) for index in range(3)]
    hand_plans.write_plan(tmp_path / "plan", [rows], SECONDS, sets=sets)
    sim = simulate_plan(tmp_path / "plan", [samples], TEN_MB_PER_S)
    assert sim.memory is not None
    assert sim.memory.tolist() == [[sum(length), sum(length[1:]), length[2]]]


def test_the_command_prints_units_and_writes_arrays(
    hand_plans: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_lanes(hand_plans, tmp_path / "plan")
    arguments = ["simulate", str(tmp_path / "plan"), "--bandwidth-mb-per-s", "10", "--open-latency-ms", "500"]
    assert run_command(app, [*arguments, "--json", str(tmp_path / "out.json")]) == 0
    shown = capsys.readouterr().out
    assert "4.50 s" in shown and "33.33 % under sync micro" in shown
    assert "the same clips in each step on each of 2 world sizes" in shown
    assert max(map(len, shown.splitlines())) <= 125
    values = json.loads((tmp_path / "out.json").read_text())
    assert values["steps"]["stall_s"] == [4.5, 0] and values["totals"]["run_s"] == 10.5
    assert values["steps"]["step"] == [0, 1] and values["totals"]["opens"] == 2


def test_a_run_that_starts_late_numbers_its_steps_from_there(hand_plans: ModuleType, tmp_path: Path) -> None:
    row = (SHORT, [(0, 0)], [(0, 0, 40 * MB)])
    later = (SHORT, [(0, 1)], [(0, 40 * MB, 90 * MB)])
    hand_plans.write_plan(tmp_path / "plan", [[row, later]], SECONDS, first_step=70)
    lines = list(simulation_lines(simulate_plan(tmp_path / "plan", [], TEN_MB_PER_S)))
    assert any(line.split()[:2] == ["step", "71"] and "waiting for rank 0" in line for line in lines)


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--bandwidth-mb-per-s", "0"], 2, "must be above 0"),
        (["--bandwidth-mb-per-s", "5", "--open-latency-ms", "-1"], 2, "--open-latency-ms -1 must be at least 0"),
        (["--bandwidth-mb-per-s", "5", "--ranks", "3"], 1, "divides the lanes (1, 2)"),
        ([], 2, "--bandwidth-mb-per-s"),
    ],
)
def test_bad_input(
    more: list[str],
    code: int,
    message: str,
    hand_plans: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    two_lanes(hand_plans, tmp_path / "plan")
    assert run_command(app, ["simulate", str(tmp_path / "plan"), *more]) == code
    assert message in capsys.readouterr().err
