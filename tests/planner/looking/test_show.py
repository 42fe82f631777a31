"""`show` on plans written by hand: numbering of continued plans, what is printed when the builder measured more or less, where a clip is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from planner.cli import app
from planner.looking.show import clip_lines, step_lines, summary_lines
from schemas.command import run_command
from schemas.errors import UsageError
from schemas.plan import AdmissionRule, PlanContinues, TierPoint
from schemas.tables import SAMPLES, read_table

SHORT, LONG = "1x64x112", "33x64x112"
SECONDS = {SHORT: 1.0, LONG: 3.0}
ROWS = [(SHORT, [(0, index)], [(0, 10 * index, 10)]) for index in range(4)]


def test_a_plan_without_any_metric_has_a_summary(hand_plans: ModuleType, tmp_path: Path) -> None:
    lines = list(summary_lines(hand_plans.write_plan(tmp_path / "plan", [ROWS], SECONDS)))
    text = "\n".join(lines)
    assert "4 steps x 1 rows on 1 lanes" in text and "peak buffer: 0.000 MB (lane 0) of 1.000 MB allowed" in text
    assert "annealing over the constructive start: not measured" in text
    assert "mix index" not in text and "idle share" not in text


def test_everything_that_a_builder_may_say_is_shown(hand_plans: ModuleType, tmp_path: Path) -> None:
    meta = hand_plans.write_plan(
        tmp_path / "plan",
        [ROWS],
        SECONDS,
        tiers={LONG: 1},
        first_step=40,
        first_epoch=2,
        continues=PlanContinues(plan_hash="abcdef012345" * 5, from_step=40, num_lanes=8),
        sync="step",
        rules=(AdmissionRule(column="motion", at_least=0.5),),
        peak_buffer_bytes=(250_000,),
        peak_buffer_clips=(7,),
        max_buffer_clips=9,
        peak_open_shards=(2,),
        max_open_shards=4,
        max_uses_per_epoch=2,
        cost_errors={"mape": 0.021, "p95": 0.05},
        tier_curve=(
            TierPoint(tiers=1, waste=0.5, mix_index_1=1.0, mix_index_8=1.0),
            TierPoint(tiers=2, waste=0.01, mix_index_1=1.5, mix_index_8=0.9),
        ),
        metrics={
            "waste_micro": 0.0123,
            "waste_step": 0.004,
            "mix_index_1/bucket": 1.21,
            "mix_index_1/domain": 0.8,
            "mix_index_8/domain": 0.0,
            "opens_per_shard": 1.5,
            "anneal_epochs_won": 2.0,
            "anneal_peak_buffer_bytes_start": 300_000.0,
            "anneal_peak_buffer_bytes_gain": 50_000.0,
            "anneal_share_before_repair_start": 0.9,
            "anneal_share_before_repair_gain": 0.05,
            "anneal_window_energy_gain": 7.0,
            "anneal_opens_start": 12.0,
            "anneal_opens_gain": 0.0,
        },
    )
    text = "\n".join(summary_lines(meta))
    for words in (
        "steps 40 to 43",
        "continues plan abcdef012345 (8 lanes) from step 40, in epoch 2",
        "sync step",
        "1 rules (motion)",
        "0.250 MB (lane 0) of 1.000 MB allowed; 7 clips of 9 allowed; 2 open shards of 4 allowed",
        "up to 2 times in an epoch",
        "mape 2.10%, p95 5.00%",
        "1.23% under sync micro, 0.40% under sync step",
        "mix index by bucket (1 is random): 1.210 over 1 steps",
        "mix index by domain (1 is random): 0.800 over 1 steps",
        "1.50 opens per shard and epoch",
        "better in 2 of 1 epochs; peak buffer 300.000 kB to 250.000 kB; share before repair 90.00% to 95.00%; window energy -7; nothing on opens",
    ):
        assert words in text
    assert "over 8" not in text, "of four steps there is one such window, the whole: an index of 0 says nothing"
    assert [line for line in text.splitlines() if line.startswith(" *")] == [" *    2    1.00%   1.500   0.900"]


def test_steps_of_a_continued_plan_keep_their_numbers(hand_plans: ModuleType, tmp_path: Path) -> None:
    hand_plans.write_plan(tmp_path / "plan", [ROWS], SECONDS, micro_per_step=2, first_step=10)
    lines = list(step_lines(tmp_path / "plan", 11, None, None, []))
    assert lines[0].startswith("step 11, micro 0") and "shard-000000.tar#2" in lines[2]
    assert "shard-000000.tar#3" in "\n".join(lines) and "tar#1" not in "\n".join(lines)
    with pytest.raises(UsageError, match="has steps 10 to 11"):
        list(step_lines(tmp_path / "plan", 0, None, None, []))


def test_a_clip_is_found_in_order_of_epochs_whichever_lane_uses_it(hand_plans: ModuleType, tmp_path: Path) -> None:
    entry = {
        "epoch": 1,
        "clip_id": "x",
        "shard": 0,
        "ordinal": 5,
        "frames": 1,
        "height": 64,
        "width": 112,
        "event": "carried",
        "reason": "no row was left",
    }
    lanes = [[ROWS[0], ROWS[1], ROWS[2]], [ROWS[1], ROWS[3], (SHORT, [(0, 5)], [(0, 50, 10)])]]
    lanes[1][0] = (LONG, [(0, 5)], [(0, 50, 10)])
    hand_plans.write_plan(tmp_path / "plan", lanes, SECONDS, epoch_of_row=[0, 1, 2], ledger=[entry])
    assert [line.split(":")[0] for line in clip_lines(tmp_path / "plan", "0:5", [])] == [
        "epoch 0",
        "epoch 1",
        "epoch 2",
    ]
    first, second, _ = clip_lines(tmp_path / "plan", "0:5", [])
    assert "step 0, micro 0, lane 1, bucket 33x64x112" in first and "carried: no row was left" in second
    (alone,) = clip_lines(tmp_path / "plan", "0:99", [])
    assert "neither uses it nor leaves it over" in alone


def test_ids_of_the_second_set_are_found_there(
    write_set: Callable[..., Path], hand_plans: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [
        write_set(tmp_path / name, [[(SHORT, first + index) for index in range(3)]], name=name, seed=first)
        for first, name in ((0, "image"), (50, "video"))
    ]
    tables = [read_table(folder / "samples.parquet", SAMPLES).to_pylist() for folder in folders]
    ids = [row["clip_id"] for row in tables[1]]
    sets = []
    for number, (name, rows) in enumerate(zip(("image", "video"), tables, strict=True)):
        size = rows[-1]["offset"] + rows[-1]["length"] + 1024
        sets.append(hand_plans.one_set(1, name=name, size=size).model_copy(update={"first_shard": number}))
    rows = [(SHORT, [(1, index)], []) for index in range(2)]
    hand_plans.write_plan(tmp_path / "plan", [rows], SECONDS, sets=sets)
    options = [item for folder in folders for item in ("--samples", str(folder))]
    assert run_command(app, ["show", str(tmp_path / "plan"), "--clip", ids[1], *options]) == 0
    assert "step 1, micro 0, lane 0" in capsys.readouterr().out
    assert run_command(app, ["show", str(tmp_path / "plan"), "--step", "0", *options]) == 0
    shown = capsys.readouterr().out
    assert f"{ids[0]} (video/shard-000000.tar#0)" in shown and ids[1] not in shown
    assert run_command(app, ["show", str(tmp_path / "plan"), "--clip", ids[1], *options[2:], *options[:2]]) == 1
    assert "in its order" in capsys.readouterr().err
