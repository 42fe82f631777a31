"""What only a GPU can show: flash kernels on packed contexts, bfloat16 beside float32, compiled steps.

Marked `gpu`; without one each says in a line that it did not run.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from schemas.buckets import Bucket
from schemas.model_shape import MOTIF_2B, TINY
from training.batch import TrainingBatch
from training.config import TrainConfig, TreadConfig
from training.dit.attention import Attention, FlashAttention, Segments
from training.dit.initialization import build_model, canonical_name
from training.dit.model import MotifVideoDiT
from training.network import build_network
from training.optimizing.local_parts import local_part
from training.optimizing.optimizer import build_optimizer
from training.optimizing.optimizer_config import OptimizerConfig
from training.parallel import choose_device, open_world, shard_network
from training.profiling import random_batch
from training.sync import micro_batch, step_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: GPU paths were NOT exercised"),
    pytest.mark.filterwarnings("default"),
]

SHAPE = TINY.model_copy(
    update={"width": 256, "heads": 4, "head_width": 64, "rope_axes": (16, 24, 24), "image_width": 20, "text_width": 40}
)
LENGTHS = (70, 3, 41)


def network(dtype: torch.dtype) -> MotifVideoDiT:
    model = build_model(SHAPE, seed=2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return model.to("cuda", dtype).eval()


def values() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    on_device = {
        "latent_BCTYX": torch.randn(3, 33, 5, 16, 16, generator=generator),
        "timestep_B": torch.linspace(900.0, 20.0, 3),
        "text_BED": torch.randn(3, 70, 40, generator=generator),
        "image_BID": torch.randn(3, 16, 20, generator=generator),
    }
    on_host = {
        "text_mask_BE": torch.arange(70)[None] < torch.tensor(LENGTHS)[:, None],
        "image_given_B": torch.tensor([True, False, True]),
    }
    return {name: tensor.cuda() for name, tensor in on_device.items()} | on_host


def test_packed_flash_attention_is_attention_of_each_clip() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    lengths = [300, 1, 77]
    query, key, value = (
        torch.randn(sum(lengths), 4, 64, generator=generator, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    segments = Segments.of(lengths, torch.device("cuda"))
    packed = FlashAttention().packed(query, key, value, segments, segments)
    parts = zip(*(tensor.split(lengths) for tensor in (query, key, value)), strict=True)
    expected = torch.cat([Attention()(*(part[None].float() for part in clip))[0] for clip in parts])
    assert (packed.float() - expected).abs().max() < 2e-2
    weight = torch.randn(packed.shape, generator=generator, device="cuda")
    found = torch.autograd.grad((packed.float() * weight).sum(), (query, key, value))
    wanted = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    assert all(
        (a.float() - b.float()).abs().max() < 5e-2 * b.float().abs().max() for a, b in zip(found, wanted, strict=True)
    )


@torch.no_grad()
@pytest.mark.parametrize("mixed", [True, False])
def test_every_attention_is_a_flash_kernel(mixed: bool) -> None:
    model, given = network(torch.bfloat16), values()
    if not mixed:
        given["text_mask_BE"], given["image_given_B"] = (
            torch.ones(3, 70, dtype=torch.bool),
            torch.ones(3, dtype=torch.bool),
        )
    expected = model(**given).velocity_BCTYX
    # Nothing else is allowed here: a call that only another kernel could take would raise.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert (model(**given).velocity_BCTYX - expected).abs().max() < 0.05 * expected.abs().max()
    model.packs_context = False
    if mixed:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(RuntimeError, match="No available kernel"):
            model(**given)


@pytest.mark.filterwarnings("ignore")
def test_nothing_in_a_forward_waits_for_the_device() -> None:
    model, given = network(torch.bfloat16), values()
    model(**given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(**given).velocity_BCTYX.float().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bfloat16_stays_near_float32() -> None:
    exact, rounded = (network(dtype)(**values()).velocity_BCTYX.float() for dtype in (torch.float32, torch.bfloat16))
    assert (rounded - exact).norm() / exact.norm() < 3e-2


def test_gpu_and_cpu_compute_the_same() -> None:
    given = values()
    on_gpu = network(torch.float32)(**given).velocity_BCTYX.cpu()
    on_cpu = network(torch.float32).cpu()(**{name: tensor.cpu() for name, tensor in given.items()}).velocity_BCTYX
    assert (on_gpu - on_cpu).abs().max() < 1e-3 * on_cpu.abs().max()


def step(config: TrainConfig, batch: TrainingBatch) -> tuple[float, float]:
    """Loss and gradient norm of one micro-batch under FSDP2 on the GPU."""
    with open_world(choose_device("cuda")) as world:
        sharded = shard_network(build_network(config, {}), config, world)
        with torch.no_grad():
            for parameter in sharded.parameters():
                parameter.add_(0.03)
        sharded.train()
        losses = sharded(batch.to(world.device))
        losses.flow_total.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in sharded.parameters() if p.grad is not None])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return losses.flow_total.item(), float(norm)


@pytest.mark.parametrize("change", [{}, {"activation_checkpointing": True}, {"compile": True}])
def test_a_routed_training_step_runs_in_every_mode(change: dict[str, bool]) -> None:
    base = TrainConfig(
        model=SHAPE.model_copy(update={"image_width": None}),
        tread=TreadConfig(start_block=1, end_block=2, drop_ratio=0.5),
        device="cuda",
    )
    batch = random_batch(base, Bucket(33, 64, 112), 2, 20, {})
    plain = step(base, batch)
    changed = step(base.model_copy(update=change), batch)
    assert changed == pytest.approx(plain, rel=2e-2)


def test_compiled_gradients_of_one_long_clip_are_those_of_eager_blocks() -> None:
    """With one clip a modulation is broadcast over all tokens, and its gradient is a sum over them: inductor left some unwritten."""
    shape = MOTIF_2B.model_copy(
        update={"dual_blocks": 2, "single_blocks": 2, "decoder_blocks": 1, "text_width": 40, "image_width": None}
    )
    config = TrainConfig(model=shape, device="cuda")
    batch = random_batch(config, Bucket(33, 368, 640), 1, 64, {})
    found = []
    for compiled in (False, True):
        with open_world(choose_device("cuda")) as world:
            changed = config.model_copy(update={"compile": compiled})
            network = shard_network(build_network(changed, {}), changed, world)
            generator = torch.Generator(world.device).manual_seed(4)
            with torch.no_grad():
                for parameter in map(local_part, network.parameters()):
                    parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator, device=world.device))
            network.train()(batch.to(world.device)).flow_total.backward()
            found.append(
                {
                    canonical_name(name): parameter.grad.full_tensor().cpu()  # type: ignore[attr-defined, union-attr]
                    for name, parameter in network.named_parameters()
                    if parameter.grad is not None
                }
            )
    eager, compiled_too = found
    assert eager.keys() == compiled_too.keys()
    apart = {name: float((compiled_too[name] - one).norm() / one.norm()) for name, one in eager.items()}
    assert {name: value for name, value in apart.items() if not value < 0.3} == {}, (
        "unwritten memory is 1 or more away, or NaN"
    )


@pytest.mark.parametrize("name", ["adamw", "muon", "adamw8bit"])
def test_each_optimizer_updates_on_the_gpu(name: str) -> None:
    if name == "adamw8bit":
        pytest.importorskip("torchao", reason="torchao is not installed: adamw8bit was NOT exercised on a GPU")
    config = TrainConfig(model=SHAPE.model_copy(update={"image_width": None}), device="cuda")
    batch = random_batch(config, Bucket(33, 64, 112), 2, 20, {})
    with open_world(choose_device("cuda")) as world:
        sharded = shard_network(build_network(config, {}), config, world).train()
        optimizer = build_optimizer(sharded, OptimizerConfig(name=name, lr=1e-3))  # type: ignore[arg-type]
        losses = []
        for _ in range(8):
            with step_of(sharded, "step"):
                micro_batch(sharded, "step", last=True)
                loss = sharded(batch.to(world.device)).flow_total
                loss.backward()
            losses.append(loss.item())
            assert optimizer.step_alone(1e-3) > 0.0
        assert losses[-1] < losses[0]
        assert {tensor.device.type for tensor in optimizer.tensors().values()} == {"cuda"}
        weights = torch.cat([p.full_tensor().flatten() for p in sharded.parameters()])  # type: ignore[attr-defined]
        assert weights.dtype == torch.float32 and bool(weights.isfinite().all())


def test_counts_do_not_wait_for_the_gpu() -> None:
    with open_world(choose_device("cuda")) as world:
        torch.cuda.set_sync_debug_mode("error")
        try:
            assert world.sum_int64([3]) == [3] and not world.any_rank(False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert world.sum_tensor(torch.ones(2, device=world.device)).tolist() == [1.0, 1.0]
