"""Solvers of `dx/ds = v(x, s)` from noise (s = 1) to data (s = 0): Euler, and DPM-Solver++ of second order in its multistep form.

DPM-Solver++ (arXiv 2211.01095) works on the predicted data `x0 = x - s v` over `lambda = log((1 - s) / s)`. For the straight path its formula is

    x_t = (t / s) x_s + (1 - t / s) (x0_s + h / (2 h') (x0_s - x0_before)),    h = lambda_t - lambda_s,    h' = lambda_s - lambda_before

Without the correction that is Euler's step exactly. At s = 1 and s = 0 lambda is infinite: the step that starts at 1 has no earlier one, the next
has h' = infinity and so no correction, and the step to 0 is taken without one. Both solvers take one velocity a step; the price of the
second order is one more latent in memory.

Sources of the formula: the paper, and diffusers' DPMSolverMultistepScheduler, against which it is tested.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor

from training.flow import euler_step
from training.sampler_config import SolverName

__all__ = ["DpmSolver", "EulerSolver", "Solver", "build_solver"]


class Solver(ABC):
    """Steps along one trajectory; a new one for each."""

    @abstractmethod
    def step(self, noisy_BCTYX: Tensor, velocity_BCTYX: Tensor, sigma: float, next_sigma: float) -> Tensor:
        """The latent at `next_sigma` from that at `sigma` and its velocity there; `0 <= next_sigma < sigma <= 1`."""


class EulerSolver(Solver):
    """First order."""

    def step(self, noisy_BCTYX: Tensor, velocity_BCTYX: Tensor, sigma: float, next_sigma: float) -> Tensor:
        return euler_step(noisy_BCTYX, velocity_BCTYX, sigma, next_sigma)


class DpmSolver(Solver):
    """DPM-Solver++ (2M), midpoint form."""

    def __init__(self) -> None:
        self._before: tuple[float, Tensor] | None = None
        """Time and predicted data of the step before."""

    def step(self, noisy_BCTYX: Tensor, velocity_BCTYX: Tensor, sigma: float, next_sigma: float) -> Tensor:
        data_BCTYX = noisy_BCTYX - sigma * velocity_BCTYX
        aim_BCTYX = data_BCTYX
        if self._before is not None:
            earlier_sigma, earlier_BCTYX = self._before
            weight = _correction(earlier_sigma, sigma, next_sigma)
            if weight:
                aim_BCTYX = data_BCTYX + weight * (data_BCTYX - earlier_BCTYX)
        self._before = (sigma, data_BCTYX)
        ratio = next_sigma / sigma
        return ratio * noisy_BCTYX + (1.0 - ratio) * aim_BCTYX


def build_solver(name: SolverName) -> Solver:
    """A solver at the start of a trajectory."""
    return {"euler": EulerSolver, "dpmpp_2m": DpmSolver}[name]()


def _correction(earlier_sigma: float, sigma: float, next_sigma: float) -> float:
    """`h / (2 h')`, and 0 where an end point makes it meaningless."""
    if earlier_sigma >= 1.0 or next_sigma <= 0.0:
        return 0.0
    return (_lambda(next_sigma) - _lambda(sigma)) / (2.0 * (_lambda(sigma) - _lambda(earlier_sigma)))


def _lambda(sigma: float) -> float:
    """Half the logarithm of the signal-to-noise ratio; finite inside (0, 1)."""
    return math.log1p(-sigma) - math.log(sigma)
