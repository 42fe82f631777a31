"""The low-pass of a latent: bits at factor 1, means kept, detail gone, more of it for a smaller factor."""

from __future__ import annotations

import pytest
import torch

from schemas.errors import ConfigError
from training.low_pass import low_pass


def _latent(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def _detail(latent: torch.Tensor) -> float:
    """Mean squared difference of neighbours."""
    return float(latent.diff(dim=-1).square().mean() + latent.diff(dim=-2).square().mean())


def test_factor_one_leaves_the_bits() -> None:
    latent = _latent(2, 16, 8, 14)
    assert torch.equal(low_pass(latent, 1.0), latent)


@pytest.mark.parametrize("shape", [(8, 14), (16, 8, 14), (2, 16, 8, 14), (2, 16, 3, 8, 14), (1, 1)])
@pytest.mark.parametrize("factor", [0.01, 0.4, 0.5, 0.99])
def test_shape_and_dtype_stay_and_a_flat_picture_is_kept(shape: tuple[int, ...], factor: float) -> None:
    flat = torch.full(shape, 1.5, dtype=torch.float16)
    filtered = low_pass(flat, factor)
    assert filtered.shape == flat.shape
    assert filtered.dtype == torch.float16
    assert torch.equal(filtered, flat)


def test_smaller_factors_leave_less_detail_and_the_smallest_the_mean() -> None:
    latent = _latent(2, 4, 16, 16)
    details = [_detail(low_pass(latent, factor)) for factor in (1.0, 0.75, 0.5, 0.25)]
    assert details == sorted(details, reverse=True)
    assert details[-1] < 0.1 * details[0]
    mean = latent.mean(dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(low_pass(latent, 0.01), mean.expand_as(latent))


def test_pictures_do_not_mix() -> None:
    latent = _latent(3, 2, 8, 8)
    together = low_pass(latent, 0.5)
    for index in range(3):
        assert torch.equal(together[index], low_pass(latent[index], 0.5))


@pytest.mark.parametrize("factor", [0.0, -0.5, 1.01, float("nan")])
def test_other_factors_are_refused(factor: float) -> None:
    with pytest.raises(ConfigError, match="low-pass factor"):
        low_pass(_latent(4, 4), factor)
