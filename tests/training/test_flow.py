"""Rectified flow: end points, velocity by finite difference, densities, loss, schedule."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ConfigError
from training.flow import (
    euler_schedule,
    euler_step,
    flow_loss,
    interpolate,
    model_input,
    resolution_shift,
    sample_sigma,
    shift_sigma,
    timestep_of,
    velocity_target,
)

CLEAN, NOISE = torch.randn(2, 3, 4, 3, 6, 5, generator=torch.Generator().manual_seed(0)).unbind(0)
UNIFORMS = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


def test_end_points_are_exact() -> None:
    assert torch.equal(interpolate(CLEAN, NOISE, torch.zeros(3)), CLEAN)
    assert torch.equal(interpolate(CLEAN, NOISE, torch.ones(3)), NOISE)


@given(sigma=st.floats(0.05, 0.9))
def test_target_is_the_derivative_of_the_path(sigma: float) -> None:
    clean, noise = CLEAN.double(), NOISE.double()
    step = 1e-3
    high, low = (interpolate(clean, noise, torch.full((3,), sigma + sign * step)) for sign in (1, -1))
    assert torch.allclose((high - low) / (2 * step), velocity_target(clean, noise), atol=1e-4)


def test_each_clip_has_its_own_time() -> None:
    sigma = torch.tensor([0.0, 0.25, 1.0])
    path = interpolate(CLEAN, NOISE, sigma)
    assert torch.equal(path[0], CLEAN[0]) and torch.equal(path[2], NOISE[2])
    assert torch.allclose(path[1], 0.75 * CLEAN[1] + 0.25 * NOISE[1])
    assert timestep_of(sigma).tolist() == [0.0, 250.0, 1000.0]


@given(low=st.floats(0.0, 1.0), high=st.floats(0.0, 1.0), shift=st.floats(0.1, 20.0))
def test_shift_keeps_ends_and_order_and_composes(low: float, high: float, shift: float) -> None:
    ends = shift_sigma(torch.tensor([0.0, 1.0], dtype=torch.float64), shift)
    assert torch.allclose(ends, torch.tensor([0.0, 1.0], dtype=torch.float64), atol=1e-12)
    pair = torch.tensor(sorted([low, high]), dtype=torch.float64)
    shifted = shift_sigma(pair, shift)
    assert shifted[0] <= shifted[1] + 1e-12
    assert torch.allclose(shift_sigma(shifted, 1 / shift), pair, atol=1e-9)


def test_uniform_density_is_the_identity_and_logit_normal_has_its_moments() -> None:
    assert torch.equal(sample_sigma(UNIFORMS, density="uniform"), UNIFORMS)
    sigma = sample_sigma(UNIFORMS, density="logit_normal", mean=0.5, std=1.5)
    logits = torch.logit(sigma)
    assert abs(logits.mean().item() - 0.5) < 1e-3 and abs(logits.std().item() - 1.5) < 5e-3
    assert (sigma.diff() > 0).all() and sigma.min() > 0.0 and sigma.max() < 1.0
    assert sample_sigma(torch.zeros(1)).item() == 0.0


def test_shift_moves_the_density_towards_noise() -> None:
    medians = [sample_sigma(UNIFORMS, shift=shift).median().item() for shift in (1.0, 3.0, 15.0)]
    assert medians == pytest.approx([0.5, 0.75, 15 / 16], abs=1e-3)
    assert resolution_shift(4 * 144, base_tokens=144, base_shift=1.5) == pytest.approx(3.0)


def test_impossible_densities_are_refused() -> None:
    with pytest.raises(ConfigError, match="flow shift is 0"):
        sample_sigma(UNIFORMS, shift=0.0)
    with pytest.raises(ConfigError, match="std is -1"):
        sample_sigma(UNIFORMS, std=-1.0)
    with pytest.raises(ConfigError, match="'cosine', expected"):
        sample_sigma(UNIFORMS, density="cosine")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sampling steps is 0"):
        euler_schedule(0)


def test_loss_is_the_mean_per_clip_summed_over_clips() -> None:
    velocity = NOISE - CLEAN
    velocity[1] += 2.0
    velocity[2, 0] += 4.0
    result = flow_loss(velocity, CLEAN, NOISE)
    assert result.count == 3
    assert torch.allclose(result.per_clip_B, torch.tensor([0.0, 4.0, 16.0 / 4]), atol=1e-6)
    assert torch.allclose(result.total, torch.tensor(8.0))
    # Two micro-batches add up to the whole: nothing depends on how a step is cut.
    parts = [flow_loss(velocity[cut], CLEAN[cut], NOISE[cut]) for cut in (slice(0, 1), slice(1, 3))]
    assert torch.allclose(parts[0].total + parts[1].total, result.total)


def test_loss_is_computed_in_float32() -> None:
    result = flow_loss(torch.zeros_like(CLEAN).bfloat16(), CLEAN.half(), NOISE)
    assert result.total.dtype == torch.float32
    assert torch.allclose(result.per_clip_B, (NOISE - CLEAN).square().flatten(1).mean(1), rtol=1e-3)


def test_model_input_marks_the_first_frame_where_it_is_given() -> None:
    stacked = model_input(NOISE, CLEAN, torch.tensor([True, False, True]))
    assert stacked.shape == (3, 9, 3, 6, 5)
    assert torch.equal(stacked[:, :4], NOISE)
    assert torch.equal(stacked[0, 4:8, 0], CLEAN[0, :, 0])
    assert stacked[0, 4:8, 1:].abs().max() == 0.0 and stacked[1, 4:].abs().max() == 0.0
    assert stacked[2, 8, 0].min() == 1.0 and stacked[2, 8, 1:].abs().max() == 0.0


def test_images_are_never_conditioned_on_themselves() -> None:
    stacked = model_input(NOISE[:, :, :1], CLEAN[:, :, :1], torch.tensor([True, True, True]))
    assert stacked[:, 4:].abs().max() == 0.0


@pytest.mark.parametrize("shift", [1.0, 15.0])
def test_schedule_runs_from_noise_to_data_as_diffusers_does(shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    schedule = euler_schedule(50, shift)
    assert (schedule[0].item(), schedule[-1].item(), len(schedule)) == (1.0, 0.0, 51)
    assert (schedule.diff() < 0).all()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1.0 - index / 50 for index in range(50)])
    assert torch.allclose(schedule.float(), scheduler.sigmas, atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 7])
def test_euler_follows_the_true_velocity_to_the_data(num_steps: int) -> None:
    schedule = euler_schedule(num_steps, 3.0).tolist()
    sample = NOISE
    for sigma, next_sigma in pairwise(schedule):
        sample = euler_step(sample, velocity_target(CLEAN, NOISE), sigma, next_sigma)
    assert torch.allclose(sample, CLEAN, atol=1e-5)
    assert math.isclose(sum(b - a for a, b in pairwise(schedule)), -1.0)
