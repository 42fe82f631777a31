"""Updates against torch's own on the whole tensors, on one rank and on parts; and what a checkpoint of each optimizer holds."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from schemas.errors import ConfigError
from training.optimizing import update_rules
from training.optimizing.muon import orthogonal_update
from training.optimizing.optimizer import StepOptimizer, build_optimizer
from training.optimizing.optimizer_config import OptimizerConfig
from training.optimizing.update_rules import check_packages, fits_eight_bits
from training.parallel import open_world

NAMES = ["adamw", "muon", pytest.param("adamw8bit", marks=pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed: adamw8bit was NOT exercised"
))]  # fmt: skip


class Network(nn.Module):
    """Names as in the DiT: a block with a matrix that fits 8 bits, an embedding, a norm."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.patch_embed = nn.Linear(6, 8)
        self.dual_blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 256), nn.LayerNorm(256), nn.Linear(256, 17))])
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, values: Tensor) -> Tensor:
        return self.dual_blocks[0](self.patch_embed(values)).square().sum()


def trained(network: nn.Module, optimizer: StepOptimizer, steps: range, rate: float = 0.01) -> list[float]:
    norms = []
    for step in steps:
        network(torch.randn(4, 6, generator=torch.Generator().manual_seed(step))).backward()
        norms.append(optimizer.step_alone(rate))
    return norms


def test_adamw_is_torchs_with_its_clipping() -> None:
    config = OptimizerConfig(weight_decay=0.1, clip_norm=0.5)
    ours, theirs = Network(), Network()
    norms = trained(ours, build_optimizer(ours, config), range(4))
    matrices = [p for name, p in theirs.named_parameters() if p.ndim > 1 and "embed" not in name]
    others = [p for name, p in theirs.named_parameters() if p.ndim < 2 or "embed" in name]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=config.betas, eps=config.eps)
    for step in range(4):
        theirs(torch.randn(4, 6, generator=torch.Generator().manual_seed(step))).backward()
        assert float(nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)) == pytest.approx(norms[step], rel=1e-6)
        optimizer.step()
        optimizer.zero_grad()
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_a_parameter_without_gradient_counts_as_zero_and_frozen_ones_have_no_state() -> None:
    network = Network()
    network.patch_embed.weight.requires_grad_(False)
    optimizer = build_optimizer(network, OptimizerConfig())
    assert "exp_avg/patch_embed.weight" not in optimizer.tensors()
    before = network.patch_embed.bias.detach().clone()
    network.dual_blocks[0](torch.ones(1, 8)).sum().backward()
    assert network.patch_embed.bias.grad is None
    optimizer.step_alone(0.1)
    assert torch.equal(network.patch_embed.bias, before) and network.dual_blocks[0][0].weight.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_sharded_on_one_rank_updates_as_the_plain_network(name: str) -> None:
    config = OptimizerConfig(name=name, weight_decay=0.1)  # type: ignore[arg-type]
    plain = Network()
    norms = trained(plain, build_optimizer(plain, config), range(3))
    with open_world(torch.device("cpu")) as world:
        sharded = Network()
        fully_shard(sharded, mesh=world.mesh)
        assert trained(sharded, build_optimizer(sharded, config), range(3)) == pytest.approx(norms, rel=1e-6)
        for left, right in zip(plain.parameters(), sharded.parameters(), strict=True):
            assert isinstance(right, DTensor)
            torch.testing.assert_close(left.detach(), right.full_tensor().detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_state_that_is_read_back_goes_on_to_the_bit(name: str) -> None:
    config = OptimizerConfig(name=name)  # type: ignore[arg-type]
    whole, first, second = Network(), Network(), Network()
    optimizer, half = build_optimizer(whole, config), build_optimizer(first, config)
    trained(whole, optimizer, range(6))
    trained(first, half, range(3))
    second.load_state_dict(first.state_dict())
    rest = build_optimizer(second, config)
    saved = {name: tensor.clone() for name, tensor in half.tensors().items()}
    assert all(type(tensor) is Tensor for tensor in saved.values())
    for key, tensor in rest.tensors().items():
        tensor.copy_(saved[key])
    rest.set_updates_done(3)
    trained(second, rest, range(3, 6))
    for left, right in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(left, right)
    for key, tensor in optimizer.tensors().items():
        assert torch.equal(tensor, rest.tensors()[key]), key


def test_the_state_of_each_optimizer_has_its_names() -> None:
    network = Network()
    kinds = {name.split("/")[0] for name in build_optimizer(network, OptimizerConfig()).tensors()}
    assert kinds == {"exp_avg", "exp_avg_sq"}
    names = set(build_optimizer(network, OptimizerConfig(name="muon")).tensors())
    assert {name for name in names if name.startswith("momentum/")} == {
        "momentum/dual_blocks.0.0.weight",
        "momentum/dual_blocks.0.2.weight",
    }
    assert "exp_avg/patch_embed.weight" in names and "exp_avg/dual_blocks.0.0.weight" not in names


@pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed: adamw8bit was NOT exercised"
)
def test_eight_bit_moments_are_small_and_near() -> None:
    eight, full = Network(), Network()
    optimizer = build_optimizer(eight, OptimizerConfig(name="adamw8bit"))
    tensors = optimizer.tensors()
    assert tensors["exp_avg_codes/dual_blocks.0.2.weight"].dtype == torch.uint8
    assert tensors["exp_avg_scale/dual_blocks.0.2.weight"].shape == (17, 1)
    trained(eight, optimizer, range(5))
    trained(full, build_optimizer(full, OptimizerConfig()), range(5))
    start = Network().dual_blocks[0][2].weight
    moved = (full.dual_blocks[0][2].weight - start).norm()
    assert moved > 0.1
    assert (eight.dual_blocks[0][2].weight - full.dual_blocks[0][2].weight).norm() < 0.1 * moved


@pytest.mark.parametrize(
    ("shape", "fits"), [((17, 256), True), ((16, 4, 64), True), ((4096,), False), ((64, 65), False), ((2, 256), False)]
)
def test_eight_bits_take_matrices_whose_rows_are_whole_blocks(shape: tuple[int, ...], fits: bool) -> None:
    assert fits_eight_bits(shape) == fits


def test_a_network_that_would_gain_nothing_from_eight_bits_is_refused() -> None:
    pytest.importorskip("torchao")
    with pytest.raises(ConfigError, match=r"no matrix with rows of a multiple of 256 numbers"):
        build_optimizer(nn.Linear(8, 8), OptimizerConfig(name="adamw8bit"))


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"needs the package torchao; install it with `pip install 'reelyard\[optimizers\]'`"
    ):
        check_packages(OptimizerConfig(name="adamw8bit"))
    check_packages(OptimizerConfig(name="muon"))
    assert update_rules.EIGHT_BIT_BLOCK == 256


def test_muons_update_is_orthogonal_and_of_adamws_size() -> None:
    matrix = torch.randn(24, 64, generator=torch.Generator().manual_seed(1))
    change = orthogonal_update(matrix, 0.01)
    values = torch.linalg.svdvals(change) / (0.01 * 0.2 * math.sqrt(64))
    assert values.min() > 0.5 and values.max() < 1.4
    assert float((change * matrix).sum()) < 0, "it goes downhill"
    assert float(change.square().mean().sqrt()) == pytest.approx(0.01 * 0.2, rel=0.25)
