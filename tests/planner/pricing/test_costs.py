"""Costs: analytic FLOPs, and laws fitted to measurements whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planner.pricing.cost_fit import MemoryLaw, TimeLaw, leave_one_out, nonnegative_fit
from planner.pricing.costs import analytic_seconds, cost_model, cost_words
from planner.settings import CostConfig, PlanConfig, RouteConfig
from schemas.buckets import Bucket
from schemas.cost_table import CostMeasurement, CostTable, read_cost_table, write_cost_table
from schemas.errors import ConfigError

BUCKETS = [Bucket.parse(name) for name in ("1x64x112", "33x64x112", "65x64x112", "121x144x256")]
TEXT = 32
LAW = (0.004, 3e-6, 2e-9)


def seconds_of(bucket: Bucket, clips: int, law: tuple[float, float, float] = LAW) -> float:
    tokens = bucket.video_tokens + TEXT
    return law[0] + clips * (law[1] * tokens + law[2] * tokens**2)


def bytes_of(bucket: Bucket, clips: int) -> int:
    return 1_000_000 + 700 * clips * (bucket.video_tokens + TEXT)


def measurements(
    batches: tuple[int, ...] = (1, 2, 4, 8), *, noise: float = 0.0, memory: bool = True
) -> tuple[CostMeasurement, ...]:
    rng = np.random.default_rng([3, 1])
    return tuple(
        CostMeasurement(
            bucket=str(bucket),
            clips=clips,
            seconds=seconds_of(bucket, clips) * float(np.exp(noise * rng.standard_normal())),
            peak_memory_bytes=bytes_of(bucket, clips) if memory else None,
        )
        for bucket in BUCKETS
        for clips in batches
    )


def table(measured: tuple[CostMeasurement, ...]) -> CostTable:
    return CostTable(device="test device", model="tiny", text_tokens=TEXT, repeats=3, measurements=measured)


def config(**cost: object) -> PlanConfig:
    return PlanConfig.model_validate(
        {"lanes": 2, "max_tokens_per_micro_batch": 4096, "cost": {"preset": "tiny", **cost}}
    )


def test_analytic_cost_grows_with_clips_falls_with_tread_and_has_its_overhead_once() -> None:
    cost = CostConfig(preset="tiny", text_tokens=64, teraflops_per_second=1.0)
    bucket = BUCKETS[2]
    one = analytic_seconds(bucket, 1, cost)
    assert analytic_seconds(bucket, 3, cost) == pytest.approx(3 * one)
    routed = cost.model_copy(update={"route": RouteConfig(first_block=1, last_block=5, drop_ratio=0.5)})
    assert analytic_seconds(bucket, 1, routed) < one
    late = cost.model_copy(update={"overhead_seconds": 0.25})
    assert analytic_seconds(bucket, 3, late) == pytest.approx(3 * one + 0.25)
    model = cost_model(config(), None)
    assert "analytic" in model.words and "not measured" in model.words
    assert model.errors == {} and model.memory_bytes(bucket, 1) is None


def test_the_law_of_exact_measurements_is_found_and_predicts_what_was_not_measured(tmp_path: Path) -> None:
    write_cost_table(tmp_path / "costs.json", table(measurements()))
    model = cost_model(config(), read_cost_table(tmp_path / "costs.json"))
    unseen = Bucket.parse("65x144x256")
    for bucket, clips in ((unseen, 3), (BUCKETS[1], 5), (BUCKETS[0], 40)):
        assert model.seconds(bucket, clips) == pytest.approx(seconds_of(bucket, clips), rel=1e-6)
        assert model.memory_bytes(bucket, clips) == pytest.approx(bytes_of(bucket, clips), rel=1e-6)
    assert model.errors["worst"] < 1e-6
    assert set(model.errors) >= {"mape", "p95", "worst", "analytic_mape", "analytic_worst", "bias/1x64x112"}
    assert "test device" in model.words and "left out" in model.words


def test_a_measured_micro_batch_costs_what_was_measured_and_others_lie_between() -> None:
    odd = [
        one.model_copy(update={"seconds": one.seconds * (1.5 if one.bucket == "33x64x112" else 1.0)})
        for one in measurements()
    ]
    model = cost_model(config(), table(tuple(odd)))
    for one in odd:
        assert model.seconds(Bucket.parse(one.bucket), one.clips) == pytest.approx(one.seconds)
    between = model.seconds(BUCKETS[1], 3)
    assert between == pytest.approx(1.5 * seconds_of(BUCKETS[1], 3), rel=0.05)


def test_errors_are_of_measurements_left_out_not_of_those_that_were_fitted() -> None:
    noisy = measurements(noise=0.05)
    errors = leave_one_out(noisy, TEXT)
    law = TimeLaw.fitted(noisy, TEXT)
    inside = [law.seconds(Bucket.parse(one.bucket), one.clips) / one.seconds - 1.0 for one in noisy]
    assert np.abs(inside).max() < 1e-9 < np.abs(errors).mean() < 0.15
    slow = tuple(
        one.model_copy(update={"seconds": 3.0 * one.seconds}) if one.bucket == "121x144x256" and one.clips == 8 else one
        for one in measurements()
    )
    found = cost_model(config(), table(slow)).errors
    assert found["worst"] > 0.5
    assert sum(name.startswith("bias/") for name in found) == len(BUCKETS)
    assert found["worst"] >= found["p95"] >= found["mape"] > 0.0


def test_the_flop_count_is_judged_at_its_best_single_rate() -> None:
    flops = tuple(
        CostMeasurement(
            bucket=str(bucket), clips=2, seconds=7.0 * analytic_seconds(bucket, 2, config(text_tokens=TEXT).cost)
        )
        for bucket in BUCKETS
    )
    model = cost_model(config(), table(flops))
    assert model.errors["analytic_worst"] < 1e-9
    assert f"{400 / 7:.3g} TFLOP/s" in model.words
    fixed = cost_model(config(), table(measurements((1,))))
    assert fixed.errors["analytic_worst"] > 0.2


def test_far_predictions_are_named() -> None:
    model = cost_model(config(text_tokens=TEXT), table(measurements((1, 2))))
    inside, longer = (BUCKETS[3], 4), (Bucket.parse("121x368x640"), 1)
    assert not model.is_far(*inside) and model.is_far(BUCKETS[3], 5) and model.is_far(*longer)
    assert cost_words(model, [inside]) == model.words
    assert "extrapolated beyond 2 times the measured range: 121x368x640 x 1" in cost_words(model, [inside, longer])


def test_text_tokens_that_were_not_measured_are_named() -> None:
    assert "cost.text_tokens 256 is not what was measured" in cost_model(config(), table(measurements())).words


def test_memory_never_falls_with_clips_and_is_never_below_a_measurement() -> None:
    rng = np.random.default_rng([5, 2])
    noisy = [
        one.model_copy(
            update={"peak_memory_bytes": int(bytes_of(Bucket.parse(one.bucket), one.clips) * rng.uniform(0.8, 1.2))}
        )
        for one in measurements((1, 8))
    ]
    law = MemoryLaw.fitted(noisy, TEXT)
    assert law is not None
    for one in noisy:
        bucket = Bucket.parse(one.bucket)
        curve = [law.peak_bytes(bucket, clips) for clips in range(1, 20)]
        assert curve == sorted(curve)
        assert law.peak_bytes(bucket, one.clips) == one.peak_memory_bytes
    model = cost_model(config(), table(measurements(memory=False)))
    assert model.memory_bytes(BUCKETS[0], 1) is None


def test_one_measurement_says_that_its_error_is_not_known() -> None:
    model = cost_model(config(), table(measurements()[:1]))
    assert "error not known" in model.words and "mape" not in model.errors
    assert model.seconds(BUCKETS[0], 1) == pytest.approx(seconds_of(BUCKETS[0], 1))


def test_a_micro_batch_measured_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="measures 1x64x112 with 1 clips more than once"):
        cost_model(config(), table((*measurements(), measurements()[0])))


def test_coefficients_are_never_negative() -> None:
    """Seconds that fall with the square of the tokens would have a negative coefficient in the plain fit."""
    tokens = np.array([10.0, 20.0, 40.0, 80.0])
    columns = np.stack([np.ones(4), tokens, tokens**2], axis=1)
    values = 1.0 + 0.1 * tokens - 2e-4 * tokens**2
    assert np.linalg.lstsq(columns, values, rcond=None)[0].min() < 0.0
    found = nonnegative_fit(columns, values)
    assert (found >= 0.0).all() and found[1] > 0.0
