"""Profile: real micro-batches of a small network on the CPU, from the command to a table that the planner computes with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from planner.pricing.costs import cost_model
from planner.settings import PlanConfig
from schemas.buckets import Bucket
from schemas.config import build_config
from schemas.cost_table import CostMeasurement, read_cost_table
from schemas.errors import ReelyardError, UsageError
from training.cli import main
from training.config import I2VConfig, TrainConfig
from training.network import TrainingNetwork
from training.profiling import ProfileRequest, measure_grid, profile, random_batch, set_facts, summary_lines

Config = Callable[..., dict[str, Any]]
SMALL, LONG = Bucket.parse("1x32x48"), Bucket.parse("33x32x48")


def request(config: dict[str, Any], output: Path, **values: Any) -> ProfileRequest:
    return ProfileRequest(
        **{
            "config": build_config(TrainConfig, config, source="test"),
            "output": output,
            "buckets": (SMALL, LONG),
            "batches": (1, 2),
            "text_tokens": 5,
            "teacher_widths": {"random": 12},
            "repeats": 2,
            **values,
        }
    )


def test_the_command_measures_the_buckets_of_a_set_and_the_planner_takes_the_table(
    tiny_set: Path, config_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "costs.json"
    arguments = [
        "--config",
        config_file(),
        "--output",
        output,
        "--samples",
        tiny_set,
        "--batches",
        "2",
        "--text-tokens",
        "6",
    ]
    assert main(["profile", *map(str, arguments), "--repeats", "1"]) == 0
    table = read_cost_table(output)
    buckets = ["1x32x48", "1x48x32", "33x32x48", "65x32x48"]
    assert [(one.bucket, one.clips) for one in table.measurements] == [(name, 2) for name in buckets]
    assert table.device.startswith("cpu") and table.text_tokens == 6 and table.repeats == 1
    assert "TREAD 0.5 off in blocks 1 to 2" in table.model and "float32" in table.model and "alignment" in table.model
    assert all(one.peak_memory_bytes is None and one.seconds > 0 for one in table.measurements)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[1:-1]] == [one.bucket for one in table.measurements]
    plan = PlanConfig(lanes=2, max_tokens_per_micro_batch=4096)
    costs = cost_model(plan, table)
    for one in table.measurements:
        assert costs.seconds(Bucket.parse(one.bucket), one.clips) == pytest.approx(one.seconds)
    assert costs.seconds(Bucket.parse("65x48x32"), 4) > 0 and costs.memory_bytes(LONG, 1) is None


def test_a_random_batch_is_what_training_would_make(small_config: Config) -> None:
    config = build_config(TrainConfig, small_config(), source="test")
    batch = random_batch(config, LONG, 3, 5, {"random": 12})
    assert batch.clean_BCTYX.shape == (3, 16, 9, 4, 6)
    assert batch.text_BED.shape == (3, 5, 16) and bool(batch.text_mask_BE.all())
    assert batch.teachers["random"].features_NLC.shape == (3, LONG.video_tokens, 12)
    assert batch.route is not None and batch.num_teachers == 3
    assert batch.forward_flops == 3 * config.forward_flops(LONG, 5)
    shape = config.model.model_copy(update={"image_width": 6})
    tokens = I2VConfig(probability=0.1, image_tokens=True)
    given = random_batch(config.model_copy(update={"model": shape, "i2v": tokens}), LONG, 2, 5, {"random": 12}, 7)
    assert given.image_BID is not None and given.image_BID.shape == (2, 7, 6)
    assert bool(given.first_frame_given_B.all()), "the dearest that can come"
    dense = build_config(TrainConfig, small_config(tread=None, repa=None), source="test")
    bare = random_batch(dense, LONG, 1, 5, {})
    assert bare.route is None and not bare.teachers


def measurement(bucket: Bucket, clips: int, seconds: float = 0.1) -> CostMeasurement:
    return CostMeasurement(bucket=str(bucket), clips=clips, seconds=seconds)


def test_a_bucket_ends_when_memory_does_and_the_next_one_goes_on() -> None:
    asked = []

    def point(bucket: Bucket, clips: int) -> CostMeasurement:
        asked.append((bucket, clips))
        if clips * bucket.video_tokens > 2 * LONG.video_tokens:
            raise torch.OutOfMemoryError("no memory")
        return measurement(bucket, clips)

    found = list(measure_grid((LONG, SMALL), (4, 2, 1, 2, 8), point, 60.0))
    assert [[one.clips for one in some] for some in found] == [[1, 2], [1, 2, 4, 8]]
    assert asked[:3] == [(LONG, 1), (LONG, 2), (LONG, 4)]


def test_a_bucket_ends_after_a_point_that_took_too_long() -> None:
    found = list(measure_grid((SMALL,), (1, 2, 4, 8), lambda bucket, clips: measurement(bucket, clips, clips), 3.0))
    assert [one.clips for one in found[0]] == [1, 2, 4]


def test_running_out_of_memory_in_a_backward_pass_leaves_a_network_that_still_measures(
    small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error rises where a GPU raises it, inside the real network's backward pass."""
    forward = TrainingNetwork.forward

    def failing(self: TrainingNetwork, batch: Any) -> Any:
        losses = forward(self, batch)
        if batch.bucket == SMALL and batch.num_clips == 2:
            losses.flow_total.register_hook(_out_of_memory)
        return losses

    monkeypatch.setattr(TrainingNetwork, "forward", failing)
    table = profile(request(small_config(), tmp_path / "costs.json"))
    assert [(one.bucket, one.clips) for one in table.measurements] == [("1x32x48", 1), ("33x32x48", 1), ("33x32x48", 2)]
    assert read_cost_table(tmp_path / "costs.json") == table


