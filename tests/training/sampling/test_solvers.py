"""Solvers on a flow whose answer is known in closed form: normal data, where the velocity is linear and the end a linear map of the noise."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from training.flow import euler_schedule
from training.sampler_config import SolverName
from training.sampling.solvers import build_solver

MEAN, STD = 0.3, 0.5


def velocity(noisy: Tensor, sigma: float) -> Tensor:
    """`E[eps - x0 | x]` for data of that mean and deviation."""
    variance = (1 - sigma) ** 2 * STD**2 + sigma**2
    centred = (noisy - (1 - sigma) * MEAN) / variance
    return sigma * centred - (MEAN + (1 - sigma) * STD**2 * centred)


def on_path(noise: Tensor, sigma: float) -> Tensor:
    """The exact trajectory from `noise` at s = 1."""
    return (1 - sigma) * MEAN + ((1 - sigma) ** 2 * STD**2 + sigma**2) ** 0.5 * noise


def solve(name: SolverName, start: Tensor, sigmas: list[float]) -> list[Tensor]:
    """The latent after each step."""
    solver, path = build_solver(name), [start]
    for sigma, next_sigma in pairwise(sigmas):
        path.append(solver.step(path[-1], velocity(path[-1], sigma), sigma, next_sigma))
    return path[1:]


@pytest.fixture
def noise() -> Tensor:
    return torch.linspace(-3.0, 3.0, 101, dtype=torch.float64)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("dpmpp_2m", 2)])
def test_order_of_convergence_inside_the_interval(name: SolverName, order: int, noise: Tensor) -> None:
    errors = []
    for steps in (40, 80, 160):
        sigmas = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64).tolist()
        end = solve(name, on_path(noise, 0.9), sigmas)[-1]
        errors.append(float((end - on_path(noise, 0.1)).abs().max()))
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.15)


def test_the_second_order_solver_needs_far_fewer_steps_from_noise_to_data(noise: Tensor) -> None:
    error = {}
    for name, steps in (("euler", 64), ("dpmpp_2m", 64), ("dpmpp_2m", 256)):
        end = solve(name, noise, euler_schedule(steps).tolist())[-1]
        assert torch.isfinite(end).all()
        error[name, steps] = float((end - (MEAN + STD * noise)).abs().max())
    assert error["dpmpp_2m", 64] < error["euler", 64] / 5
    assert error["dpmpp_2m", 256] < error["dpmpp_2m", 64] / 8


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in set_timesteps of diffusers
@pytest.mark.parametrize("shift", [1.0, 3.0, 15.0])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_dpm_solver_takes_the_trajectory_of_diffusers(shift: float, steps: int, noise: Tensor) -> None:
    from diffusers import DPMSolverMultistepScheduler

    sigmas = euler_schedule(steps, shift)
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", algorithm_type="dpmsolver++", solver_type="midpoint"
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas, scheduler.timesteps = sigmas.float(), 1000 * sigmas[:-1].float()  # its own end short of 1
    latent = noise.float()
    ours = solve("dpmpp_2m", latent, sigmas.tolist())
    for index, sigma in enumerate(sigmas[:-1].tolist()):
        latent = scheduler.step(velocity(latent, sigma), scheduler.timesteps[index], latent).prev_sample
        torch.testing.assert_close(ours[index], latent, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0, 15.0])
def test_euler_takes_the_trajectory_of_diffusers(shift: float, noise: Tensor) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    sigmas = euler_schedule(20, shift)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0, 21)[:-1].tolist())
    torch.testing.assert_close(scheduler.sigmas, sigmas.float(), rtol=0, atol=1e-6)
    latent = noise.float()
    ours = solve("euler", latent, sigmas.tolist())
    for index, sigma in enumerate(sigmas[:-1].tolist()):
        latent = scheduler.step(velocity(latent, sigma), scheduler.timesteps[index], latent).prev_sample
        torch.testing.assert_close(ours[index], latent, rtol=0, atol=1e-5)


def test_one_dpm_step_is_the_predicted_data(noise: Tensor) -> None:
    (end,) = solve("dpmpp_2m", noise, [1.0, 0.0])
    torch.testing.assert_close(end, noise - velocity(noise, 1.0))
