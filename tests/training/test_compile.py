"""Compiled and recomputed blocks: routed and dense, the numbers of the plain network, and one graph for each shape."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from schemas.buckets import Bucket
from schemas.errors import ConfigError
from schemas.model_shape import TINY
from training import parallel
from training.batch import TrainingBatch
from training.config import RepaConfig, TrainConfig, TreadConfig
from training.dit.initialization import canonical_name, initialize_weights
from training.network import TrainingNetwork, build_network
from training.optimizing.local_parts import local_part
from training.parallel import compile_block
from training.profiling import random_batch

SHAPE = TINY.model_copy(
    update={
        "width": 32,
        "heads": 2,
        "head_width": 16,
        "dual_blocks": 2,
        "single_blocks": 2,
        "decoder_blocks": 1,
        "text_width": 8,
        "rope_axes": (4, 6, 6),
    }
)
SMALL, LONG = Bucket(1, 32, 48), Bucket(33, 32, 48)
WIDTHS = {"random": 6}
CONFIG = TrainConfig(
    model=SHAPE,
    tread=TreadConfig(start_block=1, end_block=2, drop_ratio=0.5),
    repa=RepaConfig(tap_block=2, weight=0.5, hidden_width=12),
    device="cpu",
)

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
"""torch's own, while it traces a block whose input has a gradient to come."""


@pytest.fixture(autouse=True)
def _fresh_graphs() -> Iterator[None]:
    """No graph of another test, and none left behind."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counter:
    """A backend that runs the traced graph as it is, and counts."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        self.graphs += 1
        return graph