def _out_of_memory(gradient: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("no memory")


def test_when_nothing_fits_it_says_so_and_writes_nothing(
    small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: TrainingNetwork, batch: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(TrainingNetwork, "forward", failing)
    with pytest.raises(ReelyardError, match="no bucket of 1x32x48, 33x32x48 fits cpu with 1 clips"):
        profile(request(small_config(), tmp_path / "costs.json"))
    assert not (tmp_path / "costs.json").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"buckets": ()}, "give --buckets, or --samples SET"),
        ({"batches": (0, 1)}, "must be above 0"),
        ({"teacher_widths": {}}, "repa is on, but nothing says how wide"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    small_config: Config, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        request(small_config(), tmp_path / "costs.json", **values)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--buckets", "33x64"], "not of the form FRAMESxHEIGHTxWIDTH"),
        (["--buckets", "1x32x48", "--batches", "1,two"], "must be numbers separated by commas"),
        (["--samples", "nowhere"], "set.json is missing"),
    ],
)
def test_mistakes_on_the_command_line_end_with_one_message(
    config_file: Callable[..., Path], tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["profile", "--config", str(config_file()), "--output", str(tmp_path / "costs.json"), *flags]
    assert main(arguments) in (1, 2)
    errors = capsys.readouterr().err
    assert message in errors and errors.startswith("error: ") and "Traceback" not in errors


def test_the_summary_judges_flops_at_their_best_rate(small_config: Config, tiny_set: Path) -> None:
    config = build_config(TrainConfig, small_config(), source="test")
    measured = tuple(
        CostMeasurement(
            bucket=str(bucket),
            clips=clips,
            seconds=3 * clips * config.forward_flops(bucket, 5) / 2e12,
            peak_memory_bytes=7 * 10**9,
        )
        for bucket in (SMALL, LONG)
        for clips in (1, 3)
    )
    from schemas.cost_table import CostTable

    table = CostTable(device="NVIDIA H100", model="", text_tokens=5, repeats=1, measurements=measured)
    lines = summary_lines(table, config)
    assert all("+0.0%" in line.replace("-0.0%", "+0.0%") and " 0.2%" in line and "7.00" in line for line in lines[1:-1])
    assert "at 2 TFLOP/s" in lines[-1]
    assert set_facts([tiny_set])[1] == {"random": 12}
