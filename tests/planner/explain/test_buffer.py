"""Orders of reading on one lane: by hand, against a reader that goes clip by clip, and the plan's own peak found again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cli import app
from planner.explain import explain_lines
from planner.explain.buffer import OrderedUses, peak_of_order
from planner.looking.held import held_over_rows, lane_stays
from planner.looking.lane_arrays import open_lanes
from planner.looking.places import sample_places
from schemas.command import run_command
from schemas.plan import read_plan_meta

CONFIG = Path(__file__).parents[3] / "configs" / "plan_demo.yaml"


def uses(bucket: list[int], row: list[int], length: list[int]) -> OrderedUses:
    count = np.arange(len(bucket))
    return OrderedUses(
        bucket=np.array(bucket), row=np.array(row), length=np.array(length), read=count, shard=count, position=count
    )


def test_peaks_by_hand() -> None:
    # rows: bucket 0, bucket 1, bucket 0; the clips have 10, 20 and 40 bytes
    lane = uses([0, 1, 0], [0, 1, 2], [10, 20, 40])
    assert peak_of_order(lane, np.array([0, 1, 2])) == 40
    assert peak_of_order(lane, np.array([0, 2, 1])) == 60, "row 1 waits for its clip behind the 40 bytes of row 2"
    assert peak_of_order(lane, np.array([2, 0, 1])) == 40, "row 0 takes the first of its bucket, row 1 reads 10 + 20"
    assert peak_of_order(lane, np.array([1, 0, 2])) == 40


@given(st.integers(1, 12), st.integers(0, 10_000))
def test_as_a_reader_that_goes_clip_by_clip(count: int, seed: int) -> None:
    rng = np.random.default_rng([seed])
    bucket, length = rng.integers(0, 3, count), rng.integers(1, 50, count)
    row = np.sort(rng.integers(0, 5, count))
    order = rng.permutation(count)
    held: list[int] = []
    waiting = order.tolist()
    peak = 0
    for number in range(int(row[-1]) + 1):
        taken = []
        for want in bucket[row == number].tolist():
            while not any(bucket[clip] == want for clip in held):
                held.append(waiting.pop(0))
            taken.append(next(clip for clip in held if bucket[clip] == want))
            held.remove(taken[-1])
        peak = max(peak, int(length[held].sum() + length[taken].sum()))
    assert peak_of_order(uses(bucket.tolist(), row.tolist(), length.tolist()), order) == peak


@pytest.fixture(scope="module")
def built(
    write_set: Callable[..., Path],
    make_shards: Callable[..., list[list[tuple[str, int]]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("buffer")
    samples = write_set(folder / "set", make_shards(6, 80))
    command = ["build", "--samples", str(samples), "--config", str(CONFIG), "--output", str(folder / "plan")]
    more = ["lanes=4", "policy=tiers", "epochs=2", "max_steps=null", "anneal_steps=50"]
    assert run_command(app, [*command, *(f"--set={item}" for item in more)]) == 0
    return folder / "plan", samples


def test_the_replay_finds_the_peak_of_every_lane(built: tuple[Path, Path]) -> None:
    plan, samples = built
    meta = read_plan_meta(plan)
    places = sample_places(meta, [samples])
    for lane in open_lanes(plan, meta):
        stays = lane_stays(lane, places)
        held = held_over_rows(stays, places.length[stays.position], len(lane.step))
        assert int(held.max()) == meta.peak_buffer_bytes[lane.lane]


def test_the_command_tells_all_four_chapters_within_100_columns(
    built: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    plan, samples = built
    assert run_command(app, ["explain", str(plan), "--samples", str(samples), "--ranks", "2"]) == 0
    shown = capsys.readouterr().out
    for words in ("used share", "idle share", "buffer: ", "mixing of buckets", "one tar after another"):
        assert words in shown
    assert "run `reelyard-plan verify`" not in shown, "the peak is that of plan.json"
    assert max(map(len, shown.splitlines())) <= 100
    assert any("known with --samples only" in line for line in explain_lines(plan, []))


def test_the_world_size_must_divide_the_lanes(built: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(app, ["explain", str(built[0]), "--ranks", "3"]) == 1
    assert "divides the lanes (1, 2, 4)" in capsys.readouterr().err