def plain_network() -> TrainingNetwork:
    network = build_network(CONFIG, WIDTHS).to_empty(device="cpu")
    initialize_weights(network.dit, 0)
    initialize_weights(network.projectors, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    network.dit.packs_context = False
    return network.train()


def wrapped(backend: object, *, recompute: bool = False) -> TrainingNetwork:
    """As `parallel.shard_network` wraps the blocks, without the sharding."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    network = plain_network()
    for blocks in (network.dit.dual_blocks, network.dit.single_blocks, network.dit.decoder_blocks):
        for index, block in enumerate(blocks):
            inner = checkpoint_wrapper(block) if recompute else block
            blocks[index] = inner if backend is None else compile_block(inner, backend)  # type: ignore[arg-type]
    return network


def batch_of(bucket: Bucket, *, step: int = 0, routed: bool = True) -> TrainingBatch:
    """The same clips; in another step other tokens are kept."""
    batch = random_batch(CONFIG, bucket, 2, 5, WIDTHS)
    assert CONFIG.tread is not None
    route = CONFIG.tread.spec().for_clips(seed=0, step=step, clip_ids=batch.clip_ids, num_tokens=bucket.video_tokens)
    return replace(batch, route=route if routed else None)


def losses_and_gradients(network: nn.Module, batch: TrainingBatch) -> dict[str, torch.Tensor]:
    network.zero_grad(set_to_none=True)
    losses = network(batch)
    (losses.flow_total + losses.repa_total).backward()
    gradients = {
        canonical_name(name): parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
    return {"flow": losses.flow_total.detach(), "repa": losses.repa_total.detach(), **gradients}


def assert_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys() and len(found) > 60
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def test_one_graph_for_each_bucket_routed_and_dense_whatever_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run shards and compiles: dual blocks 0 dense, 1 routed; single blocks 2 routed, 3 dense, its context unread; the decoder dense."""
    counter = Counter()
    monkeypatch.setattr(parallel, "compile_block", lambda block: compile_block(block, counter))  # type: ignore[arg-type]
    settings, plain = CONFIG.model_copy(update={"compile": True}), plain_network()
    with parallel.open_world(torch.device("cpu")) as world:
        network = parallel.shard_network(build_network(settings, WIDTHS), settings, world).train()
        assert not network.dit.packs_context
        with torch.no_grad():
            for mine, theirs in zip(network.parameters(), plain.parameters(), strict=True):
                local_part(mine.detach()).copy_(theirs)
        for bucket in (SMALL, LONG):
            for routed in (True, False):
                batch = batch_of(bucket, routed=routed)
                found, expected = losses_and_gradients(network, batch), losses_and_gradients(plain, batch)
                assert_alike(found, expected, rtol=1e-4, atol=1e-5)
        kinds = ("dual dense", "dual routed", "single dense", "single routed", "last single", "decoder")
        assert counter.graphs == 2 * len(kinds)
        for step in range(1, 4):
            for bucket in (SMALL, LONG):
                losses_and_gradients(network, batch_of(bucket, step=step))
        assert counter.graphs == 2 * len(kinds), "kept tokens made a new graph"


@pytest.mark.parametrize("backend", [None, "aot_eager"], ids=["eager", "compiled"])
def test_recomputed_blocks_give_the_same_numbers_routed(backend: str | None) -> None:
    network, plain = wrapped(backend, recompute=True), plain_network()
    for routed in (True,) if backend else (True, False):
        batch = batch_of(SMALL if backend else LONG, routed=routed)
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if backend else {"rtol": 0.0, "atol": 0.0}
        assert_alike(losses_and_gradients(network, batch), losses_and_gradients(plain, batch), **tolerance)


def test_a_break_in_a_graph_is_an_error() -> None:
    class Breaking(nn.Module):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return value + 1 if value.sum() > 0 else value

    with pytest.raises(torch._dynamo.exc.Unsupported):
        compile_block(Breaking(), "eager")(torch.ones(2))


def test_a_fusion_that_leaves_gradients_unwritten_is_off_in_whatever_thread_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backward pass is compiled when it first runs: on a GPU in a thread of autograd, which does not see settings of this one."""
    import torch._inductor.config as inductor
    from torch._inductor.graph import GraphLowering

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # else nothing is compiled the second time
    seen: list[bool] = []
    lower = GraphLowering.__init__

    def noted(self: GraphLowering, *arguments: Any, **options: Any) -> None:
        seen.append(inductor.triton.mix_order_reduction)
        lower(self, *arguments, **options)

    monkeypatch.setattr(GraphLowering, "__init__", noted)
    value = compile_block(nn.Linear(4, 4))(torch.randn(2, 4, requires_grad=True)).sum()
    assert seen
    forward = len(seen)
    backward = threading.Thread(target=value.backward)
    backward.start()
    backward.join()
    assert len(seen) > forward and not any(seen)


def test_a_torch_that_may_have_the_fusion_under_another_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be switched off"):
        parallel._inductor_options({"triton.something_new": True})


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_generated_code_gives_the_same_numbers() -> None:
    """With inductor and the machine's compiler: a single-stream block alone, routed and dense. It takes a minute or more."""
    from training.dit.rope import rope_table
    from training.dit.token_layout import ContextLayout

    block = plain_network().dit.single_blocks[0]
    compiled = compile_block(block)
    generator = torch.Generator().manual_seed(2)
    for columns in (6, 3):
        video, context = (
            torch.randn(2, 2 * columns, 32, generator=generator),
            torch.randn(2, 5, 32, generator=generator),
        )
        condition = torch.randn(2, 32, generator=generator)
        rope = rope_table((1, 2, columns), SHAPE.rope_axes, SHAPE.rope_theta, video.device)
        layout = ContextLayout().beside(2 * columns)
        results = []
        for module in (block, compiled):
            given = video.clone().requires_grad_()
            block.zero_grad(set_to_none=True)
            outputs = module(given, context, condition, rope, layout)
            sum(output.square().sum() for output in outputs).backward()
            gradients = [parameter.grad for parameter in block.parameters() if parameter.grad is not None]
            results.append([*outputs, given.grad, *gradients])
        for found, expected in zip(*reversed(results), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
